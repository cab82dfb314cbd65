"""The type of an attack, and the helpers that make one from a function."""

import functools
import inspect
import itertools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, ParamSpec, get_args

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import rule_name
from lca.attacks.rows import own_knowledge, replace
from lca.attacks.training import Training
from lca.options import Check, may_be_traced, one_of
from lca.registry import check_options, options_of
from lca.stacked import geometry, sharding, sums
from lca.typing import Updates

P = ParamSpec('P')


def keep_examples(
  inputs: jax.Array, labels: jax.Array, **_: Any
) -> tuple[jax.Array, jax.Array]:
  """Leaves examples unchanged."""
  return inputs, labels


def keep_updates(updates: Updates, **_: Any) -> Updates:
  """Leaves updates unchanged."""
  return updates


class Attack(NamedTuple):
  """The behaviour of Byzantine clients before and after their local training.

  Attributes:
    on_examples: changes the examples of a Byzantine client before the training:
      `(inputs [S, ...], labels [S], *, client_id, attacker, num_classes,
      input_range, key) -> (inputs, labels)`. Inputs are those of the data set,
      before they are normalised, and `input_range` is the smallest and the
      largest value that they can have. `attacker` counts the attackers of the
      population from 0. The key is the same in every round of a run, and for
      all clients.
    on_updates: changes updates after the training: `(updates, *, byzantine
      [n], key, aggregate) -> updates`. The row of a client that does not answer
      is NaN, and must stay NaN. `aggregate` is the server's own aggregation in
      this round, a function from stacked updates to one update.
    numbers: options of the hooks, which a round passes to each of them by name.
      Compiled programs take them as arguments, so that runs that differ in them
      alone share their programs.
    reads: what `on_updates` reads to make a number of a Byzantine row: `'all'`,
      the default, all coordinates of all rows; `'coordinate'` that coordinate
      of all rows, and which rows are rejected; `'row'` the row itself. A round
      that does not hold all updates (`lca.federated.streaming`) then brings
      some coordinates of all rows, or some of the rows and their `positions`,
      and no `aggregate`. Every part has the same key, so that random numbers
      must be folded from the positions.
    on_test: changes test examples to measure what the attack has achieved, as
      the trigger of a backdoor does: `(inputs [b, ...], labels [b], *,
      num_classes, input_range) -> (inputs, targets [b], counted [b])`. The
      attack succeeds with an example if the model predicts its target. The mask
      `counted` leaves out examples that do not count. None if nothing is
      measured.
    made_by: the function that made the attack, and its options, by which a run
      describes the attack; None if this is not known.
    training: how the Byzantine clients train (`lca.attacks.Training`); None
      trains them as honest clients.
    needs_last_change: True if `on_updates` or `training` reads the last change
      of the server's model, which is then an argument `last_change` of
      `on_updates`: a tree like one update, zeros in the first round of a run.
    needs_loss: True if `on_updates` takes an argument `loss`, a function from
      an aggregate to the mean loss, in nats, of the model plus this aggregate
      on the true examples of the round's first attacker.
    adaptive: a memory that the attackers adapt before each round; `on_examples`
      and `on_test` then take it as `memory`. None if there is none.
  """

  on_examples: Callable[..., tuple[jax.Array, jax.Array]] = keep_examples
  on_updates: Callable[..., Updates] = keep_updates
  numbers: Mapping[str, Any] = types.MappingProxyType({})
  reads: 'Reads' = 'all'
  on_test: Callable[..., tuple[jax.Array, jax.Array, jax.Array]] | None = None
  made_by: tuple[Callable[..., Any], Mapping[str, Any]] | None = None
  training: Training | None = None
  needs_last_change: bool = False
  needs_loss: bool = False
  adaptive: 'Adaptive | None' = None


class Adaptive(NamedTuple):
  """A memory of the attackers, such as a trigger that they train.

  Attributes:
    init: the first memory: `(input_shape, input_range) -> memory`.
    adapt: `(memory, *, losses, logits, variables, data, input_range) ->
      memory`. The first attacker of a round adapts the memory with its own
      clean examples, `data`, to the server's model. `losses` and `logits` are
      those of a `lca.models.Classifier`.
  """

  init: Callable[..., Any]
  adapt: Callable[..., Any]


Reads = Literal['all', 'coordinate', 'row']


