"""Tests of `stateless`, which makes an aggregator from a rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pool
import pytest

import lca


def test_stateless_is_the_rule():
  x = jnp.asarray(pool.stack('leaf', 11))
  aggregator = lca.stateless(lca.krum, f=2)
  assert isinstance(aggregator, lca.Aggregator)
  state = aggregator.init(x[0])
  assert jax.tree.leaves(state) == []
  for key in (None, jax.random.key(0)):  # the simulation passes everything
    out, state = aggregator.update(
      x, state, key=key, weights=jnp.ones(11), server_update=x[0]
    )
    np.testing.assert_array_equal(out, lca.krum(x, f=2))


def test_stateless_forwards_what_is_named_and_not_bound():
  x, state = jnp.asarray(pool.stack('leaf', 11)), ()
  weights = jnp.arange(11.0)
  weighted = lca.mean(x, weights=weights)
  assert not np.allclose(weighted, lca.mean(x))
  out, _ = lca.stateless(lca.mean).update(x, state, weights=weights)
  np.testing.assert_array_equal(out, weighted)
  bound = lca.stateless(lca.mean, weights=weights)
  out, _ = bound.update(x, state, weights=jnp.ones(11))
  np.testing.assert_array_equal(out, weighted)
  out, _ = lca.stateless(lca.mean, weights=None).update(
    x, state, weights=weights
  )
  np.testing.assert_array_equal(out, lca.mean(x))
  out, _ = lca.stateless(lca.layerwise(lca.mean)).update(
    x, state, weights=weights
  )
  np.testing.assert_array_equal(out, weighted)


def test_stateless_passes_a_key_and_a_server_update():
  def rule(updates, *, key, server_update):
    return updates[0] + jax.random.normal(key) + server_update

  x, key = jnp.ones((5, 2)), jax.random.key(1)
  aggregator = lca.stateless(rule)
  out, _ = aggregator.update(
    x, (), key=key, weights=jnp.ones(5), server_update=x[1]
  )
  np.testing.assert_array_equal(out, rule(x, key=key, server_update=x[1]))
  with pytest.raises(TypeError, match='key'):
    aggregator.update(x, (), server_update=x[1])
  with pytest.raises(TypeError, match='server_update'):
    aggregator.update(x, (), key=key)


@pytest.mark.parametrize('wrap', [lambda rule: rule, lca.layerwise])
def test_stateless_knows_the_hyper_parameters(wrap):
  with pytest.raises(TypeError, match=r'krum.*\bm\b'):
    lca.stateless(wrap(lca.krum), f=2, m=5)
  with pytest.raises(TypeError, match=r"krum.*'f'"):
    lca.stateless(wrap(lca.krum))
  with pytest.raises(TypeError, match=r"krum.*'m'"):
    lca.stateless(wrap(lca.multi_krum), f=2)
  with pytest.raises(TypeError, match='power'):
    lca.stateless(wrap(lca.cosine(lca.krum)), f=2, power=2)
