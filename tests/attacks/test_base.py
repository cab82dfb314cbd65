"""Properties that every attack on updates has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_cases import (
  BYZANTINE,
  KEY,
  ON_EXAMPLES,
  OPTIONS,
  RULE,
  compiled,
  flat,
  flat_update,
  labels,
  mask,
  plain,
  stack,
  vectors,
)

import lca
from lca import attacks

# The updates ---------------------------------------------------------------


def with_rows(tree, rows, value):
  """Returns stacked updates with some rows set to a value."""

  def set_rows(leaf):
    leaf = np.array(leaf)
    leaf[rows] = value
    return leaf

  return jax.tree.map(set_rows, tree)


COLLUDING = [
  'alie',
  'fall_of_empires',
  'fang_krum',
  'fang_trimmed_mean',
  'mimic',
  'min_max',
  'min_sum',
  'optimized',
  'white_box',
]

every = pytest.mark.parametrize('name', OPTIONS)
colluding = pytest.mark.parametrize('name', COLLUDING)


def test_every_attack_is_here():
  assert sorted([*OPTIONS, *ON_EXAMPLES]) == sorted(attacks.ATTACKS)


@colluding
@pytest.mark.parametrize('value', [np.nan, np.inf, 1e30])
def test_what_attackers_computed_does_not_show(name, value):
  tree, byzantine = stack(), mask(11, 3)
  jax.tree.map(
    np.testing.assert_array_equal,
    compiled(name, with_rows(tree, byzantine, value), byzantine),
    compiled(name, tree, byzantine),
  )


@colluding
def test_an_honest_client_without_an_answer_is_left_out(name):
  byzantine = mask(11, 3)
  absent = np.flatnonzero(~byzantine)[2]
  tree = with_rows(stack(), absent, np.nan)
  out = flat(compiled(name, tree, byzantine))[byzantine]
  assert np.all(np.isfinite(out))
  # Any rejected row in its place gives the same result: f and n stay nominal.
  huge = with_rows(tree, absent, 1e25)
  np.testing.assert_array_equal(
    flat(compiled(name, huge, byzantine))[byzantine], out
  )


@colluding
def test_with_no_honest_client_they_send_zeros(name):
  everybody = np.ones(11, bool)
  np.testing.assert_array_equal(flat(compiled(name, stack(), everybody)), 0)


@every
def test_bfloat16_is_computed_in_float32(name):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), stack())
  exact = jax.tree.map(lambda x: x.astype(np.float32), half)
  byzantine = mask(11, 3)
  out = compiled(name, half, byzantine)
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(out))
  np.testing.assert_array_equal(flat(out)[~byzantine], flat(half)[~byzantine])
  if name == 'white_box':
    return  # it tries the rule on rounded rows, and so takes another path
  # The result is rounded once, to bfloat16's 8 bits.
  np.testing.assert_allclose(
    flat(out), flat(compiled(name, exact, byzantine)), rtol=2**-8
  )


@every
def test_float64_stays(name):
  with jax.enable_x64(True):
    leaf = stack(dtype=np.float64)['params']['Conv_0']['kernel']
    byzantine = mask(11, 3)
    out = jax.jit(functools.partial(plain, name))(leaf, byzantine)
    assert out.dtype == np.float64
    np.testing.assert_array_equal(out[~byzantine], leaf[~byzantine])


@pytest.mark.quick
@every
def test_an_attack_is_its_function(name):
  """The attack from a config, without jit, equals the function under jit.

  The updates are a single leaf `[n]`, which is a pytree, too.
  """
  options = {k: v for k, v in OPTIONS[name].items() if k != 'aggregate'}
  config = {'name': name, 'num_attackers': 4, 'sampled': True, **options}
  attack = attacks.make(config)
  leaf, byzantine = stack()['params']['scale'], mask(11, 3)
  out = attack.on_updates(leaf, byzantine=byzantine, key=KEY, aggregate=RULE)
  np.testing.assert_array_equal(out[~byzantine], leaf[~byzantine])
  if name != 'layer_gaussian':  # a single number has no deviation
    assert np.all(out[byzantine] != leaf[byzantine])
  want = compiled(name, leaf, byzantine)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
  inputs, before = np.zeros((5, 2)), labels(5)[0]
  kept = attack.on_examples(inputs, before, client_id=0)
  assert kept[0] is inputs and kept[1] is before


# Noise and constants -------------------------------------------------------


def reached(name, **options):
  """Attacks 3 of 11 rows.

  Returns:
    The mean of all rows, the mean of the honest rows, and the honest rows.
  """
  tree, byzantine = stack(), mask(11, 3)
  mean = flat_update(lca.mean(compiled(name, tree, byzantine, **options)))
  honest = flat(tree)[~byzantine]
  return mean, honest.mean(axis=0), honest


@pytest.mark.parametrize(
  ('name', 'options', 'left'),
  [
    ('zero', {}, 8 / 11),  # this part of the honest mean is left
    ('fall_of_empires', {'epsilon': 0.001}, (8 - 3 * 0.001) / 11),
    (
      'fall_of_empires',
      {'epsilon': 4.0},
      (8 - 3 * 4) / 11,
    ),  # negative: reversed
  ],
)
def test_what_shortens_or_turns_the_mean(name, options, left):
  got, mean, _ = reached(name, **options)
  np.testing.assert_allclose(got, left * mean, rtol=1e-5, atol=1e-6)


def test_what_leads_the_mean_away():
  got, mean, _ = reached('constant', value=1e6)
  np.testing.assert_allclose(got, (8 * mean + 3e6) / 11, rtol=1e-5)
  got, mean, _ = reached('gaussian', sigma=200.0, mu=0.0)
  noise = np.linalg.norm(got - 8 / 11 * mean)
  # The norm of 3 x 31 normal numbers is within 5 standard deviations of its
  # mean.
  assert abs(noise / (200 * np.sqrt(3 * got.size) / 11) - 1) < 5 / np.sqrt(
    2 * 3 * got.size
  )
  got, mean, _ = reached('sign_flip', scale=2.0)
  everybody = flat(stack()).mean(axis=0)
  attackers = (11 * everybody - 8 * mean) / 11  # their part of the mean
  np.testing.assert_allclose(
    got, everybody - 3 * attackers, rtol=1e-4, atol=1e-5
  )
  assert not np.any(np.isfinite(reached('non_finite')[0]))


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('alie', {}),
    ('fang_krum', {'f': 2}),
    ('fang_trimmed_mean', {}),
    ('min_max', {'direction': 'sign'}),
    ('min_sum', {'direction': 'sign'}),
  ],
)
def test_what_holds_the_mean_back_in_every_coordinate(name, options):
  got, mean, honest = reached(name, **options)
  against = -np.ones_like(mean) if name == 'alie' else -np.sign(mean)
  assert np.all((got - mean) * against >= -1e-6)
  spread = np.linalg.norm(honest[:, None] - honest, axis=2).max()
  if name.startswith('min_'):  # rows lie within the honest rows' spread
    assert np.linalg.norm(got - mean) <= 3 / 11 * spread * (1 + 1e-5)


def test_mimic_leads_the_mean_no_farther_than_an_honest_client():
  got, mean, honest = reached('mimic')
  away = np.linalg.norm(honest - mean, axis=1)
  moved = np.linalg.norm(got - mean)
  assert 3 / 11 * away.min() * (1 - 1e-5) <= moved
  assert moved <= 3 / 11 * away.max() * (1 + 1e-5)


# Building ------------------------------------------------------------------


@pytest.mark.parametrize(
  'wrong', [np.zeros(4, bool), np.arange(11), np.zeros((11, 1), bool)]
)
def test_byzantine_is_a_mask_of_the_clients(wrong):
  with pytest.raises(ValueError, match=r'byzantine must be .* n=11, got'):
    plain('zero', stack(), wrong)


@pytest.mark.parametrize('name', ['gaussian', 'fang_trimmed_mean'])
def test_what_is_drawn_needs_a_key(name):
  with pytest.raises(TypeError, match=f'{name} .* needs a key'):
    plain(name, stack(), mask(11, 3), key=None)


def test_a_function_of_ones_own_is_an_attack():
  def shout(updates, *, byzantine, volume):
    return lca.geometry.scale(updates, jnp.where(byzantine, volume, 1.0))

  attack = attacks.from_function(shout, volume=5.0)
  out = attack.on_updates(
    jnp.ones(4), byzantine=BYZANTINE, key=KEY, aggregate=lca.mean
  )
  np.testing.assert_array_equal(out, np.where(BYZANTINE, 5, 1))


def test_numbers_may_be_arguments_of_a_compiled_program():
  """Every option that is a number; the results have the same bits."""
  leaf, byzantine, lifted = vectors(), mask(11, 3), []
  options = {
    **OPTIONS,
    'alie': {'z': 1.5},
    'fang_krum': {'f': 2, 'threshold': 1e-3},
    'fang_trimmed_mean': {'b': 3.0},
    'optimized': {'num_strengths': 4, 'max_strength': 5.0},
    'white_box': {'num_steps': 3, 'step_size': 0.3},
    'label_flipping': {'flip_fraction': 0.5, 'boost': 3.0},
  }
  for name, values in options.items():
    attack = attacks.make({'name': name, **values})

    @jax.jit
    def attacked(numbers, attack=attack):
      return attack.on_updates(
        leaf, byzantine=byzantine, key=KEY, aggregate=RULE, **numbers
      )

    without = jax.jit(functools.partial(attacked, {}))
    np.testing.assert_array_equal(attacked(attack.numbers), without(), name)
    lifted += [f'{name}.{number}' for number in attack.numbers]
  assert lifted == [
    'alie.z',
    'constant.value',
    'fall_of_empires.epsilon',
    'fang_krum.threshold',
    'fang_trimmed_mean.b',
    'free_rider.noise',
    'gaussian.sigma',
    'gaussian.mu',
    'optimized.max_strength',
    'sign_flip.scale',
    'white_box.step_size',
    'label_flipping.flip_fraction',
    'label_flipping.boost',
  ]


def test_a_share_of_flips_may_be_an_argument():
  attack = attacks.label_flipping(flip_fraction=0.25)
  before = labels(size=50)[0]

  @jax.jit
  def flipped(numbers):
    _, after = attack.on_examples(
      None, before, client_id=7, num_classes=10, key=KEY, **numbers
    )
    return after

  np.testing.assert_array_equal(flipped(attack.numbers), flipped({}))
  assert (flipped({'flip_fraction': 0.0}) == before).all()
