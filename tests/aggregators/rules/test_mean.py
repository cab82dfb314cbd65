"""Tests of the mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
from pool import with_rows

import lca


def test_mean_with_weights():
  tree = jax.tree.map(jnp.asarray, pool.stack('edge', 11))
  weights = np.arange(11.0)
  out = lca.mean(tree, weights=jnp.asarray(weights))
  want = oracles.mean(tree, weights)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, out, want)
  out = lca.mean(tree, weights=jnp.arange(11) * 1000)  # numbers of examples
  jax.tree.map(close, out, want)


def test_mean_leaves_out_a_client_without_weight():
  tree = with_rows(pool.stack('edge', 11), [0], 'nan')
  tree = jax.tree.map(jnp.asarray, tree)
  out = lca.mean(tree, weights=jnp.arange(11.0))
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))