def check_reads(reads: str) -> None:
  """Checks a value of `Attack.reads`.

  Raises:
    ValueError: it is unknown.
  """
  if reads not in get_args(Reads):
    raise ValueError(f'reads must be one of {get_args(Reads)}, got {reads!r}')


NO_ATTACK = Attack(reads='row')


def update_attack(
  reads: Reads = 'all',
  /,
  **checks: Check,
) -> Callable[[Callable[P, Updates]], Callable[P, Updates]]:
  """Marks a function of the updates as an attack and checks its arguments.

  The function is `(updates, *, byzantine, key=None, **options) -> updates`. If
  its `key` has no default, a call without a key is an error.

  Args:
    reads: what the function reads; see `Attack.reads`. A function that reads
      less than all can try no aggregation. It can draw random numbers for
      single rows alone, from `positions`.
    **checks: for each option to check, by its name, a function of
      `lca.options`. The value None is accepted if it is the option's default.
      The value of an option that is checked to be a number may be traced (see
      `Attack.numbers`).

  Returns:
    A decorator. The decorated function raises a ValueError if the updates are
    not stacked, if `byzantine` is not a boolean mask `[n]`, or if a check
    refuses an option, and a TypeError if a required key is missing.
  """

  def decorate(function: Any) -> Any:
    parameters = inspect.signature(function).parameters
    needs_key = parameters['key'].default is inspect.Parameter.empty
    check_reads(reads)
    draws = needs_key and (
      reads == 'coordinate' or 'positions' not in parameters
    )
    whole = reads == 'coordinate' and 'last_change' in parameters
    tries = not parameters.keys().isdisjoint(('aggregate', 'loss'))
    if reads != 'all' and (draws or whole or tries):
      raise TypeError(
        f'{function.__name__} cannot read {reads!r} alone: it tries an '
        "aggregation, reads the model's last change coordinate by coordinate, "
        'or draws random numbers without the positions of its rows'
      )

    def checked(updates, *, byzantine, key=None, **options):
      updates = jax.tree.map(jnp.asarray, updates)
      n, mask = geometry.num_clients(updates), jnp.asarray(byzantine)
      if mask.shape != (n,) or mask.dtype != bool:
        raise ValueError(
          f'byzantine must be a boolean mask [n] with n={n}, got '
          f'{mask.dtype.name}{list(mask.shape)}'
        )
      if key is None and needs_key:
        raise TypeError(
          f'{function.__name__} draws random numbers and needs a key, got None'
        )
      options = _checked_options(attack, options)
      return function(updates, byzantine=mask, key=key, **options)

    attack: Any = functools.wraps(function)(checked)
    attack.checks, attack.reads = checks, reads
    return attack

  return decorate


def makes_attack(maker: Callable[P, Attack]) -> Callable[P, Attack]:
  """Marks a function from options to an `Attack`, which then names its maker.

  Args:
    maker: takes its options by name.
  """

  @functools.wraps(maker)
  def made(*args: P.args, **options: P.kwargs) -> Attack:
    bound = inspect.signature(maker).bind(*args, **options)
    bound.apply_defaults()
    attack = maker(*args, **options)
    return attack._replace(made_by=(maker, bound.arguments))

  return made


ROUND_BRINGS = (
  *('byzantine', 'key', 'aggregate', 'positions', 'last_change', 'loss'),
)
"""Names of the arguments that a round passes to an attack on the updates."""


Knowledge = Literal['all', 'byzantine']


