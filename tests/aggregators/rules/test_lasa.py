"""Tests of LASA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca


@pytest.mark.parametrize(
  'hyper',
  [
    {},
    {'sparsity': 0.0},
    {'sparsity': 0.9, 'norm_bound': 1.0},
    {'sparsity': 0.5, 'norm_bound': 0.3, 'sign_bound': 0.2},
    {'norm_bound': 0.0, 'sign_bound': 0.0},
  ],
)
def test_lasa_follows_the_oracle(hyper):
  tree = pool.stack('cnn', 12)
  bias = tree['params']['layer_1']['bias']
  bias[3] *= 100
  bias[7] = np.nan
  arrays = [array for _, array in oracles.leaves(tree)]
  out = jax.jit(functools.partial(lca.lasa, **hyper))(tree)
  for leaf, want in zip(
    jax.tree.leaves(out), oracles.lasa(arrays, **hyper), strict=True
  ):
    np.testing.assert_allclose(leaf, want, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize('half', [False, True])
def test_lasa_follows_the_oracle_in_float64(half):
  with jax.enable_x64(True):
    for seed in range(8):
      tree = pool.stack('cnn', 11, seed)
      tree = jax.tree.map(lambda x: np.float64(x) + 1e-9 * np.sin(x), tree)
      if half:  # a tree of both widths
        bias = tree['params']['layer_1']['bias']
        tree['params']['layer_1']['bias'] = bias.astype(np.float32)
      arrays = [array for _, array in oracles.leaves(tree)]
      out = lca.lasa(tree, sparsity=0.5)
      for leaf, want in zip(
        jax.tree.leaves(out), oracles.lasa(arrays, sparsity=0.5), strict=True
      ):
        # Clip norms sum over all leaves, and each leaf has its own dtype.
        tolerance = 1e-6 if half else 1e-12
        np.testing.assert_allclose(leaf, want, rtol=tolerance, atol=tolerance)


def test_an_infinite_bound_of_lasa_leaves_the_other_one():
  x = jnp.abs(jnp.asarray(pool.stack('leaf', 11)))  # all purities are 1
  kept, same = (
    lca.explain(lca.lasa)(x, norm_bound=1.0, sign_bound=bound)[1]['selected']
    for bound in (np.inf, 1e30)
  )
  assert not np.all(kept)
  np.testing.assert_array_equal(kept, same)


def test_lasa_sparsifies_kernels_alone_and_together():
  large = np.arange(1, 11, dtype=np.float32).reshape(1, 2, 5)
  small = large / 100
  tree = {'a': {'kernel': large, 'bias': small[0, :1]}, 'b': {'kernel': small}}
  tree = jax.tree.map(lambda x: np.repeat(x, 3, axis=0), tree)
  out = lca.lasa(tree, sparsity=0.5)
  # Ten of twenty entries are zeroed. Above the tenth largest entry there are
  # nine entries, all in one kernel.
  assert np.sum(np.asarray(out['a']['kernel']) != 0) == 9
  assert np.asarray(out['a']['kernel'])[0, 0] == 0
  assert not np.any(out['b']['kernel'])
  np.testing.assert_allclose(out['a']['bias'], small[0, 0], rtol=1e-6)
  whole = lca.lasa(tree, sparsity=0.0)
  np.testing.assert_allclose(whole['b']['kernel'], small[0], rtol=1e-6)
