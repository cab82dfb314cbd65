"""2 x 2 max-pooling that remembers where the largest entries were."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Square = Sequence[Sequence[jax.Array]]
"""Two rows of two places, in every one an array over all squares."""


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
  """2 x 2 max-pooling with stride 2; an odd last row or column is dropped.

  Its gradient costs a fraction of `flax.linen.max_pool`'s on CPUs, and needs a
  byte of memory for each square. Entries that tie share it.

  Args:
    x: `[batch, height, width, channels]`.

  Returns:
    `[batch, height // 2, width // 2, channels]`.
  """
  return largest(squares(x))[0]


def _max_pool_fwd(x):
  pooled, winners = largest(squares(x))
  return pooled, (winners, x.shape[1:3])


def _max_pool_bwd(residuals, g):
  winners, shape = residuals
  return (unpooled(winners, g, shape),)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


def largest(square: Square) -> tuple[jax.Array, jax.Array]:
  """The largest of four, and which are: a bit for each place, as uint8."""
  places = jax.tree.leaves(square)
  top = functools.reduce(jnp.maximum, places)
  bits = [(x == top).astype(jnp.uint8) << i for i, x in enumerate(places)]
  return top, functools.reduce(jnp.bitwise_or, bits)


def shares(winners: jax.Array, g: jax.Array) -> Square:
  """The gradients at four places, of which `largest` gave the winners."""
  share = g / jnp.maximum(lax.population_count(winners), 1)

  def at(place):
    return jnp.where(winners & (1 << place), share, 0)

  return [[at(0), at(1)], [at(2), at(3)]]


def squares(x: jax.Array) -> Square:
  """Splits even from odd places; drops an odd last row or column."""
  batch, height, width, channels = x.shape
  h, w = height // 2, width // 2
  x = x[:, : 2 * h, : 2 * w].reshape(batch, h, 2, w, 2, channels)
  return [[x[:, :, i, :, j] for j in range(2)] for i in range(2)]


def interleaved(pair: Sequence[jax.Array], axis: int) -> jax.Array:
  """Puts one array at the even places along an axis, one at the odd ones."""
  x = jnp.stack(pair, axis + 1)
  return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def laid_out(square: Square) -> jax.Array:
  """The inverse of `squares`."""
  return interleaved([interleaved(row, 2) for row in square], 1)


def unpooled(
  winners: jax.Array, g: jax.Array, shape: Sequence[int]
) -> jax.Array:
  """The gradient of `max_pool` for images of a height and a width."""
  x = laid_out(shares(winners, g))
  ends = [(0, new - old) for new, old in zip(shape, x.shape[1:3], strict=True)]
  return jnp.pad(x, ((0, 0), *ends, (0, 0)))
