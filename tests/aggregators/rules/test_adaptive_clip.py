"""Tests of adaptive clipping: where the clip goes, and the noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lca
from configs import digits

KEY = jax.random.key(0)


def in_rounds(pair, rows, count, key=None):
  """Returns the states of rounds with the same rows."""

  def step(state, key):
    _, state = pair.update(rows, state, key=key)
    return state, state

  keys = None if key is None else jax.random.split(key, count)
  start = pair.init(rows[0])
  return jax.jit(lambda: jax.lax.scan(step, start, keys, count)[1])()


@pytest.mark.parametrize('start', [0.01, 200.0])
@pytest.mark.parametrize('quantile', [0.25, 0.5, 0.9])
def test_the_clip_comes_to_the_quantile(start, quantile):
  norms = np.arange(1.0, 21.0)
  rows = jnp.asarray(norms[:, None] * [0.6, 0.8], jnp.float32)
  pair = lca.adaptive_clip(threshold=start, quantile=quantile, rate=0.2)
  clips = in_rounds(pair, rows, 200)
  want = np.quantile(norms, quantile)
  assert np.all(np.abs(clips[-20:] - want) < 0.1 * want + 1)
  # A step moves log C by no more than the rate.
  assert np.max(np.abs(np.diff(np.log(clips)))) <= 0.2 + 1e-5


def test_a_minority_bounds_the_clip_by_honest_norms():
  rows = np.ones((11, 2), np.float32)
  rows[:5] = 1e9  # they ask for a larger clip
  clips = in_rounds(lca.adaptive_clip(), jnp.asarray(rows), 200)
  assert np.max(clips) <= np.exp(0.1) * np.sqrt(2) * (1 + 1e-5)
  rows[:5] = 0.0  # they ask for a smaller one
  clips = in_rounds(lca.adaptive_clip(threshold=9.0), jnp.asarray(rows), 200)
  assert clips[-1] >= np.exp(-0.1) * np.sqrt(2)


def test_a_rate_of_zero_keeps_the_clip():
  rows = jnp.asarray(np.random.default_rng(0).normal(size=(7, 50)), jnp.float32)
  pair = lca.adaptive_clip(threshold=2.0, rate=0.0)
  assert np.all(in_rounds(pair, rows, 3) == 2.0)
  out, _ = pair.update(rows, pair.init(rows[0]))
  want = lca.chain(lca.static_clip, lca.mean)(rows, threshold=2.0)
  np.testing.assert_allclose(out, want, rtol=1e-6)


# Noise ---------------------------------------------------------------------


@pytest.mark.parametrize(
  ('hyper', 'deviation', 'of_count'),
  [
    ({'rate': 0.0}, 0.3, 0.0),  # z
    # z_Delta = (z^-2 - (2 n / 20)^-2)^-1/2, with n = 8
    ({}, 1 / np.sqrt(1 / 0.3**2 - 1 / 0.8**2), 0.4),
    ({'count_noise': 0.2}, 1 / np.sqrt(1 / 0.3**2 - 1 / 0.4**2), 0.2),
    ({'noise_multiplier': 0.0, 'count_noise': 2.0}, 0.0, 2.0),
  ],
)
def test_the_noise_has_its_deviation(hyper, deviation, of_count):
  n, clip = 8, 5.0
  rows = jnp.zeros((n, 2000))
  hyper = {'noise_multiplier': 0.3, 'threshold': clip} | hyper
  pair = lca.adaptive_clip(**hyper)
  update = jax.jit(jax.vmap(lambda key: pair.update(rows, clip_state, key=key)))
  clip_state = pair.init(rows[0])
  out, clips = update(jax.random.split(KEY, 400))
  np.testing.assert_allclose(np.std(out), deviation * clip / n, rtol=0.01)
  if hyper.get('rate') == 0:
    assert np.all(clips == clip)
    return
  # Every row is shorter than C: b is 1 plus the noise.
  shares = 0.5 - np.log(clips / clip) / 0.2
  np.testing.assert_allclose(np.mean(shares), 1, atol=0.1)
  np.testing.assert_allclose(np.std(shares), of_count / n, rtol=0.1)
  if deviation:  # the count's noise is not that of an entry
    assert abs(np.corrcoef(shares, out[:, 0])[0, 1]) < 0.2


def test_dp_fedavg_is_norm_clipping_with_noise_of_z_c_over_n():
  config = digits.get_config('dp_fedavg')
  made = lca.make_aggregator(config.aggregator)
  rows = jnp.asarray(np.random.default_rng(0).normal(size=(8, 20000)))
  rows = rows.astype(jnp.float32)
  out, state = made.update(rows, made.init(rows[0]), key=KEY)
  assert state == config.aggregator.threshold == 1.0
  clipped = lca.chain(lca.static_clip, lca.mean)
  clipped = functools.partial(clipped, threshold=1.0)
  noisy = lca.noisy(clipped, sigma=1.0 / 8)(rows, key=KEY)
  for x in (out, noisy):
    noise = x - clipped(rows)
    np.testing.assert_allclose(np.std(noise), 1 / 8, rtol=0.02)


def test_layers_draw_their_own_noise():
  tree = {'a': jnp.zeros((6, 4000)), 'b': jnp.zeros((6, 4000))}
  pair = lca.layerwise(lca.adaptive_clip(threshold=6.0, noise_multiplier=0.5))
  state = pair.init(jax.tree.map(lambda x: x[0], tree))
  out, state = jax.jit(pair.update)(tree, state, key=KEY)
  correlation = np.corrcoef(out['a'], out['b'])
  assert abs(correlation[0, 1]) < 0.06 and state[0] != state[1]
