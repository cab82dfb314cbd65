"""What a rule is, and what an aggregator is.

A rule maps stacked updates, leaves `[n, ...]`, to one update. Most rules need
nothing but the clients' inner products: `gram_rule` makes such a rule from a
function on the `[n, n]` Gram matrix. An aggregator carries a state from round
to round as well.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from lca.stacked import geometry, sums
from lca.typing import Gram, PyTree, Update, Updates

Info = dict[str, jax.Array]


class Verdict(NamedTuple):
  """What a Gram rule decides about the `n` clients.

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
    """The weights of the rows as they came."""
    if self.factors is None:
      return self.weights
    rows = self.weights.ndim > self.factors.ndim
    return self.weights * (self.factors[..., None, :] if rows else self.factors)

  def info(self, gram: Gram) -> Info:
    """The verdict by name: weights, scores, selected, rejected."""
    info = {'weights': self.scaled_weights}
    if self.scores is not None:
      info['scores'] = self.scores
    info['selected'] = self.weights > 0
    info['rejected'] = geometry.rejected_rows(gram)
    return info


class Rule:
  """A rule that can say what it decided; calling it gives the update alone.

  Attributes:
    coordinatewise: whether every coordinate is aggregated on its own, so that
      the layerwise rule is the rule itself.
  """

  coordinatewise = False

  def __call__(self, updates: Updates, **hyper: Any) -> Update:
    update, _ = self.explain(updates, **hyper)
    return update

  def explain(self, updates: Updates, **hyper: Any) -> tuple[Update, Info]:
    """Returns the update and what was decided (see `lca.explain`)."""
    raise NotImplementedError

  def __repr__(self) -> str:
    return self.__name__


class FunctionRule(Rule):
  """A rule made of a function that returns the update and what was decided."""

  def __init__(
    self,
    function: Callable[..., tuple[Update, Info]],
    coordinatewise: bool = False,
  ):
    functools.update_wrapper(self, function)
    self.explain, self.coordinatewise = function, coordinatewise
    self.__signature__ = rule_signature(hyper_of(function).values())


class GramRule(Rule):
  """A rule that needs only the clients' inner products to decide.

  Attributes:
    weigh: the function `(gram, **hyper) -> Verdict` it is made of.
  """

  def __init__(
    self,
    weigh: Callable[..., Verdict],
    *,
    combine: Callable[..., list[Update]] | None = None,
    mixes: bool = True,
    held: bool = True,
    needs: Literal['nothing', 'norms', 'products'] = 'products',
    coordinatewise: bool = False,
  ):
    """Makes the rule.

    Args:
      weigh: `(gram, **hyper) -> Verdict`.
      combine: `(layers, verdicts, **hyper) -> updates` makes the update of
        each layer; the verdicts' arrays have a leading axis `[layers]`. None
        mixes the rows by the verdicts' weights.
      mixes: whether mixing them is what `combine` comes to.
      held: whether the rule differentiates with its verdict held fixed.
      needs: what `weigh` looks at: all of the Gram matrix, its diagonal, or
        its size alone; the rest is zero unless it was computed anyway.
      coordinatewise: see `Rule`.
    """
    functools.update_wrapper(self, weigh)
    self.weigh = _held(weigh) if held else _held_where_rejected(weigh)
    self.combine, self.mixes = combine or mix_layers, mixes
    self.needs, self.coordinatewise = needs, coordinatewise
    self.__signature__ = rule_signature(hyper_of(weigh).values())

  @property
  def sums_rows(self) -> bool:
    """Whether what it makes are sums of rows, not just longer or shorter."""
    return self.combine is mix_layers

  def explain(self, updates: Updates, **hyper: Any) -> tuple[Update, Info]:
    gram = jax.tree.map(lambda x: x[0], GRAMS[self.needs]([updates]))
    verdict = self.weigh(gram, **hyper)
    one_layer = jax.tree.map(lambda x: x[None], verdict)
    (update,) = self.combine([updates], one_layer, **hyper)
    return update, self._info(verdict, gram)

  def explain_layers(
    self, layers: list[Updates], **hyper: Any
  ) -> tuple[list[Update], Info]:
    """One batch of `[n, n]` problems instead of one trace a layer."""
    grams = GRAMS[self.needs](layers)
    verdicts = jax.vmap(functools.partial(self.weigh, **hyper))(grams)
    updates = self.combine(layers, verdicts, **hyper)
    return updates, jax.vmap(self._info)(verdicts, grams)

  def _info(self, verdict: Verdict, gram: Gram) -> Info:
    """Without the weights, where the rows are not just mixed by them."""
    info = verdict.info(gram)
    return {k: info[k] for k in info if self.mixes or k != 'weights'}


def _nothing(layers: list[Updates]) -> Gram:
  n, *_ = map(geometry.num_clients, layers)
  return jnp.zeros((len(layers), n, n))


