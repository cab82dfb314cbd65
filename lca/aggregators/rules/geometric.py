"""The geometric median, by Weiszfeld's algorithm on the clients' weights."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import Verdict, gram_rule
from lca.aggregators.rules.krum import medoid
from lca.aggregators.rules.selection import check_integers
from lca.stacked import geometry, sums
from lca.typing import Gram


@gram_rule(differentiable_verdict=True)
def geometric_median(
  gram: Gram,
  *,
  num_iters: int = 1000,
  tol: float = 1e-6,
  nu: float = 1e-6,
  init: Literal['medoid', 'mean', 'zero'] = 'medoid',
) -> Verdict:
  r"""The point with the smallest sum of distances to the clients' updates.

  .. math:: F(x_1, \dots, x_n) = \arg\min_z \sum_{i=1}^n \|x_i - z\|

  It is found by the smoothed Weiszfeld algorithm (RFA), which iterates

  .. math:: z = \sum_i w_i x_i, \qquad
      w_i \propto \frac{1}{\max(\nu, \|x_i - z\|)}

  Only the weights are iterated: with the Gram matrix K,
  :math:`\|x_i - z\|^2 = K_{ii} - 2 (K w)_i + w^\top K w`, so that an iteration
  costs n^2 operations, whatever the model's size.

  Rejected rows (see `lca.geometry`) have no weight; if no row is left, the
  update is NaN. Whatever fewer than half of the clients send, the distance of
  the result from the honest updates is bounded by a multiple of their spread,
  or of nu. For an even number of rows on one line, every point between the
  middle two is a geometric median, and the start decides which one is found.
  The derivative is that of the fixed point, by the implicit function theorem.

  Promise (docs/rules.md): full, f < n/2.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    num_iters: largest number of iterations.
    tol: the iteration stops when the weights, which sum to 1, change by at most
      this much in total.
    nu: smallest distance in a weight's denominator, in the updates' unit.
    init: start of the iteration: `'mean'` as published; `'zero'` as in byzfl;
      or `'medoid'`, which no minority can drag away. The half of the clients
      nearest to the medoid then starts with equal weights.

  Returns:
    One update.

  Raises:
    ValueError: unless num_iters >= 1, tol >= 0, nu > 0 and `init` is known.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[0., 0.], [2., 0.], [2., 2.], [0., 2.], [1., 1.]])
    >>> print(lca.geometric_median(updates).round(3))
    [1. 1.]

  References:
    Pillutla, Kakade and Harchaoui, Robust aggregation for federated learning,
    IEEE Transactions on Signal Processing 2022; Weiszfeld, 1937.
  """
  check_integers('geometric_median', num_iters=num_iters)
  if num_iters < 1 or not tol >= 0 or not nu > 0:
    raise ValueError(
      'geometric_median needs num_iters >= 1, tol >= 0 and nu > 0, got '
      f'num_iters={num_iters}, tol={tol}, nu={nu}'
    )
  if init not in _STARTS:
    raise ValueError(f'init must be one of {sorted(_STARTS)}, got {init!r}')
  return Verdict(_weights(gram, num_iters, tol, nu, init))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _weights(gram, num_iters, tol, nu, init):
  """Returns `[n]` weights of the geometric median."""

  def not_converged(carry):
    i, weights, last = carry
    return (i < num_iters) & (jnp.sum(jnp.abs(weights - last)) > tol)

  def step(carry):
    i, weights, _ = carry
    return i + 1, _weiszfeld(weights, gram, nu), weights

  first = _inverse(_STARTS[init](gram), gram, nu)
  carry = (1, first, jnp.full_like(first, jnp.inf))
  return lax.while_loop(not_converged, step, carry)[1]


@_weights.defjvp
def _weights_jvp(num_iters, tol, nu, init, primals, tangents):
  """Differentiates the fixed point w = T(w, K) of an iteration T.

  By the implicit function theorem, dw = (1 - dT/dw)^-1 dT/dK dK. If more than
  one point is a geometric median, as between the middle two of an even number
  of scalars, the least-squares solution is taken, the one of smallest dw / w.
  """
  (gram,) = primals
  weights = _weights(gram, num_iters, tol, nu, init)
  # The right-hand side, dT/dK dK, with w fixed.
  _, right = jax.jvp(lambda k: _weiszfeld(weights, k, nu), primals, tangents)
  jacobian = jax.jacfwd(_weiszfeld)(weights, gram, nu)  # dT/dw
  left = jnp.eye(len(gram), dtype=gram.dtype) - jacobian
  # The unknown is dw / w, because weights of far rows are smaller than the
  # others by many orders of magnitude.
  scale = jnp.where(weights > 0, weights, 1)
  left, right = left * scale / scale[:, None], right / scale
  return weights, scale * jnp.linalg.lstsq(left, right)[0]


def _weiszfeld(weights: jax.Array, gram: Gram, nu: float) -> jax.Array:
  """Returns the weights after one iteration, T(w, K)."""
  return _inverse(_distances(weights, gram, nu), gram, nu)


def _distances(weights: jax.Array, gram: Gram, nu: float = 0) -> jax.Array:
  """Returns `[n]` distances, at least nu, from the weighted sum of the rows."""
  inner = geometry.without_rejected(
    geometry.differences(gram), geometry.rejected_rows(gram)
  )
  mixed = sums.dot(inner, weights)
  squares = jnp.diagonal(inner) - 2 * mixed + sums.dot(weights, mixed)
  return jnp.sqrt(jnp.maximum(squares, nu**2))


def _inverse(distances: jax.Array, gram: Gram, nu: float) -> jax.Array:
  """Returns weights inverse to the distances; NaN if all rows are rejected."""
  rejected = geometry.rejected_rows(gram)
  weights = jnp.where(rejected, 0, 1 / jnp.maximum(distances, nu))
  return weights / jnp.sum(weights)


def _distances_from_mean(gram: Gram) -> jax.Array:
  accepted = ~geometry.rejected_rows(gram)
  return _distances(accepted / jnp.sum(accepted), gram)


def _distances_from_medoid(gram: Gram) -> jax.Array:
  """Returns `[n]` distances from the medoid, at least their median."""
  rejected = geometry.rejected_rows(gram)
  scores = medoid.weigh(gram).scores
  assert scores is not None  # the medoid ranks the clients
  distances = geometry.distances(gram, power=1)[jnp.argmin(scores)]
  middle = jnp.sort(distances)[jnp.sum(~rejected) // 2]
  return jnp.maximum(distances, jnp.where(jnp.isfinite(middle), middle, 0))


# Distances from the starting point, from which the first weights follow.
_STARTS = {
  'mean': _distances_from_mean,
  'medoid': _distances_from_medoid,
  'zero': geometry.norms,
}
