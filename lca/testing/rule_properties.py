"""Properties of aggregation rules.

Each is a function `(rule, updates, ...)` of a rule `(updates) -> update`. It
raises an AssertionError if the rule does not have the property on these
updates. `RULE_PROPERTIES` lists them all, with the examples that they are
tested on.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lca.stacked import geometry
from lca.testing import examples
from lca.testing.arrays import (
  RTOL,
  assert_close,
  assert_one_trace,
  assert_vmap_is_a_loop,
  bits,
  flat,
  vector,
)
from lca.testing.examples import Example, Setting
from lca.testing.properties import NotApplicable, Property
from lca.typing import Update, Updates

Function = Callable[[Updates], Update]

# Form ----------------------------------------------------------------------


def structure(rule: Function, updates: Updates) -> None:
  """The update has the tree, shapes and dtypes of one client's update."""
  want = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), updates
  )
  got = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.asarray(x).dtype),
    rule(updates),
  )
  assert got == want, f'expected {want}, got {got}'


def pure(rule: Function, updates: Updates) -> None:
  """A second call gives the same bits, and the updates stay as they are."""
  before = jax.tree.map(np.copy, updates)
  first, second = jax.tree.map(np.asarray, (rule(updates), rule(updates)))
  assert bits(before) == bits(updates), 'the rule has changed its input'
  assert bits(first) == bits(second), f'first {first}, then {second}'


def jit(rule: Function, updates: Updates) -> None:
  """The rule can be compiled, and the compiled rule gives the same update."""
  assert_close(jax.jit(rule)(updates), rule(updates), updates)


def recompilation(rule: Function, updates: Updates) -> None:
  """Other numbers do not compile the compiled rule again."""
  others = (
    examples.with_rows(updates, [0], np.float32(value))
    for value in (np.nan, 0.0, 1e30)
  )
  assert_one_trace(rule, [(updates,), *((each,) for each in others)])


def vmap(rule: Function, updates: Updates) -> None:
  """A vmap over several rounds equals a loop over them."""
  reverse = jax.tree.map(lambda x: x[::-1], updates)
  spoilt = examples.with_rows(updates, [0], np.float32(np.nan))
  assert_vmap_is_a_loop(rule, [(updates,), (reverse,), (spoilt,)])


def sharding(rule: Function, updates: Updates) -> None:
  """Updates that are split over all devices give the same update."""
  count = len(jax.devices())
  if count == 1:
    raise NotApplicable('there is one device')
  mesh = Mesh(np.array(jax.devices()), ('devices',))
  want = rule(updates)
  for spec in (P('devices'), P(None, 'devices')):
    split = jax.device_put(updates, NamedSharding(mesh, spec))
    assert_close(jax.jit(rule)(split), want, updates, what=f'{spec}: ')


def bfloat16(rule: Function, updates: Updates) -> None:
  """Updates in bfloat16 give nearly the update of the same float32 numbers."""
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), updates)
  exact = jax.tree.map(lambda x: np.asarray(x, np.float32), half)
  out = rule(half)
  dtypes = {str(jnp.asarray(x).dtype) for x in jax.tree.leaves(out)}
  assert dtypes == {'bfloat16'}, f'expected bfloat16, got {dtypes}'
  assert_close(out, rule(exact), exact, rtol=2**-8)


def gradient(rule: Function, updates: Updates) -> None:
  """The derivative is that of small steps, or an error says there is none."""
  updates = jax.tree.map(jnp.asarray, updates)
  step = 2**-7
  more, less = (
    rule(jax.tree.map(lambda x, s=s: x * (1 + s), updates))
    for s in (step, -step)
  )
  want = jax.tree.map(lambda a, b: (a - b) / (2 * step), more, less)
  what = 'along the updates themselves: '

  forward = _or_refused(lambda: jax.jvp(rule, (updates,), (updates,))[1])
  if forward is not None:
    assert_close(forward, want, updates, rtol=1e-2, what=what)
  ones = jax.tree.map(jnp.ones_like, want)
  back = _or_refused(lambda: jax.vjp(rule, updates)[1](ones)[0])
  if back is not None:
    rows = flat(back)
    assert np.all(np.isfinite(rows)), 'the gradient is not finite'
    assert np.any(rows), 'the gradient is zero for every client'
    slope, sizes = np.sum(rows * flat(updates)), np.abs(rows * flat(updates))
    assert np.isclose(
      slope, np.sum(vector(want)), rtol=1e-2, atol=1e-2 * np.sum(sizes)
    ), f'{what}the sum rises by {slope:.6g} instead of {vector(want).sum():.6g}'


