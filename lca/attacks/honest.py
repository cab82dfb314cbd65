"""What colluding clients know of the honest ones.

Every function takes the mask `[n]` of `honest_rows`. What rows outside it hold
never shows, and where it is empty, means, deviations and extremes are zero.
Sums run, and results come, in float32 or wider.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lca.stacked import geometry, sums
from lca.typing import Gram, Update, Updates


def honest_rows(updates: Updates, byzantine: jax.Array) -> jax.Array:
  """`[n]` mask of the honest clients whose rows are not rejected."""
  return ~byzantine & ~geometry.rejected_rows(geometry.norms_gram(updates))


def mean(updates: Updates, honest: jax.Array) -> Update:
  """The mean of the honest rows."""
  wide = jax.tree.map(lambda x: x.astype(sums.wide(x.dtype)), updates)
  return geometry.mix(wide, _shares(honest))


def std(updates: Updates, honest: jax.Array, mean: Update) -> Update:
  """Their standard deviation, coordinate by coordinate, of a population.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    honest: `[n]` mask.
    mean: of the honest rows.
  """
  one = functools.partial(_leaf_std, _shares(honest))
  return jax.tree.map(one, updates, mean)


@jax.jit
def _leaf_std(shares, leaf, mean):
  def step(i, variance):
    deviation = leaf[i].astype(mean.dtype) - mean
    term = shares[i].astype(mean.dtype) * deviation * deviation
    return variance + jnp.where(shares[i] > 0, term, 0)

  start = jnp.zeros_like(mean)
  return jnp.sqrt(lax.fori_loop(0, len(leaf), step, start))


def extremes(updates: Updates, honest: jax.Array) -> tuple[Update, Update]:
  """Their smallest and largest entries, coordinate by coordinate."""
  found = jax.tree.map(functools.partial(_leaf_extremes, honest), updates)
  return jax.tree.transpose(
    jax.tree.structure(updates), jax.tree.structure((0, 0)), found
  )


@jax.jit
def _leaf_extremes(honest, leaf):
  def step(i, found):
    low, high = found
    return (
      jnp.where(honest[i], jnp.minimum(low, leaf[i]), low),
      jnp.where(honest[i], jnp.maximum(high, leaf[i]), high),
    )

  start = jnp.full(leaf.shape[1:], jnp.inf, leaf.dtype)
  found = lax.fori_loop(0, len(leaf), step, (start, -start))
  wide = sums.wide(leaf.dtype)
  return tuple(jnp.where(jnp.any(honest), x, 0).astype(wide) for x in found)


def centred_gram(
  updates: Updates, honest: jax.Array, mean: Update, *others: Update
) -> Gram:
  """Inner products of the honest rows, less their mean, and of other rows.

  Honest updates may be much closer to each other than they are long; centred,
  their distances don't cancel in float32.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    honest: `[n]` mask.
    mean: of the honest rows.
    *others: k rows, taken as they are.

  Returns:
    `[n + k, n + k]`, the others last; zeros for rows outside the mask.
  """

  def products(x, *rows):
    rows = jnp.concatenate([x, *rows])
    return sums.dot(rows, rows.T)

  return _over_centred(products, updates, honest, mean, *others)


def squared_deviations(
  updates: Updates, honest: jax.Array, mean: Update
) -> jax.Array:
  """`[n]` squared distances of the honest rows from their mean, others 0."""

  def squares(x):
    return jnp.sum(x * x, axis=1)

  return _over_centred(squares, updates, honest, mean)


def largest_distance(centred: Gram, honest: jax.Array) -> jax.Array:
  """The largest distance of two honest rows, from `centred_gram`."""
  n = len(honest)
  between = geometry.distances(centred[:n, :n], power=1)
  return jnp.max(jnp.where(honest[:, None] & honest, between, 0))


def unit(update: Update) -> Update:
  """The update over its norm; zeros if that is 0."""
  norm = jnp.sqrt(geometry.gram(geometry.one_client(update))[0, 0])
  safe = jnp.where(norm > 0, norm, 1)
  return jax.tree.map(lambda x: jnp.where(norm > 0, x / safe, 0), update)


def _over_centred(function, updates, honest, mean, *others):
  """The sum over blocks of columns of a function of the centred rows."""

  def block(x, mean, *others):
    *others, honest = others
    centred = jnp.where(honest[:, None], x.astype(mean.dtype) - mean, 0)
    return function(centred, *others)

  def one(leaf, *rows):
    rows = [jnp.asarray(row)[None] for row in rows]
    return sums.over_columns(block, leaf, *rows, whole=(honest,))

  parts = jax.tree.map(one, updates, mean, *others)
  return functools.reduce(jnp.add, jax.tree.leaves(parts))


def _shares(honest):
  """`[n]` weights of the mean."""
  return honest / jnp.maximum(jnp.sum(honest), 1)
