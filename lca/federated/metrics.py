"""The metrics of a round: one function each, in the order of columns.

A metric is a function of what a round has `Seen`. It returns a number, or
`[layers]` numbers, or None in a run that the metric does not apply to. To add
one, register it here, or from outside:

    @METRICS.register
    def largest_update(seen):
      return jnp.max(lca.geometry.norms(lca.geometry.norms_gram(seen.updates)))
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lca.aggregators.base import Info
from lca.registry import Registry
from lca.stacked import geometry
from lca.stacked.layer_norms import normalized_norms
from lca.stacked.trees import Scope
from lca.typing import PyTree, Update, Updates


class Seen(NamedTuple):
  """Holds all that is known of `n` clients at the end of a round.

  Attributes:
    losses: `[n]`, the clients' mean training losses in nats.
    byzantine: `[n]` mask.
    answered: `[n]` mask; None in a run in which every client always answers.
    updates: stacked `[n, ...]`, as the server has received them; a client that
      does not answer is a row of NaN.
    for_rule: the part of the updates that the rule aggregates.
    update: the aggregate.
    variables: of the new model.
    info: what the rule says that it decided; see `lca.explain`.
    floored: `[]`, the running variances that would have become negative; None
      of a model without batch statistics.
    layers: the scope of the layers to measure; None for none.
  """

  losses: jax.Array
  byzantine: jax.Array | np.ndarray
  answered: jax.Array | np.ndarray | None
  updates: Updates
  for_rule: Updates
  update: Update
  variables: PyTree
  info: Info
  floored: jax.Array | None
  layers: Scope | None


METRICS: Registry[Callable[[Seen], jax.Array | None]] = Registry(
  'metric', brought=['seen']
)

ALWAYS = ('train_loss', 'byzantine', 'rejected', 'nonfinite')
"""The metrics that every run has."""


@METRICS.register
def train_loss(seen: Seen) -> jax.Array:
  """Returns the mean training loss of the honest clients that answered."""
  honest = ~seen.byzantine
  if seen.answered is not None:
    honest &= seen.answered
  return jnp.sum(jnp.where(honest, seen.losses, 0)) / jnp.sum(honest)


@METRICS.register
def byzantine(seen: Seen) -> jax.Array:
  """Counts the clients that attacked."""
  return jnp.sum(seen.byzantine)


@METRICS.register
def rejected(seen: Seen) -> jax.Array:
  """Counts the updates that came and were not finite, or too large to be.

  See `lca.geometry` for rejected rows.
  """
  found = geometry.rejected_rows(geometry.norms_gram(seen.updates))
  if seen.answered is not None:
    found &= seen.answered
  return jnp.sum(found)


@METRICS.register
def nonfinite(seen: Seen) -> jax.Array:
  """Counts the entries of which the aggregate or the new model is not finite.

  The two differ where finite numbers overflow when they are added.
  """

  def count(update, new):
    return jnp.sum(~(jnp.isfinite(update) & jnp.isfinite(new)))

  counts = jax.tree.map(count, seen.update, seen.variables)
  return jnp.sum(jnp.stack(jax.tree.leaves(counts)))


@METRICS.register
def dropped(seen: Seen) -> jax.Array | None:
  """Counts the clients that did not answer, where that can happen."""
  return None if seen.answered is None else jnp.sum(~seen.answered)


@METRICS.register
def floored(seen: Seen) -> jax.Array | None:
  """Counts the running variances that would have become negative."""
  return seen.floored


@METRICS.register
def norm(seen: Seen) -> jax.Array | None:
  """Returns the layers' normalised norms (LEGATO's Eq. 2)."""
  if seen.layers is None:
    return None
  return normalized_norms(seen.for_rule, seen.layers)


@METRICS.register
def factor(seen: Seen) -> jax.Array | None:
  """Returns the layers' factors, under a rule that explains itself by them."""
  return None if seen.layers is None else seen.info.get('factors')


def measure(seen: Seen) -> OrderedDict[str, jax.Array]:
  """Returns all metrics that apply, by name, in the order of `METRICS`.

  The dict is an OrderedDict because a function under `jax.jit` returns a plain
  one with its keys sorted.
  """
  found = ((name, metric(seen)) for name, metric in METRICS.items())
  return OrderedDict((name, x) for name, x in found if x is not None)


def columns(
  metrics: Mapping[str, jax.Array], layers: Sequence[str]
) -> list[str]:
  """Returns the names of all numbers among some metrics, one after the other.

  Args:
    metrics: from `measure`, or their shapes.
    layers: names of the layers, which follow the name of a metric of layers.

  Raises:
    ValueError: a metric is no number and not of these layers.

  Examples:
    >>> columns({'loss': jnp.zeros(()), 'norm': jnp.zeros(2)}, ['w', 'b'])
    ['loss', 'norm/w', 'norm/b']
  """
  names = []
  for name, x in metrics.items():
    if x.shape not in ((), (len(layers),)):
      raise ValueError(
        f'the metric {name!r} has the shape {x.shape}, but it must be a number '
        f'or of the {len(layers)} layers that are measured'
      )
    names += [f'{name}/{layer}' for layer in layers] if x.shape else [name]
  return names
