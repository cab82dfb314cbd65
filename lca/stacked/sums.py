"""Sums over the coordinates, and over the clients, of one stacked leaf.

These are the passes over the parameters. Sums over the coordinates make the
Gram matrix, sums over the clients (the rows) the aggregate. All run in float32
or wider, and each device sums over its own coordinates.

XLA's CPU backend is led around what it is slow at, in branches of their own:
products of matrices that do not fit in a cache, sums over the first axis, and
equal work compiled once a leaf.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from lca.stacked import sharding
from lca.typing import Gram

_COLUMNS = 12288  # a [100, 12288] chunk of float32 stays in a CPU's cache
_AT_ONCE = 6  # parts of a chunk, whose products and copies need not wait
_PIECE = 4096  # columns that leaves are padded to where one loop serves all
_FEW_COLUMNS = 1024  # so many that all rows cost no more than a walk
_ROWS = 8  # that a CPU adds at once


def wide(dtype: jnp.dtype) -> jnp.dtype:
  """The dtype that sums run in: float32, or wider where the data are."""
  return jnp.promote_types(dtype, jnp.float32)


def flat(leaf: jax.Array) -> jax.Array:
  """The columns of a stacked leaf, `[n, columns]`."""
  return jnp.reshape(leaf, (len(leaf), -1))


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
  """A product in float32 or wider.

  TPUs and TF32 multiply in less than float32 unless told otherwise, and
  distances of close clients would drown in that.
  """
  x, y = x.astype(wide(x.dtype)), y.astype(wide(y.dtype))
  return jnp.dot(x, y, precision=lax.Precision.HIGHEST)


def _finite(x: jax.Array) -> jax.Array:
  return jnp.where(jnp.isfinite(x), x, 0)


@jax.jit
def products(leaf: jax.Array) -> Gram:
  """`[n, n]`, the Gram matrix of a leaf's rows."""
  return over_columns(lambda x: dot(x, x.T), leaf)


def parts_products(
  layers: Sequence[Sequence[jax.Array]],
  lost: jax.Array,
  shares: jax.Array,
  middle: jax.Array,
) -> jax.Array:
  """Inner products of what is left of rows less multiples of one of them.

  One loop serves the leaves of all layers. Few calls need it, and a program
  for each leaf made a rule on 213 leaves compile in 27 s, not 14 (jaxlib 0.10).

  Args:
    layers: lists of leaves `[n, ...]`.
    lost: `[layers]` mask of those whose products are asked for.
    shares: `[layers, n]`, the multiples.
    middle: `[layers]`, the index of that row.

  Returns:
    `[layers, n + 1, n + 1]`, the row itself last; zeros for other layers.
  """
  leaves = [leaf for layer in layers for leaf in layer]
  layer_of = np.repeat(np.arange(len(layers)), [*map(len, layers)])
  longest = max(math.prod(leaf.shape[1:]) for leaf in leaves)
  n, dtype = shares.shape[1] + 1, wide(jnp.result_type(*leaves))
  if not longest:
    return jnp.zeros((len(layers), n, n), dtype)

  def by_pieces(leaves, whole, width):
    lost, shares, middle = whole
    rows = list(map(flat, leaves))
    table = pieces([x.shape[1] for x in rows], width)

    def piece(x, start):
      x = jnp.pad(x, ((0, 0), (0, max(0, width - x.shape[1]))))
      return lax.dynamic_slice_in_dim(x, start, width, axis=1).astype(dtype)

    readers = [functools.partial(piece, x) for x in rows]

    def step(i, total):
      leaf, start, seen = (_at(jnp.array(column), i) for column in table)
      layer = _at(jnp.array(layer_of), leaf)

      def add(total):
        x = lax.switch(leaf, readers, start)
        x = jnp.where(jnp.arange(width) >= seen, x, 0)
        row = lax.dynamic_slice_in_dim(x, _at(middle, layer), 1)
        x = _parts(x, row, _at(shares, layer))
        return total.at[layer].add(dot(x, x.T))

      return lax.cond(_at(lost, layer), add, lambda total: total, total)

    start = jnp.zeros((len(layers), n, n), dtype)
    return lax.fori_loop(0, len(table[0]), step, start)

  def on_device(leaves, whole):
    if longest <= _PIECE:
      return by_pieces(leaves, whole, longest)
    return lax.platform_dependent(
      leaves,
      whole,
      cpu=functools.partial(by_pieces, width=_PIECE),
      default=functools.partial(by_pieces, width=min(2**18, longest)),
    )

  return sharding.sum_over_devices(on_device, leaves, (lost, shares, middle))


