"""What makes rules of rules.

    layerwise(rule)   applies a rule to every layer on its own,
    cosine(rule)      replaces its distance by the cosine distance, on updates
                      clipped to their median norm,
    stateless(rule)   makes an Aggregator of it.

The layerwise cosine form of any distance-based rule is
`layerwise(cosine(rule))`.
"""

import inspect
from collections.abc import Callable, Hashable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from lca import geometry
from lca.aggregators.base import (
  Aggregator,
  ExplainedUpdate,
  GramRule,
  Info,
  Rule,
  explain,
  hyper_of,
  rule_name,
  rule_signature,
)
from lca.aggregators.chain import Chain, MixedChain
from lca.aggregators.layers import Layers, Path, Scope, grouping
from lca.typing import Update, Updates


def layerwise(
  rule: Callable[..., Any] | Aggregator, by: Scope = 'leaf'
) -> Rule | Aggregator:
  r"""Applies a rule to every layer on its own (section 3.2 of the paper).

  .. math:: L F(V_1, \dots, V_n) = (F(V_{1,1}, \dots, V_{n,1}), \dots,
      F(V_{1,k}, \dots, V_{n,k}))

  where :math:`V_{i,j}` is client i's part in layer j. The paper's layer is one
  leaf of the pytree: a kernel and its bias are two layers.

  Args:
    rule: any function of stacked updates, or an Aggregator.
    by: what a layer is. `'leaf'`; `'module'`, the path without its last key;
      `'block'`, its first key; `'model'`, everything; or a function from the
      path, a tuple of strings, to a hashable that leaves of one layer share.
      Flax's collection (`params`, `batch_stats`) does not count as a key for
      `'module'` and `'block'`.

  Returns:
    A rule with the hyper-parameters of the given one. Its `explain` stacks
    what was decided: `[layers, n]`, layers in the order of their first leaf.
    An argument that is a tree of the updates' structure is split like them.
    A rule that works coordinate by coordinate is returned as it is. Of an
    Aggregator, an Aggregator with one state a layer.

  Raises:
    TypeError: `rule` is layerwise already, or no rule.
    ValueError: unknown `by`.

  References:
    García-Márquez et al., Improving (α, f)-Byzantine resilience in federated
    learning via layerwise aggregation and cosine distance, 2025.
  """
  key = grouping(by)
  if isinstance(rule, Aggregator):
    if getattr(rule.update, 'takes_scope', False):
      raise TypeError('an aggregator that works by layer takes by= itself')
    return _layerwise_aggregator(rule, key)
  if isinstance(rule, Chain):  # every step of it works on the same layers
    return Chain([layerwise(step, by) for step in rule.steps])
  if getattr(rule, 'coordinatewise', False):
    return rule
  return _Layerwise(rule, key)


class _Layerwise(Rule):
  """See `layerwise`."""

  def __init__(self, rule: Callable[..., Any], key: Callable[[Path], Hashable]):
    if isinstance(rule, _Layerwise):
      raise TypeError(f'{rule} is layerwise already')
    if not callable(rule):
      raise TypeError(f'layerwise needs a rule, got {type(rule).__name__}')
    self.rule, self._key = rule, key
    self.__name__ = f'layerwise({rule_name(rule)})'
    self.__doc__ = rule.__doc__
    self.__signature__ = inspect.signature(rule)

  def explain(self, updates: Updates, **hyper: Any) -> tuple[Update, Info]:
    geometry.num_clients(updates)
    layers = Layers(updates, self._key)
    if isinstance(self.rule, GramRule):
      parts, info = self.rule.explain_layers(layers.split(updates), **hyper)
      return layers.join(parts), info
    decisions = [
      explain(self.rule)(layer, **arguments)
      for layer, arguments in zip(
        layers.split(updates), layers.split_arguments(hyper), strict=True
      )
    ]
    parts, infos = zip(*decisions, strict=True)
    return layers.join(parts), _stacked(infos)


def _stacked(infos):
  """`[layers, n]`; a rule that decides by leaf itself says so for each."""

  def join(*rows):
    return jnp.concatenate([jnp.atleast_2d(row) for row in rows])

  return jax.tree.map(join, *infos)


def _layerwise_aggregator(
  aggregator: Aggregator, key: Callable[[Path], Hashable]
) -> Aggregator:
  def init(params):
    return [aggregator.init(part) for part in Layers(params, key).split(params)]

  def explain_update(updates, state, **brought):
    geometry.num_clients(updates)
    layers = Layers(updates, key)
    decisions = [
      explain(aggregator)(layer, layer_state, **arguments)
      for layer, layer_state, arguments in zip(
        layers.split(updates),
        state,
        layers.split_arguments(brought),
        strict=True,
      )
    ]
    parts, states, infos = zip(*decisions, strict=True)
    return layers.join(parts), list(states), _stacked(infos)

  return Aggregator(init, ExplainedUpdate(explain_update))


