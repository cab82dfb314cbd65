"""From the keys of a config to an Aggregator."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from lca.aggregators.base import Aggregator
from lca.aggregators.forms import cosine, layerwise, stateless
from lca.aggregators.forms.chain import chain
from lca.aggregators.rules import AGGREGATORS, PRE_AGGREGATORS, RULES

_CLIP_KEYS = ('clip', 'clip_by', 'median')


def make(config: Mapping[str, Any]) -> Aggregator:
  """Builds the aggregator that `config.aggregator` describes.

  Args:
    config: `name`, one of `RULES` or `AGGREGATORS`; `pre`, names of
      `PRE_AGGREGATORS`, applied before in their order; `scope`, as `by` of
      `lca.layerwise` (`'model'` is the rule itself, and the default; what takes
      `by` is given it); for rules and pre-aggregators with a distance
      `distance`, and with `'cosine'` the keys of `lca.cosine` (`clip`,
      `clip_by`, `median`); for `mean` `weights`, `'uniform'` or `'examples'`;
      and the hyper-parameters of all of them, where a name has one value.

  Returns:
    The aggregator.

  Raises:
    ValueError: an unknown rule, or an option with an impossible value.
    TypeError: a key that the rule does not take, or lacks.

  Examples:
    >>> import lca
    >>> agg = lca.make_aggregator(
    ...   {'name': 'krum', 'f': 2, 'distance': 'cosine', 'scope': 'leaf'})
    >>> agg = lca.make_aggregator({'name': 'median', 'pre': ('nnm',), 'f': 2})
  """
  keys = dict(config)
  name, scope = keys.pop('name'), keys.pop('scope', 'model')
  before = [
    _known('pre-aggregator', step, PRE_AGGREGATORS)
    for step in keys.pop('pre', ())
  ]
  rule = _known('rule', name, RULES | AGGREGATORS)
  *before, rule = _in_distance([*before, rule], keys)
  if name in AGGREGATORS:
    if 'by' in _names(rule):
      if 'by' in keys:
        raise TypeError(f"{name} takes its layers from 'scope', got 'by'")
      before = [layerwise(step, by=scope) for step in before]
      return _with_state(rule, before, keys | {'by': scope})
    aggregator = _with_state(rule, before, keys)
    return aggregator if scope == 'model' else layerwise(aggregator, by=scope)
  rule = chain(*before, rule)
  if 'weights' in inspect.signature(rule).parameters:
    _bind_weights(keys)
  return stateless(
    rule if scope == 'model' else layerwise(rule, by=scope), **keys
  )


def _known(kind, name, known):
  if name not in known:
    raise ValueError(f'unknown {kind} {name!r}; there are {sorted(known)}')
  return known[name]


def _with_state(factory, before, keys):
  """An Aggregator with its own hyper-parameters, and those of what is before.

  Every key must be somebody's.
  """
  takes = {step: _names(step) & set(keys) for step in (factory, *before)}
  if unknown := sorted(set(keys).difference(*takes.values())):
    raise TypeError(f'{factory.__name__} takes no {unknown}')
  given = {step: {k: keys[k] for k in names} for step, names in takes.items()}
  steps = [functools.partial(step, **given[step]) for step in before]
  aggregator = factory(**given[factory])
  return chain(*steps, aggregator)


def _names(function):
  return set(inspect.signature(function).parameters)


def _in_distance(steps, keys):
  """The steps in the distance that `keys` name, those that have one.

  Takes the keys of `lca.cosine` out of `keys` where they apply.
  """
  with_one = [step for step in steps if 'distance' in _names(step)]
  if with_one and keys.get('distance') == 'cosine':
    del keys['distance']
    if keys.pop('power', None) is not None:
      raise ValueError(
        'aggregator.power belongs to the Euclidean distance: for the cosine '
        'distance compose a cosine_... preset'
      )
    clip = {k: keys[k] for k in _CLIP_KEYS if k in keys}
    steps = [
      cosine(step, **clip) if step in with_one else step for step in steps
    ]
    for key in set(clip).difference(*map(_names, steps)):
      del keys[key]
    return steps
  if clips := sorted(
    set(_CLIP_KEYS) & set(keys).difference(*map(_names, steps))
  ):
    raise ValueError(f'{clips} apply to the cosine distance alone')
  return steps


def _bind_weights(keys):
  """Equal weights are bound here; the examples' come with each round."""
  weights = keys.pop('weights', 'uniform')
  if weights == 'uniform':
    keys['weights'] = None
  elif weights != 'examples':
    raise ValueError(
      f"weights must be 'uniform' or 'examples', got {weights!r}"
    )
