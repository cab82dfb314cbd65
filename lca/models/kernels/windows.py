"""Convolutions as sums over the kernel's positions."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = Sequence[tuple[int, int]]
"""Below and above, of height and of width."""


def windows(
  x: jax.Array,
  kernel_shape: Sequence[int],
  padding: Padding,
  strides: Sequence[int] = (1, 1),
) -> Iterator[tuple[int, int, jax.Array]]:
  """The images as each position of a kernel sees them.

  Args:
    x: `[batch, height, width, channels]`.
    kernel_shape: of which the first two are the kernel's height and width.
    padding: pairs.
    strides: down and across.

  Yields:
    The position's row and column, and `[batch, height', width', channels]`.
  """
  padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  batch, *sides, channels = padded.shape
  down, right = (
    stride * ((side - k) // stride) + 1
    for side, k, stride in zip(sides, kernel_shape[:2], strides, strict=True)
  )
  for i in range(kernel_shape[0]):
    for j in range(kernel_shape[1]):
      end = (batch, i + down, j + right, channels)
      yield i, j, lax.slice(padded, (0, i, j, 0), end, (1, *strides, 1))
