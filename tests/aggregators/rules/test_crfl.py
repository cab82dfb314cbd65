"""Tests of CRFL: the clip of the model, its schedule, and the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pool
import pytest

import lca
from configs import digits

KEY = jax.random.key(0)


def model_norm(tree):
  return np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))


def test_the_model_follows_the_schedule():
  """Updates that pull outwards keep the model at the clip of every round."""
  pair = lca.crfl(sigma=0.0, rho=2.0, growth=0.5, rho_max=4.0)
  model = {'a': jnp.ones(3), 'b': jnp.ones((2, 2))}
  state, update = pair.init(model), jax.jit(pair.update)
  for limit in (2.5, 3.0, 3.5, 4.0, 4.0):
    rows = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), model)
    step, state = update(rows, state, params=model)
    model = jax.tree.map(jnp.add, model, step)
    np.testing.assert_allclose(model_norm(model), limit, rtol=1e-5)


def test_a_model_within_the_clip_moves_by_the_mean():
  tree = jax.tree.map(jnp.asarray, pool.stack('cnn', 11))
  model = jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), tree)
  pair = lca.crfl(sigma=0.0, rho=1e9, rho_max=1e9)
  out, _ = pair.update(tree, pair.init(model), params=model)
  jax.tree.map(np.testing.assert_array_equal, out, lca.mean(tree))


def test_the_noise_comes_after_the_clip():
  rows = jnp.full((4, 20000), 3.0)
  model = jnp.ones(20000)
  quiet, noisy = lca.crfl(sigma=0.0), lca.crfl(sigma=0.5)
  exact, _ = quiet.update(rows, quiet.init(model), params=model)
  noises = []
  for seed in (0, 1):
    key = jax.random.key(seed)
    out, state = noisy.update(rows, noisy.init(model), params=model, key=key)
    noises.append(out - exact)
  np.testing.assert_allclose(np.std(noises, axis=1), 0.5, rtol=0.02)
  assert abs(np.corrcoef(noises)[0, 1]) < 0.03
  assert state == 1


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_the_update_has_the_dtype_of_the_leaf(dtype):
  rows = jnp.ones((4, 100), dtype)
  pair = lca.crfl(rho=0.5, sigma=0.1)
  out, _ = pair.update(rows, pair.init(rows[0]), params=jnp.ones(100), key=KEY)
  assert out.dtype == dtype


def test_what_crfl_needs():
  x, pair = jnp.ones((6, 2)), lca.crfl()
  with pytest.raises(ValueError, match=r'key to draw sigma=0\.01'):
    pair.update(x, pair.init(x[0]), params=x[0])
  with pytest.raises(ValueError, match='params must be shaped'):
    pair.update(x, pair.init(x[0]), params=jnp.ones(3), key=KEY)


def test_the_preset_is_the_published_codes():
  config = digits.get_config('crfl').aggregator
  want = {'sigma': 0.01, 'rho': 2.0, 'growth': 0.1, 'rho_max': 15.0}
  assert {k: config[k] for k in want} == want
  tree = {'a': jnp.ones((4, 3))}
  one = jax.tree.map(lambda x: x[0], tree)
  made, pair = lca.make_aggregator(config), lca.crfl()
  for aggregator in (made, pair):
    out, _ = aggregator.update(tree, pair.init(one), params=one, key=KEY)
    if aggregator is made:
      want = out
  np.testing.assert_array_equal(out['a'], want['a'])