def cosine(
  rule: GramRule,
  *,
  clip: Literal['median'] | None = 'median',
  clip_by: Literal['scope', 'leaf'] = 'scope',
  median: geometry.Median = 'interpolated',
) -> Rule:
  r"""Gives a rule the cosine distance, on updates clipped to the median norm.

  .. math:: d(x_i, x_j) = 1 - \cos\theta_{ij}, \qquad
      \hat x_i = \min(1, \mathrm{med}_j \|x_j\| / \|x_i\|)\, x_i

  The cosine ignores lengths, so the clip is what keeps a long update from
  passing for its short neighbour. It multiplies the rule's weights, after
  the rule has decided: directions, and so the decision, do not depend on it,
  and no clipped copy of the updates is made.

  Args:
    rule: a rule with a `distance` keyword.
    clip: `'median'`, or None for no clip (the paper's ablation, section 5.2).
    clip_by: `'scope'` clips what the rule sees as a whole; `'leaf'` every leaf
      to the median norm of that leaf, as the paper's published code does.
    median: `'interpolated'` or, as the published code has it, `'lower'`.

  Returns:
    A rule with the remaining hyper-parameters of `rule`. A zero row is at
    distance 2 from every nonzero row and 0 from another zero row (NaN in the
    published code).

  Raises:
    TypeError: `rule` has no distance; or is layerwise, as the paper's method is
      `layerwise(cosine(rule))`; or a chain, of which each step has its own.
    ValueError: unknown `clip`, `clip_by` or `median`, or a way to clip with
      `clip=None`.
  """
  if isinstance(rule, _Layerwise):
    inner = rule_name(rule.rule)
    raise TypeError(
      f'cosine({rule}) has no meaning: write layerwise(cosine({inner}))'
    )
  if isinstance(rule, (Chain, MixedChain)):
    raise TypeError(f'cosine({rule}) has no meaning: give it to the steps')
  if not isinstance(rule, GramRule) or 'distance' not in hyper_of(rule):
    raise TypeError(f'cosine needs a rule with a distance: {rule_name(rule)}')
  _check_option('clip', clip, ('median', None))
  _check_option('clip_by', clip_by, ('scope', 'leaf'))
  _check_option('median', median, ('interpolated', 'lower'))
  if clip is None and (clip_by, median) != ('scope', 'interpolated'):
    raise ValueError('clip_by and median do not apply with clip=None')

  def weigh(gram, **hyper):
    verdict = rule.weigh(gram, distance='cosine', **hyper)
    if clip is None or clip_by == 'leaf':
      return verdict
    return verdict._replace(factors=geometry.clip_factors(gram, median))

  cosine_rule = GramRule(weigh, combine=rule.combine, mixes=rule.mixes)
  cosine_rule.__name__ = f'cosine({rule})'
  cosine_rule.__doc__ = rule.__doc__
  cosine_rule.__signature__ = rule_signature(
    p for k, p in hyper_of(rule).items() if k not in ('distance', 'power')
  )
  if clip is not None and clip_by == 'leaf':
    return _LeafClipped(cosine_rule, median)
  return cosine_rule


def _check_option(name: str, value: Any, known: tuple[Any, ...]) -> None:
  if value not in known:
    raise ValueError(f'{name} must be one of {known}, got {value!r}')


class _LeafClipped(Rule):
  """Mixes every leaf from rows clipped to the median norm of that leaf."""

  def __init__(self, rule: GramRule, median: geometry.Median):
    self.rule, self.median = rule, median
    self.__name__, self.__doc__ = rule.__name__, rule.__doc__
    self.__signature__ = inspect.signature(rule)

  def explain(self, updates: Updates, **hyper: Any) -> tuple[Update, Info]:
    leaves, treedef = jax.tree.flatten(updates)
    grams = jnp.stack([geometry.gram(leaf) for leaf in leaves])
    total = jnp.sum(grams, axis=0)
    verdict = self.rule.weigh(total, **hyper)
    rejected = geometry.rejected_rows(total)
    factors = jax.vmap(
      lambda gram: geometry.clip_factors(gram, self.median, rejected)
    )(lax.stop_gradient(grams))
    of_all = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (len(leaves), *x.shape)), verdict
    )
    parts = self.rule.combine(leaves, of_all._replace(factors=factors), **hyper)
    info = verdict.info(total)
    del info['weights']  # every leaf has its own
    return jax.tree.unflatten(treedef, parts), info


_PER_ROUND = ('key', 'weights', 'server_update')


def stateless(rule: Callable[..., Update], **hyper: Any) -> Aggregator:
  """Makes an Aggregator with an empty state of a rule.

  Args:
    rule: a function of stacked updates.
    **hyper: its hyper-parameters, bound for every round. What a round brings
      (`key`, `weights`, `server_update`) is passed on if the rule names it and
      it is not bound here.

  Returns:
    An Aggregator. Its `update` raises a TypeError when the round lacks what
    the rule requires.

  Raises:
    TypeError: a hyper-parameter that the rule does not have, or one that it
      requires and that is missing.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> aggregator = lca.stateless(lca.krum, f=1)
    >>> state = aggregator.init(jnp.zeros(1))
    >>> updates = jnp.array([[0.], [1.], [1.], [1.], [9.]])
    >>> update, state = aggregator.update(updates, state)
    >>> print(update)
    [1.]
  """
  parameters = hyper_of(rule)
  name = rule_name(rule)
  if unknown := sorted(set(hyper) - set(parameters)):
    raise TypeError(f'{name} takes {sorted(parameters)}, not {unknown}')
  required = {k for k, p in parameters.items() if p.default is p.empty}
  bound = {k for k, value in hyper.items() if value is not None}
  if missing := sorted(required - bound - set(_PER_ROUND)):
    raise TypeError(f'{name} needs {missing}')
  wanted = [k for k in _PER_ROUND if k in parameters and k not in hyper]

  def explain_update(
    updates, state, *, key=None, weights=None, server_update=None
  ):
    brought = {'key': key, 'weights': weights, 'server_update': server_update}
    given = {k: brought[k] for k in wanted if brought[k] is not None}
    if lacking := sorted(required & set(wanted) - set(given)):
      raise TypeError(f'{name} needs {lacking} from the round')
    update, info = explain(rule)(updates, **hyper, **given)
    return update, state, info

  return Aggregator(lambda params: (), ExplainedUpdate(explain_update))
