"""Tests of FoolsGold and FLTrust."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest
from cases import server_update

import lca

# Derivatives beside rejected rows ------------------------------------------


def test_rejected_rows_are_not_in_the_derivative_of_the_server_s_length():
  x = jnp.asarray(pool.stack('leaf', 9))
  bad = jnp.insert(x, jnp.array([2, 6]), 3e38, axis=0)
  of = lambda rows: jax.grad(  # noqa: E731
    lambda own: jnp.sum(lca.fltrust(rows, server_update=own))
  )(jnp.mean(x, axis=0))
  np.testing.assert_allclose(of(bad), of(x), rtol=1e-5)


# Preconditions -------------------------------------------------------------


def test_fltrust_asks_for_the_servers_update():
  with pytest.raises(TypeError, match='server_update'):
    lca.fltrust(jnp.ones((6, 2)))
  with pytest.raises((TypeError, ValueError)):
    lca.fltrust(jnp.ones((6, 2)), server_update=jnp.ones(3))


# Weights -------------------------------------------------------------------


def test_foolsgold_silences_those_who_agree_too_well():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(8, 200)).astype(np.float32)
  x[5:] = x[5] * [[1], [2], [3]] + 0.01 * rng.normal(size=(3, 200))
  _, info = lca.explain(lca.foolsgold)(jnp.asarray(x))
  weights = np.asarray(info['weights'])
  want = oracles.foolsgold_weights(x.astype(float))
  np.testing.assert_allclose(weights, want, rtol=1e-4, atol=1e-6)
  assert np.all(weights[5:] == 0) and np.all(weights[:5] > 0)


def test_fltrust_by_hand():
  x = jnp.array([[2.0, 0], [0, 3], [-1, 0], [0, 0], [5, 5]])
  out, info = lca.explain(lca.fltrust)(x, server_update=jnp.array([1.0, 0]))
  root = np.sqrt(0.5)
  trust = np.array([1, 0, 0, 0, root])
  want = (np.array([1, 0]) + root * np.array([root, root])) / trust.sum()
  np.testing.assert_allclose(out, want, rtol=1e-6)
  lengths = np.array([2, 3, 1, 1, np.sqrt(50)])
  np.testing.assert_allclose(
    info['weights'], trust / lengths / trust.sum(), rtol=1e-6, atol=1e-7
  )


def test_fltrust_is_as_long_as_the_servers_update():
  """The derivative along g, at constant trust, is the update itself."""
  x, server = jnp.asarray(pool.stack('leaf', 11)), jnp.ones(50)
  out, tangent = jax.jvp(
    lambda s: lca.fltrust(x, server_update=s), (server,), (server,)
  )
  np.testing.assert_allclose(tangent, out, rtol=1e-5)
  _, across = jax.jvp(
    lambda s: lca.fltrust(x, server_update=s),
    (server,),
    (server.at[::2].set(-1),),  # leaves the length unchanged to first order
  )
  np.testing.assert_allclose(across, np.zeros(50), atol=1e-6)


def test_fltrust_without_trust_is_nan():
  x = -jnp.asarray(np.abs(pool.stack('leaf', 11)))
  assert np.all(np.isnan(lca.fltrust(x, server_update=jnp.ones(50))))


def test_fltrust_splits_the_servers_update_by_layer():
  tree = jax.tree.map(jnp.asarray, pool.stack('pair', 11))
  server = server_update(tree)
  out = lca.layerwise(lca.fltrust)(tree, server_update=server)
  for key, leaf in tree.items():
    want = lca.fltrust(leaf, server_update=server[key])
    np.testing.assert_allclose(out[key], want, rtol=1e-5, atol=1e-6)
  aggregator = lca.stateless(lca.layerwise(lca.fltrust))
  same, _ = aggregator.update(
    tree, aggregator.init(server), server_update=server
  )
  jax.tree.map(np.testing.assert_array_equal, same, out)
