"""Decisions of Gram rules, and the three ways to make an update of them.

A `Verdict` holds numbers for every client. The rule's *combination* makes the
update of the rows and of these numbers. There are three:

    mix_rows             the sum of the rows, each times its weight,
    scale_rows           the rows again, each made longer or shorter,
    StatisticOfSelected  a coordinate-wise statistic of the rows that have a
                         weight.

A combination is a function `(layers, verdicts, **hyper) -> updates`. It works
on all layers at once: `layers` holds the stacked updates of each, and the
arrays of `verdicts` have a leading axis `[layers]`.
"""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
from jax import lax

from lca.stacked import geometry, order_statistics, sums
from lca.typing import Gram, Update, Updates

P = ParamSpec('P')

Info = dict[str, jax.Array]
"""Decisions by name, each `[n]` or `[layers, n]`: see `lca.explain`."""


class Verdict(NamedTuple):
  """The decision of a Gram rule about the `n` clients.

  Attributes:
    weights: `[n]`, the aggregate is `mix(updates, weights)`; or `[k, n]` for a
      pre-aggregator, which makes k rows.
    scores: `[n]`, lower is better, for rules that rank the clients.
    factors: `[n]`, what each row is scaled by before it is weighed; None is 1.
  """

  weights: jax.Array
  scores: jax.Array | None = None
  factors: jax.Array | None = None

  @property
  def scaled_weights(self) -> jax.Array:
    """Returns the weights of the rows as they came, before any scaling."""
    if self.factors is None:
      return self.weights
    rows = self.weights.ndim > self.factors.ndim
    return self.weights * (self.factors[..., None, :] if rows else self.factors)

  def info(self, gram: Gram) -> Info:
    """Returns the verdict by name: weights, scores, selected, rejected."""
    info = {'weights': self.scaled_weights}
    if self.scores is not None:
      info['scores'] = self.scores
    info['selected'] = self.weights > 0
    info['rejected'] = geometry.rejected_rows(gram)
    return info


Needs = Literal['nothing', 'norms', 'products']
"""How much of the Gram matrix a rule looks at: its size alone, its diagonal, or
all of it."""


def _nothing(layers: list[Updates]) -> Gram:
  n, *_ = map(geometry.num_clients, layers)
  return jnp.zeros((len(layers), n, n))


def _norms(layers: list[Updates]) -> Gram:
  return jnp.stack([geometry.norms_gram(layer) for layer in layers])


GRAMS: dict[Needs, Callable[[list[Updates]], Gram]] = {
  'nothing': _nothing,
  'norms': _norms,
  'products': geometry.grams,
}
"""Functions from layers to `[layers, n, n]`, in the order of what they cost."""


def hold(
  weigh: Callable[Concatenate[Gram, P], Verdict],
) -> Callable[Concatenate[Gram, P], Verdict]:
  """Returns `weigh` with its verdict held fixed in derivatives."""

  @functools.wraps(weigh)
  def held(gram: Gram, *args: P.args, **hyper: P.kwargs) -> Verdict:
    return weigh(lax.stop_gradient(gram), *args, **hyper)

  return held


def hold_rejected(
  weigh: Callable[Concatenate[Gram, P], Verdict],
) -> Callable[Concatenate[Gram, P], Verdict]:
  """Returns `weigh` with the weights of rejected rows held fixed alone.

  No change of any row changes these. The entries of a rejected row may be
  anything, and would get into the derivatives of the other rows.
  """

  @functools.wraps(weigh)
  def held(gram: Gram, *args: P.args, **hyper: P.kwargs) -> Verdict:
    verdict = weigh(gram, *args, **hyper)
    weights, bad = verdict.weights, geometry.rejected_rows(gram)
    weights = jnp.where(bad, lax.stop_gradient(weights), weights)
    return verdict._replace(weights=weights)

  return held


Combination = Callable[..., list[Update]]
"""`(layers, verdicts, **hyper) -> updates`, one of the three of this module."""


def mix_rows(
  layers: list[Updates], verdicts: Verdict, *args: Any, **hyper: Any
) -> list[Update]:
  """Sums the rows of each layer, each times its weight."""
  del args, hyper
  weights = sums.rows_of(verdicts.scaled_weights)
  return list(map(geometry.mix, layers, weights))


def scale_rows(
  layers: list[Updates], verdicts: Verdict, *args: Any, **hyper: Any
) -> list[Updates]:
  """Multiplies each row of each layer by its own weight, `weights[i, i]`.

  The weights `[n, n]` are zero beside the diagonal, so that it returns what
  `mix_rows` would, up to rounding, in one reading of the rows.
  """
  del args, hyper
  return [
    geometry.scale(layer, jnp.diagonal(weights))
    for layer, weights in zip(layers, verdicts.weights, strict=True)
  ]


class StatisticOfSelected:
  """Takes a coordinate-wise statistic of the rows with a positive weight.

  Where fewer rows are selected than the rule asks for, as some were rejected,
  the selected rows are mixed by their weights instead.

  Attributes:
    choose: `(n, **hyper) -> (count, statistic)`, how many rows the rule selects
      of n and the statistic of so many.
  """

  def __init__(
    self, choose: Callable[..., tuple[int, order_statistics.Statistic]]
  ):
    self.choose = choose

  def __call__(
    self, layers: list[Updates], verdicts: Verdict, *args: Any, **hyper: Any
  ) -> list[Update]:
    count, statistic = self.choose(verdicts.weights.shape[1], *args, **hyper)
    selected = verdicts.weights > 0
    factors = 1 if verdicts.factors is None else verdicts.factors
    present = jnp.where(selected, factors, order_statistics.ABSENT)
    weights = sums.rows_of(present)
    leaves, treedef = jax.tree.flatten(layers)
    each = [
      row
      for row, layer in zip(weights, layers, strict=True)
      for _ in jax.tree.leaves(layer)
    ]
    taken = order_statistics.take(statistic, leaves, each)
    taken = jax.tree.unflatten(treedef, taken)
    means = mix_rows(layers, verdicts)
    enough = jnp.sum(selected, axis=1) == count
    return [
      jax.tree.map(functools.partial(jnp.where, all_there), of_all, mean)
      for all_there, of_all, mean in zip(enough, taken, means, strict=True)
    ]
