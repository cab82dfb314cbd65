"""Descriptions of objects tell apart what computes different things."""

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
