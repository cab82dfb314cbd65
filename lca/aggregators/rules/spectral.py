"""Rules that look for the direction along which the clients differ most.

The principal direction of the centred updates is a mixture of them: its
coefficients are an eigenvector of the centred `[n, n]` Gram matrix.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lca.aggregators.base import FunctionRule, Info, Verdict, gram_rule
from lca.aggregators.rules.selection import (
  average,
  check_integers,
  check_majority,
  select_lowest,
)
from lca.stacked import eigen, geometry, sums
from lca.typing import Gram, Update, Updates


def _deviations(
  gram: Gram, weights: jax.Array, seen: jax.Array
) -> tuple[jax.Array, jax.Array]:
  r"""Along the principal direction v of the weighted covariance.

  Args:
    gram: `[n, n]` inner products, without rejected rows.
    weights: `[n]`, nonnegative.
    seen: `[n]` mask of the rows to look at, all of those with a weight.

  Returns:
    The largest eigenvalue, and `[n]` squares :math:`\langle v, x_i -
    \mu\rangle^2` with the weighted mean :math:`\mu`; 0 of rows not seen.
  """
  share = weights / jnp.sum(weights)
  mixed = sums.dot(gram, share)
  centred = gram - mixed[:, None] - mixed + sums.dot(share, mixed)
  # Not beside the others, however large they are.
  centred = jnp.where(seen[:, None] & seen, centred, 0)
  # Of magnitude 1, so that squares of large updates do not overflow.
  size = jnp.maximum(jnp.max(jnp.diagonal(centred)), jnp.finfo(gram.dtype).tiny)
  centred, root = centred / size, jnp.sqrt(share)
  values, vectors = eigen.eigh(root[:, None] * centred * root)
  value, vector = jnp.maximum(values[-1], 0), root * vectors[:, -1]
  squares = sums.dot(centred, vector) ** 2
  return size * value, size * squares / jnp.where(value > 0, value, 1)


@gram_rule
def caf(
  gram: Gram, *, f: int, farthest: Literal['remaining', 'any'] = 'remaining'
) -> Verdict:
  r"""The covariance-bound agnostic filter.

  Every client starts with weight :math:`c_i = 1`. As long as :math:`\sum_i c_i
  > n - 2f`, the largest eigenvalue :math:`\lambda` of the weighted covariance
  and its eigenvector v are found, and

  .. math:: c_i \leftarrow c_i \Big(1 - \frac{\tau_i}{\max_{c_j > 0} \tau_j}
      \Big), \qquad \tau_i = \langle v, x_i - \mu \rangle^2

  takes weight from those that deviate from the weighted mean :math:`\mu` along
  v. The result is the mean of the smallest :math:`\lambda` seen.

  The maximum is over the clients that still have weight, one of whom at least
  every iteration removes. Rejected rows (see `lca.geometry`) start with weight
  0; with no other the update is NaN. What at most f clients send moves the
  result no farther than a multiple of the honest updates' lengths.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: how many Byzantine clients to tolerate.
    farthest: whose deviation is the maximum, that of the `'remaining'` clients
      or of `'any'`, as in byzfl and byzpy. With the latter a removed client
      still counts: the farther away it is, the less every iteration takes, and
      the filter may end after very many, with nothing promised.

  Returns:
    One update.

  Raises:
    ValueError: unless f >= 0 and n > 2f; unknown `farthest`.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1.], [2.], [3.], [2.], [99.]])
    >>> print(lca.caf(updates, f=1).round(2))
    [2.]

  References:
    Allouah, Guerraoui and Stephan, Towards trustworthy federated learning
    with untrusted participants, ICML 2025.
  """
  n = len(gram)
  check_majority('caf', n, f)
  if farthest not in ('remaining', 'any'):
    raise ValueError(f"farthest must be 'remaining' or 'any', got {farthest!r}")
  good = ~geometry.rejected_rows(gram)
  inner = geometry.without_rejected(geometry.differences(gram), ~good)

  def filter_once(carry):
    weights, _, least, best = carry
    seen = weights > 0 if farthest == 'remaining' else good
    value, squares = _deviations(inner, weights, seen)
    best = jnp.where(value < least, weights, best)
    largest = jnp.max(squares)
    # Compiled, a quotient of equals may be a rounding away from 1.
    far = squares >= (1 - 1e-6) * largest
    kept = jnp.where(far, 0, 1 - squares / largest)
    return weights * kept, weights, jnp.minimum(value, least), best

  def goes_on(carry):
    weights, last, *_ = carry
    return (jnp.sum(weights) > n - 2 * f) & jnp.any(weights != last)

  start = good.astype(gram.dtype)
  carry = start, -start, jnp.array(jnp.inf, gram.dtype), start
  *_, best = lax.while_loop(goes_on, filter_once, carry)
  return Verdict(best / jnp.sum(best))


@FunctionRule
def dnc(
  updates: Updates,
  *,
  f: int,
  filter_fraction: float = 1.0,
  num_iters: int = 1,
  subsample_dim: int | None = None,
  key: jax.Array | None = None,
) -> tuple[Update, Info]:
  r"""Divide and conquer: drops the clients that deviate most along one line.

  .. math:: s_i = \langle v, x_i - \bar x \rangle^2

  with v the principal direction of the centred updates. The int(c f) clients
  of the largest :math:`s_i` are dropped, c the `filter_fraction`, and the
  others averaged. With `subsample_dim`, the scores are taken `num_iters` times
  on as many coordinates drawn at random, and a client is averaged if it was
  never dropped; by default all coordinates are used, once, and nothing is
  random.

  Ties keep the lowest index. Rejected rows (see `lca.geometry`) have score
  +inf. With nobody left, the update is NaN. Whatever at most f clients send,
  the result is finite; only along v is what stays bounded.

  Promise (docs/rules.md): finite.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: how many Byzantine clients to tolerate.
    filter_fraction: how many clients to drop, in units of f.
    num_iters: how many draws of coordinates.
    subsample_dim: how many coordinates a draw has, all if there are no more;
      every leaf gives its share, spread over the leaf.
    key: of the draws.

  Returns:
    One update.

  Raises:
    ValueError: unless f >= 0, n > 2f, 0 <= filter_fraction f < n,
      num_iters >= 1 and subsample_dim >= 1; if there is `subsample_dim` and no
      key, or `num_iters` without it.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> print(lca.dnc(jnp.array([[1.], [2.], [3.], [99.]]), f=1))
    [2.]

  References:
    Shejwalkar and Houmansadr, Manipulating the Byzantine: optimizing model
    poisoning attacks and defenses for federated learning, NDSS 2021.
  """
  gram = geometry.gram(updates)
  n = len(gram)
  check_majority('dnc', n, f)
  if not 0 <= filter_fraction * f < n:
    raise ValueError(
      f'dnc needs 0 <= filter_fraction f < n, got n={n}, f={f}, '
      f'filter_fraction={filter_fraction}'
    )
  dropped = int(filter_fraction * f)
  if subsample_dim is None:
    if num_iters != 1:
      raise ValueError(
        f'num_iters={num_iters} applies to draws of subsample_dim coordinates'
      )
    verdict = _dnc(gram, gram, dropped)
    return geometry.mix(updates, verdict.weights), verdict.info(gram)
  draws = _draws(updates, num_iters, subsample_dim, key)
  kept = [_dnc(gram, geometry.gram(x), dropped).weights > 0 for x in draws]
  verdict = average(gram, functools.reduce(jnp.logical_and, kept))
  return geometry.mix(updates, verdict.weights), verdict.info(gram)


def _dnc(gram: Gram, seen: Gram, dropped: int) -> Verdict:
  """Averages those that deviate least in the Gram matrix `seen`."""
  seen = lax.stop_gradient(seen)
  bad = geometry.rejected_rows(lax.stop_gradient(gram))
  inner = geometry.without_rejected(geometry.differences(seen), bad)
  _, squares = _deviations(inner, (~bad).astype(seen.dtype), ~bad)
  scores = jnp.where(bad, jnp.inf, squares)
  return select_lowest(lax.stop_gradient(gram), scores, len(gram) - dropped)


def _draws(
  updates: Updates, num_iters: int, dim: int, key: jax.Array | None
) -> list[Updates]:
  """`num_iters` times `dim` coordinates; every leaf gives its share."""
  leaves = [sums.flat(jnp.asarray(leaf)) for leaf in jax.tree.leaves(updates)]
  sizes = [leaf.shape[1] for leaf in leaves]
  ends = np.cumsum(sizes)
  if key is None:
    raise ValueError('dnc draws coordinates with a key, got key=None')
  check_integers('dnc', num_iters=num_iters, subsample_dim=dim)
  if num_iters < 1 or dim < 1:
    raise ValueError(
      'dnc needs num_iters >= 1 and subsample_dim >= 1, got '
      f'num_iters={num_iters}, subsample_dim={dim}'
    )
  part = min(1, dim / max(ends[-1], 1))
  stops = np.rint(ends * part).astype(int)
  shares = np.diff(stops, prepend=0)
  # One of each of as many stretches: all different, and without a sort. Drawn
  # at once, for XLA compiles every call anew.
  bounds = [
    np.arange(share + 1) * size // max(share, 1)
    for size, share in zip(sizes, shares, strict=True)
  ]
  lowest = np.concatenate([b[:-1] for b in bounds])
  above = np.concatenate([b[1:] for b in bounds])
  drawn = jax.random.randint(key, (num_iters, len(lowest)), lowest, above)
  chosen = jnp.split(drawn, stops[:-1], axis=1)
  return [
    [leaf[:, own[i]] for leaf, own in zip(leaves, chosen, strict=True)]
    for i in range(num_iters)
  ]
