r"""Winograd's form of 3 x 3 convolutions, which multiplies less.

A direct 3 x 3 convolution takes 36 products for a tile of 2 x 2 outputs.
Winograd's minimal filtering :math:`F(2 \times 2, 3 \times 3)` takes 16. The
tile depends on 4 x 4 inputs :math:`d` and the kernel :math:`g`:

.. math:: Y = A^\top \left[ (G g G^\top) \odot (B^\top d B) \right] A

The transforms by the constant matrices A, B and G only add and halve numbers.
Over all tiles and channels, each of the 16 entries of :math:`\odot` is a matrix
product. The gradients are the same linear maps, transposed. A tile of 2 x 2
outputs is also a square of 2 x 2 max-pooling, so that pooling needs no pass of
its own.

This form is used on CPUs. It is fast there only while its intermediate arrays
stay in the processor's cache, so it takes images in blocks of one or a few. The
paper's CNN trains at 2,250 to 2,300 samples a second with this form for its
second convolution and pooling, and at about 1,400 without (jaxlib 0.10.2, 2
cores).

References:
  Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016.
"""

import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lca.models.kernels import pooling
from lca.models.kernels.windows import Padding
from lca.typing import PyTree

# The matrices B^T, G and A^T of the equation above.
_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])

# A block has at least this many tiles. With fewer, matrix products are slow.
_BLOCK_TILES = 128

_Grid = list[list[jax.Array]]  # entry [i][j] of all tiles, as one array


def conv(
  x: jax.Array,
  kernel: jax.Array,
  padding: Padding,
  precision: lax.PrecisionLike = None,
) -> jax.Array:
  """Returns a convolution with stride 1.

  Args:
    x: `[batch, height, width, in]` images.
    kernel: `[3, 3, in, out]`.
    padding: pairs, see `Padding`.
    precision: precision of the matrix products.

  Returns:
    `[batch, height', width', out]`.
  """
  height, width = output_sides(x, padding)

  def join_tiles(outputs):
    return pooling.join_squares(outputs)[:, :height, :width]

  return _map_tiles(join_tiles, x, kernel, padding, precision)


