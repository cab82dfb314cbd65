"""Statistics of the honest clients' updates, which colluding attackers know.

Every function takes the stacked updates of all clients and the `[n]` mask
`honest` of the rows that count. The values of all other rows, NaN included, do
not affect a result. If no row counts, means, deviations and extremes are 0.
Sums are computed, and results returned, in float32 or wider.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lca.stacked import geometry, sums
from lca.typing import Gram, Update, Updates


def honest_rows(updates: Updates, byzantine: jax.Array) -> jax.Array:
  """Returns the `[n]` mask of the honest rows that are not rejected.

  See `lca.geometry` for rejected rows.
  """
  return ~byzantine & ~geometry.rejected_rows(geometry.norms_gram(updates))


def mean(updates: Updates, honest: jax.Array) -> Update:
  """Returns the mean of the honest rows."""
  wide = jax.tree.map(lambda x: x.astype(sums.wide(x.dtype)), updates)
  return geometry.mix(wide, _mean_weights(honest))


def std(updates: Updates, honest: jax.Array, mean: Update) -> Update:
  """Returns the standard deviation of the honest rows in every coordinate.

  The variance is divided by the number of rows (not by that number less 1).

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    honest: `[n]` mask.
    mean: mean of the honest rows.
  """
  leaf_std = functools.partial(_leaf_std, _mean_weights(honest))
  return jax.tree.map(leaf_std, updates, mean)


@jax.jit
def _leaf_std(weights, leaf, mean):
  # A loop over the rows makes no centred copy of the leaf.
  def add_row(i, variance):
    deviation = leaf[i].astype(mean.dtype) - mean
    term = weights[i].astype(mean.dtype) * deviation * deviation
    # 0 * nan is nan, so rows of weight 0 are masked.
    return variance + jnp.where(weights[i] > 0, term, 0)

  zeros = jnp.zeros_like(mean)
  return jnp.sqrt(lax.fori_loop(0, len(leaf), add_row, zeros))


def extremes(updates: Updates, honest: jax.Array) -> tuple[Update, Update]:
  """Returns the honest rows' smallest and largest entry in every coordinate.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    honest: `[n]` mask.

  Returns:
    An update of the smallest entries and an update of the largest entries.
  """
  pairs = jax.tree.map(functools.partial(_leaf_extremes, honest), updates)
  return jax.tree.transpose(
    jax.tree.structure(updates), jax.tree.structure((0, 0)), pairs
  )


@jax.jit
def _leaf_extremes(honest, leaf):
  def include_row(i, extremes):
    low, high = extremes
    return (
      jnp.where(honest[i], jnp.minimum(low, leaf[i]), low),
      jnp.where(honest[i], jnp.maximum(high, leaf[i]), high),
    )

  infinity = jnp.full(leaf.shape[1:], jnp.inf, leaf.dtype)
  extremes = lax.fori_loop(0, len(leaf), include_row, (infinity, -infinity))
  wide = sums.wide(leaf.dtype)
  return tuple(jnp.where(jnp.any(honest), x, 0).astype(wide) for x in extremes)


def centred_gram(
  updates: Updates, honest: jax.Array, mean: Update, *others: Update
) -> Gram:
  """Returns the inner products of the centred honest rows and of other rows.

  Honest updates may be much closer to each other than to zero. If their mean
  were not subtracted first, rounding errors would then exceed their distances.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    honest: `[n]` mask.
    mean: mean of the honest rows, which is subtracted from them.
    *others: k more rows, from which nothing is subtracted.

  Returns:
    `[n + k, n + k]` inner products; the other rows come last. Products with
    rows that are not honest are 0.
  """

  def products(x, *rows):
    rows = jnp.concatenate([x, *rows])
    return sums.dot(rows, rows.T)

  return _sum_over_centred(products, updates, honest, mean, *others)


def squared_deviations(
  updates: Updates, honest: jax.Array, mean: Update
) -> jax.Array:
  """Returns the `[n]` squared distances of the honest rows from their mean.

  The entries of all other rows are 0.
  """

  def squares(x):
    return jnp.sum(x * x, axis=1)

  return _sum_over_centred(squares, updates, honest, mean)


def largest_distance(centred: Gram, honest: jax.Array) -> jax.Array:
  """Returns the largest distance between two honest rows.

  Args:
    centred: result of `centred_gram`.
    honest: `[n]` mask.
  """
  n = len(honest)
  between = geometry.distances(centred[:n, :n], power=1)
  return jnp.max(jnp.where(honest[:, None] & honest, between, 0))


def unit(update: Update) -> Update:
  """Returns the update divided by its norm, or zeros if its norm is 0."""
  norm = jnp.sqrt(geometry.gram(geometry.one_client(update))[0, 0])
  safe = jnp.where(norm > 0, norm, 1)
  return jax.tree.map(lambda x: jnp.where(norm > 0, x / safe, 0), update)


def _sum_over_centred(function, updates, honest, mean, *others):
  """Sums a function of the centred rows over all blocks of coordinates.

  Args:
    function: maps a block `[n, c]` of centred rows, and blocks `[1, c]` of the
      other rows, to an array of the same shape for every c.
    updates: stacked pytree, leaves `[n, ...]`.
    honest: `[n]` mask; the centred values of other rows are 0.
    mean: mean of the honest rows.
    *others: more rows, from which nothing is subtracted.
  """

  def centred_block(x, mean, *others):
    *others, honest = others
    centred = jnp.where(honest[:, None], x.astype(mean.dtype) - mean, 0)
    return function(centred, *others)

  def leaf_sum(leaf, *rows):
    rows = [jnp.asarray(row)[None] for row in rows]
    return sums.over_columns(centred_block, leaf, *rows, whole=(honest,))

  leaf_sums = jax.tree.map(leaf_sum, updates, mean, *others)
  return functools.reduce(jnp.add, jax.tree.leaves(leaf_sums))


def _mean_weights(honest):
  """Returns the `[n]` weights with which the honest rows sum to their mean."""
  return honest / jnp.maximum(jnp.sum(honest), 1)