def pieces(sizes: Sequence[int], width: int) -> tuple[np.ndarray, ...]:
  """Pieces of leaves, all of one width, so that one loop serves all leaves.

  Args:
    sizes: how many columns each leaf has.
    width: of the pieces, in columns. The last piece of a leaf reaches back
      over the one before; a leaf of fewer columns is one piece.

  Returns:
    Of each piece the number of its leaf, its first column, and how many of its
    columns are in the piece before, too.
  """
  found = [
    (k, start, max(0, min(start, size - width)))
    for k, size in enumerate(sizes)
    for start in range(0, size, width)
  ]
  leaf, wanted, start = np.array(found).T
  return leaf, start, wanted - start


def tangent_products(
  leaf: jax.Array,
  leaf_dot: jax.Array,
  shares: jax.Array,
  middle: jax.Array,
  parted: jax.Array,
) -> jax.Array:
  """`[n, n + 1]` products of tangents with the rows of `parts_products`.

  The row itself counts as zero unless `parted`. Rows that are not finite do.
  """
  x = flat(leaf)
  row = lax.dynamic_slice_in_dim(x, middle, 1)
  rows = _parts(x, jnp.where(parted, row, 0), shares)
  return dot(flat(leaf_dot), _finite(rows).T)


def _parts(x: jax.Array, row: jax.Array, shares: jax.Array) -> jax.Array:
  """Rows less multiples of one row, without a rounding, and that row."""
  x, row = x.astype(wide(x.dtype)), row.astype(wide(row.dtype))
  for share in _halves(shares.astype(x.dtype)[:, None]):
    for half in _halves(row):
      x -= share * half  # of half the digits each: the product is exact
  return jnp.concatenate([x, row])


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Two numbers of half the digits, the larger one first, that sum to x."""
  about = jnp.finfo(x.dtype)
  high = lax.reduce_precision(x, about.nexp, about.nmant // 2)
  return high, x - high


@jax.jit
def squares(leaf: jax.Array) -> jax.Array:
  """`[n]`, the squared norms of a leaf's rows."""
  x = leaf.astype(wide(leaf.dtype))
  return jnp.sum(x * x, axis=range(1, x.ndim))


@jax.jit
def inner(leaf: jax.Array, other: jax.Array) -> jax.Array:
  """`[n]`, the products of a leaf's rows with one more."""
  return over_columns(lambda x, y: dot(x, y.T)[:, 0], leaf, other[None])


def over_columns(
  function: Callable[..., jax.Array],
  *leaves: jax.Array,
  whole: tuple[jax.Array, ...] = (),
) -> jax.Array:
  """Sums what a function makes of blocks of columns that stay in cache.

  Args:
    function: of `[n, c]` blocks, one of each leaf, and of `whole`; what it
      returns is shaped alike for every c.
    *leaves: `[n, ...]`, alike but for n.
    whole: what it needs beside the blocks.

  Returns:
    The sum; where there is no cache to mind, of a single block a device.
  """

  def on_device(leaves, whole):
    return _sum_over_blocks(
      lambda *blocks: function(*blocks, *whole), *map(flat, leaves)
    )

  return sharding.sum_over_devices(on_device, leaves, whole)


def _sum_over_blocks(function, *rows):
  columns = rows[0].shape[1]

  def whole():
    return function(*rows)

  def block(start, width):
    return function(
      *(lax.dynamic_slice_in_dim(x, start, width, axis=1) for x in rows)
    )

  def by_blocks():
    count, rest = divmod(columns, _COLUMNS)
    width = _COLUMNS // _AT_ONCE

    def step(i, total):
      for part in range(_AT_ONCE):
        total += block(i * _COLUMNS + part * width, width)
      return total

    return lax.fori_loop(0, count, step, block(count * _COLUMNS, rest))

  if columns < 2 * _COLUMNS:  # a loop of one step is none, and slower
    return whole()
  return lax.platform_dependent(cpu=by_blocks, default=whole)


# What brackets do, traced in half the time.
_at = functools.partial(
  lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False
)


