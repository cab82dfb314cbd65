"""Attackers that know their own updates alone, or the model's last change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_cases import KEY, OPTIONS, flat, mask, stack

import lca
from lca import attacks

BYZANTINE = np.array([0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0], bool)
COLLUDING = [
  name
  for name in OPTIONS
  if getattr(attacks.ATTACKS[name], 'reads', 'all') != 'row'
]


def sent(name, tree, byzantine=BYZANTINE, aggregate=None, **options):
  """Returns all rows, sent by attackers who know their own updates alone."""
  options = {
    k: v for k, v in OPTIONS[name].items() if k != 'aggregate'
  } | options
  attack = attacks.make({'name': name, 'knowledge': 'byzantine', **options})
  return attack.on_updates(
    tree, byzantine=byzantine, key=KEY, aggregate=aggregate or RULE
  )


def RULE(updates):
  return lca.krum(updates, f=2)


@pytest.mark.parametrize('name', COLLUDING)
def test_honest_updates_do_not_matter(name):
  """They may be anything, and come back bit for bit."""
  one, other = stack(), stack(seed=1)
  mixed = jax.tree.map(
    lambda x, y: np.where(BYZANTINE.reshape(-1, *[1] * (x.ndim - 1)), x, y),
    one,
    other,
  )
  first, second = flat(sent(name, one)), flat(sent(name, mixed))
  np.testing.assert_array_equal(first[BYZANTINE], second[BYZANTINE])
  np.testing.assert_array_equal(second[~BYZANTINE], flat(mixed)[~BYZANTINE])


def test_statistics_are_those_of_their_own_updates():
  rows = flat(stack())[BYZANTINE]
  moved = flat(sent('alie', stack(), z=1.5))[BYZANTINE]
  expected = rows.mean(axis=0) - 1.5 * rows.std(axis=0)
  np.testing.assert_allclose(moved, [expected] * 3, rtol=1e-4, atol=1e-5)


def test_a_rule_is_tried_on_their_own_updates_repeated():
  """The honest rows, whose values are unknown, must not be NaN to the rule."""
  seen = []

  def rule(updates):
    seen.append(updates)
    return lca.mean(updates)

  with jax.disable_jit():
    sent('optimized', stack(), aggregate=rule, num_strengths=2)
  honest = flat(seen[0])[~BYZANTINE]
  own = flat(stack())[BYZANTINE]
  np.testing.assert_array_equal(honest, own[[0, 1, 2, 0, 1, 2, 0, 1]])


@pytest.mark.parametrize('attackers', [0, 1, 8, 11])
def test_any_number_of_attackers(attackers):
  byzantine = mask(11, attackers)
  out = flat(sent('fall_of_empires', stack(), byzantine))
  assert np.isfinite(out).all()
  honest = flat(stack())[~byzantine]
  np.testing.assert_array_equal(out[~byzantine], honest)


def test_knowledge_is_for_attacks_that_read_others():
  with pytest.raises(
    TypeError, match=r'knowledge=.* does not apply to gaussian'
  ):
    attacks.from_function(attacks.gaussian, sigma=1.0, knowledge='byzantine')
  with pytest.raises(ValueError, match=r"knowledge must .* 'some'"):
    attacks.from_function(attacks.alie, knowledge='some')
  with pytest.raises(TypeError, match='knowledge'):
    attacks.make({'name': 'badnets', 'knowledge': 'all'})


# Free riders ------------------------------------------------------------------


def test_a_free_rider_sends_the_last_change_with_noise():
  tree, change = stack(), jax.tree.map(lambda x: x[0], stack(seed=2))
  exact = attacks.free_rider(
    tree, byzantine=BYZANTINE, key=KEY, last_change=change, noise=0.0
  )
  stacked = flat(jax.tree.map(lambda x: np.asarray(x)[None], change))
  np.testing.assert_array_equal(flat(exact)[BYZANTINE], stacked.repeat(3, 0))
  wide = {'w': jnp.zeros((11, 4000))}
  noisy = attacks.free_rider(
    wide,
    byzantine=BYZANTINE,
    key=KEY,
    last_change={'w': jnp.ones(4000)},
    noise=0.1,
  )
  rows = flat(noisy)[BYZANTINE]
  assert abs(rows.mean() - 1) < 0.01 and abs(rows.std() - 0.1) < 0.005
  assert len(np.unique(rows, axis=0)) == 3


def test_a_free_rider_without_the_change_sends_uniform_noise():
  wide = {'w': jnp.zeros((11, 4000))}
  rows = flat(
    attacks.free_rider(
      wide, byzantine=BYZANTINE, key=KEY, delta=False, noise=0.3
    )
  )[BYZANTINE]
  assert abs(rows).max() <= 0.3
  assert abs(rows.std() - 0.3 / 3**0.5) < 0.01
  with pytest.raises(TypeError, match='delta=True needs last_change'):
    attacks.free_rider(wide, byzantine=BYZANTINE, key=KEY)


def test_layer_gaussian_has_the_moments_of_each_own_layer():
  rng = np.random.default_rng(0)
  tree = {
    'a': np.float32(rng.normal(3, 0.5, (11, 40, 100))),
    'b': np.float32(rng.normal(-1, 2, (11, 4000))),
  }
  tree['b'][4] *= 10  # an attacker's own row counts
  out = attacks.layer_gaussian(tree, byzantine=BYZANTINE, key=KEY, scale=2.0)
  for name in tree:
    for row in np.flatnonzero(BYZANTINE):
      own, noise = tree[name][row], np.asarray(out[name][row])
      assert noise.mean() == pytest.approx(own.mean(), abs=float(own.std()) / 8)
      assert noise.std() == pytest.approx(2 * own.std(), rel=0.05)
