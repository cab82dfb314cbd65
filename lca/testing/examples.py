"""Stacked updates on which properties of rules and attacks are tested.

All numbers are drawn from fixed seeds, so that a check finds the same every
time.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lca.stacked import geometry
from lca.typing import PyTree, Updates

Promise = Literal['full', 'hull', 'finite', 'none']


class Example(NamedTuple):
  """Updates of one round.

  Attributes:
    updates: stacked pytree, NumPy leaves `[n, ...]`.
    byzantine: positions of the Byzantine rows.
    f: the number of Byzantine rows that the rule is told to tolerate.
    promise: the rule's promise, or the attack's knowledge.
  """

  updates: Updates
  byzantine: tuple[int, ...] = ()
  f: int = 0
  promise: str = 'none'


@dataclasses.dataclass(frozen=True)
class Setting:
  """The clients for which a rule or an attack is tested.

  Attributes:
    n: number of clients.
    f: number of Byzantine clients.
    promise: the rule's promise, or the attack's knowledge.
    chooses_f: True if the rule has an option f.
  """

  n: int
  f: int
  promise: str = 'none'
  chooses_f: bool = False

  def smaller(self) -> Iterator['Setting']:
    """Yields settings with fewer clients, the smallest first.

    A rule that works for n > a f + b clients, where a is at least 2, also works
    for these. There are none for a rule that cannot be told another f.
    """
    if self.chooses_f and self.n > 2 * self.f:
      for f in range(min(self.f, 1), self.f):
        yield dataclasses.replace(self, n=self.n - 2 * (self.f - f), f=f)

  def example(self, updates: Updates, *byzantine: int) -> Example:
    """Returns these updates as an example in this setting."""
    return Example(updates, byzantine, self.f, self.promise)


def random_rows(n: int, *shape: int, seed: int = 0) -> np.ndarray:
  """Returns float32 rows `[n, *shape]`: a common direction plus noise.

  The noise differs in size from client to client, so that their scores differ.
  """
  rng = np.random.default_rng([seed, n, *shape])
  sizes = rng.permutation(np.linspace(0.5, 1.5, n)).reshape(
    n, *[1] * len(shape)
  )
  common = 0.5 * rng.normal(size=shape)
  return (common + sizes * rng.normal(size=(n, *shape))).astype(np.float32)


def layers(n: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Returns updates of a small dense layer: `[n, 5, 7]` and `[n, 7]`."""
  rows = random_rows(n, 42, seed=seed)
  return {'bias': rows[:, 35:], 'kernel': rows[:, :35].reshape(n, 5, 7)}


def nested(n: int) -> PyTree:
  """Returns updates of several containers, dtypes and shapes."""
  return {
    'block': (random_rows(n, 2, 3), [random_rows(n)]),  # one scalar per client
    'empty': np.zeros((n, 0), np.float32),
    'half': halved(random_rows(n, 4)),
  }


def halved(updates: Updates) -> Updates:
  """Returns updates in bfloat16."""
  return jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), updates)


def with_rows(updates: Updates, rows: Any, values: Any) -> Updates:
  """Returns a copy of the updates with some rows set to values."""

  def set_rows(leaf):
    leaf = np.array(leaf)
    leaf[rows] = values
    return leaf

  return jax.tree.map(set_rows, updates)


NOT_FINITE = (np.nan, np.inf, -np.inf, 1e30)


def bad_rows(updates: Updates, rows: list[int]) -> Iterator[Updates]:
  """Returns the updates with each kind of bad rows in these places."""
  for value in NOT_FINITE:
    yield with_rows(updates, rows, np.float32(value))
  # Bad rows that are equal: rules may take them for clients that agree.
  for value in (1e4, -1e4, 1e10, 0.0, 1e-40):
    yield with_rows(updates, rows, np.float32(value))
  # Bad rows of different kinds: a rule may deal with one kind at a time.
  if len(rows) > 1:
    for kinds in ((np.nan, 1e10), (np.inf, -1e10), (1e30, 1e4), (0.0, 1e4)):
      mixed = updates
      for i, row in enumerate(rows):
        mixed = with_rows(mixed, [row], np.float32(kinds[i % 2]))
      yield mixed
  # Long rows of random directions.
  for length in (1e3, 1e7, 1e14):
    far = [
      length * random_rows(len(x), *x.shape[1:], seed=1)[rows]
      for x in jax.tree.leaves(updates)
    ]
    leaves, structure = jax.tree.flatten(jax.tree.map(np.array, updates))
    for leaf, values in zip(leaves, far, strict=True):
      leaf[rows] = values
    yield jax.tree.unflatten(structure, leaves)
  # One entry of each row, and copies of an honest row.
  yield jax.tree.map(lambda x: _first_entries(x, rows, np.nan), updates)
  yield jax.tree.map(lambda x: _first_entries(x, rows, 1e18), updates)
  (honest, *_) = [
    i for i in range(geometry.num_clients(updates)) if i not in rows
  ]
  yield jax.tree.map(lambda x: _copies(x, rows, honest), updates)


def _first_entries(leaf, rows, value):
  leaf = np.array(leaf)
  leaf.reshape(len(leaf), -1)[rows, :1] = value
  return leaf


def _copies(leaf, rows, honest):
  leaf = np.array(leaf)
  leaf[rows] = leaf[honest]
  return leaf