@jax.custom_jvp
@jax.jit
def over_rows(weights: jax.Array, leaf: jax.Array) -> jax.Array:
  """`[..., n]` weights times the rows `[n, ...]`, in their dtype."""
  lead, dtype = weights.shape[:-1], _sum_dtype(weights, leaf)
  add = _many_sums if lead else _one_sum

  def on_device(leaves, weights):
    (leaf,) = leaves
    mixed = add(weights, flat(leaf))
    return [mixed.reshape(*lead, *leaf.shape[1:]).astype(leaf.dtype)]

  (mixed,) = sharding.on_each_device(
    on_device, [leaf], weights.astype(dtype), len(lead)
  )
  return mixed


def _sum_dtype(weights, leaf):
  return wide(jnp.promote_types(leaf.dtype, weights.dtype))


def _one_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
  """`[n]` weights times rows."""

  def fused():
    column = weights[:, None]
    x = jnp.where(column != 0, rows, 0).astype(weights.dtype)
    return jnp.sum(column * x, axis=0)

  # XLA's CPU backend sums the rows of a large leaf column by column, which is
  # slow. So it walks over those in use, which are few when a rule selects.
  def walk():
    padded = jnp.pad(weights, (0, _ROWS))
    number = jnp.arange(len(padded))
    _, order, w = lax.sort((padded == 0, number, padded), num_keys=1)

    def weighed(k):
      weight, row = _at(w, k), _at(rows, _at(order, k)).astype(w.dtype)
      return jnp.where(weight != 0, weight * row, 0)

    def step(i, total):
      for k in range(1, _ROWS + 1):
        total += weighed(i * _ROWS + k)
      return total

    more = jnp.sum(weights != 0) - 1
    return lax.fori_loop(0, -(-more // _ROWS), step, weighed(0))

  if rows.shape[1] <= _FEW_COLUMNS:
    return fused()
  return lax.platform_dependent(cpu=walk, default=fused)


def _many_sums(weights: jax.Array, rows: jax.Array) -> jax.Array:
  """`[k, n]` weights times rows, without a masked copy of all rows."""
  # A row of NaN weights is a sum that is to be NaN: it makes use of no row.
  used = jnp.any((weights != 0) & ~jnp.isnan(weights), axis=0)

  def block(start, width):
    x = lax.dynamic_slice_in_dim(rows, start, width, axis=1)
    x = jnp.where(used[:, None], x, 0).astype(weights.dtype)
    return dot(weights, x)

  def by_columns(width):
    last = rows.shape[1] - width  # the last block reaches back

    def step(i, out):
      start = jnp.minimum(i * width, last)
      return lax.dynamic_update_slice(out, block(start, width), (0, start))

    out = jnp.zeros((len(weights), rows.shape[1]), weights.dtype)
    return lax.fori_loop(0, -(-rows.shape[1] // width), step, out)

  if rows.shape[1] <= _COLUMNS:
    return block(0, rows.shape[1])
  return lax.platform_dependent(
    cpu=functools.partial(by_columns, _COLUMNS),
    default=functools.partial(by_columns, min(2**18, rows.shape[1])),
  )


@functools.partial(over_rows.defjvp, symbolic_zeros=True)
def _over_rows_jvp(primals, tangents):
  """Linear in both; what has no tangent is left out, not multiplied by 0."""
  (weights, leaf), (weights_dot, leaf_dot) = primals, tangents
  rows = flat(leaf)
  dtype = _sum_dtype(weights, leaf)
  tangent = jnp.zeros((*weights.shape[:-1], rows.shape[1]), dtype)
  if not isinstance(weights_dot, SymbolicZero):
    # A row left out may hold anything, and has a weight that does not change.
    tangent += dot(weights_dot, _finite(rows))
  if not isinstance(leaf_dot, SymbolicZero):
    used = jnp.any(weights.reshape(-1, len(rows)) != 0, axis=0)
    tangent += dot(weights, jnp.where(used[:, None], flat(leaf_dot), 0))
  mixed = over_rows(weights, leaf)
  return mixed, tangent.reshape(mixed.shape).astype(leaf.dtype)


@jax.jit
def rows_of(x: jax.Array) -> list[jax.Array]:
  """The rows of `[k, ...]` numbers, for k sums of which each takes one.

  XLA's CPU backend would fuse what makes them into every sum, and compile it
  as often: it does not fuse a sort, even of what is in order. And it compiles
  equal programs once: sums of equal leaves become such, as the number of the
  row is read from a place that it does not know.
  """

  def looked_up(x):
    place = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    place, x = lax.sort_key_val(place, x)
    first = place[(0,) * x.ndim]
    return [_at(x, _at(jnp.array([k, -1]), first)) for k in range(len(x))]

  return lax.platform_dependent(x, cpu=looked_up, default=list)
