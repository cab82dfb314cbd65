"""Descriptions of objects tell apart what computes different things."""

import dataclasses
import itertools
import json

from lca import attacks
from lca.experiment import names


def test_every_option_of_label_flipping_is_described():
  described = []
  for fraction, boost in itertools.product((0.5, 1.0), (1.0, 2.0, 'replace')):
    attack = attacks.label_flipping(flip_fraction=fraction, boost=boost)
    keys = names.of_attack(attack)
    assert (keys['name'], keys['flip_fraction']) == ('label_flipping', fraction)
    described.append(keys)
  assert all(a != b for a, b in itertools.combinations(described, 2))


def test_the_attack_of_nobody_is_described():
  assert names.of_attack(attacks.NO_ATTACK)['name'] == 'keep_examples'


def test_a_backdoor_is_described_with_its_trigger():
  patch = attacks.triggers.patch(height=2)
  keys = names.of_attack(attacks.backdoor(patch, target=7))
  assert (keys['name'], keys['target'], keys['share']) == ('backdoor', 7, 0.5)
  others = [
    attacks.triggers.patch(height=3),
    attacks.triggers.sinusoid(),
    attacks.triggers.compose([patch]),
    attacks.triggers.paint([(0, 1)]),
  ]
  described = [names.of_attack(attacks.backdoor(each)) for each in others]
  triggers = [keys['trigger'], *(each['trigger'] for each in described)]
  assert all(a != b for a, b in itertools.combinations(triggers, 2))
  assert json.loads(json.dumps(triggers)) == triggers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(attacks.Training):
  strength: float = 3.0


def test_an_attack_s_own_training_is_described():
  """With its class, so that a run is not continued with another one."""
  plain = attacks.with_training(attacks.badnets(), radius=2.0)
  assert names.of_attack(plain)['training']['radius'] == 2.0
  own = attacks.with_training(attacks.badnets(), Mine(), strength=4.0)
  described = names.of_attack(own)['training']
  assert described['name'] == 'Mine' and described['strength'] == 4.0
  assert 'training' not in names.of_attack(attacks.badnets())
