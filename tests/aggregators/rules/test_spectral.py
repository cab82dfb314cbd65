"""Tests of CAF and DnC."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca

# Options that give other definitions ---------------------------------------


@pytest.mark.parametrize('leaf', ['a', 'b', 'c'])
def test_dnc_draws_from_every_leaf(leaf):
  tree = {'a': (11, 40), 'b': (11, 5, 20), 'c': (11, 60)}
  tree = jax.tree.map(np.ones, tree, is_leaf=lambda x: isinstance(x, tuple))
  tree[leaf][4] += 9
  hyper = {'f': 1, 'subsample_dim': 50, 'key': jax.random.key(0)}
  _, info = lca.explain(lca.dnc)(tree, **hyper)
  assert np.flatnonzero(~info['selected']).tolist() == [4]


# CAF and DnC ---------------------------------------------------------------


def test_caf_that_filters_nobody_is_the_mean():
  x = pool.stack('leaf', 11)
  out = lca.caf(jnp.asarray(x), f=0)
  np.testing.assert_allclose(out, np.mean(x, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('n', [5, 12, 25])
@pytest.mark.parametrize('farthest', ['remaining', 'any'])
def test_caf_follows_the_oracle(n, farthest):
  x = pool.stack('leaf', n)
  for f in sorted({1, n // 4, (n - 1) // 2}):
    x[0] += 20 if farthest == 'remaining' else 1
    out = lca.caf(jnp.asarray(x), f=f, farthest=farthest)
    rows = x.astype(float)
    want = oracles.caf_weights(rows, f=f, farthest=farthest) @ rows
    scale = np.max(np.abs(rows))
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5 * scale)


def _legato_of_spectral_norms(updates):
  pair = lca.legato(norm='spectral')
  return pair.update(updates, pair.init(jax.tree.map(lambda x: x[0], updates)))


@pytest.mark.parametrize(
  'update',
  [
    functools.partial(lca.smea, f=2),
    functools.partial(lca.layerwise(lca.smea), f=2),
    functools.partial(lca.layerwise(lca.caf), f=2),
    functools.partial(lca.layerwise(lca.dnc), f=2),
    jax.vmap(functools.partial(lca.caf, f=2)),
    _legato_of_spectral_norms,
  ],
)
def test_eigenvectors_are_found_one_matrix_at_a_time(update):
  """Two batched `eigh` at once can wait for each other on a two-core CPU."""
  tree = jax.tree.map(lambda x: np.stack([x] * 11), pool.stack('pair', 11))
  text = jax.jit(update).lower(tree).as_text()
  calls = [line for line in text.splitlines() if '_ssyevd' in line]
  assert calls
  assert not [
    line for line in calls if re.search(r'tensor<\d+x\d+x\d+xf', line)
  ]


@pytest.mark.parametrize('fraction', [0.0, 0.5, 1.0, 1.5])
def test_dnc_filters_a_fraction(fraction):
  x = pool.stack('leaf', 11)
  hyper = {'f': 3, 'filter_fraction': fraction}
  out, info = lca.explain(lca.dnc)(jnp.asarray(x), **hyper)
  rows = x.astype(float)
  weights = oracles.weights_of('dnc', rows, hyper)
  assert np.sum(weights > 0) == 11 - int(fraction * 3)
  np.testing.assert_allclose(info['weights'], weights, rtol=1e-6)
  np.testing.assert_allclose(out, weights @ rows, rtol=1e-5, atol=2e-6)
  scores = oracles.outlyingness(rows, f=3)
  # Squares of projections on a direction with an error of about 1e-5.
  np.testing.assert_allclose(
    info['scores'], scores, rtol=1e-3, atol=1e-4 * np.max(scores)
  )


def test_dnc_of_draws_intersects_what_each_keeps():
  tree = pool.stack('cnn', 11)
  attacked = jax.tree.map(jnp.asarray, tree)
  attacked = jax.tree.map(lambda x: x.at[jnp.array([2, 6])].add(50), attacked)
  rule = jax.jit(
    functools.partial(lca.explain(lca.dnc), f=2, num_iters=4, subsample_dim=200)
  )
  outs = []
  for seed in range(3):
    out, info = rule(attacked, key=jax.random.key(seed))
    assert set(info) >= {'weights', 'selected', 'rejected'}
    assert 'scores' not in info
    selected = np.asarray(info['selected'])
    # All four draws drop the same two clients, far out in every coordinate.
    assert np.flatnonzero(~selected).tolist() == [2, 6]
    np.testing.assert_allclose(info['weights'], selected / 9, rtol=1e-6)
    outs.append(out)
  honest = jax.tree.map(lambda x: np.mean(np.delete(x, [2, 6], 0), 0), tree)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)
  jax.tree.map(close, outs[0], honest)


def test_dnc_of_draws_that_share_nobody_is_nan():
  """Each of forty draws of one coordinate drops two of five clients."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 400)), jnp.float32)
  hyper = {'f': 2, 'num_iters': 40, 'subsample_dim': 1}
  out, info = lca.explain(lca.dnc)(x, key=jax.random.key(0), **hyper)
  assert np.all(np.isnan(out)) and not np.any(info['selected'])


def test_dnc_draws_with_its_key():
  x = jnp.asarray(pool.stack('leaf', 25))
  hyper = {'f': 5, 'subsample_dim': 10}
  rule = lambda seed: lca.dnc(x, key=jax.random.key(seed), **hyper)  # noqa: E731
  np.testing.assert_array_equal(rule(0), rule(0))
  assert any(not np.allclose(rule(0), rule(seed)) for seed in (1, 2, 3))
