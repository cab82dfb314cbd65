"""Order statistics of every coordinate over the clients.

A coordinate of stacked updates is a column of `n` values, one per client. A
statistic, such as a trimmed mean, selects entries of each column and averages
them. It never subtracts an entry from a sum, so that an enormous entry that is
not selected leaves no rounding error. A NaN counts as +inf.

A statistic needs the entries of few ranks, such as the two ends of a trimmed
mean. GPUs and TPUs find them by sorting many whole columns at once (`_packed`),
CPUs by sorting networks over chunks of columns that stay in cache (`_in_cache`;
see `rank_selection`). Both ways compare integers that have the order of the
floats (`_sortable`).
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lca.stacked import rank_selection, sharding
from lca.stacked.geometry import scale
from lca.stacked.rank_selection import Select, split_rows
from lca.stacked.sums import flat, pieces, wide

_CACHED = 512  # columns; [100, 512] float32 numbers stay in a CPU's cache
_PACKED = 2**18  # columns that are sorted at once on other backends

ABSENT = -1.0
"""The weight that marks a row as absent; all other weights are nonnegative."""


class Statistic(Protocol):
  """A statistic of columns. It is a static argument, so it must be hashable."""

  def value(self, x: jax.Array, select: Select) -> jax.Array:
    """Returns the statistic, `[c]`, of columns `[n, c]` without NaN."""
    ...

  def shares(self, x: jax.Array, select: Select) -> jax.Array:
    """Returns the statistic's derivative by each entry, `[n, c]`."""
    ...


class RankedMean(NamedTuple):
  """The mean of the entries of rank `low` to `high`, counted from 0.

  If `low` and `high` are the middle ranks it is a median, else a trimmed mean.
  """

  low: int
  high: int

  def value(self, x: jax.Array, select: Select) -> jax.Array:
    return self.of_ends(*self._ends(x, select))

  def of_ends(
    self,
    keys: Sequence[jax.Array],
    rows: Sequence[jax.Array],
    low: jax.Array,
    high: jax.Array,
  ) -> jax.Array:
    """Returns the mean, given the two ends' keys.

    Args:
      keys: `[c]` for each row, from `_sortable`.
      rows: `[c]` for each row, the entries.
      low: `[c]`, the key of rank `low`.
      high: `[c]`, the key of rank `high`.
    """
    kept_low, kept_high = self._kept(keys, low, high)
    lowest, highest = _floats(low), _floats(high)
    # Entries that tie with an end, and then those strictly between the ends.
    total = kept_low * lowest + kept_high * highest
    if not self._pair:
      total += _total(
        jnp.where((low < key) & (key < high), row, 0)
        for key, row in zip(keys, rows, strict=True)
      )
    mean = total / (self.high - self.low + 1)
    mean = jnp.clip(mean, lowest, highest)  # in case the total overflows
    return jnp.where(low == high, lowest, mean)

  def shares(self, x: jax.Array, select: Select) -> jax.Array:
    keys, _, low, high = self._ends(x, select)
    kept_low, kept_high = self._kept(keys, low, high)
    keys, count = jnp.stack(keys), self.high - self.low + 1
    at_low, at_high = keys == low, keys == high
    # The entries that tie with an end divide its share equally.
    low_share = jnp.where(low == high, count, kept_low) / jnp.sum(at_low, 0)
    high_share = kept_high / jnp.sum(at_high, 0)
    inside = (low < keys) & (keys < high)
    shares = jnp.where(at_high, high_share, inside)
    return jnp.where(at_low, low_share, shares) / count

  @property
  def _pair(self):
    return self.high - self.low <= 1

  def _ends(self, x, select):
    """Returns keys and entries as lists of rows, and the two end keys `[c]`."""
    keys = _sortable(x)
    low, high = select(keys, (self.low, self.high))
    return split_rows(keys), split_rows(x), low, high

  def _kept(self, keys, low, high):
    """Returns how many entries that tie with each end are kept, `[c]`."""
    if self._pair:
      return 1, 1
    above = len(keys) - 1 - self.high
    kept_low = _count(key <= low for key in keys) - self.low
    kept_high = _count(key >= high for key in keys) - above
    return kept_low, kept_high


