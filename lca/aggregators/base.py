"""The types of rules and aggregators, and how a rule is made of a function.

A rule maps stacked updates, leaves `[n, ...]`, to one update. Most rules need
nothing but the clients' inner products: `gram_rule` makes such a rule from a
function on the `[n, n]` Gram matrix. An aggregator carries a state from round
to round as well.

The types are generic over the hyper-parameters, so that an editor shows those
of `lca.krum`, and a type checker refuses `lca.krum(x, g=2)`.
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
  Protocol,
  overload,
)

import jax

from lca.aggregators.verdict import (
  GRAMS,
  Combination,
  Info,
  Needs,
  Verdict,
  hold,
  hold_rejected,
  mix_rows,
  scale_rows,
)
from lca.typing import Gram, PyTree, Update, Updates

P = ParamSpec('P')

ROUND_BRINGS = ('key', 'weights', 'server_update', 'params', 'client_ids')
"""Names of the arguments that a round of training brings to an aggregation.

They are nobody's options: a rule that names one of them is given it in every
round. `UpdateFn` says what each of them is.
"""


class Rule(Generic[P]):
  """A rule that can say what it decided; calling it gives the update alone.

  Attributes:
    coordinatewise: True if the rule aggregates every coordinate on its own, so
      that the layerwise rule is the rule itself.
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
    """Returns the update and what was decided (see `lca.explain`)."""
    raise NotImplementedError

  def __repr__(self) -> str:
    return self.__name__


class FunctionRule(Rule[P]):
  """A rule made of a function that returns the update and what was decided."""

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
  """A function that aggregates every coordinate on its own, as a rule."""

  coordinatewise = True


class GramRule(Rule[P]):
  """A rule that needs only the clients' inner products to decide.

  Attributes:
    weigh: the function `(gram, **hyper) -> Verdict` it is made of.
    combine: how rows and verdict make the update (`lca.aggregators.verdict`).
    needs: how much of the Gram matrix `weigh` looks at.
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
    held = hold_rejected if differentiable_verdict else hold
    self.weigh: Callable[Concatenate[Gram, P], Verdict] = held(weigh)
    self.combine = combine
    self.needs: Needs = needs
    # Weights that do not depend on the updates weigh all coordinates alike.
    self.coordinatewise = needs == 'nothing'
    self.__signature__ = rule_signature(hyper_of(weigh).values())

  @property
  def weighs_rows(self) -> bool:
    """True if the update is the verdict's weights times the rows.

    Then `explain` tells the weights, and chains may multiply them.
    """
    return self.combine in (mix_rows, scale_rows)

  def explain(
    self, updates: Updates, *args: P.args, **hyper: P.kwargs
  ) -> tuple[Update, Info]:
    gram = jax.tree.map(lambda x: x[0], GRAMS[self.needs]([updates]))
    verdict = self.weigh(gram, *args, **hyper)
    one_layer = jax.tree.map(lambda x: x[None], verdict)
    (update,) = self.combine([updates], one_layer, *args, **hyper)
    return update, self._info(verdict, gram)

  def explain_layers(
    self, layers: list[Updates], *args: P.args, **hyper: P.kwargs
  ) -> tuple[list[Update], Info]:
    """One batch of `[n, n]` problems instead of one trace a layer."""
    grams = GRAMS[self.needs](layers)
    verdicts = jax.vmap(lambda gram: self.weigh(gram, *args, **hyper))(grams)
    updates = self.combine(layers, verdicts, *args, **hyper)
    return updates, jax.vmap(self._info)(verdicts, grams)

  def _info(self, verdict: Verdict, gram: Gram) -> Info:
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
  """Makes a rule of a function from the Gram matrix to the clients' weights.

  It is a decorator, with or without options.

  Args:
    weigh: `(gram, *, **hyper) -> Verdict`. Its hyper-parameters become the
      rule's. Name one `distance` and the rule has a cosine form, too.
    combine: how the rows and the verdict make the update: `mix_rows`, the
      default, sums the rows, each times its weight; `scale_rows` makes each
      longer or shorter; `StatisticOfSelected` takes a statistic of those that
      have a weight (`lca.aggregators.verdict`).
    needs: how much of the Gram matrix `weigh` looks at, which is a matter of
      cost: `'products'`, all of it, the default; `'norms'`, its diagonal;
      `'nothing'`, its size. The rest is zero unless it was computed anyway.
    differentiable_verdict: True if derivatives run through `weigh` as well. By
      default the rule differentiates with its verdict held fixed.

  Returns:
    A rule `(updates, **hyper) -> update`.

  Examples:
    The update of the smallest norm, and its layerwise form:

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


