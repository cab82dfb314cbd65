"""A search for a smaller example with the same fault."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from lca.testing.examples import Example
from lca.typing import Updates


def shrink(
  example: Example, fails: Callable[[Example], bool], tries: int = 300
) -> Example:
  """Returns a smaller example that fails as well, found greedily.

  It has fewer arrays and columns than the first one, and simpler numbers. The
  number of clients stays.

  Args:
    example: fails.
    fails: tells if an example has the same fault.
    tries: the most examples that are tried.
  """
  found = True
  while found:
    found = False
    for updates in _simpler(example.updates):
      if tries == 0:
        return example
      tries -= 1
      if fails(example._replace(updates=updates)):
        example, found = example._replace(updates=updates), True
        break
  return example


def _simpler(updates: Updates) -> Iterator[Updates]:
  """Returns updates that are a little simpler, the most promising first."""
  if not isinstance(updates, np.ndarray):
    for leaf in jax.tree.leaves(updates):
      yield np.array(leaf)
    return
  if updates.ndim != 2:
    yield updates.reshape(len(updates), -1)
    return
  n, d = updates.shape
  if d > 1:
    half = d // 2
    yield updates[:, :half]
    yield updates[:, half:]
    if d <= 8:
      yield from (np.delete(updates, k, axis=1) for k in range(d))
  for digits in (0, 1, 2):
    with np.errstate(all='ignore'):
      rounded = np.round(updates.astype(float), digits) + 0.0  # no -0
      rounded = rounded.astype(updates.dtype)
    if _differ(rounded, updates):
      yield rounded
  for i in range(n):
    for value in (0, 1):
      row = updates.copy()
      row[i] = value
      if _differ(row, updates) and not np.all(np.isin(updates[i], (0, 1))):
        yield row


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
  return a.tobytes() != b.tobytes()