def _or_refused(derivative: Callable[[], Any]) -> Any:
  """Returns a derivative, or None if an error says that there is none."""
  try:
    return derivative()
  except (TypeError, ValueError, NotImplementedError) as error:
    words = ('differentia', 'derivative', 'jvp', 'vjp', 'gradient')
    if any(word in str(error).lower() for word in words):
      return None
    raise


# Symmetries ----------------------------------------------------------------


def permutation(rule: Function, updates: Updates) -> None:
  """The order of the clients does not matter."""
  n = geometry.num_clients(updates)
  out = rule(updates)
  for order in (
    np.roll(np.arange(n), 1),
    np.random.default_rng(n).permutation(n),
  ):
    moved = rule(jax.tree.map(lambda x, order=order: x[order], updates))
    assert_close(moved, out, updates, what=f'in the order {order}: ')


def identical(rule: Function, updates: Updates) -> None:
  """Equal updates come back unchanged."""
  want = jax.tree.map(lambda x: x[0], updates)
  if not all(np.all(x == x[:1]) for x in jax.tree.leaves(updates)):
    return  # they are not equal
  assert_close(rule(updates), want, updates, rtol=1e-6)


def scaled(rule: Function, updates: Updates) -> None:
  """Updates in another unit give the same update in that unit."""
  out = rule(updates)
  for factor in (2.0**-20, 2.0**20):
    units = jax.tree.map(lambda x, c=factor: np.float32(c) * x, updates)
    want = jax.tree.map(lambda x, c=factor: c * np.asarray(x), out)
    assert_close(rule(units), want, units, what=f'times {factor:g}: ')


def shifted(rule: Function, updates: Updates) -> None:
  """A vector that is added to all updates is added to the result."""
  for shift in (1.0, 2.0**14):
    moved = jax.tree.map(lambda x, c=shift: x + np.float32(c), updates)
    # The shift rounds the updates themselves.
    same = jax.tree.map(lambda x, c=shift: x - np.float32(c), moved)
    want = jax.tree.map(lambda x, c=shift: np.asarray(x) + c, rule(same))
    assert_close(rule(moved), want, moved, what=f'plus {shift:g}: ')


def finite_rows(rule: Function, updates: Updates) -> None:
  """Finite updates give a finite update, also if one is zero."""
  out = vector(rule(updates))
  assert np.all(np.isfinite(out)), 'the update is not finite'


# Promises ------------------------------------------------------------------


