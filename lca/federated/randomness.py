"""Where every random number comes from: (seed, purpose, round, client).

Keys are folded, never split in sequence, so that what a round draws does not
depend on the order of the work, on how it is spread over devices, or on a
restart.
"""

import enum
import math

import jax
from jax.extend import random


class Purpose(enum.IntEnum):
  """Tells what a key is for; the numbers are part of a run's identity."""

  INIT = 0
  ATTACKERS = 1
  SAMPLE = 2
  TRAIN = 3
  LABELS = 4
  ATTACK = 5
  AGGREGATE = 6
  DROP = 7


def key_for(seed: int, purpose: Purpose, *ids: int) -> jax.Array:
  """Returns the key for a purpose and, in turn, a round and a client.

  Args:
    seed: of the run.
    purpose: keys of different purposes are independent.
    *ids: integers folded in one after the other.

  Returns:
    A typed PRNG key, which draws the numbers that a key of JAX's threefry2x32
    draws.
  """
  key = jax.random.fold_in(jax.random.key(seed, impl=_THREEFRY), purpose)
  for i in ids:
    key = jax.random.fold_in(key, i)
  return key


_JAXS = random.threefry_prng_impl


def _in_one_row(key, bit_width, shape):
  row = _JAXS.random_bits(key, bit_width, (math.prod(shape),))
  return row.reshape(shape)


# XLA's compiler for CPUs unrolls loops over short axes: a small convolution's
# weights took it seven seconds, and in one row take a third of one.
_THREEFRY = random.define_prng_impl(
  key_shape=_JAXS.key_shape,
  seed=_JAXS.seed,
  split=_JAXS.split,
  random_bits=_in_one_row,
  fold_in=_JAXS.fold_in,
  name='threefry2x32_in_one_row',
  tag='row',
)