def _norms(layers: list[Updates]) -> Gram:
  return jnp.stack([geometry.norms_gram(layer) for layer in layers])


GRAMS = {  # of layers, `[layers, n, n]`, in the order of what they cost
  'nothing': _nothing,
  'norms': _norms,
  'products': geometry.grams,
}


def _held(weigh: Callable[..., Verdict]) -> Callable[..., Verdict]:
  """Rules differentiate with the weights that they chose held fixed."""

  @functools.wraps(weigh)
  def held(gram, **hyper):
    return weigh(lax.stop_gradient(gram), **hyper)

  return held


def _held_where_rejected(
  weigh: Callable[..., Verdict],
) -> Callable[..., Verdict]:
  """No change of any row changes the weight of a rejected one.

  Its entries may be anything, and would be in the other rows' derivatives.
  """

  @functools.wraps(weigh)
  def held(gram, **hyper):
    verdict = weigh(gram, **hyper)
    weights, bad = verdict.weights, geometry.rejected_rows(gram)
    weights = jnp.where(bad, lax.stop_gradient(weights), weights)
    return verdict._replace(weights=weights)

  return held


def mix_layers(
  layers: list[Updates], verdicts: Verdict, **hyper: Any
) -> list[Update]:
  """Mixes the rows of each layer by its verdict's weights."""
  del hyper
  weights = sums.rows_of(verdicts.scaled_weights)
  return list(map(geometry.mix, layers, weights))


def gram_rule(weigh: Callable[..., Verdict]) -> GramRule:
  """Makes a rule of a function from the Gram matrix to the clients' weights.

  Args:
    weigh: `(gram, *, **hyper) -> Verdict`. Its hyper-parameters become the
      rule's. Name one `distance` and the rule has a cosine form, too.

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
  return GramRule(weigh)


def rule_signature(hyper: Iterable[inspect.Parameter]) -> inspect.Signature:
  kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
  updates = inspect.Parameter('updates', kind, annotation=Updates)
  return inspect.Signature([updates, *hyper], return_annotation=Update)


class UpdateFn(Protocol):
  """The signature of `Aggregator.update`."""

  def __call__(
    self,
    updates: Updates,
    state: PyTree,
    *,
    key: jax.Array | None = None,
    weights: jax.Array | None = None,
    server_update: Update | None = None,
  ) -> tuple[Update, PyTree]: ...


class Aggregator(NamedTuple):
  """A possibly stateful aggregation, an optax-like pair of pure functions.

  Attributes:
    init: `init(params) -> state`, given a tree shaped like one update.
    update: `update(updates, state, *, key=None, weights=None,
      server_update=None) -> (update, state)`.
  """

  init: Callable[[PyTree], PyTree]
  update: UpdateFn


class ExplainedUpdate:
  """An `Aggregator.update` made of a function that also says what it decided.

  Attributes:
    explain: as the update, but returns `(update, state, info)`.
    takes_scope: whether the aggregator was given its layers (`by=`) already.
  """

  def __init__(
    self,
    explain: Callable[..., tuple[Update, PyTree, Info]],
    takes_scope: bool = False,
  ):
    self.explain, self.takes_scope = explain, takes_scope

  def __call__(self, updates, state, **round_brings):
    update, state, _ = self.explain(updates, state, **round_brings)
    return update, state


def explain(rule: Callable[..., Any] | Aggregator) -> Callable[..., Any]:
  """Makes a rule say what it decided: `(update, info)`.

  Args:
    rule: any function of stacked updates, or an Aggregator.

  Returns:
    A function with the arguments of the rule; or, of an Aggregator, with those
    of its `update`, and it returns `(update, state, info)`. `info` holds those
    that apply of `weights`, `scores`, `selected` and `rejected`, each `[n]`,
    or `[layers, n]` under `layerwise`; nothing of it applies to a plain
    function. Of a pre-aggregator that makes k rows, `weights` and `selected`
    are `[k, n]`.

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
    if isinstance(rule.update, ExplainedUpdate):
      return rule.update.explain
    return lambda *args, **brought: (*rule.update(*args, **brought), {})
  if isinstance(rule, Rule):
    return rule.explain
  if isinstance(rule, functools.partial):
    return functools.partial(explain(rule.func), *rule.args, **rule.keywords)
  if not callable(rule):
    raise TypeError(f'explain needs a rule, got {type(rule).__name__}')
  return lambda updates, **hyper: (rule(updates, **hyper), {})


def rule_name(rule: Callable[..., Any]) -> str:
  """The name that messages give a rule."""
  return getattr(rule, '__name__', None) or repr(rule)


def hyper_of(rule: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """The rule's parameters beside the updates."""
  _, *hyper = inspect.signature(rule).parameters.items()
  return dict(hyper)
