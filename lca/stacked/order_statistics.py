"""Order statistics of every coordinate over the clients.

A coordinate of stacked updates is a column of `n` values. The statistics here
select entries of each column and average them; they never subtract, so that
an enormous entry that is not selected leaves no trace. A NaN counts as +inf.

On CPU the wanted ranks are found by a sorting network: it runs over chunks of
columns that stay in cache, on integers that order as the floats do, pruned to
the comparators that these ranks depend on. Elsewhere columns are sorted.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lca.stacked import sharding
from lca.stacked.geometry import scale
from lca.stacked.sums import flat, pieces, wide

_CACHED = 512  # columns: a [100, 512] chunk of float32 stays in a CPU's cache
_PACKED = 2**18  # columns that are sorted at once elsewhere

ABSENT = -1.0
"""The weight of a row that is not there; all others are nonnegative."""

Select = Callable[[jax.Array, Sequence[int]], list[jax.Array]]
"""`select(keys, ranks)`: of `[n, c]` integers the entries of these ranks."""


class Statistic(Protocol):
  """What is taken of every column. It is static, so it must be hashable."""

  def value(self, x: jax.Array, select: Select) -> jax.Array:
    """The statistic, `[c]`, of columns `[n, c]` without a NaN."""
    ...

  def shares(self, x: jax.Array, select: Select) -> jax.Array:
    """What each entry contributes, `[n, c]`: the statistic's derivative."""
    ...


class RankedMean(NamedTuple):
  """The mean of the entries of rank `low` to `high`, counted from 0."""

  low: int
  high: int

  def value(self, x: jax.Array, select: Select) -> jax.Array:
    keys, rows, low, high = self._ends(x, select)
    kept_low, kept_high = self._kept(keys, low, high)
    lowest, highest = _floats(low), _floats(high)
    total = kept_low * lowest + kept_high * highest
    if not self._pair:
      total += _total(
        jnp.where((low < key) & (key < high), row, 0)
        for key, row in zip(keys, rows, strict=True)
      )
    mean = total / (self.high - self.low + 1)
    mean = jnp.clip(mean, lowest, highest)  # where the total overflows
    return jnp.where(low == high, lowest, mean)

  def shares(self, x: jax.Array, select: Select) -> jax.Array:
    keys, _, low, high = self._ends(x, select)
    kept_low, kept_high = self._kept(keys, low, high)
    keys, count = jnp.stack(keys), self.high - self.low + 1
    at_low, at_high = keys == low, keys == high
    low_share = jnp.where(low == high, count, kept_low) / jnp.sum(at_low, 0)
    high_share = kept_high / jnp.sum(at_high, 0)
    inside = (low < keys) & (keys < high)
    shares = jnp.where(at_high, high_share, inside)
    return jnp.where(at_low, low_share, shares) / count

  @property
  def _pair(self):
    return self.high - self.low <= 1

  def _ends(self, x, select):
    """Sortable keys and entries, by row; the lowest and highest key kept."""
    keys = _sortable(x)
    low, high = select(keys, (self.low, self.high))
    return _rows(keys), _rows(x), low, high

  def _kept(self, keys, low, high):
    """How many are kept of the entries that tie with the lowest and highest."""
    if self._pair:
      return 1, 1
    above = len(keys) - 1 - self.high
    kept_low = _count(key <= low for key in keys) - self.low
    kept_high = _count(key >= high for key in keys) - above
    return kept_low, kept_high


class NearestMean(NamedTuple):
  """The mean of the `count` entries nearest to the middle.

  The middle is the mean of the entries of rank `low` to `high`, which are the
  same or neighbours. Entries that tie for the last places share them.
  """

  low: int
  high: int
  count: int  # pyright: ignore[reportIncompatibleMethodOverride]

  def value(self, x: jax.Array, select: Select) -> jax.Array:
    away, last, share = self._last(x, select)
    pairs = list(zip(away, _rows(x), strict=True))
    nearer = _total(jnp.where(d < last, row, 0) for d, row in pairs)
    tied = _total(jnp.where(d == last, row, 0) for d, row in pairs)
    return (nearer + share * tied) / self.count

  def shares(self, x: jax.Array, select: Select) -> jax.Array:
    away, last, share = self._last(x, select)
    away = jnp.stack(away)
    return jnp.where(away < last, 1, share * (away == last)) / self.count

  def _last(self, x, select):
    """Distances, the last one taken, and the share of entries there."""

    def distance(x, middle):
      # inf - inf is no distance.
      return jnp.where(x == middle, 0, jnp.abs(x - middle))

    # Two selections by one network: of the entries, then of their distances.
    def selection(i, carry):
      _, middle = carry
      values = jnp.where(i == 0, x, distance(x, middle))
      ranks = self.low, self.high, self.count - 1
      low, high, last = map(_floats, select(_sortable(values), ranks))
      center = jnp.where(low == high, low, low / 2 + high / 2)
      return middle, jnp.where(i == 0, center, last)

    start = jnp.zeros_like(x[0])
    middle, last = lax.fori_loop(0, 2, selection, (start, start))
    away = [distance(row, middle) for row in _rows(x)]
    nearer = _count(d < last for d in away)
    ties = _count(d == last for d in away)
    return away, last, (self.count - nearer) / ties


