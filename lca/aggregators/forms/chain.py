"""Chains: pre-aggregators that change the rows before a rule sees them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import jax
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
from lca.aggregators.forms.noisy import Noisy, noisy
from lca.aggregators.verdict import GRAMS, Needs, mix_rows
from lca.stacked import geometry, sums
from lca.typing import Gram, Update, Updates


@overload
def chain(
  *steps: *tuple[*tuple[Callable[..., Any], ...], Aggregator],
) -> Aggregator: ...


@overload
def chain(*steps: Callable[..., Any]) -> Rule[...]: ...


def chain(*steps: Any) -> Any:
  """Applies pre-aggregators in order, then a rule.

  `chain(nnm, krum)(updates, f=2)` is `krum(nnm(updates, f=2), f=2)`. If every
  step returns weighted sums of rows, as `nnm`, `bucketing`, the clips, `krum`
  and `mean` do, the steps' weights are multiplied on the `[n, n]` Gram matrix,
  and no mixed copy of the updates is made.

  Args:
    *steps: pre-aggregators; the last step may also be a rule or an Aggregator.

  Returns:
    A rule, or an Aggregator if the last step is one. Its hyper-parameters are
    those of all steps: a name that several steps share has one value. A type
    checker does not check these names. Before an Aggregator the
    hyper-parameters must be bound, as in `functools.partial(nnm, f=2)`; a bound
    value applies to its step alone. Arguments that a round brings reach every
    step that names them. If no copy is made, `explain` reports the weights of
    the original rows, without scores. Otherwise it leaves out what the last
    step decided about rows, because no client has sent these rows.

  Raises:
    TypeError: there is no step, or a step before the last is an Aggregator or
      not callable.

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
      raise TypeError(
        'every step before the last must be a pre-aggregator (a function of '
        f'updates), got {step}'
      )
  if len(steps) == 1:
    return steps[0]
  *before, last = steps
  if isinstance(last, Aggregator):

    def explain_update(updates, state, **brought):
      for step in before:
        updates = step(updates, **arguments_of(step, brought))
      update, state, info = explain(last)(updates, state, **brought)
      return update, state, _without_rows(info)

    takes_scope = getattr(last.update, 'takes_scope', False)
    return Aggregator(last.init, ExplainedUpdate(explain_update, takes_scope))
  if isinstance(last, Noisy):  # the noise comes last in any case
    return noisy(chain(*before, last.rule), sigma=last.sigma)
  # A weighted sum of weighted sums is a weighted sum of the original rows.
  rules = [_rule_of(step) for step in steps]
  if all(isinstance(rule, GramRule) and rule.weighs_rows for rule in rules):
    return _mixed_chain(steps)
  return Chain(steps)


def _rule_of(step: Any) -> Any:
  """Returns the step without the arguments that `functools.partial` binds."""
  return step.func if isinstance(step, functools.partial) else step


def _name_and_signature(steps):
  """Returns the name and the signature of a chain."""
  names = ', '.join(map(rule_name, steps))
  # If several steps share a parameter, the first step's one is shown.
  hyper = {
    k: p for step in reversed(steps) for k, p in _free_parameters(step).items()
  }
  return f'chain({names})', rule_signature(hyper.values())


def _free_parameters(step):
  """Returns the hyper-parameters of a step that it does not bind itself."""
  bound = getattr(step, 'keywords', {})  # of functools.partial
  return {k: p for k, p in hyper_of(step).items() if k not in bound}


