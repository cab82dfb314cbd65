"""Where every random number comes from: (seed, purpose, round, client).

Keys are folded, never split in sequence, so that what a round draws does not
depend on the order of the work, on how it is spread over devices, or on a
restart.
"""

import enum

import jax


class Purpose(enum.IntEnum):
  """What a key is for; the numbers are part of a run's identity."""

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
    A typed PRNG key.
  """
  key = jax.random.fold_in(jax.random.key(seed), purpose)
  for i in ids:
    key = jax.random.fold_in(key, i)
  return key
