"""The layerwise form of a rule (García-Márquez et al. 2025, section 3.2)."""

import inspect
from collections.abc import Callable, Hashable
from typing import Any, Concatenate, overload

import jax
import jax.numpy as jnp

from lca.aggregators.base import (
  Aggregator,
  ExplainedUpdate,
  GramRule,
  Info,
  P,
  Rule,
  explain,
  hyper_of,
  rule_name,
)
from lca.aggregators.forms.chain import Chain
from lca.aggregators.forms.noisy import Noisy, noisy
from lca.aggregators.forms.stateless import RuleUpdate
from lca.stacked import geometry
from lca.stacked.trees import Layers, Path, Scope, grouping
from lca.typing import Update, Updates


@overload
def layerwise(rule: Aggregator, by: Scope = 'leaf') -> Aggregator: ...


@overload
def layerwise(
  rule: Callable[Concatenate[Updates, P], Update], by: Scope = 'leaf'
) -> Rule[P]: ...


def layerwise(rule: Any, by: Scope = 'leaf') -> Any:
  r"""Applies a rule to every layer separately.

  Section 3.2 of García-Márquez et al. 2025 defines the layerwise application
  :math:`LF` of a rule :math:`F`:

  .. math:: L F(V_1, \dots, V_n) = (F(V_{1,1}, \dots, V_{n,1}), \dots,
      F(V_{1,k}, \dots, V_{n,k}))

  where :math:`V_{i,j}` is client i's part in layer j. Proposition 1 shows that
  LF is (α, f)-Byzantine resilient if F is. The paper's layer is one leaf of the
  pytree: a kernel and its bias are two layers.

  Args:
    rule: any function of stacked updates, or an Aggregator.
    by: how leaves are grouped into layers. `'leaf'` makes every leaf a layer;
      `'module'` groups by the path without its last key; `'block'` by the first
      key of the path; `'model'` makes one layer of all leaves. A function maps
      a path, a tuple of strings, to a hashable that the leaves of one layer
      share. Flax's collection (`params`, `batch_stats`) does not count as a key
      for `'module'` and `'block'`.

  Returns:
    For a rule: a rule with the same hyper-parameters. Its `explain` stacks the
    layers' infos to `[layers, n]`, with layers in the order of their first
    leaf. A rule that works coordinate by coordinate is returned unchanged. For
    an Aggregator: an Aggregator with one state per layer. An argument that is a
    tree of the updates' structure, such as `server_update` and `params` of a
    round, is split like the updates; every layer receives the other arguments
    unchanged. A rule that takes a `key` draws other numbers in every layer;
    `lca.gram_rule`s, such as `lca.bucketing`, draw the same in all layers.

  Raises:
    TypeError: `rule` is layerwise already, is not a rule, or takes `predict`,
      the function of the whole model.
    ValueError: `by` is unknown.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> kernel = jnp.array([[1.], [1.1], [1.2], [.8], [99.]])
    >>> updates = {'b': kernel[::-1] + 1, 'w': kernel}
    >>> update, info = lca.explain(lca.layerwise(lca.krum))(updates, f=1)
    >>> print(update['w'], info['selected'].shape)
    [1.1] (2, 5)

  References:
    García-Márquez et al., Improving (α, f)-Byzantine resilience in federated
    learning via layerwise aggregation and cosine distance, 2025.
  """
  key = grouping(by)
  if isinstance(rule, Aggregator):
    update = rule.update
    _check_splits(update.rule if isinstance(update, RuleUpdate) else update)
    if getattr(rule.update, 'takes_scope', False):
      raise TypeError(
        'layerwise cannot split the layers of an aggregator that takes by= '
        'itself: pass by= to that aggregator'
      )
    return _layerwise_aggregator(rule, key)
  if isinstance(rule, Chain):  # the steps run one by one, on the same layers
    return Chain([layerwise(step, by) for step in rule.steps])
  if isinstance(rule, Noisy):  # noise in every layer is noise in the whole
    return noisy(layerwise(rule.rule, by), sigma=rule.sigma)
  if isinstance(rule, Rule) and rule.coordinatewise:  # LF = F
    return rule
  return Layerwise(rule, key)


class Layerwise(Rule[P]):
  """The rule that `layerwise` returns.

  Attributes:
    rule: the rule that is applied to every layer.
    key: function from a leaf's path to the key of its layer.
  """

  def __init__(
    self,
    rule: Callable[Concatenate[Updates, P], Update],
    key: Callable[[Path], Hashable],
  ):
    if isinstance(rule, Layerwise):
      raise TypeError(f'{rule} is layerwise already: apply layerwise once')
    if not callable(rule):
      raise TypeError(f'layerwise needs a rule, got {type(rule).__name__}')
    _check_splits(rule)
    self.rule, self.key = rule, key
    self.__name__ = f'layerwise({rule_name(rule)})'
    self.__doc__ = rule.__doc__
    self.__signature__ = inspect.signature(rule)

  def explain(
    self, updates: Updates, *args: P.args, **hyper: P.kwargs
  ) -> tuple[Update, Info]:
    geometry.num_clients(updates)
    layers = Layers(updates, self.key)
    # LF: the rule F on the rows V_{1,j}, ..., V_{n,j} of each layer j.
    if isinstance(self.rule, GramRule):
      parts, info = self.rule.explain_layers(
        layers.split(updates), *args, **hyper
      )
      return layers.join(parts), info
    if args:  # positional trees could not be split by name
      raise TypeError(
        f'{self} takes its hyper-parameters by keyword, got '
        f'{len(args)} positional arguments'
      )
    decide: Callable[..., Any] = explain(self.rule)
    decisions = [
      decide(layer, **arguments)
      for layer, arguments in zip(
        layers.split(updates), _by_layer(layers, hyper), strict=True
      )
    ]
    parts, infos = zip(*decisions, strict=True)
    return layers.join(list(parts)), _stacked(infos)


def _check_splits(rule: Callable[..., Any]) -> None:
  """Raises a TypeError for a rule that evaluates the whole model."""
  if 'predict' in hyper_of(rule):
    raise TypeError(
      f'layerwise cannot split the layers of {rule_name(rule)}, which takes '
      'predict, the function of the whole model'
    )


def _by_layer(
  layers: Layers, arguments: dict[str, Any]
) -> list[dict[str, Any]]:
  """Returns the keyword arguments for each layer, with keys of their own."""
  parts = layers.split_arguments(arguments)
  if len(parts) > 1 and arguments.get('key') is not None:
    keys = jax.random.split(arguments['key'], len(parts))
    parts = [part | {'key': key} for part, key in zip(parts, keys, strict=True)]
  return parts


def _stacked(infos):
  """Stacks the layers' infos to `[layers, n]`.

  An info that is `[leaves, n]` already, as of `lasa`, keeps all its rows.
  """

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
        _by_layer(layers, brought),
        strict=True,
      )
    ]
    parts, states, infos = zip(*decisions, strict=True)
    return layers.join(list(parts)), list(states), _stacked(infos)

  return Aggregator(init, ExplainedUpdate(explain_update))
