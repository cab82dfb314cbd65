"""Descriptions of Python objects for the `config.json` of a run.

A config names rules, attacks and models. `lca.experiment.simulate` is given the
objects instead, and writes these descriptions of them into `config.json`: names
and options, as JSON can hold them. When the run is continued, a description
that has changed shows that the object was changed.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lca.aggregators import Aggregator
from lca.attacks import Attack, Training
from lca.attacks.base import ROUND_BRINGS, keep_examples, keep_updates
from lca.registry import REQUIRED, options_of

Keys = dict[str, Any]
"""The keys of a section of a config, such as `name`, and their values."""

# Arguments that a round brings to an attack; they are no options of the attack.
_OF_A_ROUND = ('updates', *ROUND_BRINGS)


def name_of(thing: Any) -> str:
  """Returns the name of a function or class, or the name of an object's class.

  A partial function has the name of the function in it.
  """
  if isinstance(thing, functools.partial):
    return name_of(thing.func)
  name = getattr(thing, '__name__', None)
  return name or type(thing).__name__


def of_rule(rule: Callable[..., Any]) -> Keys:
  """Describes a rule: its name, its module, and the arguments bound to it.

  Examples:
    >>> import functools, lca
    >>> keys = of_rule(functools.partial(lca.layerwise(lca.krum), f=2))
    >>> keys['name'], keys['f']
    ('layerwise(krum)', 2)
  """
  bound = rule.keywords if isinstance(rule, functools.partial) else {}
  return _named(rule) | plain(bound)


def of_aggregator(aggregator: Aggregator) -> Keys:
  """Describes an aggregator: the function that made it, and its arguments.

  An aggregator of `lca.stateless` is described as its rule. The arguments are
  read from the closure of the aggregator's `update`.

  Examples:
    >>> import lca
    >>> keys = of_aggregator(lca.stateless(lca.krum, f=2))
    >>> keys['name'], keys['f']
    ('krum', 2)
    >>> of_aggregator(lca.centered_clip(threshold=3.0))['name']
    'centered_clip'
  """
  captured = _closure(aggregator.update)
  if callable(captured.get('rule')) and 'hyper' in captured:  # lca.stateless
    return of_rule(captured['rule']) | plain(captured['hyper'])
  return _of_closure(aggregator.update)


def of_attack(attack: Attack) -> Keys:
  """Describes an attack: the function that made it, and all its options.

  An attack that does not know its maker is described by the closures of its
  hooks, except those that change nothing.

  Examples:
    >>> from lca import attacks
    >>> of_attack(attacks.from_function(attacks.sign_flip, scale=2.0))['scale']
    2.0
  """
  if attack.made_by is not None:
    maker, options = attack.made_by
    defaults = {
      k: p.default
      for k, p in options_of(maker, _OF_A_ROUND).items()
      if p.default is not REQUIRED
    }
    keys = plain(defaults | dict(options)) | _named(maker)
    if attack.training is not None:
      keys['training'] = plain(dataclasses.asdict(attack.training))
      if type(attack.training) is not Training:
        keys['training'] |= _named(type(attack.training))
    return keys
  both = attack.on_updates, attack.on_examples
  hooks = [hook for hook in both if hook not in (keep_updates, keep_examples)]
  keys: Keys = {}
  for hook in hooks or both:
    keys |= _of_closure(hook)
  return keys


def of_module(module: nn.Module) -> Keys:
  """Describes a Flax module: its class, and the values of its fields."""
  fields = {
    field.name: getattr(module, field.name)
    for field in dataclasses.fields(module)
    if field.name not in ('parent', 'name')
  }
  return plain(fields) | _named(type(module))


def _named(thing: Any) -> Keys:
  """Returns the name of an object, and the Python module it comes from."""
  inner = thing.func if isinstance(thing, functools.partial) else thing
  return {'name': name_of(thing), 'module': getattr(inner, '__module__', None)}


def _of_closure(function: Callable[..., Any]) -> Keys:
  """Describes a nested function: the function around it, and its closure."""
  # 'legato.<locals>.update' was made by 'legato'.
  maker = getattr(function, '__qualname__', name_of(function)).split('.')[0]
  maker = maker.removeprefix('_')
  return plain(_closure(function)) | _named(function) | {'name': maker}


def _closure(function: Callable[..., Any]) -> Mapping[str, Any]:
  """Returns the variables that a nested function captures, by name."""
  inner = inspect.unwrap(function)
  if not inspect.isfunction(inner):
    return {}
  return inspect.getclosurevars(inner).nonlocals


def plain(value: Any) -> Any:
  """Converts a value to what JSON can hold.

  An array becomes a list of its dtype and its entries, a module or aggregator
  its description, a set a sorted list, and a function, class or other object
  its name.
  """
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, Aggregator):
    return of_aggregator(value)
  if isinstance(value, functools.partial):
    return of_rule(value) | {'args': plain(value.args)}
  if isinstance(value, set | frozenset):
    return sorted(map(str, value))
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if isinstance(value, nn.Module):
    return of_module(value)
  if hasattr(value, 'shape') and hasattr(value, 'dtype'):
    return [str(value.dtype), jnp.asarray(value).tolist()]
  return f'{getattr(value, "__module__", "")}.{name_of(value)}'
