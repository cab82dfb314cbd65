"""Descriptions of Python objects for the config in the directory of a run."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lca.aggregators import Aggregator
from lca.attacks import Attack
from lca.attacks.base import keep_updates
from lca.registry import REQUIRED, options_of

Keys = dict[str, Any]

_OF_A_ROUND = ('updates', 'byzantine', 'key', 'aggregate')


def of(thing: Any) -> str:
  """Returns the name of a function, a class or anything else."""
  if isinstance(thing, functools.partial):
    return of(thing.func)
  name = getattr(thing, '__name__', None)
  return name or type(thing).__name__


def of_rule(rule: Callable[..., Any]) -> Keys:
  """Returns the name of a rule, its module, and the arguments bound to it.

  Examples:
    >>> import functools, lca
    >>> keys = of_rule(functools.partial(lca.layerwise(lca.krum), f=2))
    >>> keys['name'], keys['f']
    ('layerwise(krum)', 2)
  """
  bound = rule.keywords if isinstance(rule, functools.partial) else {}
  return _named(rule) | plain(bound)


def of_aggregator(aggregator: Aggregator) -> Keys:
  """Returns the name of what has made an aggregator, and what it was given.

  Examples:
    >>> import lca
    >>> keys = of_aggregator(lca.stateless(lca.krum, f=2))
    >>> keys['name'], keys['f']
    ('krum', 2)
    >>> of_aggregator(lca.centered_clip(threshold=3.0))['name']
    'centered_clip'
  """
  held = _closure(aggregator.update)
  if callable(held.get('rule')) and 'hyper' in held:  # of lca.stateless
    return of_rule(held['rule']) | plain(held['hyper'])
  return _made(aggregator.update)


def of_attack(attack: Attack) -> Keys:
  """Returns the name of an attack, and its options.

  Examples:
    >>> from lca import attacks
    >>> of_attack(attacks.from_function(attacks.sign_flip, scale=2.0))['scale']
    2.0
  """
  labels_alone = attack.on_updates is keep_updates
  hook = attack.on_labels if labels_alone else attack.on_updates
  held = _closure(hook)
  function = held.get('function')
  if not callable(function):
    return _made(hook)
  defaults = {
    k: p.default
    for k, p in options_of(function, _OF_A_ROUND).items()
    if p.default is not REQUIRED
  }
  return _named(function) | plain(defaults | dict(held.get('options', {})))


def of_module(module: nn.Module) -> Keys:
  """Returns the class of a Flax module and its fields."""
  fields = {
    field.name: getattr(module, field.name)
    for field in dataclasses.fields(module)
    if field.name not in ('parent', 'name')
  }
  return plain(fields) | _named(type(module))


def _named(thing: Any) -> Keys:
  inner = thing.func if isinstance(thing, functools.partial) else thing
  return {'name': of(thing), 'module': getattr(inner, '__module__', None)}


def _made(function: Callable[..., Any]) -> Keys:
  """Names the function that has made another one, and what that one holds."""
  maker = getattr(function, '__qualname__', of(function)).split('.')[0]
  maker = maker.removeprefix('_')
  return plain(_closure(function)) | _named(function) | {'name': maker}


def _closure(function: Callable[..., Any]) -> Mapping[str, Any]:
  inner = inspect.unwrap(function)
  if not inspect.isfunction(inner):
    return {}
  return inspect.getclosurevars(inner).nonlocals


def plain(value: Any) -> Any:
  """Returns what JSON can hold of a value: functions and classes by name."""
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, Aggregator):
    return of_aggregator(value)
  if isinstance(value, set | frozenset):
    return sorted(map(str, value))
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if isinstance(value, nn.Module):
    return of_module(value)
  if hasattr(value, 'shape') and hasattr(value, 'dtype'):
    return [str(value.dtype), jnp.asarray(value).tolist()]
  return f'{getattr(value, "__module__", "")}.{of(value)}'