def arguments_of(
  step: Callable[..., Any], hyper: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns those of the hyper-parameters that the step names."""
  return {k: v for k, v in hyper.items() if k in _free_parameters(step)}


class Chain(Rule[...]):
  """Runs the steps one after the other, each on the rows of the step before."""

  def __init__(self, steps: Sequence[Callable[..., Any]]):
    self.steps = steps
    self.__name__, self.__signature__ = _name_and_signature(steps)

  def explain(self, updates: Updates, **hyper: Any) -> tuple[Update, Info]:
    self.__signature__.bind(updates, **hyper)
    *before, last = self.steps
    for step in before:
      updates = step(updates, **arguments_of(step, hyper))
    update, info = explain(last)(updates, **arguments_of(last, hyper))
    return update, _without_rows(info)


def _without_rows(info: Info) -> Info:
  """Leaves out the decisions about rows that an earlier step has made."""
  of_rows = ('weights', 'scores', 'selected', 'rejected')
  return {k: x for k, x in info.items() if k not in of_rows}


class MixedChain(GramRule[...]):
  """Multiplies the weights of all steps, on the Gram matrix."""


def _mixed_chain(steps):
  """Returns a Gram rule whose weights are the product of the steps' weights.

  After each step the Gram matrix of the mixed rows follows from the weights:
  for rows Y = W X it is W K W^T. Derivatives hold a step's verdict constant if
  the step by itself does so.
  """
  *before, last = steps

  def verdict_of(step, gram, hyper):
    bound = getattr(step, 'keywords', {})
    return _rule_of(step).weigh(gram, **bound, **arguments_of(step, hyper))

  def weigh(gram, **hyper):
    signature.bind(gram, **hyper)
    rejected = geometry.rejected_rows(gram)
    # `[k, n]`: the rows made so far, as weights on the original rows.
    rows = jnp.eye(len(gram), dtype=gram.dtype)
    for step in before:
      weights = verdict_of(step, gram, hyper).scaled_weights
      gram = gram_after(weights, gram, rejected)
      weights, rejected = _without_spoiled(weights, rejected)
      rows = sums.dot(weights, rows)
    verdict = verdict_of(last, gram, hyper)
    weights, spoiled = _without_spoiled(verdict.scaled_weights, rejected)
    weights = sums.dot(weights, rows)
    return Verdict(jnp.where(spoiled[..., None], jnp.nan, weights))

  name, signature = _name_and_signature(steps)
  rule = MixedChain(weigh, needs=_needs(steps), differentiable_verdict=True)
  rule.__name__, rule.__signature__ = name, signature
  return rule


def gram_after(
  weights: jax.Array, gram: Gram, rejected: jax.Array | None = None
) -> Gram:
  """Returns the Gram matrix of weighted sums of rows, `[k, k]`.

  Args:
    weights: `[k, n]`. A sum with a NaN weight or a rejected row is rejected.
    gram: `[n, n]` inner products of the rows.
    rejected: `[n]` mask of the rejected rows; None asks `gram`.
  """
  if rejected is None:
    rejected = geometry.rejected_rows(gram)
  weights, spoiled = _without_spoiled(weights, rejected)
  gram = geometry.without_rejected(gram, rejected)
  return geometry.gram_of_sums(weights, gram, spoiled)


def _needs(steps):
  """Returns the part of the original rows' Gram matrix that the steps need."""
  first, *later = map(_rule_of, steps)
  return needs_of_chain(first, _needs(later)) if later else first.needs


def needs_of_chain(step: GramRule, after: Needs) -> Needs:
  """Returns the part of the Gram matrix that a step and the later ones need.

  The norm of a mixed row depends on all inner products of the rows in it; the
  norm of a scaled row depends on that row's norm alone.

  Args:
    step: the first step.
    after: what the later steps need of the Gram matrix of its rows.
  """
  if after == 'nothing':
    return step.needs
  if step.combine is mix_rows:
    return 'products'
  return max(step.needs, after, key=list(GRAMS).index)


def _without_spoiled(weights, rejected):
  """Zeroes the weights of sums with a NaN weight or a rejected row.

  Returns:
    The weights, and a mask of these sums.
  """
  spoiled = jnp.any(jnp.isnan(weights) | (weights != 0) & rejected, axis=-1)
  return jnp.where(spoiled[..., None], 0, weights), spoiled
