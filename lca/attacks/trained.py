"""Attacks by clients that take other training steps than honest clients do."""

import dataclasses
from typing import Any

from lca.attacks.base import Attack, keep_examples, makes_attack
from lca.attacks.labels import Boost, training_attack
from lca.attacks.training import Training
from lca.registry import check_options, options_of


@makes_attack
def gradient_ascent(*, boost: Boost = 1.0) -> Attack:
  """Returns the attack of clients that go up the loss of their examples.

  Args:
    boost: factor of the updates; see `model_replacement`.

  Raises:
    ValueError: `boost` is neither a finite number nor `'replace'` or `'n'`.

  References:
    Fang et al., "On the robustness of federated learning", and Blades (the
    attack on training with an inverted gradient).
  """
  attack = training_attack(keep_examples, boost, {})
  return attack._replace(training=Training(ascent=True))


def with_training(
  attack: Attack, own: Training | None = None, /, **training: Any
) -> Attack:
  """Returns an attack whose clients train in their own way.

  Args:
    attack: an attack that changes examples, or that trains already.
    own: how they train, such as a subclass of `Training`; None goes on from the
      attack's own training, if it has one.
    **training: options of `Training`, which replace those of `own`.

  Raises:
    TypeError: an unknown option, or an attack that replaces what its clients
      have trained.
    ValueError: an impossible value; or `batch_share`, and an attack that
      poisons only a share of the examples.

  Examples:
    >>> from lca import attacks
    >>> attacks.with_training(attacks.badnets(), radius=2.0).training.radius
    2.0
  """
  if attack.on_examples is keep_examples and attack.training is None:
    raise TypeError(
      'attack.training is for attacks that train, such as badnets: this attack '
      'replaces what its clients have trained'
    )
  own = own or attack.training or Training()
  check_options('attack.training', options_of(type(own)), training)
  given = dataclasses.replace(own, **training)
  for name in ('share', 'flip_fraction'):
    share = attack.numbers.get(name, 1)
    if given.batch_share is not None and share != 1:
      raise ValueError(
        f'attack.training.batch_share={given.batch_share} mixes poisoned and '
        'clean examples, so that the attack must poison all: set '
        f'attack.{name}=1.0, got {share}'
      )
  # An attack that adapts needs the attackers' program in any case.
  as_honest = given == Training() and attack.adaptive is None
  return attack._replace(
    training=None if as_honest else given,
    needs_last_change=given.needs_last_change,
  )
