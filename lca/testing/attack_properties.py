"""Properties of attacks.

Each is a function `(attack, updates, ...)` of an attack `(updates, byzantine)
-> updates`, where `byzantine` is a mask `[n]`. It raises an AssertionError if
the attack does not have the property on these updates. `ATTACK_PROPERTIES`
lists them all, with the examples that they are tested on.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lca.aggregators import rules
from lca.attacks import Attack
from lca.attacks.base import Knowledge, from_function
from lca.stacked import geometry
from lca.testing import examples
from lca.testing.arrays import (
  assert_close,
  assert_one_trace,
  assert_vmap_is_a_loop,
  bits,
  flat,
)
from lca.testing.examples import Example, Setting
from lca.testing.properties import Property
from lca.typing import Update, Updates

Function = Callable[[Updates, np.ndarray], Updates]


def bound(
  attack: Attack | Callable[..., Updates],
  *,
  knowledge: Knowledge = 'all',
  aggregate: Callable[[Updates], Update] = rules.median,
) -> Function:
  """Returns an attack as the properties take it: `(updates, byzantine)`.

  Args:
    attack, knowledge, aggregate: see `lca.testing.check_attack`.
  """
  if not isinstance(attack, Attack):
    attack = from_function(attack, knowledge=knowledge)

  def function(updates: Updates, byzantine: np.ndarray) -> Updates:
    known: dict[str, Any] = {}
    if attack.needs_last_change:
      known['last_change'] = jax.tree.map(
        lambda x: jnp.ones_like(x[0]), updates
      )
    if attack.needs_loss:
      known['loss'] = lambda update: jnp.asarray(
        sum(jnp.sum(x) for x in jax.tree.leaves(update)), float
      )
    return attack.on_updates(
      updates,
      byzantine=jnp.asarray(byzantine),
      key=jax.random.key(0),
      aggregate=aggregate,
      **known,
      **attack.numbers,
    )

  return function


def structure(
  attack: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """The updates keep their tree, shapes and dtypes."""
  want, got = (
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, jnp.asarray(x).dtype), x
    )
    for x in (updates, attack(updates, _mask(updates, byzantine)))
  )
  assert got == want, f'expected {want}, got {got}'


def honest_rows(
  attack: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """The rows of honest clients come back bit for bit."""
  mask = _mask(updates, byzantine)
  kept = [
    jax.tree.map(lambda x: np.asarray(x)[~mask], x)
    for x in (updates, attack(updates, mask))
  ]
  assert bits(kept[0]) == bits(kept[1]), (
    f'{len(mask) - len(byzantine)} honest rows were '
    f'{_shown(kept[0])}, and are {_shown(kept[1])}'
  )


def changes(
  attack: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """The Byzantine clients send other rows than they have trained."""
  mask = _mask(updates, byzantine)
  own = jax.tree.map(lambda x: np.asarray(x)[mask], updates)
  assert bits(_sent(attack, updates, mask)) != bits(own), 'all rows stay'


def pure(
  attack: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """A second call gives the same bits, and the updates stay as they are."""
  before, mask = jax.tree.map(np.copy, updates), _mask(updates, byzantine)
  first, second = attack(updates, mask), attack(updates, mask)
  assert bits(before) == bits(updates), 'the attack has changed its input'
  assert bits(first) == bits(second), 'a second call gives other rows'


def jit(
  attack: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """The attack can be compiled, and then sends the same rows."""
  mask = _mask(updates, byzantine)
  assert_close(jax.jit(attack)(updates, mask), attack(updates, mask), updates)


def recompilation(
  attack: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """Other numbers and other attackers do not compile it again."""
  mask = _mask(updates, byzantine)
  spoilt = examples.with_rows(updates, [0], np.float32(np.nan))
  assert_one_trace(attack, [(updates, mask), (spoilt, ~mask)])


def vmap(
  attack: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """A vmap over several rounds equals a loop over them."""
  mask = _mask(updates, byzantine)
  rounds = [
    (updates, mask),
    (jax.tree.map(lambda x: x[::-1], updates), mask[::-1]),
    (updates, mask & False),
  ]
  assert_vmap_is_a_loop(attack, rounds)


def order(
  attack: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """The order of the honest clients does not change what attackers send."""
  mask = _mask(updates, byzantine)
  moved = np.arange(len(mask))
  moved[~mask] = moved[~mask][::-1]
  sent = _sent(attack, updates, mask)
  again = _sent(attack, jax.tree.map(lambda x: x[moved], updates), mask)
  assert_close(again, sent, updates)


def knowledge(
  attack: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """The attackers send the same, whatever the honest clients have computed."""
  mask = _mask(updates, byzantine)
  sent = _sent(attack, updates, mask)
  for value in (0.0, 1e3, np.nan):
    changed = examples.with_rows(updates, ~mask, np.float32(value))
    got = _sent(attack, changed, mask)
    assert bits(got) == bits(sent), (
      f'they send {_shown(sent)}, and {_shown(got)} after all honest updates '
      f'became {value}'
    )


def absent(
  attack: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """An honest client without an answer does not spread to the attackers."""
  mask = _mask(updates, byzantine)
  without = examples.with_rows(
    updates, np.flatnonzero(~mask)[:1], np.float32(np.nan)
  )
  whole, sent = _sent(attack, updates, mask), _sent(attack, without, mask)
  if np.all(np.isfinite(flat(whole))):
    assert np.all(np.isfinite(flat(sent))), (
      f'one honest row is NaN, and the attackers send {_shown(sent)}'
    )


# Examples ------------------------------------------------------------------


def _rows(setting: Setting) -> Iterator[Example]:
  for seed in range(2):
    updates = examples.layers(setting.n, seed)
    yield setting.example(updates, *_attackers(setting, setting.f, seed))


def _trees(setting: Setting) -> Iterator[Example]:
  some = _attackers(setting, setting.f)
  yield setting.example(examples.random_rows(setting.n, 7), *some)
  yield setting.example(examples.nested(setting.n), *some)


def _odd_rows(setting: Setting) -> Iterator[Example]:
  rows = examples.layers(setting.n)
  rows['kernel'][:, 0, :3] = [-0.0, 1e-40, 0.0]
  unanswered = examples.with_rows(rows, [0, 1], np.float32(np.nan))
  for updates in (rows, unanswered, examples.halved(rows)):
    for count in sorted({0, setting.f, setting.n}):
      yield setting.example(updates, *_attackers(setting, count))


def _attackers(setting: Setting, count: int, seed: int = 0) -> list[int]:
  rng = np.random.default_rng([seed, setting.n, count])
  return sorted(map(int, rng.permutation(setting.n)[:count]))


ATTACK_PROPERTIES = tuple(
  Property(check, drawn, promises, compiled=compiled, about=('byzantine',))
  for check, drawn, promises, compiled in (
    (structure, _trees, None, True),
    (honest_rows, _odd_rows, None, True),
    (changes, _rows, None, True),
    (pure, _rows, None, False),
    (jit, _rows, None, False),
    (recompilation, _rows, None, False),
    (vmap, _rows, None, True),
    (order, _rows, None, True),
    (knowledge, _rows, ('byzantine',), True),
    (absent, _rows, None, True),
  )
)
"""The properties in the order in which they are tested."""


# Helpers -------------------------------------------------------------------


def _mask(updates: Updates, byzantine: tuple[int, ...]) -> np.ndarray:
  mask = np.zeros(geometry.num_clients(updates), bool)
  mask[list(byzantine)] = True
  return mask


def _sent(attack: Function, updates: Updates, mask: np.ndarray) -> Updates:
  out = attack(updates, mask)
  return jax.tree.map(lambda x: np.asarray(x)[mask], out)


def _shown(stacked: Updates) -> str:
  return np.array2string(flat(stacked), precision=3, threshold=6)
