"""From the keys of a config to an Aggregator."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lca.aggregators.averages import cge, monna
from lca.aggregators.base import Aggregator, GramRule
from lca.aggregators.bulyan import bulyan, bulyan_trimmed
from lca.aggregators.chain import chain
from lca.aggregators.clipping import (
  arc,
  centered_clip,
  clip_to_median_norm,
  static_clip,
)
from lca.aggregators.clustering import clipped_clustering, sign_guard
from lca.aggregators.combinators import cosine, layerwise, stateless
from lca.aggregators.coordinates import (
  meamed,
  median,
  sign_majority,
  trimmed_mean,
)
from lca.aggregators.geometric import geometric_median
from lca.aggregators.krum import krum, medoid, multi_krum
from lca.aggregators.lasa import lasa
from lca.aggregators.legato import legato
from lca.aggregators.mean import mean
from lca.aggregators.mixing import bucketing, nnm
from lca.aggregators.spectral import caf, dnc
from lca.aggregators.subsets import mda, smea
from lca.aggregators.trust import fltrust, foolsgold

RULES: dict[str, Callable[..., Any]] = {
  rule.__name__: rule
  for rule in (
    bulyan,
    bulyan_trimmed,
    caf,
    cge,
    dnc,
    fltrust,
    foolsgold,
    geometric_median,
    krum,
    lasa,
    mda,
    meamed,
    mean,
    median,
    medoid,
    monna,
    multi_krum,
    sign_guard,
    sign_majority,
    smea,
    trimmed_mean,
  )
}
"""Functions of the updates."""

AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
  'centered_clip': centered_clip,
  'clipped_clustering': clipped_clustering,
  'legato': legato,
}
"""Functions of hyper-parameters that return an Aggregator with a state."""

PRE_AGGREGATORS: dict[str, GramRule] = {
  rule.__name__: rule
  for rule in (arc, bucketing, clip_to_median_norm, nnm, static_clip)
}
"""Functions from updates to updates."""

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
