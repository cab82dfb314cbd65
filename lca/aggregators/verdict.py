"""Decisions of Gram rules, and the three ways to make an update from them.

A `Verdict` holds numbers for every client. The rule's *combination* makes the
update from the rows and these numbers. There are three combinations:

    mix_rows             returns the sum of the rows, each times its weight;
    scale_rows           returns the rows, each multiplied by its own factor;
    StatisticOfSelected  returns a coordinate-wise statistic of the rows with a
                         positive weight.

A combination is a function `(layers, verdicts, **hyper) -> updates`. It works
on all layers at once: `layers` is a list with the stacked updates of each
layer, and the arrays of `verdicts` have a leading axis `[layers]`.
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
"""Decisions by name, each `[n]` or `[layers, n]` (see `lca.explain`)."""


class Verdict(NamedTuple):
  """The decision of a Gram rule about the `n` clients.

  Attributes:
    weights: `[n]`, so that the aggregate is `mix(updates, weights)`; or
      `[k, n]` for a pre-aggregator that returns k rows.
    scores: `[n]`, lower is better, for rules that rank the clients.
    factors: `[n]`, scales of the rows, applied before the weights, such as
      those of a clip; None means 1 for every row.
  """

  weights: jax.Array
  scores: jax.Array | None = None
  factors: jax.Array | None = None

  @property
  def scaled_weights(self) -> jax.Array:
    """Returns weights times factors, which apply to the unscaled rows."""
    if self.factors is None:
      return self.weights
    makes_rows = self.weights.ndim > self.factors.ndim  # [k, n] against [n]
    factors = self.factors[..., None, :] if makes_rows else self.factors
    return self.weights * factors

  def info(self, gram: Gram) -> Info:
    """Returns weights, scores, selected and rejected clients by name."""
    info = {'weights': self.scaled_weights}
    if self.scores is not None:
      info['scores'] = self.scores
    info['selected'] = self.weights > 0
    info['rejected'] = geometry.rejected_rows(gram)
    return info


Needs = Literal['nothing', 'norms', 'products']
"""The part of the Gram matrix that a rule reads: its size alone, its diagonal,
or the whole matrix."""


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
"""Functions from layers to `[layers, n, n]` Gram matrices, cheapest first."""


def with_constant_verdict(
  weigh: Callable[Concatenate[Gram, P], Verdict],
) -> Callable[Concatenate[Gram, P], Verdict]:
  """Returns `weigh` with its verdict held constant in derivatives."""

  @functools.wraps(weigh)
  def with_stopped_gradient(
    gram: Gram, *args: P.args, **hyper: P.kwargs
  ) -> Verdict:
    return weigh(lax.stop_gradient(gram), *args, **hyper)

  return with_stopped_gradient


def with_constant_rejected_weights(
  weigh: Callable[Concatenate[Gram, P], Verdict],
) -> Callable[Concatenate[Gram, P], Verdict]:
  """Returns `weigh` with the weights of rejected rows held constant.

  The weights of rejected rows do not depend on any row. A rejected row may
  contain NaN or inf, which would otherwise enter the derivatives of the other
  rows.
  """

  @functools.wraps(weigh)
  def with_stopped_gradient(
    gram: Gram, *args: P.args, **hyper: P.kwargs
  ) -> Verdict:
    verdict = weigh(gram, *args, **hyper)
    weights, rejected = verdict.weights, geometry.rejected_rows(gram)
    weights = jnp.where(rejected, lax.stop_gradient(weights), weights)
    return verdict._replace(weights=weights)

  return with_stopped_gradient


Combination = Callable[..., list[Update]]
"""`(layers, verdicts, **hyper) -> updates`: one of the three of this module."""


def mix_rows(
  layers: list[Updates], verdicts: Verdict, *args: Any, **hyper: Any
) -> list[Update]:
  """Returns the weighted sum of each layer's rows."""
  del args, hyper
  weights = sums.rows_of(verdicts.scaled_weights)
  return list(map(geometry.mix, layers, weights))


def scale_rows(
  layers: list[Updates], verdicts: Verdict, *args: Any, **hyper: Any
) -> list[Updates]:
  """Multiplies row i of each layer by `weights[i, i]`.

  The weights `[n, n]` must be zero off the diagonal. Then the result equals
  that of `mix_rows` up to rounding, and the rows are read once.
  """
  del args, hyper
  return [
    geometry.scale(layer, jnp.diagonal(weights))
    for layer, weights in zip(layers, verdicts.weights, strict=True)
  ]


class StatisticOfSelected:
  """Takes a coordinate-wise statistic of the rows with a positive weight.

  If fewer rows are selected than the rule asks for, because some were rejected,
  the selected rows are averaged by their weights instead.

  Attributes:
    choose: `(n, **hyper) -> (count, statistic)`: the number of rows that the
      rule selects from n, and the statistic of that many rows.
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
    # `take` multiplies a row by its factor; an `ABSENT` row counts as +inf.
    present = jnp.where(selected, factors, order_statistics.ABSENT)
    by_layer = sums.rows_of(present)
    leaves, treedef = jax.tree.flatten(layers)
    by_leaf = [
      layer_factors
      for layer_factors, layer in zip(by_layer, layers, strict=True)
      for _ in jax.tree.leaves(layer)
    ]
    taken = order_statistics.take(statistic, leaves, by_leaf)
    taken = jax.tree.unflatten(treedef, taken)
    means = mix_rows(layers, verdicts)
    complete = jnp.sum(selected, axis=1) == count  # [layers]
    return [
      jax.tree.map(functools.partial(jnp.where, all_selected), statistics, mean)
      for all_selected, statistics, mean in zip(
        complete, taken, means, strict=True
      )
    ]
