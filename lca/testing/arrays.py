"""Comparisons of trees of arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lca.typing import PyTree

RTOL = 1e-5  # of the largest number of a tree


def flat(stacked: PyTree) -> np.ndarray:
  """Returns stacked arrays as float64 rows `[n, d]`."""
  leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(stacked)]
  return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def vector(tree: PyTree) -> np.ndarray:
  """Returns all numbers of a tree as a float64 array `[d]`."""
  leaves = jax.tree.leaves(tree)
  return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in leaves])


def bits(tree: PyTree) -> list[bytes]:
  """Returns the bytes of all arrays of a tree."""
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def assert_close(
  got: Any, want: Any, like: PyTree, *, rtol: float = RTOL, what: str = ''
) -> None:
  """Asserts that two trees are equal up to rounding.

  Args:
    got: has the numbers under test.
    want: has the numbers that are expected.
    like: the updates that they were made of. The largest number among these
      and `want` is the unit of the tolerance.
    rtol: the tolerance in this unit.
    what: the start of the message.

  Raises:
    AssertionError: they differ by more, or where one of them is not finite.
  """
  one, other, unit = vector(got), vector(want), vector((want, like))
  size = np.max(np.abs(unit[np.isfinite(unit)]), initial=0)
  close = np.isclose(one, other, rtol=0, atol=rtol * size, equal_nan=True)
  assert np.all(close), (
    f'{what}number {np.argmin(close)} is {one[~close][0]:.6g} instead of '
    f'{other[~close][0]:.6g}'
  )


def assert_one_trace(
  function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> None:
  """Asserts that a compiled function is traced once for all calls.

  Args:
    function: is compiled here.
    calls: the arguments of each call.

  Raises:
    AssertionError: it is traced more often.
  """
  traces = 0

  def traced(*arguments):
    nonlocal traces
    traces += 1
    return function(*arguments)

  compiled = jax.jit(traced)
  for arguments in calls:
    compiled(*arguments)
  assert traces == 1, f'it was traced {traces} times'


def assert_vmap_is_a_loop(
  function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> None:
  """Asserts that a vmap over calls gives what the calls give one by one.

  Args:
    function: its first argument is the updates.
    calls: the arguments of each call.

  Raises:
    AssertionError: it does not.
  """
  batch = jax.tree.map(lambda *x: np.stack(x), *calls)
  together = jax.vmap(function)(*batch)
  for i, each in enumerate(calls):
    got = jax.tree.map(lambda x, i=i: x[i], together)
    assert_close(got, function(*each), each[0], what=f'round {i}: ')
