"""The metrics of a round, one function each, in the order of the columns.

A metric is a function of a `RoundResult`. It returns a number `[]`, numbers
`[layers]`, or None if the metric does not apply to the run. To add a metric,
register a function here or in a file of your own:

    @METRICS.register
    def largest_update(result):
      squares = lca.geometry.total_squares(result.squares)
      return jnp.sqrt(jnp.max(squares))
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lca.aggregators.base import Info
from lca.registry import Registry
from lca.stacked import geometry
from lca.stacked.layer_norms import norms_from_squares
from lca.stacked.trees import Scope
from lca.typing import PyTree, Update, Updates


class RoundResult(NamedTuple):
  """The data of a finished round of `n` clients, which metrics measure.

  Attributes:
    losses: `[n]` mean training losses of the clients, in nats.
    byzantine: `[n]` mask of the clients that attacked.
    answered: `[n]` mask of the clients that answered; None in a run in which
      every client always answers.
    updates: updates as the server received them, leaves `[n, ...]`; the row of
      a client that did not answer is NaN.
    for_rule: the part of the updates that the rule aggregated.
    squares: squared norms of the received updates by leaf, a tree like one
      update with leaves `[n]`.
    squares_for_rule: the part of `squares` that belongs to `for_rule`.
    update: the aggregate.
    variables: the new model.
    info: what the rule decided; see `lca.explain`.
    floored: `[]` number of running variances that were negative and set to 0;
      None for a model without batch statistics.
    layers: scope of the layers to measure; None measures no layers.
    detection: True measures how well the rule tells attackers from honest
      clients.
  """

  losses: jax.Array
  byzantine: jax.Array | np.ndarray
  answered: jax.Array | np.ndarray | None
  updates: Updates
  for_rule: Updates
  squares: PyTree
  squares_for_rule: PyTree
  update: Update
  variables: PyTree
  info: Info
  floored: jax.Array | None
  layers: Scope | None
  detection: bool


class WithoutUpdates(RoundResult):
  """The data of a round that never holds the updates of all clients.

  `updates` and `for_rule` raise a ValueError; `squares` are there.
  """

  def _refuse(self) -> Any:
    raise ValueError(
      'parallel.stream=True: a metric reads the updates of all clients, which '
      'such a round does not hold; it may read their squared norms, '
      'result.squares'
    )

  updates = property(_refuse)  # pyright: ignore
  for_rule = property(_refuse)  # pyright: ignore


METRICS: Registry[Callable[[RoundResult], jax.Array | None]] = Registry(
  'metric', brought=['result']
)

ALWAYS = ('train_loss', 'byzantine', 'rejected', 'nonfinite')
"""The metrics that every run has."""


@METRICS.register
def train_loss(result: RoundResult) -> jax.Array:
  """Returns the mean training loss of the honest clients that answered."""
  honest = ~result.byzantine
  if result.answered is not None:
    honest &= result.answered
  return jnp.sum(jnp.where(honest, result.losses, 0)) / jnp.sum(honest)


@METRICS.register
def byzantine(result: RoundResult) -> jax.Array:
  """Counts the clients that attacked."""
  return jnp.sum(result.byzantine)


@METRICS.register
def rejected(result: RoundResult) -> jax.Array:
  """Counts the received updates that are not finite or far too large.

  See `lca.geometry` for rejected rows. Clients that did not answer are not
  counted here, but by `dropped`.
  """
  mask = geometry.rejected_squares(geometry.total_squares(result.squares))
  if result.answered is not None:
    mask &= result.answered
  return jnp.sum(mask)


@METRICS.register
def nonfinite(result: RoundResult) -> jax.Array:
  """Counts the entries that are not finite in the aggregate or the new model.

  An entry counts once. The model may overflow where the aggregate is finite.
  """

  def count(update, new):
    return jnp.sum(~(jnp.isfinite(update) & jnp.isfinite(new)))

  counts = jax.tree.map(count, result.update, result.variables)
  return jnp.sum(jnp.stack(jax.tree.leaves(counts)))


@METRICS.register
def dropped(result: RoundResult) -> jax.Array | None:
  """Counts clients that did not answer; None if all clients always answer."""
  return None if result.answered is None else jnp.sum(~result.answered)


@METRICS.register
def floored(result: RoundResult) -> jax.Array | None:
  """Counts the running variances that were negative and set to 0."""
  return result.floored


@METRICS.register
def norm(result: RoundResult) -> jax.Array | None:
  """Returns the layers' normalised norms (LEGATO's Eq. 2)."""
  if result.layers is None:
    return None
  return norms_from_squares(result.squares_for_rule, result.layers)


@METRICS.register
def factor(result: RoundResult) -> jax.Array | None:
  """Returns the layers' factors, for a rule whose info has any (LEGATO)."""
  return None if result.layers is None else result.info.get('factors')


