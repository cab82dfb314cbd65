"""Selects the entries of given ranks in every column of integers.

Three ways give the same entries. On CPU a network of single rows is the fastest
for few rows: for 100 rows it takes a thirteenth of the time of a sort. XLA
takes long to compile a network of many comparators, and makes slow code of it
from about 200 rows on. Then the stages of a bitonic sort, each on all rows at
once, take a half to a third of the time of a sort (jaxlib 0.10).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_NETWORK = 160  # rows; XLA compiles a network of 160 rows in 13 s

Select = Callable[[jax.Array, Sequence[int]], list[jax.Array]]
"""`select(keys, ranks)` returns for each rank the entries of that rank, `[c]`,
in the columns of the integers `keys`, `[n, c]`."""


def on_cpu(keys: jax.Array, ranks: Sequence[int]) -> list[jax.Array]:
  """Selects in the way that is best on CPU for this number of rows."""
  select = by_network if len(keys) <= _NETWORK else by_merging
  return select(keys, ranks)


def by_sorting(keys: jax.Array, ranks: Sequence[int]) -> list[jax.Array]:
  """Sorts the columns."""
  ordered = jnp.sort(keys, axis=0)
  return [ordered[rank] for rank in ranks]


def by_network(keys: jax.Array, ranks: Sequence[int]) -> list[jax.Array]:
  """Compares single rows, in a sorting network.

  The network is pruned to the comparators that the ranks depend on.
  """
  rows: list[Any] = [*split_rows(keys)]
  for low, high, keep_low, keep_high in _comparators(len(rows), tuple(ranks)):
    a, b = rows[low], rows[high]
    rows[low] = lax.min(a, b) if keep_low else None
    rows[high] = lax.max(a, b) if keep_high else None
  return lax.optimization_barrier([rows[rank] for rank in ranks])


def by_merging(keys: jax.Array, ranks: Sequence[int]) -> list[jax.Array]:
  """Compares whole arrays of rows, in the stages of a bitonic merge sort."""
  n, columns = keys.shape
  size = 2 ** (n - 1).bit_length()
  last = jnp.iinfo(keys.dtype).max
  rows = jnp.pad(keys, ((0, size - n), (0, 0)), constant_values=last)
  run = 1  # the rows of a sorted run
  while run < size:
    # Two runs are merged. The first stage compares the start of one with the
    # end of the other; each later stage, rows at half the distance.
    pairs = rows.reshape(-1, 2, run, columns)
    rows = _compared(pairs[:, 0], pairs[:, 1, ::-1])
    distance = run // 2
    while distance:
      pairs = rows.reshape(-1, 2, distance, columns)
      rows = _compared(pairs[:, 0], pairs[:, 1])
      distance //= 2
    run *= 2
  rows = rows.reshape(size, columns)
  return [rows[rank] for rank in ranks]


def _compared(low, high):
  return jnp.stack([jnp.minimum(low, high), jnp.maximum(low, high)], axis=1)


@functools.cache
def _comparators(n, ranks):
  """Returns the comparators of a sorting network that `ranks` depend on.

  The network is Batcher's odd-even merge sort of n entries (Knuth, The art of
  computer programming 3, section 5.3.4, for any n).

  A comparator is `(low, high, keep_low, keep_high)`: the positions of the
  smaller and the larger entry, and which of the two is used afterwards.
  """
  comparators, block = [], 1
  while block < n:
    step = block
    while step:
      comparators += [
        (i, i + step)
        for start in range(step % block, n - step, 2 * step)
        for i in range(start, min(start + step, n - step))
        if i // (2 * block) == (i + step) // (2 * block)
      ]
      step //= 2
    block *= 2
  # Walk back from the wanted ranks to the comparators that they depend on.
  needed, kept = set(ranks), []
  for low, high in reversed(comparators):
    if needed & {low, high}:
      kept.append((low, high, low in needed, high in needed))
      needed |= {low, high}
  return kept[::-1]


def split_rows(x: jax.Array) -> list[jax.Array]:
  """Returns the rows as a list. XLA fuses a sum over a list with its terms."""
  return [lax.index_in_dim(x, i, keepdims=False) for i in range(len(x))]
