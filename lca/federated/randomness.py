"""Random keys, folded from the seed, the purpose, the round and the client.

Keys are folded from these numbers and never split in sequence. So the draws of
a round do not depend on the order of the work, on how it is spread over
devices, or on a restart.
"""

import enum
import math

import jax
from jax.extend import random


class Purpose(enum.IntEnum):
  """The purposes of keys.

  Never change a number: the draws of all runs depend on it.
  """

  INIT = 0
  ATTACKERS = 1
  SAMPLE = 2
  TRAIN = 3
  LABELS = 4
  ATTACK = 5
  AGGREGATE = 6
  DROP = 7


def key_for(seed: int, purpose: Purpose, *ids: int) -> jax.Array:
  """Returns the key for a purpose, and maybe for a round and a client.

  Args:
    seed: seed of the run.
    purpose: purpose of the key; keys of different purposes are independent.
    *ids: integers that are folded in one after the other, such as the index of
      a round and then the id of a client.

  Returns:
    A typed PRNG key. It draws the same numbers as a key of JAX's default
    implementation, threefry2x32.

  Examples:
    >>> a, b = key_for(0, Purpose.TRAIN, 3), key_for(0, Purpose.TRAIN, 4)
    >>> bool(jax.random.bits(a) == jax.random.bits(b))
    False
  """
  key = jax.random.fold_in(jax.random.key(seed, impl=_THREEFRY), purpose)
  for i in ids:
    key = jax.random.fold_in(key, i)
  return key


_JAX_THREEFRY = random.threefry_prng_impl


def _flat_random_bits(key, bit_width, shape):
  """Draws the bits of JAX's threefry2x32 in a flat array, then reshapes it."""
  bits = _JAX_THREEFRY.random_bits(key, bit_width, (math.prod(shape),))
  return bits.reshape(shape)


# XLA's CPU compiler unrolls loops over short axes. It took 7 seconds to compile
# the draw of a small convolution's kernel (seen with jaxlib 0.10); drawing the
# same bits in a flat array compiles in a third of a second.
_THREEFRY = random.define_prng_impl(
  key_shape=_JAX_THREEFRY.key_shape,
  seed=_JAX_THREEFRY.seed,
  split=_JAX_THREEFRY.split,
  random_bits=_flat_random_bits,
  fold_in=_JAX_THREEFRY.fold_in,
  name='threefry2x32_in_one_row',
  tag='row',
)
