"""Sums over the coordinates, and over the clients, of stacked leaves.

These functions are the passes over the parameters. They read a leaf `[n, ...]`
as a matrix with a row per client and a column per coordinate. Sums over the
columns give the Gram matrix, sums over the rows the aggregate. All sums run in
float32 or wider, and each device sums over its own columns.

On GPU and TPU a sum is a plain product over the whole leaf or over wide blocks.
On CPU XLA is slow at three things, which have branches of their own:

- a product of matrices larger than a cache: chunks of columns are multiplied;
- a sum over the first axis: a loop adds the rows whose weight is not zero;
- compiling the same work once per leaf: one loop serves all leaves.
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

_CHUNK = 12288  # columns; [100, 12288] float32 numbers stay in a CPU's cache
_AT_ONCE = 6  # parts of a chunk: one is copied while another is multiplied
_PIECE = 4096  # columns of a piece where one loop serves all leaves
_FEW_COLUMNS = 1024  # up to here a sum of all rows costs no more than a loop
_ROWS = 8  # rows that a step of the loop over rows adds


def wide(dtype: jnp.dtype) -> jnp.dtype:
  """Returns the dtype for sums: float32, or `dtype` if that is wider."""
  return jnp.promote_types(dtype, jnp.float32)


def flat(leaf: jax.Array) -> jax.Array:
  """Returns a stacked leaf as a matrix, `[n, columns]`."""
  return jnp.reshape(leaf, (len(leaf), -1))


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns the matrix product, computed in full float32 or wider.

  By default TPUs, and GPUs with TF32, multiply in less precision than float32.
  The rounding errors would then exceed the distances of close clients.
  """
  x, y = x.astype(wide(x.dtype)), y.astype(wide(y.dtype))
  return jnp.dot(x, y, precision=lax.Precision.HIGHEST)


def _finite(x: jax.Array) -> jax.Array:
  return jnp.where(jnp.isfinite(x), x, 0)


@jax.jit
def products(leaf: jax.Array) -> Gram:
  """Returns the Gram matrix of a leaf's rows, `[n, n]`."""
  return over_columns(lambda x: dot(x, x.T), leaf)


def parts_products(
  layers: Sequence[Sequence[jax.Array]],
  lost: jax.Array,
  shares: jax.Array,
  middle: jax.Array,
) -> jax.Array:
  """Returns the inner products of `p_i = x_i - shares_i * c` and of `c`.

  In every layer, c is one of the rows x. These products serve rows so close
  that their own inner products lose the distances (see `gram_passes`).

  Few calls need them, so one loop serves the leaves of all layers. With a loop
  for each leaf, a rule on 213 leaves compiled in 27 s, not 14 s (jaxlib 0.10).

  Args:
    layers: lists of leaves `[n, ...]`.
    lost: `[layers]` mask of the layers whose products are needed.
    shares: `[layers, n]`, the multiples of c.
    middle: `[layers]`, the index of the row c.

  Returns:
    `[layers, n + 1, n + 1]`, where c is last; zeros for layers not in `lost`.
  """
  leaves = [leaf for layer in layers for leaf in layer]
  layer_of = np.repeat(np.arange(len(layers)), [*map(len, layers)])
  longest = max(math.prod(leaf.shape[1:]) for leaf in leaves)
  size, dtype = shares.shape[1] + 1, wide(jnp.result_type(*leaves))
  if not longest:
    return jnp.zeros((len(layers), size, size), dtype)

  # Adds up the products of pieces of `width` columns, leaf by leaf.
  def by_pieces(leaves, whole, width):
    lost, shares, middle = whole
    rows = list(map(flat, leaves))
    all_pieces = pieces([x.shape[1] for x in rows], width)

    def piece(x, start):
      x = jnp.pad(x, ((0, 0), (0, max(0, width - x.shape[1]))))
      return lax.dynamic_slice_in_dim(x, start, width, axis=1).astype(dtype)

    readers = [functools.partial(piece, x) for x in rows]

    def step(i, total):
      leaf, start, overlap = (_at(jnp.array(field), i) for field in all_pieces)
      layer = _at(jnp.array(layer_of), leaf)

      def add(total):
        x = lax.switch(leaf, readers, start)
        # Columns that the piece before has added must not count twice.
        x = jnp.where(jnp.arange(width) >= overlap, x, 0)
        row = lax.dynamic_slice_in_dim(x, _at(middle, layer), 1)
        x = _parts(x, row, _at(shares, layer))
        return total.at[layer].add(dot(x, x.T))

      return lax.cond(_at(lost, layer), add, lambda total: total, total)

    start = jnp.zeros((len(layers), size, size), dtype)
    return lax.fori_loop(0, len(all_pieces[0]), step, start)

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
  """Divides leaves into pieces of one width, so that one loop serves all.

  The last piece of a leaf ends with the leaf, and overlaps the piece before. A
  leaf with fewer columns than `width` is one piece, which its reader must pad.

  Args:
    sizes: number of columns of each leaf.
    width: number of columns of a piece.

  Returns:
    Three arrays `[pieces]`: the index of the piece's leaf, its first column,
    and the number of its columns that the piece before holds, too.
  """
  rows = [
    (k, start, max(0, min(start, size - width)))
    for k, size in enumerate(sizes)
    for start in range(0, size, width)
  ]
  leaf, nominal_start, start = np.array(rows).T
  return leaf, start, nominal_start - start


