"""The weight of `learned_distance` follows the server's own update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import lca
from configs import digits

AGGREGATOR = lca.learned_distance(f=3, temperature=0.3)


@functools.cache
def compiled():
  return jax.jit(
    lambda rows, state, g: AGGREGATOR.update(rows, state, server_update=g)
  )


def rows_and_server():
  """Returns rows of which three are long, and three point elsewhere."""
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(11, 6)) + 2
  rows[[1, 4]] *= 3
  rows[[2, 7, 8]] *= [1, -1, 1, -1, 1, 1]
  return rows.astype(np.float32), np.ones(6, np.float32)


def test_the_weight_follows_the_derivative():
  rows, server = rows_and_server()
  state, theta, agreed = AGGREGATOR.init(jnp.zeros(6)), None, []
  for _ in range(4):
    update, state = compiled()(rows, state, server)
    want, theta = oracles.learned_distance(
      rows.astype(float),
      theta,
      server_update=server.astype(float),
      f=3,
      temperature=0.3,
    )
    np.testing.assert_allclose(state, theta, atol=2e-3)
    np.testing.assert_allclose(update, want, rtol=1e-4)
    agreed.append(update @ server / np.linalg.norm(update))
  assert abs(theta) > 0.05
  assert np.all(np.diff(agreed) > 0)


@pytest.mark.parametrize('bad', [np.nan, 1e30, 0.0])
def test_a_useless_server_update_teaches_nothing(bad):
  rows, server = rows_and_server()
  first = AGGREGATOR.init(jnp.zeros(6))
  update, state = compiled()(rows, first, np.full_like(server, bad))
  want, _ = compiled()(rows, first, server)
  np.testing.assert_array_equal(state, first)
  np.testing.assert_array_equal(update, want)


def test_more_rejected_rows_than_f_leave_a_mean():
  rows, server = rows_and_server()
  rows[:5] = np.nan
  update, state = compiled()(rows, jnp.float32(1), server)
  clipped = oracles.clip_factors(rows.astype(float))[5:, None] * rows[5:]
  np.testing.assert_allclose(update, np.mean(clipped, axis=0), rtol=1e-5)
  assert state == 1


def test_a_preset_lets_the_server_train():
  config = digits.get_config('layerwise_learned_distance')
  assert config.data.root_examples == 100


def test_too_few_clients():
  with pytest.raises(ValueError, match=r'n=8, f=3'):
    compiled()(np.ones((8, 6)), jnp.float32(0), np.ones(6))