class NearestMean(NamedTuple):
  """The mean of the `count` entries nearest to the middle.

  The middle is the mean of the entries of rank `low` to `high`, as in
  `RankedMean`: a median or a trimmed mean. Entries that tie for the last places
  share their weight.
  """

  low: int
  high: int
  count: int  # pyright: ignore[reportIncompatibleMethodOverride]

  def value(self, x: jax.Array, select: Select) -> jax.Array:
    away, last, share = self._last(x, select)
    pairs = list(zip(away, split_rows(x), strict=True))
    nearer = _total(jnp.where(d < last, row, 0) for d, row in pairs)
    tied = _total(jnp.where(d == last, row, 0) for d, row in pairs)
    return (nearer + share * tied) / self.count

  def shares(self, x: jax.Array, select: Select) -> jax.Array:
    away, last, share = self._last(x, select)
    away = jnp.stack(away)
    return jnp.where(away < last, 1, share * (away == last)) / self.count

  def _last(self, x, select):
    """Returns distances, the largest that counts, and the weight of ties."""

    def distance(x, middle):
      # inf - inf would be NaN.
      return jnp.where(x == middle, 0, jnp.abs(x - middle))

    # A loop compiles the network once for two selections: the middle of the
    # entries, and then the largest distance that counts.
    def selection(i, carry):
      _, middle = carry
      values = jnp.where(i == 0, x, distance(x, middle))
      keys, ranks = _sortable(values), (self.low, self.high, self.count - 1)
      low, high, last = select(keys, ranks)
      center = RankedMean(self.low, self.high).of_ends(
        split_rows(keys), split_rows(values), low, high
      )
      return middle, jnp.where(i == 0, center, _floats(last))

    start = jnp.zeros_like(x[0])
    middle, last = lax.fori_loop(0, 2, selection, (start, start))
    away = [distance(row, middle) for row in split_rows(x)]
    nearer = _count(d < last for d in away)
    ties = _count(d == last for d in away)
    return away, last, (self.count - nearer) / ties


class SignedMean(NamedTuple):
  """The mean, negated where the absolute sum of signs is below `theta`."""

  theta: int

  def value(self, x: jax.Array, select: Select) -> jax.Array:
    return self._sign(x) * _total(split_rows(x)) / len(x)

  def shares(self, x: jax.Array, select: Select) -> jax.Array:
    return jnp.broadcast_to(self._sign(x) / len(x), x.shape)

  def _sign(self, x):
    agreement = jnp.abs(_total(split_rows(jnp.sign(x))))
    return jnp.where(agreement >= self.theta, 1.0, -1.0)


def take(
  statistic: Statistic,
  leaves: Sequence[jax.Array],
  weights: Sequence[jax.Array] | None = None,
) -> list[jax.Array]:
  """Returns a statistic of every coordinate of stacked leaves.

  For derivatives, each entry's share in the statistic is held constant.

  Args:
    statistic: the statistic to take.
    leaves: `[n, ...]` each.
    weights: for each leaf `[n]` factors, which multiply its rows first. A row
      with the weight `ABSENT` counts as +inf.

  Returns:
    `[...]` for each leaf, in the leaf's dtype.
  """
  outs = _take(statistic, list(leaves), lax.stop_gradient(weights))
  return [x.astype(leaf.dtype) for x, leaf in zip(outs, leaves, strict=True)]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def _take(statistic, leaves, weights):
  return _by_columns(statistic.value, leaves, weights, lead=0)


@_take.defjvp
def _take_jvp(statistic, primals, tangents):
  """Sums the tangents, each multiplied by its entry's share."""
  leaves, weights = primals
  shares = _by_columns(statistic.shares, leaves, weights, lead=1)
  if weights is not None:
    # An absent row counts as +inf, whatever its entries are.
    factors = [jnp.where(w == ABSENT, 0, w) for w in weights]
    shares = [scale(x, w) for x, w in zip(shares, factors, strict=True)]
  dots = [
    jnp.sum(share * dot, axis=0)
    for share, dot in zip(shares, tangents[0], strict=True)
  ]
  return _take(statistic, leaves, weights), dots


