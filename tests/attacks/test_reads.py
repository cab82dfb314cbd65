"""Attacks read no more than they say (`Attack.reads`)."""

import jax
import numpy as np
import pytest
from attack_cases import KEY, OPTIONS, mask, stack

from lca import attacks

BYZANTINE = mask(11, 3)

ATTACKS = {
  name: attacks.from_function(attacks.ATTACKS[name], **options)
  for name, options in OPTIONS.items()
  if 'aggregate' not in options  # which tries the rule
} | {
  'none': attacks.NO_ATTACK,
  'label_flipping': attacks.label_flipping(),
  'replacement': attacks.label_flipping(boost=3.0),
  'replacement by n': attacks.label_flipping(boost='n'),
}


def _that_read(kind):
  return [name for name, attack in ATTACKS.items() if attack.reads == kind]


def _updates():
  """Returns updates of which an honest row is rejected for one number."""
  updates = stack()
  honest = np.flatnonzero(~BYZANTINE)
  updates['params']['Conv_0']['kernel'][honest[1], 0, 0, 0] = np.nan
  return updates, honest[1]


def _sent(name, updates, byzantine, **more):
  return ATTACKS[name].on_updates(
    updates, byzantine=byzantine, key=KEY, **more, **ATTACKS[name].numbers
  )


def test_which_attacks_read_less_than_everything():
  assert _that_read('row') == [
    'constant',
    'free_rider',
    'gaussian',
    'layer_gaussian',
    'non_finite',
    'sign_flip',
    'zero',
    'none',
    'label_flipping',
    'replacement',
  ]
  assert _that_read('coordinate') == [
    'alie',
    'fall_of_empires',
    'replacement by n',
  ]


@pytest.mark.parametrize('name', _that_read('row'))
def test_a_row_follows_from_itself_and_its_position(name):
  updates, _ = _updates()
  whole = _sent(name, updates, BYZANTINE)
  rows = np.arange(11)[::-1][:6]
  some = _sent(
    name,
    jax.tree.map(lambda x: x[rows], updates),
    BYZANTINE[rows],
    positions=rows,
  )
  jax.tree.map(
    lambda part, x: np.testing.assert_array_equal(part, np.asarray(x)[rows]),
    some,
    whole,
  )


@pytest.mark.parametrize('name', _that_read('coordinate'))
def test_a_number_follows_from_its_coordinate_and_the_rejected_rows(name):
  updates, rejected = _updates()
  whole = _sent(name, updates, BYZANTINE)
  updates['params']['scale'][rejected] = np.nan
  part = _sent(name, updates['params']['scale'], BYZANTINE)
  np.testing.assert_allclose(
    part[BYZANTINE], whole['params']['scale'][BYZANTINE], rtol=1e-6
  )


def test_what_cannot_be_made_from_parts_is_refused():
  def draws(updates, *, byzantine, key):
    del byzantine, key
    return updates

  def tries(updates, *, byzantine, key=None, aggregate=None):
    del byzantine, key, aggregate
    return updates

  for reads in ('row', 'coordinate'):
    for function in (draws, tries):
      with pytest.raises(TypeError, match=f'{function.__name__} cannot read'):
        attacks.update_attack(reads)(function)
  with pytest.raises(ValueError, match="got 'rows'"):
    attacks.update_attack('rows')(tries)
