"""Depthwise convolutions, one filter for each channel, in a fast form."""

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
  """Shift, multiply, add: in a loop on CPUs a native one is much slower.

  Its gradients are written in the same way. Those that come from the slices
  by autodiff would add an array of the padded images' size for each position
  of the kernel.

  Args:
    x: `[batch, height, width, channels]`.
    kernel: `[kernel height, kernel width, 1, channels]`, no side of it smaller
      than its stride.
    strides: down and across.
    padding: pairs.

  Returns:
    `[batch, height', width', channels]`.
  """
  sums = jnp.promote_types(x.dtype, jnp.float32)
  seen = windows(x, kernel.shape, padding, strides)
  total = sum(w.astype(sums) * kernel[i, j, 0] for i, j, w in seen)
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
  sums = jnp.promote_types(x.dtype, jnp.float32)
  x, g = x.astype(sums), g.astype(sums)

  def at_once(x, g):
    seen = windows(x, kernel_shape, padding, strides)
    return jnp.stack([jnp.sum(w * g, axis=(0, 1, 2)) for _, _, w in seen])

  def one_by_one(x, g):
    # On CPUs XLA's sum over all but the last axis takes four times as long as
    # a matrix product, and a loop compiles in a third of the time.
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    pixels = g.reshape(-1, g.shape[-1])
    spans = [
      1 + s * (n - 1) for n, s in zip(g.shape[1:3], strides, strict=True)
    ]

    def at(position):
      i, j = jnp.divmod(position, kernel_shape[1])
      shape = (len(x), *spans, x.shape[-1])
      window = lax.dynamic_slice(padded, (0, i, j, 0), shape)
      window = lax.slice(window, (0,) * 4, shape, (1, *strides, 1))
      product = window.reshape(pixels.shape) * pixels
      return jnp.dot(jnp.ones(len(product), sums), product)

    return lax.map(at, jnp.arange(kernel_shape[0] * kernel_shape[1]))

  dk = lax.platform_dependent(x, g, cpu=one_by_one, default=at_once)
  return dk.reshape(kernel_shape)


def _input_gradient(g, kernel, shape, strides, padding):
  """The padded images' gradient, phase by phase of the strides.

  Every `stride`-th pixel sees every `stride`-th position of the kernel: a
  depthwise convolution of stride 1.
  """
  batch, height, width, channels = shape
  (top, bottom), (left, right) = padding
  down, across = strides
  rows = -(-(top + height + bottom) // down)
  columns = -(-(left + width + right) // across)

  def phase(i, j):
    part = jnp.flip(kernel[i::down, j::across], (0, 1))
    pads = tuple(
      (k - 1, size - given)
      for k, size, given in zip(
        part.shape[:2], (rows, columns), g.shape[1:3], strict=True
      )
    )
    return conv(g, part, (1, 1), pads)

  phases = [
    jnp.stack([phase(i, j) for j in range(across)], axis=3) for i in range(down)
  ]
  whole = jnp.stack(phases, axis=2)  # [batch, rows, down, columns, across, -1]
  whole = whole.reshape(batch, rows * down, columns * across, channels)
  return whole[:, top : top + height, left : left + width]
