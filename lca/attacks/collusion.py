"""Rows made of the honest clients' mean, deviation or directions."""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from lca import options
from lca.attacks import honest as among
from lca.attacks.base import replace, update_attack
from lca.stacked import geometry
from lca.typing import Updates


@update_attack(scale=options.number(0))
def sign_flip(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  scale: float = 1.0,
) -> Updates:
  r"""Byzantine clients turn their own updates round.

  .. math:: \hat x_b = -c\, x_b

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    scale: c, at least 0.

  Returns:
    Stacked updates.

  Raises:
    ValueError: a negative scale.

  References:
    Li et al., RSA: Byzantine-robust stochastic aggregation methods, AAAI 2019.
  """
  turned = geometry.scale(updates, jnp.full(len(byzantine), -scale))
  return replace(updates, byzantine, turned)


@update_attack(epsilon=options.number(0))
def fall_of_empires(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  epsilon: float,
) -> Updates:
  r"""Fall of Empires: all send the honest mean, turned round and scaled.

  .. math:: \hat x_b = -\frac{\epsilon}{|H|} \sum_{i \in H} x_i

  A small :math:`\epsilon` passes for an honest row among rules that look at
  distances; a large one turns the mean round, if :math:`\epsilon |B| > |H|`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    epsilon: at least 0.

  Returns:
    Stacked updates.

  Raises:
    ValueError: a negative epsilon.

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
  honest = among.honest_rows(updates, byzantine)
  mean = among.mean(updates, honest)
  return replace(updates, byzantine, jax.tree.map(lambda x: -epsilon * x, mean))


@update_attack(z=options.number())
def alie(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  z: float | None = None,
) -> Updates:
  r"""A Little Is Enough: all stay within the honest clients' deviations.

  .. math:: \hat x_b = \mu - z \sigma, \qquad
      z_{\max} = \Phi^{-1}\Big(\frac{n - m - s}{n - m}\Big), \quad
      s = \lfloor n / 2 + 1 \rfloor - m

  coordinate by coordinate, with the mean and the deviation of the honest rows
  (of a population: divided by their number) and m Byzantine clients among n.
  With s honest clients farther out than they are, the attackers have the
  majority.

  Where :math:`n - m - s` is at the ends of :math:`0, \dots, n - m` or beyond
  them, as of attackers who have the majority already, it is taken half a
  client inside.

  With one attacker the paper's :math:`z_{\max}` is no attack: it is 0 for odd
  n, so that the honest mean is sent, and a little below 0 for even n (-0.013
  for n = 100). It is above 0 from m = 2 for odd n and from m = 3 for even n.
  With fewer, give a z.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    z: how many deviations; None is the paper's :math:`z_{\max}`.

  Returns:
    Stacked updates.

  References:
    Baruch, Baruch and Goldberg, A little is enough: circumventing defenses for
    distributed learning, NeurIPS 2019.
  """
  honest = among.honest_rows(updates, byzantine)
  mean = among.mean(updates, honest)
  std = among.std(updates, honest, mean)
  far = z
  if far is None:
    n, m = len(byzantine), jnp.sum(byzantine)
    others = jnp.maximum(n - m, 1)
    supporters = n // 2 + 1 - m
    inside = jnp.clip(n - m - supporters, 0.5, others - 0.5)
    far = ndtri(inside / others)
  rows = jax.tree.map(lambda m, s: m - far * s, mean, std)
  return replace(updates, byzantine, rows)


@update_attack(target=options.whole(0))
def mimic(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  target: int | None = None,
) -> Updates:
  r"""All copy one honest client, whom the aggregate then over-represents.

  .. math:: i^* = \arg\max_{i \in H} |\langle z, x_i - \mu \rangle|, \quad
      z = \arg\max_{\|z\| = 1} \sum_{i \in H} \langle z, x_i - \mu \rangle^2

  The paper learns z over the first rounds, and then keeps it and its client;
  here z is this round's, found from the honest rows' centred Gram matrix, and
  the client may change. The paper's projections are not centred.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    target: the number, from 0, of the client to copy among the honest ones, in
      their order; the last one if there are fewer. None is :math:`i^*`.

  Returns:
    Stacked updates; the copies are exact. With no honest row they are zeros.

  Raises:
    ValueError: a target that is no integer, negative, or not below n.

  References:
    Karimireddy, He and Jaggi, Byzantine-robust learning on heterogeneous
    datasets via bucketing, ICLR 2022.
  """
  n = len(byzantine)
  if target is not None and target >= n:
    raise ValueError(f'mimic needs target < n, got n={n}, target={target}')
  honest = among.honest_rows(updates, byzantine)
  if target is None:
    centred = among.centred_gram(updates, honest, among.mean(updates, honest))
    scale = jnp.max(jnp.diagonal(centred))  # eigh squares, and may overflow
    _, vectors = jnp.linalg.eigh(centred / jnp.where(scale > 0, scale, 1))
    chosen = jnp.argmax(jnp.where(honest, jnp.abs(vectors[:, -1]), -1))
  else:
    rank = jnp.cumsum(honest) - 1
    chosen = jnp.argmax(honest & (rank == jnp.minimum(target, rank[-1])))
  found = jnp.any(honest)
  rows = jax.tree.map(lambda x: jnp.where(found, x[chosen], 0), updates)
  return replace(updates, byzantine, rows)
