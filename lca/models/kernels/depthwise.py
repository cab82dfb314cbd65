"""Depthwise convolutions (one filter per channel) without XLA's slow paths.

Local training computes the gradients of depthwise convolutions inside a
compiled loop. On CPUs XLA's own depthwise convolution is very slow there. With
both gradients it takes 67 to 487 times as long as this module if the clients
train one after the other, and 13 to 261 times as long under `vmap`
(EfficientNet-B0's layers, jaxlib 0.10.2, 2 cores; `benchmarks/depthwise.py`).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from lca.models.kernels.windows import Padding, windows


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(
  x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding
) -> jax.Array:
  """Returns a depthwise convolution, as a sum of shifted and scaled images.

  For each position of the kernel, the images are shifted, multiplied by the
  kernel's entry there, and added up in float32 or wider.

  The gradients are written by hand in the same way. Autodiff would make an
  array of the size of the padded images for the slice at each position of the
  kernel, and add these arrays up.

  Args:
    x: `[batch, height, width, channels]` images.
    kernel: `[kernel height, kernel width, 1, channels]`, in both directions at
      least as large as the stride.
    strides: the strides down and across.
    padding: pairs, see `Padding`.

  Returns:
    `[batch, height', width', channels]`.
  """
  sum_dtype = jnp.promote_types(x.dtype, jnp.float32)
  total = sum(
    window.astype(sum_dtype) * kernel[i, j, 0]
    for i, j, window in windows(x, kernel.shape, padding, strides)
  )
  return total.astype(x.dtype)


def _conv_fwd(x, kernel, strides, padding):
  return conv(x, kernel, strides, padding), (x, kernel)


def _conv_bwd(strides, padding, residuals, g):
  x, kernel = residuals
  dk = _kernel_gradient(x, g, kernel.shape, strides, padding)
  dx = _input_gradient(g, kernel, x.shape, strides, padding)
  return dx, dk.astype(kernel.dtype)


conv.defvjp(_conv_fwd, _conv_bwd)


def _kernel_gradient(x, g, kernel_shape, strides, padding):
  """Returns the gradient with respect to the kernel, in float32 or wider.

  The entry at position (i, j) is the sum over all pixels of the images shifted
  by (i, j), times the gradient `g` of the result.
  """
  sum_dtype = jnp.promote_types(x.dtype, jnp.float32)
  x, g = x.astype(sum_dtype), g.astype(sum_dtype)

  def all_positions(x, g):
    shifted = windows(x, kernel_shape, padding, strides)
    return jnp.stack([jnp.sum(w * g, axis=(0, 1, 2)) for _, _, w in shifted])

  def position_by_position(x, g):
    # A workaround for XLA on CPUs (jaxlib 0.10): its sum over all axes but the
    # last one takes four times as long as the same sum written as a matrix
    # product with a vector of ones. The loop over positions compiles in a third
    # of the time that the unrolled sum takes.
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    pixels = g.reshape(-1, g.shape[-1])  # [pixels of all images, channels]
    spans = [
      1 + s * (n - 1) for n, s in zip(g.shape[1:3], strides, strict=True)
    ]

    def entry_at(position):
      i, j = jnp.divmod(position, kernel_shape[1])
      shape = (len(x), *spans, x.shape[-1])
      window = lax.dynamic_slice(padded, (0, i, j, 0), shape)
      window = lax.slice(window, (0,) * 4, shape, (1, *strides, 1))
      product = window.reshape(pixels.shape) * pixels
      return jnp.dot(jnp.ones(len(product), sum_dtype), product)

    return lax.map(entry_at, jnp.arange(kernel_shape[0] * kernel_shape[1]))

  dk = lax.platform_dependent(
    x, g, cpu=position_by_position, default=all_positions
  )
  return dk.reshape(kernel_shape)


def _input_gradient(g, kernel, shape, strides, padding):
  """Returns the gradient with respect to the images.

  With stride s, the pixels whose row is i modulo s were multiplied only by the
  kernel's rows that are i modulo s, and likewise for columns. The gradients of
  these pixels are therefore a depthwise convolution of `g` with stride 1, by
  that part of the kernel. The pixels fall into `down * across` such groups,
  which are computed one after the other and then interleaved.

  Args:
    g: gradient with respect to the result.
    kernel: as in `conv`, like `strides` and `padding`.
    shape: shape of the images.
    strides: the strides down and across.
    padding: pairs.
  """
  batch, height, width, channels = shape
  (top, bottom), (left, right) = padding
  down, across = strides
  # Rows and columns of one group, in the padded images, rounded up.
  rows = -(-(top + height + bottom) // down)
  columns = -(-(left + width + right) // across)

  def group_gradient(i, j):
    part = jnp.flip(kernel[i::down, j::across], (0, 1))
    pads = tuple(
      (k - 1, size - side)
      for k, size, side in zip(
        part.shape[:2], (rows, columns), g.shape[1:3], strict=True
      )
    )
    return conv(g, part, (1, 1), pads)

  groups = [
    jnp.stack([group_gradient(i, j) for j in range(across)], axis=3)
    for i in range(down)
  ]
  # [batch, rows, down, columns, across, channels]
  dx = jnp.stack(groups, axis=2)
  dx = dx.reshape(batch, rows * down, columns * across, channels)
  return dx[:, top : top + height, left : left + width]  # without the padding
