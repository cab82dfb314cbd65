"""The shifted copies of images that a convolution sums over."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = Sequence[tuple[int, int]]
"""Rows added above and below, then columns added on the left and the right."""


def windows(
  x: jax.Array,
  kernel_shape: Sequence[int],
  padding: Padding,
  strides: Sequence[int] = (1, 1),
) -> Iterator[tuple[int, int, jax.Array]]:
  """Yields, for each position of a kernel, the pixels that it multiplies.

  A convolution is a sum over the kernel's positions (i, j). Each term is the
  kernel's entry at (i, j) times the padded images shifted by (i, j). This
  generator yields these shifted images, subsampled by the strides.

  Args:
    x: `[batch, height, width, channels]` images.
    kernel_shape: its first two entries are the kernel's height and width.
    padding: pairs, see `Padding`.
    strides: the strides down and across.

  Yields:
    i, j and the `[batch, height', width', channels]` pixels, where height' and
    width' are those of the convolution's result.
  """
  padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  batch, *sides, channels = padded.shape
  # The height and width of the pixels that one entry of the kernel visits.
  down, across = (
    stride * ((side - k) // stride) + 1
    for side, k, stride in zip(sides, kernel_shape[:2], strides, strict=True)
  )
  for i in range(kernel_shape[0]):
    for j in range(kernel_shape[1]):
      end = (batch, i + down, j + across, channels)
      yield i, j, lax.slice(padded, (0, i, j, 0), end, (1, *strides, 1))