class _Columns(NamedTuple):
  """One leaf as a matrix `[n, c]`, with the factors of its rows, `[n]`."""

  rows: jax.Array
  weights: jax.Array | None

  def chunk(self, dtype, width, start=0):
    """Returns `[n, width]` weighted columns, without NaN, padded with zeros."""
    missing = max(0, width - self.rows.shape[1])
    rows = jnp.pad(self.rows, ((0, 0), (0, missing)))
    rows = lax.dynamic_slice_in_dim(rows, start, width, axis=1).astype(dtype)
    if self.weights is not None:
      column = self.weights.astype(dtype)[:, None]
      rows = jnp.where(column == ABSENT, jnp.inf, rows * column)
    return jnp.where(jnp.isnan(rows), jnp.inf, rows)


def _by_columns(function, leaves, weights, lead):
  """Applies a function `(x, select) -> [*lead axes, c]` to all columns."""
  on_device = functools.partial(_on_device, function)
  return sharding.on_each_device(on_device, leaves, weights, lead)


def _on_device(function, leaves, weights):
  """Applies the function to one device's columns; empty leaves take no part."""
  columns = [
    _Columns(flat(leaf), None if weights is None else weights[k])
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
  """Applies the function chunk by chunk, in one loop for all leaves."""
  dtype = _dtype(leaves)
  sizes = [leaf.rows.shape[1] for leaf in leaves]
  leaf_of, starts, _ = pieces(sizes, _CACHED)
  readers = [functools.partial(leaf.chunk, dtype, _CACHED) for leaf in leaves]

  def one_chunk(chunk):
    leaf, start = chunk
    return function(lax.switch(leaf, readers, start), rank_selection.on_cpu)

  out = lax.map(one_chunk, (jnp.array(leaf_of), jnp.array(starts)))
  ends = np.cumsum([-(-size // _CACHED) for size in sizes])
  parts = []
  for chunks, size in zip(jnp.split(out, ends[:-1]), sizes, strict=True):
    # `[chunks, ..., _CACHED]` become `[..., size]`; the last chunk overlaps the
    # one before, or is padded if it is the only one.
    whole = jnp.moveaxis(chunks[:-1], 0, -2)
    whole = whole.reshape(*whole.shape[:-2], -1)
    last, end = size - whole.shape[-1], chunks[-1]
    end = end[..., -last:] if size > _CACHED else end[..., :last]
    parts.append(jnp.concatenate([whole, end], axis=-1))
  return parts


def _dtype(leaves):
  return jnp.result_type(*(wide(leaf.rows.dtype) for leaf in leaves))


def _packed(function, leaves):
  """Applies the function to wide chunks, made of pieces of several leaves."""
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
  def one_pack(rows):
    return function(rows, rank_selection.by_sorting)

  outs = [one_pack(jnp.concatenate(pack, axis=1)) for pack in packs]
  out = jnp.concatenate(outs, axis=-1)
  return jnp.split(out, np.cumsum(sizes)[:-1], axis=-1)


def sort(x: jax.Array) -> jax.Array:
  """Sorts the last axis, as integers: five times as fast as floats on CPU."""
  return _floats(lax.sort(_sortable(x)))


def _sortable(x):
  """Returns integers that have the order of the floats; -0 comes before 0."""
  # The bits of negative floats have the reverse order: flip all but the sign.
  bits = lax.bitcast_convert_type(x, integers(x.dtype))
  return bits ^ (bits >> (bits.dtype.itemsize * 8 - 1) & _magnitude(bits))


def _floats(keys):
  """Returns the floats of `_sortable`'s integers."""
  bits = keys ^ (keys >> (keys.dtype.itemsize * 8 - 1) & _magnitude(keys))
  floats = {4: jnp.float32, 8: jnp.float64}[keys.dtype.itemsize]
  return lax.bitcast_convert_type(bits, floats)


def integers(dtype: jnp.dtype) -> jnp.dtype:
  """Returns the integer dtype of the same width as a float dtype."""
  return jnp.dtype({4: jnp.int32, 8: jnp.int64}[dtype.itemsize])


def _magnitude(bits):
  return jnp.array(jnp.iinfo(bits.dtype).max, bits.dtype)


def _total(rows: Iterable[jax.Array]) -> jax.Array:
  return functools.reduce(lax.add, rows)


def _count(masks: Iterable[jax.Array]) -> jax.Array:
  return _total(mask.astype(jnp.int32) for mask in masks)
