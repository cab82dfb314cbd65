"""What an attack is, and how a function of the updates becomes one."""

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import rule_name
from lca.options import Check
from lca.registry import check_options, options_of
from lca.stacked import geometry, sharding, sums
from lca.typing import Update, Updates

P = ParamSpec('P')


class Attack(NamedTuple):
  """What Byzantine clients do, on both sides of their training.

  Attributes:
    on_labels: `(labels [n, S], *, byzantine [n], client_ids [n], num_classes,
      key) -> labels`, before the training.
    on_updates: `(updates, *, byzantine [n], key, aggregate) -> updates`, after
      it. A row of NaN is a client that does not answer, and stays one.
      `aggregate` is the server's own, from updates to one update.
  """

  on_labels: Callable[..., jax.Array]
  on_updates: Callable[..., Updates]


def keep_labels(labels: jax.Array, **_: Any) -> jax.Array:
  """Of clients that train on what they hold."""
  return labels


def keep_updates(updates: Updates, **_: Any) -> Updates:
  """Of clients that send what they computed."""
  return updates


NO_ATTACK = Attack(keep_labels, keep_updates)


def update_attack(
  **checks: Check,
) -> Callable[[Callable[P, Updates]], Callable[P, Updates]]:
  """Marks a function of the updates as an attack and checks its arguments.

  The function is `(updates, *, byzantine, key=None, **options) -> updates`;
  without a default for the key, it is one that needs a key.

  Args:
    **checks: by the name of an option, what it may be. None passes where it is
      the option's default.

  Returns:
    A decorator. What it returns raises a ValueError for updates that are not
    stacked, a `byzantine` that is no boolean mask `[n]` or an option that a
    check refuses, and a TypeError for a missing key.
  """

  def decorate(function: Any) -> Any:
    default = inspect.signature(function).parameters['key'].default
    needs_key = default is inspect.Parameter.empty

    def checked(updates, *, byzantine, key=None, **options):
      updates = jax.tree.map(jnp.asarray, updates)
      n, mask = geometry.num_clients(updates), jnp.asarray(byzantine)
      if mask.shape != (n,) or mask.dtype != bool:
        raise ValueError(
          f'byzantine must be a boolean mask [n] with n={n}, got '
          f'{mask.dtype.name}{list(mask.shape)}'
        )
      if key is None and needs_key:
        raise TypeError(f'{function.__name__} draws at random: it needs a key')
      options = _checked_options(attack, options)
      return function(updates, byzantine=mask, key=key, **options)

    attack: Any = functools.wraps(function)(checked)
    attack.checks = checks
    return attack

  return decorate


ROUND_BRINGS = ('byzantine', 'key', 'aggregate')
"""Names of the arguments that a round brings to an attack on the updates."""


def from_function(function: Callable[..., Updates], **options: Any) -> Attack:
  """An Attack of clients that train honestly and send something else.

  Args:
    function: `(updates, *, byzantine, ...) -> updates`; it is given those of
      `byzantine`, `key` and `aggregate` that it names.
    **options: its other arguments.

  Returns:
    The attack.

  Raises:
    TypeError: an option that the function does not take, or lacks.
    ValueError: an option with an impossible value.

  Examples:
    >>> import jax.numpy as jnp
    >>> from lca import attacks
    >>> attack = attacks.from_function(attacks.sign_flip, scale=2.)
    >>> print(attack.on_updates(jnp.ones(3), byzantine=jnp.arange(3) == 1))
    [ 1. -2.  1.]
  """
  own = options_of(function, ROUND_BRINGS, of_data=True)
  check_options(rule_name(function), own, options)
  options = _checked_options(function, options)
  named = inspect.signature(function).parameters

  def on_updates(updates, **of_the_round):
    brought = {n: v for n, v in of_the_round.items() if n in named}
    return function(updates, **brought, **options)

  return Attack(keep_labels, on_updates)


def _checked_options(function, options):
  """The options, each converted by its check if it has one."""
  checks = getattr(function, 'checks', {})
  parameters = inspect.signature(function).parameters

  def checked(name, value):
    unset = value is None and parameters[name].default is None
    return value if unset else checks[name](name, value)

  return {n: checked(n, v) if n in checks else v for n, v in options.items()}


def replace(
  updates: Updates, byzantine: jax.Array, rows: Update | Updates
) -> Updates:
  """Puts other rows in the place of the Byzantine ones.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    rows: one for all of them, leaves `[...]`, or stacked like the updates.

  Returns:
    Stacked updates in the dtypes of `updates`, the other rows bit for bit.
  """

  def one(leaf, new):
    mask = byzantine.reshape((-1,) + (1,) * (leaf.ndim - 1))
    return jnp.where(mask, jnp.asarray(new).astype(leaf.dtype), leaf)

  return jax.tree.map(one, updates, rows)


def draw_rows(
  leaves: list[jax.Array],
  byzantine: jax.Array,
  key: jax.Array,
  sample: Callable[..., jax.Array],
  row: Callable[[int, jax.Array], jax.Array],
) -> list[jax.Array]:
  """Draws a row of its own for each Byzantine client, and for no other.

  Args:
    leaves: of stacked updates, each `[n, ...]`.
    byzantine: `[n]` mask.
    key: folded with the number of the row.
    sample: `(key, shape, dtype) -> numbers`, as those of `jax.random`; called
      once for all leaves, which compiles faster.
    row: `(k, numbers) -> row` of leaf k, from numbers of its shape.

  Returns:
    The leaves with those rows, in their dtypes.
  """
  order = jnp.argsort(~byzantine, stable=True)  # theirs come first
  dtype = sums.wide(jnp.result_type(*leaves))
  sizes = [math.prod(leaf.shape[1:]) for leaf in leaves]
  ends = list(itertools.accumulate(sizes))

  def step(i, leaves):
    own = jax.random.fold_in(key, order[i])
    drawn = sharding.whole_on_each_device(sample(own, (ends[-1],), dtype))
    numbers = jnp.split(drawn, ends[:-1])
    rows = [
      row(k, x.reshape(leaves[k].shape[1:])) for k, x in enumerate(numbers)
    ]
    return [
      lax.dynamic_update_index_in_dim(leaf, new.astype(leaf.dtype), order[i], 0)
      for leaf, new in zip(leaves, rows, strict=True)
    ]

  return lax.fori_loop(0, jnp.sum(byzantine), step, leaves)
