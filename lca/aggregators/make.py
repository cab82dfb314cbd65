"""From the keys of a config to an Aggregator."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lca.aggregators.base import Aggregator
from lca.aggregators.forms import chain, cosine, layerwise, stateless
from lca.aggregators.rules import AGGREGATORS, PRE_AGGREGATORS, RULES
from lca.registry import check_options, options_of, unknown

_CLIP_KEYS = ('clip', 'clip_by', 'median')  # of `lca.cosine`


def make(config: Mapping[str, Any]) -> Aggregator:
  """Builds the aggregator that `config.aggregator` describes.

  Args:
    config: these keys, of which all but the first have a default:

      - `name`: one of `RULES` or `AGGREGATORS`.
      - `scope`: what the rule is applied to, as `by` of `lca.layerwise`. An
        aggregator that takes `by` itself is given it; `'model'`, the default,
        is the rule as it is.
      - `pre`: names of `PRE_AGGREGATORS`, which are applied before the rule in
        this order.
      - `distance`: of the rule, and of those before it, if they have one. With
        `'cosine'` come the keys of `lca.cosine`: `clip`, `clip_by`, `median`.
      - `weights`, of `mean` alone: `'uniform'` or `'examples'`.
      - the rule's hyper-parameters.
      - the options of each pre-aggregator under its name, such as
        `{'nnm': {'f': 2}}`. A pre-aggregator without such a key takes the
        rule's hyper-parameters of the same names, as in configs of old.

  Returns:
    The aggregator.

  Raises:
    ValueError: an unknown rule, or an option with an impossible value.
    TypeError: a key that the rule does not take, or lacks.

  Examples:
    >>> import lca
    >>> agg = lca.make_aggregator(
    ...   {'name': 'krum', 'f': 2, 'distance': 'cosine', 'scope': 'leaf'})
    >>> agg = lca.make_aggregator(
    ...   {'name': 'median', 'pre': ('nnm',), 'nnm': {'f': 2}})
  """
  keys = dict(config)
  name, scope = keys.pop('name'), keys.pop('scope', 'model')
  if name not in RULES and name not in AGGREGATORS:
    raise ValueError(unknown('rule', name, {'rule': [*RULES, *AGGREGATORS]}))
  rule = RULES[name] if name in RULES else AGGREGATORS[name]
  before, keys = _take_pre_aggregators(keys, rule)
  rule, keys = _in_distance(rule, keys)
  if name in RULES:
    if 'weights' in inspect.signature(rule).parameters:
      weights = keys.pop('weights', 'uniform')
      if weights == 'uniform':
        keys['weights'] = None
      elif weights != 'examples':  # which come with each round
        raise ValueError(
          f"weights must be 'uniform' or 'examples', got {weights!r}"
        )
    rule = chain(*before, rule)
    if scope != 'model':
      rule = layerwise(rule, by=scope)
    return stateless(rule, **keys)
  takes = options_of(rule)
  if 'by' in takes:
    if 'by' in keys:
      raise TypeError(f"{name} takes its layers from 'scope', got 'by'")
    keys['by'] = scope
    before = [layerwise(step, by=scope) for step in before]
  check_options(name, takes, keys)
  aggregator = chain(*before, rule(**keys))
  if 'by' in takes or scope == 'model':
    return aggregator
  return layerwise(aggregator, by=scope)


def _take_pre_aggregators(
  keys: dict[str, Any], rule: Callable[..., Any]
) -> tuple[list[Callable[..., Any]], dict[str, Any]]:
  """Returns the pre-aggregators with their options, and the rule's own keys."""
  names = keys.pop('pre', ())
  own = {name: keys.pop(name, None) for name in names}
  steps, shared = [], set()
  for name in names:
    step = PRE_AGGREGATORS.find(name)
    takes = set(options_of(step, of_data=True))
    inherits = {'distance'} & takes
    if inherits and keys.get('distance') == 'cosine':
      inherits |= set(_CLIP_KEYS)
    if own[name] is None:
      inherits |= takes
    inherited = {key: keys[key] for key in inherits & keys.keys()}
    step, options = _in_distance(step, inherited | dict(own[name] or {}))
    PRE_AGGREGATORS.check(name, options)
    steps.append(functools.partial(step, **options) if options else step)
    shared |= inherited.keys()
  others = shared - set(options_of(rule, of_data=True))
  if 'distance' in options_of(rule, of_data=True):
    others -= set(_CLIP_KEYS)
  return steps, {k: v for k, v in keys.items() if k not in others}


def _in_distance(rule: Any, keys: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
  """Returns the rule in the distance that the keys name, and its other keys."""
  takes = set(inspect.signature(rule).parameters)
  clip = {k: keys[k] for k in _CLIP_KEYS if k in keys and k not in takes}
  if 'distance' in takes and keys.get('distance') == 'cosine':
    if keys.get('power') is not None:
      raise ValueError(
        'aggregator.power belongs to the Euclidean distance: for the cosine '
        'distance compose a cosine_... preset'
      )
    others = {'distance', 'power', *clip}
    rest = {k: v for k, v in keys.items() if k not in others}
    return cosine(rule, **clip), rest
  if clip:
    raise ValueError(f'{sorted(clip)} apply to the cosine distance alone')
  return rule, keys
