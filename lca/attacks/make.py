"""From the keys of a config to an Attack."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lca.attacks.base import NO_ATTACK, ROUND_BRINGS, Attack, from_function
from lca.registry import Registry, unknown

ATTACKS: Registry[Callable[..., Any]] = Registry(
  'attack', brought=ROUND_BRINGS, of_data=True
)
"""Functions of the updates, `(updates, *, byzantine, ...) -> updates`, and
functions of options that return an Attack; `lca.attacks` fills it."""

POPULATION_KEYS = ('num_attackers', 'num_byzantine', 'sampled')


def make(config: Mapping[str, Any]) -> Attack:
  """Builds the attack that `config.attack` describes.

  Args:
    config: `name`, one of `ATTACKS` or `'none'`, and the attack's own keys.
      `POPULATION_KEYS` say who attacks, which is the simulation's business.

  Raises:
    ValueError: an unknown attack, or an option with an impossible value.
    TypeError: a key that the attack does not take, or lacks.

  Examples:
    >>> from lca import attacks
    >>> attack = attacks.make({'name': 'gaussian', 'sigma': 20})
  """
  keys = dict(config)
  name = keys.pop('name')
  if name == 'none':
    if keys:
      raise TypeError(
        f'attack.name is none, so that {sorted(keys)} do not apply: compose '
        'no preset of an attack'
      )
    return NO_ATTACK
  if name not in ATTACKS:
    raise ValueError(unknown('attack', name, {'attack': [*ATTACKS, 'none']}))
  own = {k: v for k, v in keys.items() if k not in POPULATION_KEYS}
  ATTACKS.check(name, own)
  attack = ATTACKS[name]
  if 'byzantine' in inspect.signature(attack).parameters:
    return from_function(attack, **own)
  return attack(**own)
