"""Attacks that flip an update, shift the honest mean, or copy an update."""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from lca import options
from lca.attacks import stats
from lca.attacks.base import replace, update_attack
from lca.stacked import eigen, geometry
from lca.typing import Updates


@update_attack('row', scale=options.number(0))
def sign_flip(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  scale: float = 1.0,
) -> Updates:
  r"""Multiplies each Byzantine client's own update by a negative number.

  .. math:: \hat x_b = -c\, x_b

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    scale: c, at least 0.

  Returns:
    Stacked updates.

  Raises:
    ValueError: `scale` is negative or not finite.

  Examples:
    >>> import jax.numpy as jnp
    >>> from lca import attacks
    >>> print(attacks.sign_flip(jnp.array([1., 2., 3.]),
    ...   byzantine=jnp.arange(3) == 1))
    [ 1. -2.  3.]

  References:
    Li et al., RSA: Byzantine-robust stochastic aggregation methods, AAAI 2019.
  """
  flipped = geometry.scale(updates, jnp.full(len(byzantine), -scale))
  return replace(updates, byzantine, flipped)


@update_attack('coordinate', epsilon=options.number(0))
def fall_of_empires(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  epsilon: float,
) -> Updates:
  r"""Fall of Empires: sends the negative honest mean, scaled.

  .. math:: \hat x_b = -\frac{\epsilon}{|H|} \sum_{i \in H} x_i

  where H holds the honest and B the Byzantine clients. Rules that compare
  distances take a row with a small :math:`\epsilon` for an honest one. Under
  plain averaging, a large :math:`\epsilon` reverses the direction of the
  aggregate, as soon as :math:`\epsilon |B| > |H|`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    epsilon: at least 0.

  Returns:
    Stacked updates.

  Raises:
    ValueError: `epsilon` is negative or not finite.

  Examples:
    >>> import jax.numpy as jnp
    >>> from lca import attacks
    >>> print(attacks.fall_of_empires(jnp.array([1., 9., 3.]),
    ...   byzantine=jnp.arange(3) == 1, epsilon=.5))
    [ 1. -1.  3.]

  References:
    Xie, Koyejo and Gupta, Fall of Empires: breaking Byzantine-tolerant SGD by
    inner product manipulation, UAI 2019; Varma et al., LEGATO, 2021, Eq. 1.
  """
  honest = stats.honest_rows(updates, byzantine)
  mean = stats.mean(updates, honest)
  return replace(updates, byzantine, jax.tree.map(lambda x: -epsilon * x, mean))


@update_attack('coordinate', z=options.number())
def alie(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  z: float | None = None,
) -> Updates:
  r"""A Little Is Enough: sends the honest mean less z standard deviations.

  .. math:: \hat x_b = \mu - z \sigma

  with the mean :math:`\mu` and the standard deviation :math:`\sigma` of the
  honest rows in every coordinate (the variance is divided by the number of
  rows). Without a given z, the paper's largest safe value is used:

  .. math:: z_{\max} = \Phi^{-1}\Big(\frac{n - m - s}{n - m}\Big), \quad
      s = \lfloor n / 2 + 1 \rfloor - m

  for m Byzantine clients among n. Here s is the number of honest clients that
  must lie farther from the mean than the attackers, so that both together are
  a majority.

  The argument of :math:`\Phi^{-1}` must lie inside (0, 1). Therefore
  :math:`n - m - s` is clipped to :math:`[1/2, n - m - 1/2]`. The clipping takes
  effect if the attackers are a majority already, for example.

  With one attacker the paper's :math:`z_{\max}` is no attack. It is 0 for odd
  n, so the honest mean is sent, and slightly negative for even n (-0.013 for
  n = 100). It is positive from m = 2 for odd n and from m = 3 for even n. With
  fewer attackers, set `z`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    z: number of standard deviations; None uses the paper's :math:`z_{\max}`.

  Returns:
    Stacked updates.

  Raises:
    ValueError: `z` is not finite.

  Examples:
    >>> import jax.numpy as jnp
    >>> from lca import attacks
    >>> print(attacks.alie(jnp.array([1., 9., 3.]),
    ...   byzantine=jnp.arange(3) == 1, z=1.5))
    [1.  0.5 3. ]

  References:
    Baruch, Baruch and Goldberg, A little is enough: circumventing defenses for
    distributed learning, NeurIPS 2019.
  """
  honest = stats.honest_rows(updates, byzantine)
  mean = stats.mean(updates, honest)
  std = stats.std(updates, honest, mean)
  num_deviations = z
  if num_deviations is None:
    n, m = len(byzantine), jnp.sum(byzantine)
    num_honest = jnp.maximum(n - m, 1)
    supporters = n // 2 + 1 - m  # s
    closer = jnp.clip(n - m - supporters, 0.5, num_honest - 0.5)
    num_deviations = ndtri(closer / num_honest)
  rows = jax.tree.map(lambda m, s: m - num_deviations * s, mean, std)
  return replace(updates, byzantine, rows)


@update_attack(target=options.whole(0))
def mimic(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  target: int | None = None,
) -> Updates:
  r"""Mimic: copies one honest client, so that the aggregate overweights it.

  Without a given target, the attackers copy the client :math:`i^*` that lies
  farthest along the direction z of largest variance among honest rows:

  .. math:: i^* = \arg\max_{i \in H} |\langle z, x_i - \mu \rangle|, \quad
      z = \arg\max_{\|z\| = 1} \sum_{i \in H} \langle z, x_i - \mu \rangle^2

  with the mean :math:`\mu` of the honest rows. The paper learns z over the
  first rounds, then keeps z and the copied client, and does not centre the
  rows. Here z is computed anew in every round, from the Gram matrix of the
  centred honest rows, so the copied client may change.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    target: position, from 0, of the client to copy among the honest rows in
      their order; the last honest row if there are fewer. None copies
      :math:`i^*`.

  Returns:
    Stacked updates. The copies are exact. Without an honest row they are zeros.

  Raises:
    ValueError: `target` is no integer, negative, or not below n.

  Examples:
    >>> import jax.numpy as jnp
    >>> from lca import attacks
    >>> print(attacks.mimic(jnp.array([1., 9., 2., 6.]),
    ...   byzantine=jnp.arange(4) == 1))
    [1. 6. 2. 6.]

  References:
    Karimireddy, He and Jaggi, Byzantine-robust learning on heterogeneous
    datasets via bucketing, ICLR 2022.
  """
  n = len(byzantine)
  if target is not None and target >= n:
    raise ValueError(f'mimic needs target < n, got n={n}, target={target}')
  honest = stats.honest_rows(updates, byzantine)
  if target is None:
    centred = stats.centred_gram(updates, honest, stats.mean(updates, honest))
    # eigh squares its input, which would overflow for large products.
    largest = jnp.max(jnp.diagonal(centred))
    _, vectors = eigen.eigh(centred / jnp.where(largest > 0, largest, 1))
    # Row i's product with z is proportional to entry i of the last eigenvector
    # of the Gram matrix.
    copied = jnp.argmax(jnp.where(honest, jnp.abs(vectors[:, -1]), -1))
  else:
    rank = jnp.cumsum(honest) - 1
    copied = jnp.argmax(honest & (rank == jnp.minimum(target, rank[-1])))
  any_honest = jnp.any(honest)
  rows = jax.tree.map(lambda x: jnp.where(any_honest, x[copied], 0), updates)
  return replace(updates, byzantine, rows)
