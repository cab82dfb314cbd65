"""The types of rules and aggregators, and decorators that make rules.

A rule maps stacked updates, leaves `[n, ...]`, to one update. Most rules need
only the clients' inner products: `gram_rule` makes a rule from a function of
the `[n, n]` Gram matrix. An aggregator also carries a state from round to
round.

The types are generic over the hyper-parameters. So an editor shows those of
`lca.krum`, and a type checker refuses `lca.krum(x, g=2)`.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import (
  Any,
  Concatenate,
  Generic,
  NamedTuple,
  ParamSpec,
  overload,
)

import jax

from lca.aggregators.brought import ROUND_BRINGS, UpdateFn
from lca.aggregators.verdict import (
  GRAMS,
  Combination,
  Info,
  Needs,
  Verdict,
  mix_rows,
  scale_rows,
  with_constant_rejected_weights,
  with_constant_verdict,
)
from lca.typing import Gram, PyTree, Update, Updates

P = ParamSpec('P')


class Rule(Generic[P]):
  """A function from stacked updates to one update, which can explain itself.

  Calling the rule returns the update alone; `explain` also returns what the
  rule decided. A rule is the aggregation function of Eq. 1 of García-Márquez
  et al. 2025, applied to updates (client minus server) rather than to
  parameters.

  Attributes:
    coordinatewise: True if the rule aggregates every coordinate on its own, so
      that its layerwise form equals the rule itself.
  """

  coordinatewise: bool = False
  __name__: str
  __signature__: inspect.Signature

  def __call__(
    self, updates: Updates, *args: P.args, **hyper: P.kwargs
  ) -> Update:
    update, _ = self.explain(updates, *args, **hyper)
    return update

  def explain(
    self, updates: Updates, *args: P.args, **hyper: P.kwargs
  ) -> tuple[Update, Info]:
    """Returns the update and what the rule decided (see `lca.explain`)."""
    raise NotImplementedError

  def __repr__(self) -> str:
    return self.__name__


class FunctionRule(Rule[P]):
  """A rule made from a function `(updates, **hyper) -> (update, info)`."""

  def __init__(
    self, function: Callable[Concatenate[Updates, P], tuple[Update, Info]]
  ):
    functools.update_wrapper(self, function)
    self._function = function
    self.__signature__ = rule_signature(hyper_of(function).values())

  def explain(
    self, updates: Updates, *args: P.args, **hyper: P.kwargs
  ) -> tuple[Update, Info]:
    return self._function(updates, *args, **hyper)


class CoordinatewiseRule(FunctionRule[P]):
  """A `FunctionRule` that aggregates every coordinate on its own."""

  coordinatewise = True


class GramRule(Rule[P]):
  """A rule that decides from the clients' inner products alone.

  Attributes:
    weigh: function `(gram, **hyper) -> Verdict` that makes the decision.
    combine: function that makes the update from the rows and the verdict; one
      of the three of `lca.aggregators.verdict`.
    needs: the part of the Gram matrix that `weigh` reads.
  """

  def __init__(
    self,
    weigh: Callable[Concatenate[Gram, P], Verdict],
    *,
    combine: Combination = mix_rows,
    needs: Needs = 'products',
    differentiable_verdict: bool = False,
  ):
    """Makes the rule; `gram_rule` describes the arguments."""
    functools.update_wrapper(self, weigh)
    hold_constant = (
      with_constant_rejected_weights
      if differentiable_verdict
      else with_constant_verdict
    )
    self.weigh: Callable[Concatenate[Gram, P], Verdict] = hold_constant(weigh)
    self.combine = combine
    self.needs: Needs = needs
    # Without the updates, the weights are the same for every coordinate.
    self.coordinatewise = needs == 'nothing'
    self.__signature__ = rule_signature(hyper_of(weigh).values())

  @property
  def weighs_rows(self) -> bool:
    """True if the update is a weighted sum of the rows.

    Then `explain` reports the weights, and chains may multiply them.
    """
    return self.combine in (mix_rows, scale_rows)

  def explain(
    self, updates: Updates, *args: P.args, **hyper: P.kwargs
  ) -> tuple[Update, Info]:
    # `GRAMS` and `combine` work on a leading axis of layers: here of length 1.
    gram = jax.tree.map(lambda x: x[0], GRAMS[self.needs]([updates]))
    verdict = self.weigh(gram, *args, **hyper)
    one_layer = jax.tree.map(lambda x: x[None], verdict)
    (update,) = self.combine([updates], one_layer, *args, **hyper)
    return update, self.info(verdict, gram)

  def explain_layers(
    self, layers: list[Updates], *args: P.args, **hyper: P.kwargs
  ) -> tuple[list[Update], Info]:
    """Applies the rule to each layer, in one vmap over `[n, n]` matrices.

    The rule is traced once, however many layers there are.
    """
    grams = GRAMS[self.needs](layers)
    verdicts = jax.vmap(lambda gram: self.weigh(gram, *args, **hyper))(grams)
    updates = self.combine(layers, verdicts, *args, **hyper)
    return updates, jax.vmap(self.info)(verdicts, grams)

  def info(self, verdict: Verdict, gram: Gram) -> Info:
    """Returns what `explain` reports of a verdict."""
    info = verdict.info(gram)
    return {k: info[k] for k in info if self.weighs_rows or k != 'weights'}


@overload
def gram_rule(
  weigh: Callable[Concatenate[Gram, P], Verdict], /
) -> GramRule[P]: ...


@overload
def gram_rule(
  *,
  combine: Combination = ...,
  needs: Needs = ...,
  differentiable_verdict: bool = ...,
) -> Callable[[Callable[Concatenate[Gram, P], Verdict]], GramRule[P]]: ...


def gram_rule(weigh: Any = None, /, **options: Any) -> Any:
  """Makes a rule from a function of the Gram matrix.

  It is a decorator, with or without options.

  Args:
    weigh: `(gram, *, **hyper) -> Verdict`. Its hyper-parameters become the
      rule's. If one of them is called `distance`, `lca.cosine` accepts the
      rule.
    combine: function that makes the update from the rows and the verdict, one
      of `lca.aggregators.verdict`. `mix_rows`, the default, sums the rows, each
      times its weight; `scale_rows` multiplies each row by its own factor;
      `StatisticOfSelected` takes a coordinate-wise statistic of the rows with a
      positive weight.
    needs: the part of the Gram matrix that `weigh` reads, which decides the
      cost: `'products'`, the default, is the whole matrix; `'norms'` its
      diagonal; `'nothing'` its size. The rest may be zero.
    differentiable_verdict: True if derivatives run through `weigh` as well. By
      default the verdict is held constant in derivatives.

  Returns:
    A rule `(updates, **hyper) -> update`.

  Examples:
    A rule that returns the update of the smallest norm, and its layerwise form:

    >>> import jax, jax.numpy as jnp, lca
    >>> @lca.gram_rule
    ... def smallest(gram):
    ...   norms = lca.geometry.norms(gram)
    ...   winner = jax.nn.one_hot(jnp.argmin(norms), len(gram))
    ...   return lca.Verdict(weights=winner, scores=norms)
    >>> updates = {'w': jnp.array([[3.], [2.]]), 'b': jnp.array([1., 4.])}
    >>> print(smallest(updates))
    {'b': Array(1., dtype=float32), 'w': Array([3.], dtype=float32)}
    >>> print(lca.layerwise(smallest)(updates))
    {'b': Array(1., dtype=float32), 'w': Array([2.], dtype=float32)}
  """
  if weigh is None:
    return functools.partial(GramRule, **options)
  return GramRule(weigh, **options)


def rule_signature(hyper: Iterable[inspect.Parameter]) -> inspect.Signature:
  """Returns the signature of a rule with these hyper-parameters."""
  kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
  updates = inspect.Parameter('updates', kind, annotation=Updates)
  return inspect.Signature([updates, *hyper], return_annotation=Update)


class Aggregator(NamedTuple):
  """A possibly stateful aggregation: a pair of pure functions, as in optax.

  Attributes:
    init: `init(params) -> state`, given a tree shaped like one update.
    update: `update(updates, state, *, key=None, weights=None,
      server_update=None, params=None, client_ids=None, predict=None) ->
      (update, state)`. The function may leave out those keyword arguments that
      it does not use.
  """

  init: Callable[[PyTree], PyTree]
  update: UpdateFn


class ExplainedUpdate:
  """An `Aggregator.update` that can also explain itself.

  Attributes:
    takes_scope: True if the aggregator already has its layers (`by=`), so that
      `layerwise` must not split the updates again.
  """

  def __init__(
    self,
    function: Callable[..., tuple[Update, PyTree, Info]],
    takes_scope: bool = False,
  ):
    """Wraps a function.

    Args:
      function: `(updates, state, **brought) -> (update, state, info)`.
        `brought` holds the arguments that the round passes, by the names of
        `ROUND_BRINGS`.
      takes_scope: as in the class.
    """
    # Descriptions of runs read the function's name and its closure.
    functools.update_wrapper(self, function)
    self._function, self.takes_scope = function, takes_scope

  def __call__(
    self, updates: Updates, state: PyTree, **brought: Any
  ) -> tuple[Update, PyTree]:
    update, state, _ = self.explain(updates, state, **brought)
    return update, state

  def explain(
    self, updates: Updates, state: PyTree, **brought: Any
  ) -> tuple[Update, PyTree, Info]:
    """Returns `(update, state, info)` (see `lca.explain`)."""
    if unknown := sorted(set(brought) - set(ROUND_BRINGS)):
      raise TypeError(
        f'a round brings {ROUND_BRINGS}, but the update was given {unknown}'
      )
    return self._function(updates, state, **brought)


@overload
def explain(rule: Aggregator) -> Callable[..., tuple[Update, PyTree, Info]]: ...


@overload
def explain(
  rule: Callable[Concatenate[Updates, P], Update],
) -> Callable[Concatenate[Updates, P], tuple[Update, Info]]: ...


def explain(rule: Any) -> Any:
  """Returns a rule's variant that also reports what the rule decided.

  Args:
    rule: any function of stacked updates, or an Aggregator.

  Returns:
    For a rule: a function of the same arguments that returns `(update, info)`.
    For an Aggregator: a function with the arguments of `UpdateFn` that returns
    `(update, state, info)`; the aggregator's own `update` receives those of the
    arguments that it names.

    `info` is a dict of those of `weights`, `scores`, `selected` and `rejected`
    that apply, each `[n]`, or `[layers, n]` under `layerwise`. It is empty for
    a plain function. For a pre-aggregator that returns k rows, `weights` and
    `selected` are `[k, n]`.

  Raises:
    TypeError: `rule` is neither a function nor an Aggregator.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[0.], [1.], [1.], [1.], [9.]])
    >>> update, info = lca.explain(lca.krum)(updates, f=1)
    >>> print(update, info['selected'])
    [1.] [False  True False False False]
  """
  if isinstance(rule, Aggregator):
    update = rule.update
    if isinstance(update, ExplainedUpdate):
      return update.explain
    # A plain update may name only some of the arguments that a round brings.
    parameters = inspect.signature(update).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = ROUND_BRINGS if takes_all else [p.name for p in parameters]

    def explain_plain(updates, state, **brought):
      brought = {k: v for k, v in brought.items() if k in named}
      return *update(updates, state, **brought), {}

    return ExplainedUpdate(explain_plain).explain
  if isinstance(rule, Rule):
    return rule.explain
  if isinstance(rule, functools.partial):
    return functools.partial(explain(rule.func), *rule.args, **rule.keywords)
  if not callable(rule):
    raise TypeError(
      'explain needs a rule or an Aggregator, got ' + type(rule).__name__
    )
  # A plain function has nothing to report.
  return lambda updates, *args, **hyper: (rule(updates, *args, **hyper), {})


def rule_name(rule: Callable[..., Any]) -> str:
  """Returns the rule's name for messages."""
  if isinstance(rule, functools.partial):
    return rule_name(rule.func)
  return getattr(rule, '__name__', None) or repr(rule)


def hyper_of(rule: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Returns the rule's parameters other than the updates, by name."""
  _, *hyper = inspect.signature(rule).parameters.items()
  return dict(hyper)
