"""From the keys of a config to an Aggregator."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lca.aggregators.averages import cge, monna
from lca.aggregators.base import Aggregator, cosine, layerwise, stateless
from lca.aggregators.krum import krum, medoid, multi_krum
from lca.aggregators.mean import mean
from lca.aggregators.subsets import mda, smea

RULES: dict[str, Callable[..., Any]] = {
  'cge': cge,
  'krum': krum,
  'mda': mda,
  'mean': mean,
  'medoid': medoid,
  'monna': monna,
  'multi_krum': multi_krum,
  'smea': smea,
}

_CLIP_KEYS = ('clip', 'clip_by', 'median')


def make(config: Mapping[str, Any]) -> Aggregator:
  """Builds the aggregator that `config.aggregator` describes.

  Args:
    config: `name`, one of `RULES`; `scope`, as `by` of `lca.layerwise`
      (`'model'` is the rule itself, and the default); for rules with a
      distance `distance`, and with `'cosine'` the keys of `lca.cosine`
      (`clip`, `clip_by`, `median`); for `mean` `weights`, `'uniform'` or
      `'examples'`; and the rule's own hyper-parameters.

  Returns:
    The aggregator.

  Raises:
    ValueError: an unknown rule, or an option with an impossible value.
    TypeError: a key that the rule does not take, or lacks.

  Examples:
    >>> import lca
    >>> agg = lca.make_aggregator(
    ...   {'name': 'krum', 'f': 2, 'distance': 'cosine', 'scope': 'leaf'})
  """
  keys = dict(config)
  name = keys.pop('name')
  if name not in RULES:
    raise ValueError(f'unknown rule {name!r}; there are {sorted(RULES)}')
  rule = RULES[name]
  scope = keys.pop('scope', 'model')
  rule = _with_distance(rule, keys)
  if 'weights' in inspect.signature(rule).parameters:
    _bind_weights(keys)
  return stateless(
    rule if scope == 'model' else layerwise(rule, by=scope), **keys
  )


def _with_distance(rule, keys):
  """Takes the keys of `lca.cosine` out of `keys` where they apply."""
  if keys.get('distance') == 'cosine':
    del keys['distance']
    if keys.pop('power', None) is not None:
      raise ValueError(
        'aggregator.power belongs to the Euclidean distance: for the cosine '
        'distance compose a cosine_... preset'
      )
    return cosine(rule, **{k: keys.pop(k) for k in _CLIP_KEYS if k in keys})
  if clips := [k for k in _CLIP_KEYS if k in keys]:
    raise ValueError(f'{clips} apply to the cosine distance alone')
  return rule


def _bind_weights(keys):
  """Equal weights are bound here; the examples' come with each round."""
  weights = keys.pop('weights', 'uniform')
  if weights == 'uniform':
    keys['weights'] = None
  elif weights != 'examples':
    raise ValueError(
      f"weights must be 'uniform' or 'examples', got {weights!r}"
    )