class SignedMean(NamedTuple):
  """The mean, turned around where fewer than `theta` signs agree."""

  theta: int

  def value(self, x: jax.Array, select: Select) -> jax.Array:
    return self._sign(x) * _total(_rows(x)) / len(x)

  def shares(self, x: jax.Array, select: Select) -> jax.Array:
    return jnp.broadcast_to(self._sign(x) / len(x), x.shape)

  def _sign(self, x):
    agreement = jnp.abs(_total(_rows(jnp.sign(x))))
    return jnp.where(agreement >= self.theta, 1.0, -1.0)


def take(
  statistic: Statistic,
  leaves: Sequence[jax.Array],
  weights: Sequence[jax.Array] | None = None,
) -> list[jax.Array]:
  """Takes a statistic of every coordinate of stacked leaves.

  It differentiates with what each entry contributes held fixed.

  Args:
    statistic: what to take.
    leaves: `[n, ...]` each.
    weights: `[n]` for each leaf, what multiplies its rows before; a row with
      the weight `ABSENT` counts as +inf.

  Returns:
    `[...]` of every leaf, in its dtype.
  """
  outs = _take(statistic, list(leaves), lax.stop_gradient(weights))
  return [x.astype(leaf.dtype) for x, leaf in zip(outs, leaves, strict=True)]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def _take(statistic, leaves, weights):
  return _by_columns(statistic.value, leaves, weights, lead=0)


@_take.defjvp
def _take_jvp(statistic, primals, tangents):
  leaves, weights = primals
  shares = _by_columns(statistic.shares, leaves, weights, lead=1)
  if weights is not None:
    factors = [jnp.where(w == ABSENT, 0, w) for w in weights]
    shares = [scale(x, w) for x, w in zip(shares, factors, strict=True)]
  dots = [
    jnp.sum(share * dot, axis=0)
    for share, dot in zip(shares, tangents[0], strict=True)
  ]
  return _take(statistic, leaves, weights), dots


class _Columns(NamedTuple):
  """One leaf: `[n, c]`, and what its rows are multiplied by."""

  rows: jax.Array
  weights: jax.Array | None

  def chunk(self, dtype, width, start=0):
    """Rows from column `start` on, without NaN; zeros where columns end."""
    missing = max(0, width - self.rows.shape[1])
    rows = jnp.pad(self.rows, ((0, 0), (0, missing)))
    rows = lax.dynamic_slice_in_dim(rows, start, width, axis=1).astype(dtype)
    if self.weights is not None:
      column = self.weights.astype(dtype)[:, None]
      rows = jnp.where(column == ABSENT, jnp.inf, rows * column)
    return jnp.where(jnp.isnan(rows), jnp.inf, rows)


def _by_columns(function, leaves, weights, lead):
  """Applies `function(x, select) -> [*lead, c]` to all columns."""
  on_device = functools.partial(_on_device, function)
  return sharding.on_each_device(on_device, leaves, weights, lead)


def _on_device(function, leaves, weights):
  columns = [
    _Columns(
      flat(leaf),
      None if weights is None else weights[k],
    )
    for k, leaf in enumerate(leaves)
    if leaf.size
  ]
  if not columns:
    return [jnp.zeros(leaf.shape[1:], wide(leaf.dtype)) for leaf in leaves]
  parts = lax.platform_dependent(
    columns,
    cpu=functools.partial(_in_cache, function),
    default=functools.partial(_packed, function),
  )
  lead, parts = parts[0].shape[:-1], iter(parts)
  empty = jnp.zeros((*lead, 0))
  return [
    (next(parts) if leaf.size else empty)
    .reshape(*lead, *leaf.shape[1:])
    .astype(wide(leaf.dtype))
    for leaf in leaves
  ]