class UpdateFn(Protocol):
  """The signature of `Aggregator.update`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    state: from `Aggregator.init` or from the round before.
    key: a PRNG key of this round.
    weights: `[n]`, the clients' numbers of examples; 0 for those that did not
      answer.
    server_update: what the server computed on examples of its own, a tree
      shaped like one update.
    params: what the clients started from in this round, a tree shaped like one
      update.
    client_ids: `[n]`, who the clients are in the population.

  Returns:
    The update and the next state.
  """

  def __call__(
    self,
    updates: Updates,
    state: PyTree,
    *,
    key: jax.Array | None = None,
    weights: jax.Array | None = None,
    server_update: Update | None = None,
    params: Update | None = None,
    client_ids: jax.Array | None = None,
  ) -> tuple[Update, PyTree]: ...


class Aggregator(NamedTuple):
  """A possibly stateful aggregation, an optax-like pair of pure functions.

  Attributes:
    init: `init(params) -> state`, given a tree shaped like one update.
    update: `update(updates, state, *, key=None, weights=None,
      server_update=None, params=None, client_ids=None) -> (update, state)`; it
      need not name those of these arguments that it does not use.
  """

  init: Callable[[PyTree], PyTree]
  update: UpdateFn


class ExplainedUpdate:
  """An `Aggregator.update` made of a function that also says what it decided.

  Attributes:
    takes_scope: True if the aggregator was given its layers (`by=`) already.
  """

  def __init__(
    self,
    function: Callable[..., tuple[Update, PyTree, Info]],
    takes_scope: bool = False,
  ):
    """Makes the update.

    Args:
      function: `(updates, state, **brought) -> (update, state, info)`, given
        what the round brings, by the names of `ROUND_BRINGS`.
      takes_scope: see the class.
    """
    functools.update_wrapper(self, function)  # who made it, for descriptions
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
      raise TypeError(f'a round brings {ROUND_BRINGS}, not {unknown}')
    return self._function(updates, state, **brought)


@overload
def explain(rule: Aggregator) -> Callable[..., tuple[Update, PyTree, Info]]: ...


@overload
def explain(
  rule: Callable[Concatenate[Updates, P], Update],
) -> Callable[Concatenate[Updates, P], tuple[Update, Info]]: ...


def explain(rule: Any) -> Any:
  """Makes a rule say what it decided.

  Args:
    rule: any function of stacked updates, or an Aggregator.

  Returns:
    A function with the arguments of the rule, which returns `(update, info)`.
    For an Aggregator a function with the arguments of `UpdateFn`, which
    returns `(update, state, info)`; the aggregator's own `update` is given
    those of them that it names. `info` holds those that apply of `weights`,
    `scores`, `selected` and `rejected`, each `[n]`, or `[layers, n]` under
    `layerwise`. It is empty for a plain function. For a pre-aggregator that
    makes k rows, `weights` and `selected` are `[k, n]`.

  Raises:
    TypeError: `rule` is no function and no Aggregator.

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
    raise TypeError(f'explain needs a rule, got {type(rule).__name__}')
  return lambda updates, *args, **hyper: (rule(updates, *args, **hyper), {})


def rule_name(rule: Callable[..., Any]) -> str:
  """Returns the name that messages give a rule."""
  if isinstance(rule, functools.partial):
    return rule_name(rule.func)
  return getattr(rule, '__name__', None) or repr(rule)


def hyper_of(rule: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Returns the rule's parameters beside the updates, by name."""
  _, *hyper = inspect.signature(rule).parameters.items()
  return dict(hyper)
