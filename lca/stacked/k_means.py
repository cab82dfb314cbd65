"""K-means clusters of a few points, and their number by the gap statistic.

Everything is deterministic and works under `jax.jit`, with the number of
clusters as a traced value: the centres that are not used are masked.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lca.stacked import sums

REFERENCES = 10
"""Number of sets of uniform points that the gap statistic compares with."""

_ITERATIONS = 100
_LEAST = 1e-6  # of the squared size of the points: a smaller sum counts as this


@functools.partial(jax.jit, static_argnames='most')
def clusters_by_gap(
  points: jax.Array, present: jax.Array, most: int
) -> jax.Array:
  r"""Returns k-means clusters, k of them as the gap statistic says.

  With W(k) the within-cluster sum of squares, the gap is how much smaller it is
  than for uniform points in the same box, and k is the least one that the next
  one does not surpass by more than its error:

  .. math:: \mathrm{gap}(k) = \mathrm{mean}_b \ln W_b(k) - \ln W(k), \qquad
      \mathrm{gap}(k) \ge \mathrm{gap}(k + 1) - \sqrt{1 + 1/B}\;
      \mathrm{std}_b \ln W_b(k + 1)

  The B = 10 sets of uniform points are the same in every call: they are the
  first numbers of NumPy's default generator with seed 0, of shape `[B, n, d]`,
  and a set uses as many of its points as are present. A W below 1e-6 of the
  squared longest side of the box counts as that.

  Args:
    points: `[n, d]`.
    present: `[n]` mask of the points to cluster.
    most: largest number of clusters.

  Returns:
    `[n]` numbers of the clusters, from 0 to `most` - 1. Those of points that
    are not present have no meaning.

  References:
    Tibshirani, Walther and Hastie, Estimating the number of clusters in a data
    set via the gap statistic, Journal of the Royal Statistical Society B, 2001.
  """
  column = present[:, None]
  lowest = jnp.min(jnp.where(column, points, jnp.inf), axis=0)
  sides = jnp.max(jnp.where(column, points, -jnp.inf), axis=0) - lowest
  sides = jnp.where(jnp.any(present), sides, 0)
  size = jnp.max(sides)
  unit = jnp.where(size > 0, size, 1)
  own = jnp.where(column, points - lowest, 0) / unit
  drawn = np.random.default_rng(0).random((REFERENCES, *points.shape))
  uniform = jnp.asarray(drawn, points.dtype) * (sides / unit)
  among = jnp.arange(len(points)) < jnp.sum(present)

  numbers = jnp.arange(1, most + 1)
  for_numbers = jax.vmap(_k_means, (None, None, None, 0))
  for_sets = jax.vmap(for_numbers, (0, None, 0, None))
  labels, within = for_numbers(
    own, present, _starts(own, present, most), numbers
  )
  starts = jax.vmap(_starts, (0, None, None))(uniform, among, most)
  _, expected = for_sets(uniform, among, starts, numbers)

  logs = jnp.log(jnp.maximum(expected, _LEAST))  # [B, most]
  gaps = jnp.mean(logs, axis=0) - jnp.log(jnp.maximum(within, _LEAST))
  errors = jnp.std(logs, axis=0) * np.sqrt(1 + 1 / REFERENCES)
  enough = gaps[:-1] >= gaps[1:] - errors[1:]
  # The largest number is enough if no other is.
  chosen = jnp.argmax(jnp.append(enough, True))
  return labels[chosen]


def _squared_distances(points: jax.Array, others: jax.Array) -> jax.Array:
  """Returns `[n, k]` squared distances of points from others."""
  return jnp.sum((points[:, None] - others) ** 2, axis=-1)


def _starts(points: jax.Array, present: jax.Array, count: int) -> jax.Array:
  """Returns `[count, d]` points that are far from each other.

  The first one is the point nearest to the mean. Next is always the point
  farthest from those before. Ties go to the lowest index.
  """
  total = jnp.sum(jnp.where(present[:, None], points, 0), axis=0)
  mean = total / jnp.maximum(jnp.sum(present), 1)
  away = _squared_distances(points, mean[None])[:, 0]
  first = jnp.argmin(jnp.where(present, away, jnp.inf))

  def choose(i, carry):
    starts, nearest = carry
    start = points[jnp.argmax(jnp.where(present, nearest, -1))]
    away = _squared_distances(points, start[None])[:, 0]
    return starts.at[i].set(start), jnp.minimum(nearest, away)

  start = points[first]
  starts = jnp.broadcast_to(start, (count, len(start)))
  nearest = _squared_distances(points, start[None])[:, 0]
  starts, _ = lax.fori_loop(1, count, choose, (starts, nearest))
  return starts


def _k_means(
  points: jax.Array, present: jax.Array, starts: jax.Array, k: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Moves the first k centres to the means of the points nearest to them.

  It ends once no point changes its cluster. A centre without a point stays
  where it is; a point as near to two centres goes to the first one.

  Args:
    points: `[n, d]`.
    present: `[n]` mask of the points.
    starts: `[most, d]`, the first centres.
    k: number of the centres to use.

  Returns:
    `[n]` numbers of the clusters, and the sum of the squared distances of the
    points from their centres.
  """
  unused = jnp.arange(len(starts)) >= k

  def assign(centres):
    away = jnp.where(unused, jnp.inf, _squared_distances(points, centres))
    return jnp.argmin(away, axis=1), jnp.min(away, axis=1)

  def move(carry):
    i, centres, labels, _ = carry
    members = present & (labels == jnp.arange(len(starts))[:, None])  # [k, n]
    counts = jnp.sum(members, axis=1)[:, None]
    totals = sums.dot(members, points)
    centres = jnp.where(counts > 0, totals / jnp.maximum(counts, 1), centres)
    return i + 1, centres, assign(centres)[0], labels

  def moving(carry):
    i, _, labels, before = carry
    return (i < _ITERATIONS) & jnp.any(present & (labels != before))

  labels, _ = assign(starts)
  start = (jnp.array(0), starts, labels, jnp.full_like(labels, -1))
  _, centres, *_ = lax.while_loop(moving, move, start)
  labels, away = assign(centres)
  return labels, jnp.sum(jnp.where(present, away, 0))
