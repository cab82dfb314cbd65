"""Attacks are made from a config, and wrong options are errors."""

import jax.numpy as jnp
import numpy as np
import pytest
from attack_cases import BYZANTINE, KEY, RULE, mask, plain, vectors

import lca
from lca import attacks


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'name': 'lable_flipping'}, "unknown attack 'lable_flipping'"),
    ({'name': 'label_flipping', 'flip_fraction': 1.5}, 'flip_fraction'),
    ({'name': 'label_flipping', 'boost': 'replase'}, "'replace' or 'n'"),
  ],
)
def test_wrong_configs(config, message):
  with pytest.raises(ValueError, match=message):
    attacks.make(config)


def test_a_boost_may_be_written_as_text():
  attack = attacks.make({'name': 'label_flipping', 'boost': '10'})
  boosted = attack.on_updates(jnp.ones(4), byzantine=BYZANTINE, key=KEY)
  np.testing.assert_array_equal(boosted, np.where(BYZANTINE, 10, 1))


def test_none_takes_no_keys():
  assert attacks.make({'name': 'none'}) is attacks.NO_ATTACK
  with pytest.raises(TypeError, match='boost'):
    attacks.make({'name': 'none', 'boost': 3.0})


# Building ------------------------------------------------------------------


def test_options_may_be_written_as_text():
  leaf, byzantine = vectors(), mask(11, 3)
  for name, text, options in [
    ('constant', {'value': '1e-1'}, {'value': 0.1}),
    ('sign_flip', {'scale': '3'}, {'scale': 3.0}),
    ('mimic', {'target': '2'}, {'target': 2}),
  ]:
    attack = attacks.make({'name': name, **text})
    np.testing.assert_array_equal(
      attack.on_updates(leaf, byzantine=byzantine, key=KEY, aggregate=RULE),
      plain(name, leaf, byzantine, **options),
    )


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'name': 'gaussian', 'sigma': -1.0}, r'sigma .*\[0, inf\], got -1'),
    ({'name': 'gaussian', 'sigma': None}, 'sigma must be a number, got None'),
    ({'name': 'gaussian', 'sigma': 1, 'layers': '('}, r'layers .* got .\('),
    ({'name': 'fall_of_empires', 'epsilon': 'nan'}, 'epsilon .* got nan'),
    ({'name': 'sign_flip', 'scale': -2}, 'scale .* got -2'),
    ({'name': 'alie', 'z': 'large'}, "z must be a number, got 'large'"),
    ({'name': 'mimic', 'target': -1}, 'target must be at least 0, got -1'),
    ({'name': 'mimic', 'target': 1.5}, 'target must be an integer, got 1.5'),
    ({'name': 'min_max', 'direction': 'up'}, "direction .*'std'.* got 'up'"),
    ({'name': 'min_sum', 'direction': 'up'}, "direction .*'std'.* got 'up'"),
    ({'name': 'fang_krum', 'f': -1}, 'f must be at least 0, got -1'),
    ({'name': 'fang_krum', 'f': 1, 'threshold': 0}, 'threshold must be above'),
    ({'name': 'fang_trimmed_mean', 'b': 0.5}, 'b must .* got 0.5'),
    ({'name': 'constant', 'value': 'inf'}, 'value must be a finite'),
    ({'name': 'non_finite', 'value': '0'}, "value .*'nan'.* got '0'"),
    ({'name': 'optimized', 'direction': 'std'}, "direction .* got 'std'"),
    ({'name': 'optimized', 'num_strengths': 1}, 'num_strengths must be at lea'),
    ({'name': 'optimized', 'max_strength': 0}, 'max_strength must be above 0'),
    ({'name': 'optimized', 'batch_size': 0}, 'batch_size must be at least 1'),
  ],
)
def test_impossible_options(config, message):
  with pytest.raises(ValueError, match=message):
    attacks.make(config)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'name': 'gaussian'}, "'gaussian' needs sigma"),
    ({'name': 'fang_krum'}, "'fang_krum' needs f"),
    ({'name': 'zero', 'value': 1, 'scale': 2}, 'no scale, value'),
    ({'name': 'alie', 'aggregate': lca.mean}, 'no aggregate'),
    ({'name': 'label_flipping', 'epsilon': 1}, 'epsilon'),
  ],
)
def test_keys_that_an_attack_lacks_or_does_not_take(config, message):
  with pytest.raises(TypeError, match=message):
    attacks.make(config)