def conv_gradients(
  x: jax.Array,
  kernel: jax.Array,
  g: jax.Array,
  padding: Padding,
  precision: lax.PrecisionLike = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the gradients of `conv` with respect to `x` and `kernel`.

  Args:
    x: `[batch, height, width, in]` images.
    kernel: `[3, 3, in, out]`.
    g: `[batch, height', width', out]` gradient with respect to the result.
    padding: pairs, see `Padding`.
    precision: precision of the matrix products.
  """
  return _gradients(pooling.split_squares, x, kernel, [g], padding, precision)


def conv_max_pool(
  x: jax.Array,
  kernel: jax.Array,
  padding: Padding,
  precision: lax.PrecisionLike = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns a convolution with stride 1, max-pooled over 2 x 2 squares.

  Args:
    x: `[batch, height, width, in]` images.
    kernel: `[3, 3, in, out]`.
    padding: pairs, see `Padding`.
    precision: precision of the matrix products.

  Returns:
    The pooled outputs `[batch, height' // 2, width' // 2, out]`, and for each
    of them the bit mask of the largest entries (see `pooling.largest`).
  """
  height, width = (side // 2 for side in output_sides(x, padding))

  def pool_tiles(outputs):
    largest, winners = pooling.largest(outputs)
    return largest[:, :height, :width], winners[:, :height, :width]

  return _map_tiles(pool_tiles, x, kernel, padding, precision)


def conv_max_pool_gradients(
  x: jax.Array,
  kernel: jax.Array,
  winners: jax.Array,
  g: jax.Array,
  padding: Padding,
  precision: lax.PrecisionLike = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the gradients of `conv_max_pool` with respect to `x` and `kernel`.

  Args:
    x: `[batch, height, width, in]` images.
    kernel: `[3, 3, in, out]`.
    winners: bit masks from `conv_max_pool`. Entries that tie share the gradient
      equally.
    g: gradient with respect to the pooled outputs.
    padding: pairs, see `Padding`.
    precision: precision of the matrix products.
  """
  return _gradients(
    pooling.split_gradient, x, kernel, [winners, g], padding, precision
  )


def _map_tiles(function, x, kernel, padding, precision):
  """Applies a function to the 2 x 2 outputs of all tiles, block by block.

  Args:
    function: maps the four outputs of a block's tiles, a `pooling.Square`, to
      arrays `[images, ...]`.
    x: as in `conv`, like `kernel`, `padding` and `precision`.
    kernel: `[3, 3, in, out]`.
    padding: pairs.
    precision: precision of the matrix products.

  Returns:
    The results of the function for all images.
  """
  weights = _transformed_kernel(kernel)

  def block_results(total, images):
    products = jax.tree.map(
      lambda v, u: jnp.dot(v, u, precision=precision),
      _transform(_INPUT, _input_tiles(images)),
      weights,
    )
    return total, function(_transform(_OUTPUT, products))

  arrays = [(x, _input_padding(x, padding))]
  return _scan_blocks(block_results, (), arrays, padding)[1]


def _gradients(to_square, x, kernel, cotangents, padding, precision):
  """Returns the gradients with respect to `x` and `kernel`.

  Args:
    to_square: maps the cotangents of a block to the gradients with respect to
      the 2 x 2 outputs of its tiles.
    x: as in `conv`, like `kernel`, `padding` and `precision`.
    kernel: `[3, 3, in, out]`.
    cotangents: arrays with one row for each image; the arguments of
      `to_square`.
    padding: pairs.
    precision: precision of the matrix products.
  """
  weights, kernel_vjp = jax.vjp(_transformed_kernel, kernel)
  (top, _), (left, _) = padding
  height, width = x.shape[1:3]

  def block_gradients(totals, images, *block_cotangents):
    inputs = _transform(_INPUT, _input_tiles(images))
    products = _transform(_OUTPUT.T, to_square(*block_cotangents))
    # The gradient with respect to the transformed kernel sums over all tiles.
    totals = jax.tree.map(
      lambda t, v, p: (
        t + jnp.dot(_flatten_rows(v).T, _flatten_rows(p), precision=precision)
      ),
      totals,
      inputs,
      products,
    )
    # `dv` is the gradient with respect to the transformed inputs B^T d B.
    dv = jax.tree.map(
      lambda p, u: jnp.dot(p, u.T, precision=precision), products, weights
    )
    dx = _add_up_tiles([_add_up_tiles(row, 2) for row in dv], 1)
    return totals, dx[:, top : top + height, left : left + width]

  # If the outputs have an odd last row or column, zeros fill the last tiles.
  ends = [(0, side % 2) for side in output_sides(x, padding)]
  arrays = [(x, _input_padding(x, padding)), *((g, ends) for g in cotangents)]
  zeros = jax.tree.map(jnp.zeros_like, weights)
  totals, dx = _scan_blocks(block_gradients, zeros, arrays, padding)
  return dx, *kernel_vjp(totals)


def output_sides(x: jax.Array, padding: Padding) -> list[int]:
  """Returns the height and width of the result of a 3 x 3 convolution."""
  return [
    side + low + high - 2
    for side, (low, high) in zip(x.shape[1:3], padding, strict=True)
  ]


def _num_tiles(x, padding):
  """Returns the numbers of tiles along the height and the width."""
  return [-(-side // 2) for side in output_sides(x, padding)]


def _input_padding(x, padding):
  """Returns the padding with which the images cover whole tiles.

  A tile has 2 x 2 outputs and depends on 4 x 4 inputs: t tiles in a row take
  2 t + 2 pixels.
  """
  tiles = _num_tiles(x, padding)
  return [
    (low, 2 * t + 2 - low - side)
    for side, (low, _), t in zip(x.shape[1:3], padding, tiles, strict=True)
  ]


def _scan_blocks(
  function: Callable[..., tuple[PyTree, PyTree]],
  totals: PyTree,
  arrays: Sequence[tuple[jax.Array, Padding]],
  padding: Padding,
) -> tuple[PyTree, PyTree]:
  """Applies a function to one block of images after the other.

  Args:
    function: maps `(totals, *blocks)` to `(totals, results)`, where `blocks`
      are the rows of all arrays for one block.
    totals: the initial totals.
    arrays: pairs of an array with one row for each image, and the padding for
      the height and width of its blocks. The first array holds the images.
    padding: the padding of the convolution.

  Returns:
    The totals after the last block, and the results of all blocks,
    concatenated.
  """
  # A workaround for XLA on CPUs (jaxlib 0.10): a step of the loop reads the
  # block of the *next* step, and hands it on in the loop's carry. If a step
  # read its own block, XLA would read and pad the block again in every loop
  # that uses it, at addresses that XLA cannot vectorise.
  images = arrays[0][0]
  height, width = _num_tiles(images, padding)
  batch = len(images)
  size = min(batch, -(-_BLOCK_TILES // (height * width)))
  missing = -batch % size  # images of zeros that fill the last block
  filled = [
    jnp.pad(x, ((0, missing), (0, 0), (0, 0), (0, 0))) for x, _ in arrays
  ]

  def read(i):
    blocks = (lax.dynamic_slice_in_dim(x, i * size, size) for x in filled)
    return [
      jnp.pad(block, ((0, 0), *pads, (0, 0)))
      for block, (_, pads) in zip(blocks, arrays, strict=True)
    ]

  def step(carry, i):
    totals, blocks = carry
    totals, results = function(totals, *blocks)
    return (totals, read(i + 1)), results

  steps = jnp.arange(len(filled[0]) // size)
  (totals, _), results = lax.scan(step, (totals, read(0)), steps)
  return totals, jax.tree.map(
    lambda r: r.reshape(-1, *r.shape[2:])[:batch], results
  )


def _transform(matrix: np.ndarray, grid: _Grid) -> _Grid:
  """Returns `matrix @ grid @ matrix.T`, where a grid's entries are arrays."""
  return [[_weighted_sum(np.outer(r, c), grid) for c in matrix] for r in matrix]


def _weighted_sum(
  weights: np.ndarray, arrays: _Grid | list[jax.Array]
) -> jax.Array:
  """Returns the sum of arrays times constants; skips constants of 0."""
  terms = zip(weights.ravel().tolist(), jax.tree.leaves(arrays), strict=True)
  return functools.reduce(operator.add, [w * x for w, x in terms if w])


def _transformed_kernel(kernel: jax.Array) -> _Grid:
  """Returns `G g G^T`, 4 x 4 matrices `[in, out]`."""
  entries = [[kernel[i, j] for j in range(3)] for i in range(3)]
  return _transform(_KERNEL, entries)


def _input_tiles(images: jax.Array) -> _Grid:
  """Returns the 4 x 4 pixels of all tiles, which overlap by two pixels.

  Entry (i, j) of the grid, over all tiles, is every second row and column of
  the images from pixel (i, j) on: a slice of a result of `split_squares`.
  """
  grid = pooling.split_squares(images)
  _, height, width, _ = grid[0][0].shape

  def at(i, j):
    x = grid[i % 2][j % 2]
    return x[:, i // 2 : i // 2 + height - 1, j // 2 : j // 2 + width - 1]

  return [[at(i, j) for j in range(4)] for i in range(4)]


def _add_up_tiles(entries: Sequence[jax.Array], axis: int) -> jax.Array:
  """Applies the transpose of the input's transform and tiling along one axis.

  The transposed transform gives the gradients of the four pixels of each tile.
  A tile's third and fourth pixels are the first and second ones of the next
  tile, so their gradients are added up.

  Args:
    entries: four arrays, the gradients with respect to the transformed pixels.
    axis: the axis along which the tiles lie.

  Returns:
    The gradients of the pixels in their order along the axis.
  """
  first, second, third, fourth = (_weighted_sum(w, entries) for w in _INPUT.T)

  def add_shifted(x, shifted):
    at_end, at_start = ([(0, 0)] * x.ndim for _ in range(2))
    at_end[axis], at_start[axis] = (0, 1), (1, 0)
    return jnp.pad(x, at_end) + jnp.pad(shifted, at_start)

  return pooling.interleave(
    [add_shifted(first, third), add_shifted(second, fourth)], axis
  )


def _flatten_rows(x: jax.Array) -> jax.Array:
  return x.reshape(-1, x.shape[-1])
