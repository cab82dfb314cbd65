"""Rules in two passes over the rows, for rows that are not all in memory.

Most rules look at the rows twice: a first pass takes inner products, from which
the rule decides, and a second one combines the rows by that decision. Between
the passes, and for the coordinates that a pass is not at, no row is needed. So
a caller can keep the rows elsewhere, and bring some coordinates at a time:

    passes = in_two_passes(lca.krum, f=2)
    decision, info = passes.decide(grams)       # of all coordinates
    part = passes.combine(rows, decision)       # rows of some coordinates
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax

from lca.aggregators.base import Aggregator, GramRule, Info, Rule, rule_name
from lca.aggregators.forms.chain import (
  Chain,
  arguments_of,
  chain,
  gram_after,
  needs_of_chain,
)
from lca.aggregators.forms.layerwise import Layerwise
from lca.aggregators.forms.noisy import Noisy
from lca.aggregators.forms.stateless import RuleUpdate
from lca.aggregators.verdict import Needs, mix_rows
from lca.stacked.trees import Path, grouping
from lca.typing import Gram, PyTree, Update, Updates


class TwoPasses(NamedTuple):
  """A rule with its hyper-parameters, as two passes over the rows.

  Attributes:
    needs: what `decide` reads: `'nothing'`, the rows' `'norms'`, or all inner
      `'products'`.
    key: function from a leaf's path to a hashable, the same for the leaves of a
      layer. None makes one layer, whose leaves may as well be layers.
    decide: `[layers, n, n]` inner products of each layer's rows to a decision,
      a tree of arrays `[layers, ...]`, and what `lca.explain` reports.
    combine: `(rows, decision) -> update`, for the rows `[n, c]` of some
      coordinates of one layer, and the decision with a leading axis of 1.
    rule: the Gram rule whose verdicts are the decision; None for other rules.
  """

  needs: Needs
  key: Callable[[Path], Hashable] | None
  decide: Callable[[Gram], tuple[PyTree, Info]]
  combine: Callable[[Updates, PyTree], Update]
  rule: GramRule | None = None

  @property
  def needs_one(self) -> bool:
    """True if one pass will do: the weights of the rows' sum are known."""
    return bool(
      self.rule and self.needs == 'nothing' and self.rule.combine is mix_rows
    )


def of_aggregator(
  aggregator: Aggregator, brought: Mapping[str, Any]
) -> TwoPasses:
  """Returns an aggregator's rule in two passes.

  Args:
    aggregator: from `lca.stateless`.
    brought: what a round brings, by the names of `ROUND_BRINGS`.

  Raises:
    ValueError: the aggregator has no such form; the message says why.
  """
  update = aggregator.update
  if not isinstance(update, RuleUpdate):
    raise ValueError(
      'an aggregator with a state reads all coordinates of all rows at once'
    )
  return in_two_passes(update.rule, **update.hyper, **update.options(brought))


def in_two_passes(rule: Callable[..., Update], **hyper: Any) -> TwoPasses:
  """Returns a rule in two passes.

  A Gram rule has this form, plain, layerwise or with cosine distances. So has a
  rule that works coordinate by coordinate, and a chain of such rules, in which
  only the last one may be no weighted sum of rows.

  Args:
    rule: a rule of stacked updates.
    **hyper: the rule's hyper-parameters.

  Raises:
    ValueError: the rule has no such form; the message says why.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> rows = jnp.array([[0.], [1.], [1.], [1.], [9.]])
    >>> passes = in_two_passes(lca.krum, f=1)
    >>> decision, info = passes.decide(lca.gram(rows)[None])
    >>> print(passes.combine(rows, decision))
    [1.]
  """
  if isinstance(rule, functools.partial):
    return in_two_passes(rule.func, **rule.keywords | hyper)
  if isinstance(rule, GramRule):
    return _of_gram_rule(rule, grouping('model'), hyper)
  if isinstance(rule, Layerwise):
    inner = rule.rule
    if isinstance(inner, functools.partial):
      inner, hyper = inner.func, inner.keywords | hyper
    if isinstance(inner, GramRule):
      return _of_gram_rule(inner, rule.key, hyper)
  if isinstance(rule, Rule) and rule.coordinatewise:

    def combine(rows, decision):
      del decision
      return rule(rows, **hyper)

    return TwoPasses('nothing', None, lambda grams: ((), {}), combine)
  if isinstance(rule, Chain):
    return _of_chain(rule, hyper)
  if isinstance(rule, Noisy):
    raise ValueError(
      f'{rule_name(rule)} adds noise, which needs all coordinates at once: set '
      'sigma to 0'
    )
  raise ValueError(_reason(rule))


def _reason(rule):
  return (
    f'{rule_name(rule)} may read all coordinates of all rows at once: it is '
    'neither a lca.gram_rule nor a coordinate-wise rule of lca, nor a chain of '
    'such rules'
  )


def _of_gram_rule(rule, key, hyper):
  def decide(grams):
    verdicts = jax.vmap(lambda gram: rule.weigh(gram, **hyper))(grams)
    infos = jax.vmap(rule.info)(verdicts, grams)
    if key is grouping('model'):
      infos = jax.tree.map(lambda x: x[0], infos)
    return verdicts, infos

  def combine(rows, verdict):
    (update,) = rule.combine([rows], verdict, **hyper)
    return update

  return TwoPasses(rule.needs, key, decide, combine, rule)


def _of_chain(chained, hyper):
  """Returns a chain in two passes, of its first step and of all others."""
  step, *others = chained.steps
  first = in_two_passes(step, **arguments_of(step, hyper))
  if not (first.rule and first.rule.weighs_rows):
    raise ValueError(
      f'the rows that {rule_name(step)} makes are not weighted sums, so that '
      f'{chained} reads all coordinates of all rows'
    )
  after = chain(*others)
  then = in_two_passes(after, **arguments_of(after, hyper))
  if then.key not in (None, first.key):
    raise ValueError(f'the steps of {chained} have different layers')

  def decide(grams):
    verdicts, _ = first.decide(grams)
    mixed = jax.vmap(gram_after)(verdicts.scaled_weights, grams)
    decision, _ = then.decide(mixed)
    return (verdicts, decision), {}

  def combine(rows, decision):
    verdict, decision = decision
    return then.combine(first.combine(rows, verdict), decision)

  needs = needs_of_chain(first.rule, then.needs)
  return TwoPasses(needs, first.key, decide, combine)