def tangent_products(
  leaf: jax.Array,
  leaf_dot: jax.Array,
  shares: jax.Array,
  middle: jax.Array,
  parted: jax.Array,
) -> jax.Array:
  """Returns the inner products of the rows' tangents with the p_j and with c.

  Entries of p_j and c that are not finite count as zero, as `0 * nan` would
  make every row's gradient NaN.

  Args:
    leaf: `[n, ...]`, the rows.
    leaf_dot: `[n, ...]`, the rows' tangents.
    shares: `[n]`, as in `parts_products`, of one layer.
    middle: the index of the row c.
    parted: False if c counts as zero, so that the p_j are the rows.

  Returns:
    `[n, n + 1]`, with c as the last column.
  """
  x = flat(leaf)
  row = lax.dynamic_slice_in_dim(x, middle, 1)
  rows = _parts(x, jnp.where(parted, row, 0), shares)
  return dot(flat(leaf_dot), _finite(rows).T)


def _parts(x: jax.Array, row: jax.Array, shares: jax.Array) -> jax.Array:
  """Returns the rows `x_i - shares_i * row`, and `row` as the last one."""
  x, row = x.astype(wide(x.dtype)), row.astype(wide(row.dtype))
  for share in _halves(shares.astype(x.dtype)[:, None]):
    for half in _halves(row):
      x -= share * half  # the product is exact: each factor has half the digits
  return jnp.concatenate([x, row])


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns two numbers with half of x's digits, which sum to x."""
  about = jnp.finfo(x.dtype)
  high = lax.reduce_precision(x, about.nexp, about.nmant // 2)
  return high, x - high


@jax.jit
def squares(leaf: jax.Array) -> jax.Array:
  """Returns the squared norms of a leaf's rows, `[n]`."""
  x = leaf.astype(wide(leaf.dtype))
  return jnp.sum(x * x, axis=range(1, x.ndim))


@jax.jit
def inner(leaf: jax.Array, other: jax.Array) -> jax.Array:
  """Returns the inner products of a leaf's rows with `other`, `[n]`."""
  return over_columns(lambda x, y: dot(x, y.T)[:, 0], leaf, other[None])


def over_columns(
  function: Callable[..., jax.Array],
  *leaves: jax.Array,
  whole: tuple[jax.Array, ...] = (),
) -> jax.Array:
  """Sums a function's results over blocks of columns.

  On CPU the blocks fit in a cache; elsewhere one block has all columns.

  Args:
    function: `function(*blocks, *whole)` takes an `[n, c]` block of each leaf
      and returns an array, whose shape does not depend on c.
    *leaves: `[n, ...]` each; all axes but the first agree.
    whole: further arguments, given whole in every call.
  """

  def on_device(leaves, whole):
    return _sum_over_blocks(
      lambda *blocks: function(*blocks, *whole), *map(flat, leaves)
    )

  return sharding.sum_over_devices(on_device, leaves, whole)


def _sum_over_blocks(function, *rows):
  """Sums a function over blocks of columns of matrices `[n, columns]`."""
  columns = rows[0].shape[1]

  def whole():
    return function(*rows)

  def block(start, width):
    return function(
      *(lax.dynamic_slice_in_dim(x, start, width, axis=1) for x in rows)
    )

  def by_blocks():
    count, rest = divmod(columns, _CHUNK)
    width = _CHUNK // _AT_ONCE

    def step(i, total):
      for part in range(_AT_ONCE):
        total += block(i * _CHUNK + part * width, width)
      return total

    return lax.fori_loop(0, count, step, block(count * _CHUNK, rest))

  if columns < 2 * _CHUNK:  # a loop of a single step would only cost time
    return whole()
  return lax.platform_dependent(cpu=by_blocks, default=whole)


# `_at(x, i)` is `x[i]`, but JAX traces it in half the time.
_at = functools.partial(
  lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False
)


@jax.custom_jvp
@jax.jit
def over_rows(weights: jax.Array, leaf: jax.Array) -> jax.Array:
  """Returns the weighted sum, or sums, of a leaf's rows, in the leaf's dtype.

  Rows of weight zero are left out, whatever they hold.

  Args:
    weights: `[n]`, or `[k, n]` for k sums.
    leaf: `[n, ...]`.
  """
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
  """Returns the sum of `[n, columns]` rows with `[n]` weights."""

  def fused():
    column = weights[:, None]
    x = jnp.where(column != 0, rows, 0).astype(weights.dtype)
    return jnp.sum(column * x, axis=0)

  # XLA's CPU backend sums the rows of a large leaf column by column, which is
  # slow. This loop adds only rows of nonzero weight: few, if a rule selects.
  def walk():
    # Sort these rows to the front, and pad to whole steps of `_ROWS` rows.
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

    others = jnp.sum(weights != 0) - 1
    return lax.fori_loop(0, -(-others // _ROWS), step, weighed(0))

  if rows.shape[1] <= _FEW_COLUMNS:
    return fused()
  return lax.platform_dependent(cpu=walk, default=fused)


def _many_sums(weights: jax.Array, rows: jax.Array) -> jax.Array:
  """Returns `[k, n]` weights times rows, with no masked copy of all rows."""
  # A NaN weight makes its sum NaN, whatever the row holds.
  used = jnp.any((weights != 0) & ~jnp.isnan(weights), axis=0)

  def block(start, width):
    x = lax.dynamic_slice_in_dim(rows, start, width, axis=1)
    x = jnp.where(used[:, None], x, 0).astype(weights.dtype)
    return dot(weights, x)

  def by_columns(width):
    last = rows.shape[1] - width  # the last block overlaps the one before

    def step(i, out):
      start = jnp.minimum(i * width, last)
      return lax.dynamic_update_slice(out, block(start, width), (0, start))

    out = jnp.zeros((len(weights), rows.shape[1]), weights.dtype)
    return lax.fori_loop(0, -(-rows.shape[1] // width), step, out)

  if rows.shape[1] <= _CHUNK:
    return block(0, rows.shape[1])
  return lax.platform_dependent(
    cpu=functools.partial(by_columns, _CHUNK),
    default=functools.partial(by_columns, min(2**18, rows.shape[1])),
  )


@functools.partial(over_rows.defjvp, symbolic_zeros=True)
def _over_rows_jvp(primals, tangents):
  """Returns the sums and tangents; inputs without a tangent add no term."""
  (weights, leaf), (weights_dot, leaf_dot) = primals, tangents
  rows = flat(leaf)
  dtype = _sum_dtype(weights, leaf)
  tangent = jnp.zeros((*weights.shape[:-1], rows.shape[1]), dtype)
  if not isinstance(weights_dot, SymbolicZero):
    # A row left out may hold NaN. Its weight has the tangent 0, but 0 * nan is
    # nan, so entries that are not finite are set to 0.
    tangent += dot(weights_dot, _finite(rows))
  if not isinstance(leaf_dot, SymbolicZero):
    used = jnp.any(weights.reshape(-1, len(rows)) != 0, axis=0)
    tangent += dot(weights, jnp.where(used[:, None], flat(leaf_dot), 0))
  mixed = over_rows(weights, leaf)
  return mixed, tangent.reshape(mixed.shape).astype(leaf.dtype)


@jax.jit
def rows_of(x: jax.Array) -> list[jax.Array]:
  """Returns the rows of `[k, ...]` weights as a list, for k separate sums.

  On CPU it saves XLA from doing the same work k times (jaxlib 0.10). The no-op
  sort is a fusion barrier: without it XLA compiles and recomputes the weights
  in each of the k sums. The index of a row is read from an array that XLA does
  not know, so that sums of equal leaves are equal programs, compiled once.
  """

  def looked_up(x):
    place = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    place, x = lax.sort_key_val(place, x)
    first = place[(0,) * x.ndim]  # always 0, which XLA cannot tell
    return [_at(x, _at(jnp.array([k, -1]), first)) for k in range(len(x))]

  return lax.platform_dependent(x, cpu=looked_up, default=list)
