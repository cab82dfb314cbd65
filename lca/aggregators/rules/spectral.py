"""Rules that filter along the direction in which the clients differ most.

This direction, the principal direction of the centred updates, is a weighted
sum of them. Its coefficients follow from an eigenvector of the centred
`[n, n]` Gram matrix, so that no covariance matrix of the parameters is needed.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import FunctionRule, Info, Verdict, gram_rule
from lca.aggregators.rules.selection import (
  average,
  check_integers,
  check_majority,
  select_lowest,
)
from lca.stacked import eigen, geometry, sums
from lca.stacked.subsample import Subsample
from lca.typing import Gram, Update, Updates


def centred_gram(
  gram: Gram, share: jax.Array, included: jax.Array
) -> jax.Array:
  """Returns the inner products of the rows less their weighted mean.

  Args:
    gram: `[n, n]` inner products, without rejected rows.
    share: `[n]` weights of the mean, which sum to 1.
    included: `[n]` mask. The others' rows and columns are 0, as they may be
      enormous and would hide the rest.
  """
  mixed = sums.dot(gram, share)
  centred = gram - mixed[:, None] - mixed + sums.dot(share, mixed)
  return jnp.where(included[:, None] & included, centred, 0)


def _deviations(
  gram: Gram, weights: jax.Array, included: jax.Array
) -> tuple[jax.Array, jax.Array]:
  r"""Returns the clients' squared deviations along the principal direction.

  The principal direction v is the top eigenvector of the weighted covariance.

  Args:
    gram: `[n, n]` inner products, without rejected rows.
    weights: `[n]`, nonnegative.
    included: `[n]` mask of the rows to return deviations of. Every row with a
      weight must be included.

  Returns:
    The largest eigenvalue, and `[n]` squares :math:`\langle v, x_i -
    \mu\rangle^2`, where :math:`\mu` is the weighted mean; 0 for rows that are
    not included.
  """
  share = weights / jnp.sum(weights)
  centred = centred_gram(gram, share, included)
  # Scaled to magnitude 1, so that squares of large updates do not overflow.
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
  r"""The covariance-bound agnostic filter (CAF).

  Every client starts with weight :math:`c_i = 1`. As long as :math:`\sum_i c_i
  > n - 2f`, the largest eigenvalue :math:`\lambda` of the weighted covariance
  and its eigenvector v are found, and

  .. math:: c_i \leftarrow c_i \Big(1 - \frac{\tau_i}{\max_{c_j > 0} \tau_j}
      \Big), \qquad \tau_i = \langle v, x_i - \mu \rangle^2

  takes weight from clients that deviate from the weighted mean :math:`\mu`
  along v. The result is the weighted mean of the step with the smallest
  :math:`\lambda`.

  The maximum is over the clients that still have weight; every iteration
  removes at least one of them. Rejected rows (see `lca.geometry`) start with
  weight 0; if no row is left, the update is NaN. Whatever at most f clients
  send, the length of the result is at most a multiple of the honest updates'
  lengths.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.
    farthest: clients whose deviations the maximum is over: the `'remaining'`
      clients, or `'any'`, as in byzfl and byzpy. With `'any'` a removed client
      still counts. The farther away it is, the less weight an iteration
      removes; the filter may take very many iterations, and nothing is
      promised.

  Returns:
    One update.

  Raises:
    ValueError: unless f >= 0 and n > 2f, or if `farthest` is unknown.

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
  accepted = ~geometry.rejected_rows(gram)
  inner = geometry.without_rejected(geometry.differences(gram), ~accepted)

  def filter_once(carry):
    weights, _, least, best = carry
    included = weights > 0 if farthest == 'remaining' else accepted
    value, squares = _deviations(inner, weights, included)
    best = jnp.where(value < least, weights, best)
    largest = jnp.max(squares)
    # The largest deviation gives weight 0 exactly: compiled, the quotient of
    # equal numbers may differ from 1 by a rounding error.
    is_farthest = squares >= (1 - 1e-6) * largest
    kept = jnp.where(is_farthest, 0, 1 - squares / largest)  # of c_i
    return weights * kept, weights, jnp.minimum(value, least), best

  def filtering(carry):
    # Stops once sum_i c_i <= n - 2f, or if no weight has changed.
    weights, last, *_ = carry
    return (jnp.sum(weights) > n - 2 * f) & jnp.any(weights != last)

  start = accepted.astype(gram.dtype)
  carry = start, -start, jnp.array(jnp.inf, gram.dtype), start
  *_, best = lax.while_loop(filtering, filter_once, carry)
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
  r"""Divide and conquer (DnC): drops the clients farthest along one direction.

  .. math:: s_i = \langle v, x_i - \bar x \rangle^2

  where v is the principal direction of the centred updates. The int(c f)
  clients of largest :math:`s_i` are dropped, where c is the `filter_fraction`,
  and the others are averaged. By default all coordinates are used once, and
  nothing is random. With `subsample_dim`, the scores are computed `num_iters`
  times, each time on that many random coordinates, and a client is averaged if
  it was never dropped.

  In a tie the lowest index is kept. Rejected rows (see `lca.geometry`) have
  score +inf. If no client is left, the update is NaN. Whatever at most f
  clients send, the result is finite; its length is bounded along v only.

  Promise (docs/rules.md): finite.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.
    filter_fraction: number of clients to drop, in units of f.
    num_iters: number of draws of coordinates.
    subsample_dim: number of coordinates in a draw; at most all of them. Every
      leaf contributes in proportion to its size, spread over the leaf.
    key: PRNG key of the draws.

  Returns:
    One update.

  Raises:
    ValueError: unless f >= 0, n > 2f, 0 <= filter_fraction f < n,
      num_iters >= 1 and subsample_dim >= 1; or if there is `subsample_dim`
      without a key, or another `num_iters` than 1 without `subsample_dim`.

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
        f'dnc got num_iters={num_iters} without subsample_dim: all coordinates '
        'are used once; set subsample_dim to draw coordinates'
      )
    verdict = _dnc(gram, gram, dropped)
    return geometry.mix(updates, verdict.weights), verdict.info(gram)
  draws = _draws(updates, num_iters, subsample_dim, key)
  # A client is kept if every draw keeps it.
  kept = [_dnc(gram, geometry.gram(x), dropped).weights > 0 for x in draws]
  verdict = average(gram, functools.reduce(jnp.logical_and, kept))
  return geometry.mix(updates, verdict.weights), verdict.info(gram)


def _dnc(gram: Gram, draw_gram: Gram, num_dropped: int) -> Verdict:
  """Averages the clients with the smallest deviations in one draw.

  Args:
    gram: `[n, n]` inner products of all coordinates, which say who is rejected.
    draw_gram: `[n, n]` inner products of the drawn coordinates.
    num_dropped: number of clients to drop.
  """
  draw_gram = lax.stop_gradient(draw_gram)
  rejected = geometry.rejected_rows(lax.stop_gradient(gram))
  inner = geometry.without_rejected(geometry.differences(draw_gram), rejected)
  weights = (~rejected).astype(draw_gram.dtype)
  _, squares = _deviations(inner, weights, ~rejected)
  scores = jnp.where(rejected, jnp.inf, squares)
  return select_lowest(lax.stop_gradient(gram), scores, len(gram) - num_dropped)


def _draws(
  updates: Updates, num_iters: int, dim: int, key: jax.Array | None
) -> list[Updates]:
  """Returns `num_iters` draws of about `dim` coordinates, lists of leaves."""
  if key is None:
    raise ValueError(
      'dnc needs a key to draw subsample_dim coordinates: pass key='
    )
  check_integers('dnc', num_iters=num_iters, subsample_dim=dim)
  if num_iters < 1 or dim < 1:
    raise ValueError(
      'dnc needs num_iters >= 1 and subsample_dim >= 1, got '
      f'num_iters={num_iters}, subsample_dim={dim}'
    )
  sizes = [math.prod(x.shape[1:]) for x in jax.tree.leaves(updates)]
  sample = Subsample(sizes, dim)
  drawn = sample.draw(key, (num_iters,))
  return [sample.take(updates, columns) for columns in drawn]