def from_function(
  function: Callable[..., Updates],
  *,
  knowledge: Knowledge = 'all',
  **options: Any,
) -> Attack:
  """Makes an `Attack` from a function of the updates.

  The Byzantine clients train on their true labels. The function then replaces
  their updates.

  Args:
    function: `(updates, *, byzantine, ...) -> updates`. It may name `key`,
      `aggregate` (see `Attack.on_updates`), `last_change` and `loss` (see
      `Attack.needs_last_change` and `needs_loss`) and `positions` (see
      `Attack.reads`), too; a round passes those arguments that the function
      names.
    knowledge: the updates that the attackers know: `'all'`, or those that the
      `'byzantine'` clients have trained themselves (see `own_knowledge`).
    **options: values of the function's other arguments.

  Returns:
    The attack.

  Raises:
    TypeError: an option is unknown to the function, or a required one is
      missing; or `knowledge` does not apply, because the function reads no
      other client's update.
    ValueError: an option has an impossible value.

  Examples:
    >>> import jax.numpy as jnp
    >>> from lca import attacks
    >>> attack = attacks.from_function(attacks.sign_flip, scale=2.)
    >>> print(attack.on_updates(jnp.ones(3), byzantine=jnp.arange(3) == 1))
    [ 1. -2.  1.]
  """
  known_options = options_of(function, ROUND_BRINGS, of_data=True)
  check_options(rule_name(function), known_options, options)
  options = _checked_options(function, options)
  parameters = inspect.signature(function).parameters

  reads: Reads = getattr(function, 'reads', 'all')
  one_of('all', 'byzantine')('knowledge', knowledge)
  if knowledge != 'all' and reads == 'row':
    raise TypeError(
      f'knowledge={knowledge!r} does not apply to {rule_name(function)}, which '
      "reads no other client's update"
    )

  def on_updates(updates, *, byzantine, **from_round):
    known = updates
    if knowledge == 'byzantine':
      known, completed = own_knowledge(updates, byzantine)
      if aggregate := from_round.get('aggregate'):
        from_round['aggregate'] = lambda rows: aggregate(completed(rows))
    accepted = {k: v for k, v in from_round.items() if k in parameters}
    attacked = function(known, byzantine=byzantine, **(options | accepted))
    if known is updates:
      return attacked
    return replace(updates, byzantine, attacked)

  checks = getattr(function, 'checks', {})
  numbers = {
    name: value
    for name, value in options.items()
    if isinstance(value, float) and may_be_traced(checks.get(name))
  }
  described = {} if knowledge == 'all' else {'knowledge': knowledge}
  return Attack(
    on_updates=on_updates,
    numbers=numbers,
    reads=reads,
    made_by=(function, options | described),
    needs_last_change='last_change' in parameters,
    needs_loss='loss' in parameters,
  )


def _checked_options(function, options):
  """Returns the options, each converted by its check where it has one."""
  checks = getattr(function, 'checks', {})
  parameters = inspect.signature(function).parameters

  def checked(name, value):
    unset = value is None and parameters[name].default is None
    return value if unset else checks[name](name, value)

  return {k: checked(k, v) if k in checks else v for k, v in options.items()}


def draw_rows(
  leaves: list[jax.Array],
  byzantine: jax.Array,
  key: jax.Array,
  sample: Callable[..., jax.Array],
  row: Callable[[int, jax.Array, jax.Array], jax.Array],
  positions: jax.Array | None = None,
) -> list[jax.Array]:
  """Replaces each Byzantine row by an independent random row.

  Random numbers are drawn for Byzantine rows only.

  Args:
    leaves: leaves `[n, ...]` of stacked updates.
    byzantine: `[n]` mask.
    key: PRNG key; the position of a row is folded into it.
    sample: `(key, shape, dtype) -> numbers`, like the samplers of
      `jax.random`. One call draws the numbers of all leaves of a row, which
      compiles faster than a call for each leaf.
    row: `(k, own, numbers) -> row` makes the row of leaf k from the client's
      own row and random numbers of the row's shape.
    positions: `[n]` positions of the rows in the round, if they are some of its
      rows; None if they are all.

  Returns:
    The leaves with the new rows, in their dtypes.
  """
  order = jnp.argsort(~byzantine, stable=True)  # Byzantine rows come first
  places = jnp.arange(len(order)) if positions is None else positions
  places = jnp.asarray(places, order.dtype)
  dtype = sums.wide(jnp.result_type(*leaves))
  sizes = [math.prod(leaf.shape[1:]) for leaf in leaves]
  ends = list(itertools.accumulate(sizes))

  def replace_row(i, leaves):
    row_key = jax.random.fold_in(key, places[order[i]])
    drawn = sample(row_key, (ends[-1],), dtype)
    drawn = sharding.whole_on_each_device(drawn)
    numbers = jnp.split(drawn, ends[:-1])  # one part for each leaf
    rows = [
      row(k, leaf[order[i]], x.reshape(leaf.shape[1:]))
      for k, (leaf, x) in enumerate(zip(leaves, numbers, strict=True))
    ]
    return [
      lax.dynamic_update_index_in_dim(leaf, new.astype(leaf.dtype), order[i], 0)
      for leaf, new in zip(leaves, rows, strict=True)
    ]

  return lax.fori_loop(0, jnp.sum(byzantine), replace_row, leaves)