class _Detected(NamedTuple):
  """Counts of a rule's selection, as a detection of Byzantine clients.

  A client is detected if its update has no part in the aggregate. In a rule
  that works by layer, each pair of a client and a layer counts. Clients that do
  not answer do not count.

  Attributes:
    attackers: Byzantine clients that were detected.
    honest: honest clients that were detected, the false positives.
    all_attackers: Byzantine clients.
    all_honest: honest clients.
  """

  attackers: jax.Array
  honest: jax.Array
  all_attackers: jax.Array
  all_honest: jax.Array


def _detected(result: RoundResult) -> _Detected | None:
  """Counts the detected clients; None if the run does not measure them."""
  if not result.detection:
    return None
  selected = result.info['selected']
  selected = selected.reshape(-1, len(result.byzantine))  # [layers, n]
  counted = jnp.ones(selected.shape, bool)
  if result.answered is not None:
    counted &= result.answered
  attackers, honest = counted & result.byzantine, counted & ~result.byzantine

  def count(mask):
    return jnp.sum(mask).astype(jnp.float32)

  return _Detected(
    attackers=count(attackers & ~selected),
    honest=count(honest & ~selected),
    all_attackers=count(attackers),
    all_honest=count(honest),
  )


@METRICS.register
def detection_precision(result: RoundResult) -> jax.Array | None:
  """Returns the share of attackers among the clients that the rule left out.

  It is NaN if the rule left nobody out, and in a round without attackers.
  """
  found = _detected(result)
  if found is None:
    return None
  share = found.attackers / (found.attackers + found.honest)
  return jnp.where(found.all_attackers > 0, share, jnp.nan)


@METRICS.register
def detection_recall(result: RoundResult) -> jax.Array | None:
  """Returns the share of the attackers that the rule left out.

  It is NaN in a round without attackers.
  """
  found = _detected(result)
  return found and found.attackers / found.all_attackers


@METRICS.register
def detection_f1(result: RoundResult) -> jax.Array | None:
  """Returns the harmonic mean of precision and recall.

  It is NaN in a round without attackers, and 0 if the rule left out nobody
  although some attacked.
  """
  found = _detected(result)
  if found is None:
    return None
  left_out = found.attackers + found.honest
  mean = 2 * found.attackers / (left_out + found.all_attackers)
  return jnp.where(found.all_attackers > 0, mean, jnp.nan)


@METRICS.register
def false_positive_rate(result: RoundResult) -> jax.Array | None:
  """Returns the share of the honest clients that the rule left out."""
  found = _detected(result)
  return found and found.honest / found.all_honest


def measure(result: RoundResult) -> OrderedDict[str, jax.Array]:
  """Returns all metrics that apply, by name, in the order of `METRICS`.

  The result is an OrderedDict because `jax.jit` sorts the keys of a plain dict.
  """
  values = ((name, metric(result)) for name, metric in METRICS.items())
  return OrderedDict((name, x) for name, x in values if x is not None)


def columns(
  metrics: Mapping[str, jax.Array], layers: Sequence[str]
) -> list[str]:
  """Returns a name for every number in the metrics, in their order.

  Args:
    metrics: metrics from `measure`, or their shapes.
    layers: names of the measured layers. Each number of a metric `[layers]` is
      named after the metric and its layer.

  Raises:
    ValueError: the shape of a metric is neither `[]` nor `[layers]`.

  Examples:
    >>> columns({'loss': jnp.zeros(()), 'norm': jnp.zeros(2)}, ['w', 'b'])
    ['loss', 'norm/w', 'norm/b']
  """
  names = []
  for name, x in metrics.items():
    if x.shape not in ((), (len(layers),)):
      raise ValueError(
        f'the metric {name!r} has the shape {x.shape}, but it must be a single '
        f'number, (), or one for each of the {len(layers)} layers that '
        'eval.layers measures'
      )
    names += [f'{name}/{layer}' for layer in layers] if x.shape else [name]
  return names


def as_numbers(
  measured: Mapping[str, Any], names: Sequence[str], ids: Any
) -> dict[str, Any]:
  """Returns the metrics of a round by the names of its columns.

  Args:
    measured: the metrics as host arrays `[]` or `[layers]`, and maybe the
      evidence `'forensics'`.
    names: of all numbers, from `columns`.
    ids: `[n]` ids of the round's clients.

  Returns:
    The numbers, and the evidence with the ids.
  """
  rest = {name: x for name, x in measured.items() if name != 'forensics'}
  numbers = [x for metric in rest.values() for x in metric.reshape(-1).tolist()]
  result: dict[str, Any] = dict(zip(names, numbers, strict=True))
  if 'forensics' in measured:
    result['forensics'] = measured['forensics'] | {'ids': np.asarray(ids)}
  return result
