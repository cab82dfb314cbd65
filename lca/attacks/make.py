"""The registry of attacks, and how a config names one."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lca.attacks.base import NO_ATTACK, ROUND_BRINGS, Attack, from_function
from lca.attacks.trained import with_training
from lca.registry import Registry, unknown

ATTACKS: Registry[Callable[..., Any]] = Registry(
  'attack', brought=ROUND_BRINGS, of_data=True
)
"""The attacks by name; `lca.attacks` registers its own.

An entry is either a function of the updates, `(updates, *, byzantine, ...) ->
updates`, or a function from options to an `Attack`, such as `label_flipping`.
"""

POPULATION_KEYS = (
  *('num_attackers', 'num_byzantine', 'sampled'),
  *('first_round', 'last_round', 'every', 'rounds'),
)
"""Keys of `config.attack` that say how many clients attack, and when."""


def make(config: Mapping[str, Any]) -> Attack:
  """Builds the attack that `config.attack` describes.

  Args:
    config: `name`, one of `ATTACKS` or `'none'`, and the attack's own options.
      `POPULATION_KEYS` are ignored: `lca.federated.population` reads them.
      `knowledge`, of attacks on the updates, is that of `from_function`.
      `training`, if it is there, has the options of `lca.attacks.Training`.

  Raises:
    ValueError: the attack is unknown, or an option has an impossible value.
    TypeError: an option is unknown to the attack, or a required one is missing.

  Examples:
    >>> from lca import attacks
    >>> attack = attacks.make({'name': 'gaussian', 'sigma': 20})
  """
  keys = dict(config)
  name = keys.pop('name')
  if name == 'none':
    if keys:
      raise TypeError(
        f"attack.name='none' takes no other keys, got {sorted(keys)}: compose "
        'no preset of an attack, or do not set attack.name'
      )
    return NO_ATTACK
  if name not in ATTACKS:
    raise ValueError(unknown('attack', name, {'attack': [*ATTACKS, 'none']}))
  training = keys.pop('training', {})
  options = {k: v for k, v in keys.items() if k not in POPULATION_KEYS}
  function = ATTACKS[name]
  if 'byzantine' in inspect.signature(function).parameters:
    knowledge = options.pop('knowledge', 'all')
    ATTACKS.check(name, options)
    attack = from_function(function, knowledge=knowledge, **options)
  else:
    ATTACKS.check(name, options)
    attack = function(**options)
  return with_training(attack, **training) if training else attack
