r"""3 x 3 convolutions with 16 products for four outputs, in place of 36.

Winograd's minimal filtering :math:`F(2 \times 2, 3 \times 3)`: a tile of 2 x 2
outputs sees 4 x 4 inputs :math:`d` through the kernel :math:`g`, as

.. math:: Y = A^\top \left[ (G g G^\top) \odot (B^\top d B) \right] A

Over all tiles and channels each of the 16 entries of :math:`\odot` is a matrix
product, and the gradients are the same maps, transposed. A tile is what 2 x 2
max-pooling needs, and pooled outputs need not be laid out first.

On CPUs it is fast if nothing leaves the cache: images go through it in blocks
of one or a few.

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

_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])

_BLOCK_TILES = 128  # at least: fewer make poor matrix products

_Grid = list[list[jax.Array]]


def conv(
  x: jax.Array,
  kernel: jax.Array,
  padding: Padding,
  precision: lax.PrecisionLike = None,
) -> jax.Array:
  """A convolution with stride 1.

  Args:
    x: `[batch, height, width, in]`.
    kernel: `[3, 3, in, out]`.
    padding: pairs.
    precision: of the matrix products.

  Returns:
    `[batch, height', width', out]`.
  """
  height, width = output_sides(x, padding)

  def of_tiles(outputs):
    return pooling.laid_out(outputs)[:, :height, :width]

  return _over_tiles(of_tiles, x, kernel, padding, precision)


def conv_gradients(
  x: jax.Array,
  kernel: jax.Array,
  g: jax.Array,
  padding: Padding,
  precision: lax.PrecisionLike = None,
) -> tuple[jax.Array, jax.Array]:
  """A scalar's gradients with respect to `x` and `kernel`.

  Args:
    x: as in `conv`, like `kernel`, `padding` and `precision`.
    kernel: `[3, 3, in, out]`.
    g: `[batch, height', width', out]`, the one with respect to the result.
    padding: pairs.
    precision: of the matrix products.
  """
  return _gradients(pooling.squares, x, kernel, [g], padding, precision)


def conv_max_pool(
  x: jax.Array,
  kernel: jax.Array,
  padding: Padding,
  precision: lax.PrecisionLike = None,
) -> tuple[jax.Array, jax.Array]:
  """A convolution with stride 1, max-pooled over 2 x 2.

  Args:
    x: as in `conv`, like all that follow.
    kernel: `[3, 3, in, out]`.
    padding: pairs.
    precision: of the matrix products.

  Returns:
    `[batch, height' // 2, width' // 2, out]`, and likewise which outputs those
    were (see `pooling.largest`).
  """
  height, width = (side // 2 for side in output_sides(x, padding))

  def of_tiles(outputs):
    largest, winners = pooling.largest(outputs)
    return largest[:, :height, :width], winners[:, :height, :width]

  return _over_tiles(of_tiles, x, kernel, padding, precision)


def conv_max_pool_gradients(
  x: jax.Array,
  kernel: jax.Array,
  winners: jax.Array,
  g: jax.Array,
  padding: Padding,
  precision: lax.PrecisionLike = None,
) -> tuple[jax.Array, jax.Array]:
  """A scalar's gradients with respect to `x` and `kernel`.

  Args:
    x: as in `conv`, like `kernel`, `padding` and `precision`.
    kernel: `[3, 3, in, out]`.
    winners: from `conv_max_pool`; equal ones share the gradient.
    g: the one with respect to the pooled result.
    padding: pairs.
    precision: of the matrix products.
  """
  return _gradients(pooling.shares, x, kernel, [winners, g], padding, precision)


def _over_tiles(of_tiles, x, kernel, padding, precision):
  """`of_tiles` of the 2 x 2 outputs of all tiles, block by block."""
  weights = _transformed_kernel(kernel)

  def block(total, images):
    products = jax.tree.map(
      lambda v, u: jnp.dot(v, u, precision=precision),
      _sandwiched(_INPUT, _input_tiles(images)),
      weights,
    )
    return total, of_tiles(_sandwiched(_OUTPUT, products))

  arrays = [(x, _input_padding(x, padding))]
  return _over_blocks(block, (), arrays, padding)[1]


def _gradients(at_outputs, x, kernel, cotangents, padding, precision):
  """`at_outputs` of a block gives the gradients at its tiles' 2 x 2 outputs."""
  weights, to_kernel = jax.vjp(_transformed_kernel, kernel)
  (top, _), (left, _) = padding
  height, width = x.shape[1:3]

  def block(totals, images, *g):
    inputs = _sandwiched(_INPUT, _input_tiles(images))
    products = _sandwiched(_OUTPUT.T, at_outputs(*g))
    totals = jax.tree.map(
      lambda t, v, p: t + jnp.dot(_rows(v).T, _rows(p), precision=precision),
      totals,
      inputs,
      products,
    )
    by_inputs = jax.tree.map(
      lambda p, u: jnp.dot(p, u.T, precision=precision), products, weights
    )
    dx = _overlapped([_overlapped(row, 2) for row in by_inputs], 1)
    return totals, dx[:, top : top + height, left : left + width]

  # An odd last row or column has tiles of its own, pooled or not.
  ends = [(0, side % 2) for side in output_sides(x, padding)]
  arrays = [(x, _input_padding(x, padding)), *((g, ends) for g in cotangents)]
  zeros = jax.tree.map(jnp.zeros_like, weights)
  totals, dx = _over_blocks(block, zeros, arrays, padding)
  return dx, *to_kernel(totals)


