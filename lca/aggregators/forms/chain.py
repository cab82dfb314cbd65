"""Pre-aggregation: one rule after the other, on mixed rows."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, overload

import jax.numpy as jnp

from lca.aggregators.base import (
  Aggregator,
  ExplainedUpdate,
  GramRule,
  Info,
  Rule,
  Verdict,
  explain,
  hyper_of,
  rule_name,
  rule_signature,
)
from lca.aggregators.verdict import GRAMS, mix_rows
from lca.stacked import geometry, sums
from lca.typing import Update, Updates


@overload
def chain(
  *steps: *tuple[*tuple[Callable[..., Any], ...], Aggregator],
) -> Aggregator: ...


@overload
def chain(*steps: Callable[..., Any]) -> Rule[...]: ...


def chain(*steps: Any) -> Any:
  """Applies pre-aggregators in order, then a rule.

  `chain(nnm, krum)(updates, f=2)` is `krum(nnm(updates, f=2), f=2)`. Where all
  steps only mix rows, as `nnm`, `bucketing`, the clips, `krum` and `mean` do,
  they are combined on the `[n, n]` Gram matrix, and no mixed copy of the
  updates is made.

  Args:
    *steps: pre-aggregators, and last a rule, an Aggregator or one more
      pre-aggregator.

  Returns:
    A rule, or an Aggregator if the last step is one. Its hyper-parameters are
    those of all steps; those of one name have one value, and no type checker
    sees them. Before an Aggregator they are to be bound, as in
    `functools.partial(nnm, f=2)`; what a step binds is its own, and what a
    round brings goes to each step that names it. `explain` tells of the last
    step and the rows that it saw; where no copy is made, of the rows as they
    came, without scores.

  Raises:
    TypeError: an Aggregator that is not last, or no step.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1.], [1.1], [1.2], [0.8], [99.]])
    >>> print(lca.chain(lca.nnm, lca.krum)(updates, f=1))
    [1.025]
  """
  if not steps:
    raise TypeError('chain needs at least one rule')
  for step in steps[:-1]:
    if isinstance(step, Aggregator) or not callable(step):
      raise TypeError(f'a step before the last must be a rule, got {step}')
  if len(steps) == 1:
    return steps[0]
  *before, last = steps
  if isinstance(last, Aggregator):

    def explain_update(updates, state, **brought):
      for step in before:
        updates = step(updates, **_given(step, brought))
      return explain(last)(updates, state, **brought)

    takes_scope = getattr(last.update, 'takes_scope', False)
    return Aggregator(last.init, ExplainedUpdate(explain_update, takes_scope))
  rules = [_unbound(step) for step in steps]
  if all(isinstance(rule, GramRule) and rule.weighs_rows for rule in rules):
    return _mixed_chain(steps)
  return Chain(steps)


def _unbound(step: Any) -> Any:
  """Returns the rule of which `functools.partial` has bound arguments."""
  return step.func if isinstance(step, functools.partial) else step


def _named(steps):
  """Returns the name and the signature of a chain."""
  names = ', '.join(map(rule_name, steps))
  hyper = {k: p for step in reversed(steps) for k, p in _free(step).items()}
  return f'chain({names})', rule_signature(hyper.values())


def _free(step):
  """Returns the hyper-parameters of a step that it does not bind itself."""
  bound = getattr(step, 'keywords', {})  # of functools.partial
  return {k: p for k, p in hyper_of(step).items() if k not in bound}


def _given(step, hyper):
  """Returns those of the hyper-parameters that the step takes."""
  return {k: v for k, v in hyper.items() if k in _free(step)}


class Chain(Rule[...]):
  """Runs one step after the other, each on the rows that the last one made."""

  def __init__(self, steps: Sequence[Callable[..., Any]]):
    self.steps = steps
    self.__name__, self.__signature__ = _named(steps)

  def explain(self, updates: Updates, **hyper: Any) -> tuple[Update, Info]:
    self.__signature__.bind(updates, **hyper)
    *before, last = self.steps
    for step in before:
      updates = step(updates, **_given(step, hyper))
    return explain(last)(updates, **_given(last, hyper))


class MixedChain(GramRule[...]):
  """Runs all steps as one, on the Gram matrix."""


def _mixed_chain(steps):
  """Multiplies the steps' weights, and computes the Gram matrix between them.

  Each step holds its own verdict fixed in derivatives, if it does so at all.
  """
  *before, last = steps

  def verdict_of(step, gram, hyper):
    bound = getattr(step, 'keywords', {})
    return _unbound(step).weigh(gram, **bound, **_given(step, hyper))

  def weigh(gram, **hyper):
    signature.bind(gram, **hyper)
    rejected = geometry.rejected_rows(gram)
    rows = jnp.eye(len(gram), dtype=gram.dtype)  # made so far, of those sent
    for step in before:
      weights = verdict_of(step, gram, hyper).scaled_weights
      weights, lost = _without_lost(weights, rejected)
      rows = sums.dot(weights, rows)
      gram = geometry.without_rejected(gram, rejected)
      gram = geometry.gram_of_sums(weights, gram, lost)
      rejected = lost
    verdict = verdict_of(last, gram, hyper)
    weights, lost = _without_lost(verdict.scaled_weights, rejected)
    weights = jnp.where(lost[..., None], jnp.nan, sums.dot(weights, rows))
    return Verdict(weights)

  name, signature = _named(steps)
  rule = MixedChain(weigh, needs=_needs(steps), differentiable_verdict=True)
  rule.__name__, rule.__signature__ = name, signature
  return rule


def _needs(steps):
  """Returns how much of the Gram matrix of the rows sent all steps look at.

  The norm of a sum of rows depends on the rows' inner products, the norm of a
  scaled row on its own norm alone.
  """
  first, *later = map(_unbound, steps)
  if not later or (after := _needs(later)) == 'nothing':
    return first.needs
  if first.combine is mix_rows:
    return 'products'
  return max(first.needs, after, key=list(GRAMS).index)


def _without_lost(weights, rejected):
  """Returns weights without NaN, and which sums contain a rejected row."""
  lost = jnp.any(jnp.isnan(weights) | (weights != 0) & rejected, axis=-1)
  return jnp.where(lost[..., None], 0, weights), lost
