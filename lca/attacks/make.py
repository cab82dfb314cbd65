"""From the keys of a config to an Attack."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from lca.attacks.base import NO_ATTACK, Attack, from_function
from lca.attacks.collusion import alie, fall_of_empires, mimic, sign_flip
from lca.attacks.distance import min_max, min_sum
from lca.attacks.fang import fang_krum, fang_trimmed_mean
from lca.attacks.labels import label_flipping
from lca.attacks.noise import constant, gaussian, non_finite, zero
from lca.attacks.optimized import optimized

ATTACKS: dict[str, Callable[..., Attack]] = {
  'label_flipping': label_flipping
} | {
  attack.__name__: functools.partial(from_function, attack)
  for attack in (
    alie,
    constant,
    fall_of_empires,
    fang_krum,
    fang_trimmed_mean,
    gaussian,
    mimic,
    min_max,
    min_sum,
    non_finite,
    optimized,
    sign_flip,
    zero,
  )
}
"""Functions of options that return an Attack."""

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
    raise ValueError(
      f'unknown attack {name!r}; there are {sorted([*ATTACKS, "none"])}'
    )
  own = {k: v for k, v in keys.items() if k not in POPULATION_KEYS}
  return ATTACKS[name](**own)
