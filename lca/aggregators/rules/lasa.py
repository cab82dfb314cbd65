"""LASA: layer-adaptive sparsified model aggregation."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import FunctionRule, Info
from lca.aggregators.rules.selection import average, near_median
from lca.stacked import geometry, row_statistics, sums
from lca.typing import Update, Updates


@FunctionRule
def lasa(
  updates: Updates,
  *,
  sparsity: float = 0.3,
  norm_bound: float = 2.0,
  sign_bound: float = 1.0,
) -> tuple[Update, Info]:
  r"""LASA: averages, in each leaf, the sparsified updates of typical clients.

  1. Every update is clipped to the lower median of the clients' norms.
  2. In the kernels of every update, which are the leaves with two or more axes,
     the entries of smallest magnitude are set to zero. All kernels of an update
     are ranked together.
  3. In every leaf, a client is kept if its norm :math:`q_i` is at most
     `norm_bound` standard deviations from the clients' median, and its sign
     purity

     .. math:: p_i = \sum_k \mathrm{sign}(x_{ik}) \Big/ \sum_k |\mathrm{sign}
         (x_{ik})|

     at most `sign_bound` standard deviations. The kept clients are averaged; if
     none is kept, all clients are averaged.

  Rejected rows (see `lca.geometry`) enter no median and are never kept; if no
  row is left, the update is NaN. Whatever fewer than half of the clients send,
  no leaf of the update is longer than the longest honest update. Nothing beyond
  this effect of the clip is promised.

  Promise (docs/rules.md): full, f < n/2.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    sparsity: share of the kernels' entries to set to zero, together with
      entries that tie with the largest of these.
    norm_bound: bound in standard deviations (the paper's :math:`\lambda_n`).
    sign_bound: bound in standard deviations (the paper's :math:`\lambda_s`).

  Returns:
    One update. `lca.explain` reports `weights` and `selected` as `[leaves, n]`.

  Raises:
    ValueError: unless 0 <= sparsity < 1, norm_bound >= 0 and sign_bound >= 0.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = {'kernel': jnp.array([[[1., 9.]], [[2., 8.]], [[-9., -1.]]])}
    >>> print(lca.lasa(updates, sparsity=0.5)['kernel'].shape)
    (1, 2)

  References:
    Xu, Zhang and Hu, Achieving Byzantine-resilient federated learning via
    layer-adaptive sparsified model aggregation, WACV 2025.
  """
  if not (0 <= sparsity < 1 and norm_bound >= 0 and sign_bound >= 0):
    raise ValueError(
      'lasa needs 0 <= sparsity < 1, norm_bound >= 0 and sign_bound >= 0, got '
      f'sparsity={sparsity}, norm_bound={norm_bound}, sign_bound={sign_bound}'
    )
  gram = geometry.norms_gram(lax.stop_gradient(updates))
  rejected = geometry.rejected_rows(gram)
  # The clip scales whole rows, which keeps the order of a row's entries: it is
  # applied last, as a factor.
  factors = geometry.clip_factors(gram, 'lower')
  leaves, treedef = jax.tree.flatten(updates)
  kernel_threshold = _kernel_threshold(lax.stop_gradient(leaves), sparsity)
  outs, verdicts = [], []
  for leaf in leaves:
    # Entries of magnitude up to the threshold count as zero; -1 keeps all.
    is_kernel = leaf.ndim > 2  # with the axis of clients
    threshold = (
      kernel_threshold if is_kernel else jnp.full_like(kernel_threshold, -1)
    )
    norms, purity = _features(lax.stop_gradient(leaf), threshold, factors)
    typical = near_median(norms, rejected, norm_bound)
    typical &= near_median(purity, rejected, sign_bound)
    verdict = average(gram, jnp.where(jnp.any(typical), typical, ~rejected))
    verdict = verdict._replace(factors=factors)
    outs.append(_sparse_mix(verdict.scaled_weights, leaf, threshold))
    verdicts.append(verdict.info(gram))
  info = jax.tree.map(lambda *x: jnp.stack(x), *verdicts)
  return jax.tree.unflatten(treedef, outs), info


@functools.partial(jax.jit, static_argnames='sparsity')
def _kernel_threshold(leaves: list[jax.Array], sparsity: float) -> jax.Array:
  """Returns `[n]` magnitudes: the k-th largest entry of each row's kernels.

  k is the number of entries to keep.
  """
  n = len(leaves[0])
  kernels = [leaf for leaf in leaves if leaf.ndim > 2]
  size = sum(kernel.size for kernel in kernels) // n
  kept = int(size * (1 - sparsity))
  dtype = sums.wide(jnp.result_type(*leaves))
  if not sparsity or not kept:
    return jnp.full(n, -1 if not sparsity else jnp.inf, dtype)
  return row_statistics.kth_largest_magnitudes(kernels, kept).astype(dtype)


@jax.jit
def _features(leaf, threshold, factors):
  """Returns `[n]` norms of the clipped sparse rows and their sign purities."""

  def moments(x, threshold):
    kept = jnp.where(jnp.abs(x) > threshold[:, None], x, 0)
    wide = kept.astype(sums.wide(x.dtype))
    sign = jnp.sign(wide)
    return jnp.stack([jnp.sum(y, axis=1) for y in (wide**2, sign, sign**2)])

  squares, signs, count = sums.over_columns(moments, leaf, whole=(threshold,))
  return jnp.sqrt(squares) * factors, signs / jnp.maximum(count, 1)


@jax.jit
def _sparse_mix(weights, rows, threshold):
  """Returns the weighted sum of the rows, less entries up to the threshold."""
  dtype = sums.wide(rows.dtype)
  weights = weights.astype(dtype)

  def add(i, total):
    kept = (weights[i] != 0) & (jnp.abs(rows[i]) > threshold[i])
    return total + jnp.where(kept, weights[i] * rows[i].astype(dtype), 0)

  # NaN weights say that no client is left: the sum is NaN everywhere.
  initial = jnp.where(jnp.any(jnp.isnan(weights)), jnp.nan, 0)
  start = jnp.full(rows.shape[1:], initial, dtype)
  return lax.fori_loop(0, len(rows), add, start).astype(rows.dtype)