def finite(
  rule: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """The update is finite, whatever the Byzantine rows hold."""
  out = rule(updates)
  assert np.all(np.isfinite(vector(out))), (
    f'the update is {_shown(out)} with {_bad(updates, byzantine)}'
  )


def bounded(
  rule: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """The update is at most 4 n times as long as the longest honest one."""
  finite(rule, updates, byzantine=byzantine)
  rows = flat(updates)
  honest = np.delete(rows, list(byzantine), axis=0)
  longest = np.max(np.linalg.norm(honest, axis=1))
  length = np.linalg.norm(vector(rule(updates)))
  # Layerwise rules have this bound in each layer, for its own longest row.
  layers = max(1, len(jax.tree.leaves(updates)))
  assert length <= 4 * len(rows) * layers * longest, (
    f'the update has length {length:.3g}, and the longest honest one '
    f'{longest:.3g}, with {_bad(updates, byzantine)}'
  )


def hull(
  rule: Function, updates: Updates, *, byzantine: tuple[int, ...]
) -> None:
  """Each coordinate lies between the honest clients' least and greatest."""
  out = vector(rule(updates))
  honest = np.delete(flat(updates), list(byzantine), axis=0)
  least, greatest = np.min(honest, axis=0), np.max(honest, axis=0)
  slack = RTOL * np.max(np.abs(honest), initial=0)
  outside = ~((out >= least - slack) & (out <= greatest + slack))
  assert not np.any(outside), (
    f'coordinate {np.argmax(outside)} is {out[outside][0]:.4g}, and the honest '
    f'ones lie between {least[outside][0]:.4g} and {greatest[outside][0]:.4g}, '
    f'with {_bad(updates, byzantine)}'
  )


_PROMISED = {'full': bounded, 'hull': hull, 'finite': finite}


def limits(
  rule: Function,
  updates: Updates,
  *,
  byzantine: tuple[int, ...],
  f: int,
  promise: str,
) -> None:
  """The rule refuses numbers n and f for which it has no promise."""
  n = geometry.num_clients(updates)
  try:
    out = rule(updates)
  except (ValueError, AssertionError):
    return
  assert 0 <= f < n, f'n={n} and f={f} are accepted, and give {_shown(out)}'
  if not byzantine:
    assert np.all(np.isfinite(vector(out))), (
      f'n={n} and f={f} give {_shown(out)} without any bad row'
    )
  elif promise != 'none':
    _PROMISED[promise](rule, updates, byzantine=byzantine)


# Examples ------------------------------------------------------------------


def _layers(setting: Setting) -> Iterator[Example]:
  yield setting.example(examples.layers(setting.n))


def _rows(setting: Setting) -> Iterator[Example]:
  for seed in range(3):
    yield setting.example(examples.layers(setting.n, seed))


def _trees(setting: Setting) -> Iterator[Example]:
  yield setting.example(examples.random_rows(setting.n, 7))
  yield setting.example(examples.nested(setting.n))


def _zero_rows(setting: Setting) -> Iterator[Example]:
  rows = examples.layers(setting.n)
  for value in (0.0, 1e-40):
    yield setting.example(examples.with_rows(rows, [0], np.float32(value)))
  if setting.n > 1:
    yield setting.example(
      jax.tree.map(lambda x: x[[0, *range(len(x) - 1)]], rows)
    )


def _equal_rows(setting: Setting) -> Iterator[Example]:
  for scale in (1.0, 1e-12, 1e12, 0.0):
    rows = examples.layers(setting.n)
    yield setting.example(
      jax.tree.map(
        lambda x, c=scale: np.repeat(np.float32(c) * x[:1], len(x), axis=0),
        rows,
      )
    )


def _split_rows(setting: Setting) -> Iterator[Example]:
  count = len(jax.devices())
  n = -(-setting.n // count) * count
  yield Example(examples.random_rows(n, 3 * count), f=setting.f)


def _with_bad_rows(setting: Setting) -> Iterator[Example]:
  n = setting.n
  for count in sorted({1, setting.f} - {0}):
    if count <= setting.f:
      rows = np.random.default_rng([n, count]).permutation(n)[:count]
      positions = [*map(int, np.sort(rows))]
      for updates in examples.bad_rows(examples.layers(n), positions):
        yield setting.example(updates, *positions)


def _few_clients(setting: Setting) -> Iterator[Example]:
  impossible = []
  for n in (1, 2, 3, 4, 7):
    rows = examples.random_rows(n, 3)
    told = {-1, 0, 1, 2, (n - 1) // 2, n // 2, n} if setting.chooses_f else {0}
    for f in sorted(told):
      example = Example(rows, (), f, setting.promise)
      if not 0 <= f < n:
        impossible.append(example)
        continue
      yield example
      if f:
        # The bad rows agree with each other.
        spoilt = examples.with_rows(rows, slice(f), np.float32(1e6))
        example = example._replace(byzantine=tuple(range(f)))
        yield example._replace(updates=spoilt)
        if f > 1:
          yield example._replace(
            updates=examples.with_rows(spoilt, [0], np.float32(np.nan))
          )
  yield from impossible


RULE_PROPERTIES = (
  Property(structure, _trees),
  Property(pure, _layers, compiled=False),
  Property(jit, _layers, compiled=False, traced=True),
  Property(recompilation, _layers, compiled=False, traced=True),
  Property(vmap, _layers, traced=True),
  Property(sharding, _split_rows, traced=True),
  Property(bfloat16, _rows),
  Property(gradient, _rows, traced=True),
  Property(permutation, _rows),
  Property(identical, _equal_rows),
  Property(scaled, _rows),
  Property(shifted, _rows),
  Property(finite_rows, _zero_rows),
  Property(finite, _with_bad_rows, ('finite',), about=('byzantine',)),
  Property(bounded, _with_bad_rows, ('full',), about=('byzantine',)),
  Property(hull, _with_bad_rows, ('hull',), about=('byzantine',)),
  Property(
    limits, _few_clients, compiled=False, about=('byzantine', 'f', 'promise')
  ),
)
"""The properties in the order in which they are tested."""


# Helpers -------------------------------------------------------------------


def _shown(update: Update) -> str:
  return np.array2string(vector(update), precision=3, threshold=6)


def _bad(updates: Updates, byzantine: tuple[int, ...]) -> str:
  n = geometry.num_clients(updates)
  return f'{len(byzantine)} bad of {n} rows'