def output_sides(x: jax.Array, padding: Padding) -> list[int]:
  """Height and width of a 3 x 3 convolution's result."""
  return [
    side + low + high - 2
    for side, (low, high) in zip(x.shape[1:3], padding, strict=True)
  ]


def _num_tiles(x, padding):
  """How many tiles lie along the height and the width."""
  return [-(-side // 2) for side in output_sides(x, padding)]


def _input_padding(x, padding):
  """Returns images' padding to whole tiles and the pixel around each."""
  tiles = _num_tiles(x, padding)
  return [
    (low, 2 * t + 2 - low - side)
    for side, (low, _), t in zip(x.shape[1:3], padding, tiles, strict=True)
  ]


def _over_blocks(
  function: Callable[..., tuple[PyTree, PyTree]],
  totals: PyTree,
  arrays: Sequence[tuple[jax.Array, Padding]],
  padding: Padding,
) -> tuple[PyTree, PyTree]:
  """Scans `(totals, *blocks) -> (totals, results)` over blocks of images.

  Each block is read, and padded by what stands beside its array, while the one
  before is in use. One that were read in its own step would be read anew by
  every loop over it, from addresses that XLA cannot vectorize.
  """
  images = arrays[0][0]
  height, width = _num_tiles(images, padding)
  batch = len(images)
  size = min(batch, -(-_BLOCK_TILES // (height * width)))
  missing = -batch % size
  whole = [
    jnp.pad(x, ((0, missing), (0, 0), (0, 0), (0, 0))) for x, _ in arrays
  ]

  def read(i):
    blocks = (lax.dynamic_slice_in_dim(x, i * size, size) for x in whole)
    return [
      jnp.pad(block, ((0, 0), *pads, (0, 0)))
      for block, (_, pads) in zip(blocks, arrays, strict=True)
    ]

  def step(carry, i):
    totals, blocks = carry
    totals, results = function(totals, *blocks)
    return (totals, read(i + 1)), results

  steps = jnp.arange(len(whole[0]) // size)
  (totals, _), results = lax.scan(step, (totals, read(0)), steps)
  return totals, jax.tree.map(
    lambda r: r.reshape(-1, *r.shape[2:])[:batch], results
  )


def _sandwiched(matrix: np.ndarray, grid: _Grid) -> _Grid:
  """`matrix @ grid @ matrix.T`, of arrays."""
  return [[_sum(np.outer(r, c), grid) for c in matrix] for r in matrix]


def _sum(weights: np.ndarray, arrays: _Grid | list[jax.Array]) -> jax.Array:
  terms = zip(weights.ravel().tolist(), jax.tree.leaves(arrays), strict=True)
  return functools.reduce(operator.add, [w * x for w, x in terms if w])


def _transformed_kernel(kernel: jax.Array) -> _Grid:
  entries = [[kernel[i, j] for j in range(3)] for i in range(3)]
  return _sandwiched(_KERNEL, entries)


def _input_tiles(images: jax.Array) -> _Grid:
  """The 4 x 4 pixels of all tiles: tiles overlap by two."""
  grid = pooling.squares(images)
  _, height, width, _ = grid[0][0].shape

  def at(i, j):
    x = grid[i % 2][j % 2]
    return x[:, i // 2 : i // 2 + height - 1, j // 2 : j // 2 + width - 1]

  return [[at(i, j) for j in range(4)] for i in range(4)]


def _overlapped(entries: Sequence[jax.Array], axis: int) -> jax.Array:
  """Transposes the input's tiles and transform, along one axis."""
  first, second, third, fourth = (_sum(w, entries) for w in _INPUT.T)

  def added(here, in_next):
    before, after = ([(0, 0)] * here.ndim for _ in range(2))
    before[axis], after[axis] = (0, 1), (1, 0)
    return jnp.pad(here, before) + jnp.pad(in_next, after)

  return pooling.interleaved([added(first, third), added(second, fourth)], axis)


def _rows(x: jax.Array) -> jax.Array:
  return x.reshape(-1, x.shape[-1])
