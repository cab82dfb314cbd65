"""Makes an Aggregator from the `aggregator` section of a config."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lca.aggregators.base import Aggregator
from lca.aggregators.forms import chain, cosine, layerwise, noisy, stateless
from lca.aggregators.rules import AGGREGATORS, PRE_AGGREGATORS, RULES
from lca.registry import REQUIRED, check_options, options_of, unknown
from lca.stacked.trees import grouping

_CLIP_KEYS = ('clip', 'clip_by', 'median')  # options of `lca.cosine`


def make(config: Mapping[str, Any]) -> Aggregator:
  """Builds the aggregator that `config.aggregator` describes.

  Args:
    config: the following keys. All but `name` have a default.

      - `name`: a name in `RULES` or `AGGREGATORS`.
      - `scope`: the layers that the rule is applied to, as `by` of
        `lca.layerwise`. The default `'model'` applies the rule to the whole
        model. An aggregator with a parameter `by` receives the scope as `by`.
      - `pre`: names in `PRE_AGGREGATORS`, applied before the rule in this
        order.
      - `distance`: the distance of the rule and of the pre-aggregators, for
        those that have one. With `'cosine'`, the keys `clip`, `clip_by` and
        `median` of `lca.cosine` apply.
      - `weights`, for rules that take weights, such as `mean`: `'uniform'` or
        `'examples'`.
      - `sigma`: standard deviation of Gaussian noise on the aggregate, as for
        `lca.noisy`; 0, the default, adds none. A rule with an option `sigma`
        of its own receives it instead.
      - the rule's hyper-parameters.
      - the options of each pre-aggregator under its name, such as
        `{'nnm': {'f': 2}}`. A pre-aggregator without its own key takes the
        rule's hyper-parameters of the same names, as older configs expect.

  Returns:
    The aggregator.

  Raises:
    ValueError: the rule is unknown, or an option has an impossible value.
    TypeError: a key is not an option of the rule, or a required one is missing.

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
  try:
    grouping(scope)
  except ValueError as error:
    raise ValueError(f'aggregator.scope: {error}') from None
  _check_set(name, rule, keys)
  sigma = 0.0
  if 'sigma' not in options_of(rule, of_data=True):
    sigma = keys.pop('sigma', 0.0)
  before, keys = _split_pre_aggregators(keys, rule)
  rule, keys = _with_distance(rule, keys)
  if name in RULES:
    if 'weights' in inspect.signature(rule).parameters:
      weights = keys.pop('weights', 'uniform')
      if weights == 'uniform':
        keys['weights'] = None  # bound: the round's weights are not passed on
      elif weights != 'examples':  # the round brings the numbers of examples
        raise ValueError(
          f"weights must be 'uniform' or 'examples', got {weights!r}"
        )
    rule = chain(*before, rule)
    if scope != 'model':
      rule = layerwise(rule, by=scope)
    if sigma:
      rule = noisy(rule, sigma=sigma)
    return stateless(rule, **keys)
  # A rule with a state. If it takes its layers itself, as `legato` does, only
  # the pre-aggregators need a layerwise form.
  takes = options_of(rule)
  if 'by' in takes:
    if 'by' in keys:
      raise TypeError(
        f"{name} got 'by', but takes its layers from the key 'scope'"
      )
    keys['by'] = scope
    before = [layerwise(step, by=scope) for step in before]
  check_options(name, takes, keys)
  aggregator = chain(*before, rule(**keys))
  if 'by' not in takes and scope != 'model':
    aggregator = layerwise(aggregator, by=scope)
  return noisy(aggregator, sigma=sigma) if sigma else aggregator


def _check_set(
  name: str, rule: Callable[..., Any], keys: Mapping[str, Any]
) -> None:
  """Refuses a None in the place of a value that the rule has no default for."""
  for key, parameter in options_of(rule, of_data=True).items():
    if parameter.default is REQUIRED and keys.get(key, 0) is None:
      raise TypeError(
        f'{name} needs a value for aggregator.{key}, got None: set it; presets '
        'leave f open where the draw decides how many clients attack'
      )


def _split_pre_aggregators(
  keys: dict[str, Any], rule: Callable[..., Any]
) -> tuple[list[Callable[..., Any]], dict[str, Any]]:
  """Returns the pre-aggregators with bound options, and the rule's keys."""
  names = keys.pop('pre', ())
  options_by_name = {name: keys.pop(name, None) for name in names}
  steps, shared = [], set()
  for name in names:
    step = PRE_AGGREGATORS.find(name)
    takes = set(options_of(step, of_data=True))
    # The distance and its clip are shared with the rule. All other options are
    # shared only if the pre-aggregator has no options of its own.
    inherits = {'distance'} & takes
    if inherits and keys.get('distance') == 'cosine':
      inherits |= set(_CLIP_KEYS)
    if options_by_name[name] is None:
      inherits |= takes
    inherited = {key: keys[key] for key in inherits & keys.keys()}
    options = inherited | dict(options_by_name[name] or {})
    step, options = _with_distance(step, options)
    PRE_AGGREGATORS.check(name, options)
    steps.append(functools.partial(step, **options) if options else step)
    shared |= inherited.keys()
  # Inherited keys that the rule does not know were meant for `pre` only.
  not_of_rule = shared - set(options_of(rule, of_data=True))
  if 'distance' in options_of(rule, of_data=True):
    not_of_rule -= set(_CLIP_KEYS)
  return steps, {k: v for k, v in keys.items() if k not in not_of_rule}


def _with_distance(
  rule: Any, keys: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
  """Returns the rule, in its cosine form if asked for, and the other keys."""
  takes = set(inspect.signature(rule).parameters)
  clip = {k: keys[k] for k in _CLIP_KEYS if k in keys and k not in takes}
  if 'distance' in takes and keys.get('distance') == 'cosine':
    if keys.get('power') is not None:
      raise ValueError(
        f'aggregator.power={keys["power"]!r} applies to the Euclidean distance '
        "only, and aggregator.distance is 'cosine': set aggregator.power to "
        'None or compose a cosine_... preset'
      )
    others = {'distance', 'power', *clip}
    rest = {k: v for k, v in keys.items() if k not in others}
    return cosine(rule, **clip), rest
  if clip:
    raise ValueError(
      f"{sorted(clip)} apply only with distance='cosine': remove these keys, "
      "or set distance to 'cosine' for a rule that has a distance"
    )
  return rule, keys