def _in_cache(function, leaves):
  """Chunk by chunk, all of one width, so that one loop serves all leaves."""
  dtype = _dtype(leaves)
  sizes = [leaf.rows.shape[1] for leaf in leaves]
  leaf_of, starts, _ = pieces(sizes, _CACHED)
  readers = [functools.partial(leaf.chunk, dtype, _CACHED) for leaf in leaves]

  def one(chunk):
    leaf, start = chunk
    return function(lax.switch(leaf, readers, start), _by_network)

  out = lax.map(one, (jnp.array(leaf_of), jnp.array(starts)))
  ends = np.cumsum([-(-size // _CACHED) for size in sizes])
  parts = []
  for chunks, size in zip(jnp.split(out, ends[:-1]), sizes, strict=True):
    # `[chunks, ..., _CACHED]` become `[..., size]`; the last one reaches back.
    whole = jnp.moveaxis(chunks[:-1], 0, -2)
    whole = whole.reshape(*whole.shape[:-2], -1)
    last, end = size - whole.shape[-1], chunks[-1]
    end = end[..., -last:] if size > _CACHED else end[..., :last]
    parts.append(jnp.concatenate([whole, end], axis=-1))
  return parts


def _dtype(leaves):
  return jnp.result_type(*(wide(leaf.rows.dtype) for leaf in leaves))


def _packed(function, leaves):
  """Wide chunks, each of pieces of leaves side by side."""
  dtype = _dtype(leaves)
  sizes = [leaf.rows.shape[1] for leaf in leaves]
  packs, room = [], 0
  for leaf, size in zip(leaves, sizes, strict=True):
    for start in range(0, size, _PACKED):
      width = min(_PACKED, size - start)
      if width > room:
        packs.append([])
        room = _PACKED
      packs[-1].append(leaf.chunk(dtype, width, start))
      room -= width

  @jax.jit  # traced once for all packs of one width
  def one(rows):
    return function(rows, _by_sorting)

  outs = [one(jnp.concatenate(pack, axis=1)) for pack in packs]
  out = jnp.concatenate(outs, axis=-1)
  return jnp.split(out, np.cumsum(sizes)[:-1], axis=-1)


def _by_sorting(keys, ranks):
  ordered = jnp.sort(keys, axis=0)
  return [ordered[rank] for rank in ranks]


def _by_network(keys, ranks):
  rows: list[Any] = [*_rows(keys)]
  for low, high, keep_low, keep_high in _network(len(rows), tuple(ranks)):
    a, b = rows[low], rows[high]
    rows[low] = lax.min(a, b) if keep_low else None
    rows[high] = lax.max(a, b) if keep_high else None
  return lax.optimization_barrier([rows[rank] for rank in ranks])


@functools.cache
def _network(n, ranks):
  """Batcher's odd-even merge sort of n, less what `ranks` do not depend on.

  See Knuth, The art of computer programming 3, section 5.3.4, for any n.

  Returns the comparators `(low, high, keep_low, keep_high)`: positions of the
  smaller and the larger entry, and which of the two is used afterwards.
  """
  comparators, block = [], 1
  while block < n:
    step = block
    while step:
      comparators += [
        (i, i + step)
        for start in range(step % block, n - step, 2 * step)
        for i in range(start, min(start + step, n - step))
        if i // (2 * block) == (i + step) // (2 * block)
      ]
      step //= 2
    block *= 2
  needed, kept = set(ranks), []
  for low, high in reversed(comparators):
    if needed & {low, high}:
      kept.append((low, high, low in needed, high in needed))
      needed |= {low, high}
  return kept[::-1]


def sort(x: jax.Array) -> jax.Array:
  """Sorts the last axis; on CPU integers take a fifth of the floats' time."""
  return _floats(lax.sort(_sortable(x)))


def _sortable(x):
  """Integers that order as the floats do; -0 comes before 0."""
  bits = lax.bitcast_convert_type(x, integers(x.dtype))
  return bits ^ (bits >> (bits.dtype.itemsize * 8 - 1) & _magnitude(bits))


def _floats(keys):
  """The inverse of `_sortable`."""
  bits = keys ^ (keys >> (keys.dtype.itemsize * 8 - 1) & _magnitude(keys))
  floats = {4: jnp.float32, 8: jnp.float64}[keys.dtype.itemsize]
  return lax.bitcast_convert_type(bits, floats)


def integers(dtype: jnp.dtype) -> jnp.dtype:
  """As wide as the floats, whose bits they hold."""
  return {4: jnp.int32, 8: jnp.int64}[dtype.itemsize]


def _magnitude(bits):
  return jnp.array(jnp.iinfo(bits.dtype).max, bits.dtype)


def _rows(x: jax.Array) -> list[jax.Array]:
  """Row by row XLA fuses a statistic with its sum, and computes it once."""
  return [lax.index_in_dim(x, i, keepdims=False) for i in range(len(x))]


def _total(rows: Iterable[jax.Array]) -> jax.Array:
  return functools.reduce(lax.add, rows)


def _count(masks: Iterable[jax.Array]) -> jax.Array:
  return _total(mask.astype(jnp.int32) for mask in masks)
