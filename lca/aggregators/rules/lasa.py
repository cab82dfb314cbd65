"""Layer-adaptive sparsified aggregation: a filter for every layer."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import FunctionRule, Info
from lca.aggregators.rules.selection import average
from lca.stacked import geometry, order_statistics, sums
from lca.typing import Update, Updates


@FunctionRule
def lasa(
  updates: Updates,
  *,
  sparsity: float = 0.3,
  norm_bound: float = 2.0,
  sign_bound: float = 1.0,
) -> tuple[Update, Info]:
  r"""LASA: sparse updates, each layer averaged over the clients usual in it.

  Updates are clipped to the lower median of their norms. In each, the entries
  of smallest magnitude of all kernels together, the leaves with two or more
  axes, are set to zero. Then, for every leaf on its own, a client is kept if
  neither its norm :math:`q_i` nor its sign purity

  .. math:: p_i = \sum_k \mathrm{sign}(x_{ik}) \Big/ \sum_k |\mathrm{sign}
      (x_{ik})|

  is farther from the clients' median than `norm_bound` and `sign_bound`
  standard deviations. Those kept are averaged; if nobody is, all are.

  Rejected rows (see `lca.geometry`) are in no median and never kept; with none
  left the update is NaN. Whatever fewer than half of the clients send, no leaf
  of it is longer than the longest honest update; nothing is promised beyond
  this clip.

  Promise (docs/rules.md): full, f < n/2.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    sparsity: the share of the kernels' entries set to zero. What ties with
      the largest of them is, too.
    norm_bound: in standard deviations (the paper's :math:`\lambda_n`).
    sign_bound: in standard deviations (the paper's :math:`\lambda_s`).

  Returns:
    One update. `lca.explain` tells `weights` and `selected` as `[leaves, n]`.

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
  bad = geometry.rejected_rows(gram)
  factors = geometry.clip_factors(gram, 'lower')
  leaves, treedef = jax.tree.flatten(updates)
  floor = _floor(lax.stop_gradient(leaves), sparsity)
  outs, verdicts = [], []
  for leaf in leaves:
    least = floor if leaf.ndim > 2 else jnp.full_like(floor, -1)
    lengths, purity = _features(lax.stop_gradient(leaf), least, factors)
    usual = _usual(lengths, bad, norm_bound) & _usual(purity, bad, sign_bound)
    verdict = average(gram, jnp.where(jnp.any(usual), usual, ~bad))
    verdict = verdict._replace(factors=factors)
    outs.append(_sparse_mix(verdict.scaled_weights, leaf, least))
    verdicts.append(verdict.info(gram))
  info = jax.tree.map(lambda *x: jnp.stack(x), *verdicts)
  return jax.tree.unflatten(treedef, outs), info


@functools.partial(jax.jit, static_argnames='sparsity')
def _floor(leaves: list[jax.Array], sparsity: float) -> jax.Array:
  """`[n]` magnitudes: the k-th largest of a row's kernels, by bisection.

  The bits of nonnegative floats order as the floats do, so that the largest
  magnitude that k entries reach is found bit by bit, without sorting.
  """
  n = len(leaves[0])
  kernels = [leaf for leaf in leaves if leaf.ndim > 2]
  size = sum(kernel.size for kernel in kernels) // n
  kept = int(size * (1 - sparsity))
  dtype = sums.wide(jnp.result_type(*leaves))
  if not sparsity or not kept:
    return jnp.full(n, -1 if not sparsity else jnp.inf, dtype)
  bits_of = order_statistics.integers(dtype)
  top = 8 * dtype.itemsize - 2  # below the sign

  def refine(i, floor):
    higher = floor | jnp.left_shift(jnp.ones((), bits_of), top - i)

    def reach(x, higher):
      bits = lax.bitcast_convert_type(jnp.abs(x).astype(dtype), bits_of)
      return jnp.sum(bits >= higher[:, None], axis=1)

    reached = sum(sums.over_columns(reach, x, whole=(higher,)) for x in kernels)
    return jnp.where(reached >= kept, higher, floor)

  floor = lax.fori_loop(0, top + 1, refine, jnp.zeros(n, bits_of))
  return lax.bitcast_convert_type(floor, dtype)


@jax.jit
def _features(leaf, least, factors):
  """`[n]` norms of the clipped sparse rows, and the purity of their signs."""

  def moments(x, least):
    kept = jnp.where(jnp.abs(x) > least[:, None], x, 0)
    wide = kept.astype(sums.wide(x.dtype))
    sign = jnp.sign(wide)
    return jnp.stack([jnp.sum(y, axis=1) for y in (wide**2, sign, sign**2)])

  squares, signs, count = sums.over_columns(moments, leaf, whole=(least,))
  return jnp.sqrt(squares) * factors, signs / jnp.maximum(count, 1)


def _usual(values, bad, bound):
  """Who is within `bound` standard deviations of the median."""
  values = jnp.where(bad, jnp.nan, values)
  away, deviation = jnp.abs(values - jnp.nanmedian(values)), jnp.nanstd(values)
  # False for NaN; a bound of infinity lets all pass where all agree, too.
  return away <= jnp.where(deviation > 0, bound * deviation, 0)


@jax.jit
def _sparse_mix(weights, rows, least):
  """The weighted sum of what of the rows is larger than `least`."""
  dtype = sums.wide(rows.dtype)
  weights = weights.astype(dtype)

  def add(i, total):
    kept = (weights[i] != 0) & (jnp.abs(rows[i]) > least[i])
    return total + jnp.where(kept, weights[i] * rows[i].astype(dtype), 0)

  nobody = jnp.where(jnp.any(jnp.isnan(weights)), jnp.nan, 0)
  start = jnp.full(rows.shape[1:], nobody, dtype)
  return lax.fori_loop(0, len(rows), add, start).astype(rows.dtype)
