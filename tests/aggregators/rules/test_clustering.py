"""Tests of SignGuard and of clipped clustering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest
from stateful_cases import clipped_mean

import lca
from lca.aggregators.rules.clustering import larger_cluster

# SignGuard -----------------------------------------------------------------


def test_sign_guard_filters_by_norm_and_by_signs():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(12, 400)).astype(np.float32) + np.float32(1)
  x[1] *= 4  # too long
  x[2] *= 0.05  # too short
  x[3:6] *= -1  # with other signs
  x[7] *= 2  # long, and clipped
  rows = x.astype(float)
  (clusters,) = oracles.sign_guard_choices(rows)[1]
  kept = [0, 6, 7, 8, 9, 10, 11]
  assert np.flatnonzero(clusters).tolist() == [0, 1, 2, *kept[1:]]
  out, info = lca.explain(lca.sign_guard)(jnp.asarray(x), fraction=1.0)
  assert np.flatnonzero(info['selected']).tolist() == kept
  clip = oracles.clip_factors(rows)
  assert clip[7] < 1
  want = np.mean(clip[kept, None] * rows[kept], axis=0)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
  # A tenth of the coordinates, 40 of them, leads to the same decision.
  _, info = lca.explain(lca.sign_guard)(jnp.asarray(x), key=jax.random.key(0))
  selected = np.flatnonzero(info['selected'])
  assert set(selected) <= set(kept) and len(selected) >= 4


@functools.cache
def sign_guard(by):
  return jax.jit(lca.layerwise(lca.sign_guard, by=by))


@pytest.mark.parametrize(
  ('name', 'by'),
  [
    ('cnn', 'model'),
    ('pair', 'leaf'),
    pytest.param('cnn', 'leaf', marks=pytest.mark.thorough),
  ],
)
@pytest.mark.parametrize('bad', [np.nan, 1e30, 1e10, 0.0])
def test_sign_guard_with_a_key_survives_any_rows(bad, name, by):
  tree = pool.stack(name, 11)
  tree = pool.replace_rows(tree, [1, 4, 8, 9], lambda leaf: np.float32(bad))
  outs = [sign_guard(by)(tree, key=jax.random.key(s)) for s in (0, 0, 1)]
  for out in outs:
    for leaf, own in zip(
      jax.tree.leaves(out), jax.tree.leaves(tree), strict=True
    ):
      assert np.all(np.isfinite(leaf))
      honest = np.delete(own, [1, 4, 8, 9], 0)
      assert np.max(np.abs(leaf)) <= np.max(np.abs(honest)) * (1 + 1e-5)
  jax.tree.map(np.testing.assert_array_equal, outs[0], outs[1])


def test_sign_guard_of_two_as_large_takes_the_first():
  x = jnp.array([[-1.0, -1], [1, 1], [-1, -1], [1, 1]])
  _, info = lca.explain(lca.sign_guard)(x, fraction=1.0)
  assert np.flatnonzero(info['selected']).tolist() == [0, 2]


# The error of sums of rounded products, over several rounds.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5)


# Clipped clustering --------------------------------------------------------


@pytest.mark.quick
def test_clipped_clustering_remembers_the_norms():
  pair = lca.clipped_clustering(window=6)
  state = pair.init(jnp.zeros(1))
  for values, want in [
    ([1.0, 1, 1], 1),
    ([4.0, 4, 4], 2.5),  # half of the window is ones
    ([4.0, 4, 4], 4),  # the ones have left the window
  ]:
    out, state = pair.update(jnp.array(values)[:, None], state)
    CLOSE(out, [want])


def test_clipped_clustering_takes_the_larger_cluster():
  x = jnp.array([[-1.0, 0], [1, 0.1], [1, -0.1], [1, 0], [-1, 0.1]])
  pair = lca.clipped_clustering()
  _, _, info = lca.explain(pair)(x, pair.init(x[0]))
  assert np.flatnonzero(info['selected']).tolist() == [1, 2, 3]
  # In a tie, the cluster with client 0 is the larger one.
  _, _, info = lca.explain(pair)(x[:4].at[3].set(x[4]), pair.init(x[0]))
  assert np.flatnonzero(info['selected']).tolist() == [0, 3]


@pytest.mark.parametrize('seed', range(5))
def test_rounding_breaks_no_ties(seed):
  """Clients lie on a grid, so that many distances are equal."""
  rng = np.random.default_rng(seed)
  places = rng.integers(0, 5, size=(11, 2))
  apart = np.linalg.norm(places[:, None] - places, axis=-1)
  absent = jnp.zeros(11, bool)
  want = larger_cluster(jnp.float32(apart), absent)
  for _ in range(10):
    rounded = apart * (1 + rng.uniform(-1e-7, 1e-7, apart.shape))
    got = larger_cluster(jnp.float32(rounded), absent)
    np.testing.assert_array_equal(got, want)


def test_rejected_norms_do_not_count():
  """The median is over the accepted norms of the last two rounds."""
  pair = lca.clipped_clustering(window=10)
  oracle = None
  state = pair.init(jnp.zeros(1))
  for values in (
    [1.0, 1, 1, 1],
    [np.nan, np.nan, 3, 5],
    [9.0, np.nan, 9, np.nan],
    [9.0, 9, 9, np.inf],
  ):
    x = np.array(values)[:, None]
    out, state = pair.update(jnp.asarray(x, jnp.float32), state)
    choices, factors, oracle = oracles.clipped_clustering_choices(
      x, oracle, window=10
    )
    CLOSE(out, clipped_mean(x, factors, choices[0]))


def test_a_minority_never_makes_most_of_the_memory():
  """The update stays bounded for every window and every place of the liar."""
  x = jnp.array([[1e15, 0], [1, 0], [1, 0.1]])
  for window in (3, 4, 5, 8):
    pair = lca.clipped_clustering(window=window)
    state = pair.init(x[0])
    for _ in range(4):
      out, state = pair.update(x, state)
      assert np.linalg.norm(out) <= np.linalg.norm(x[2]) * (1 + 1e-6)


def test_the_window_holds_a_round():
  pair = lca.clipped_clustering(window=5)
  with pytest.raises(ValueError, match=r'(?s)(n=6|window=5).*(n=6|window=5)'):
    pair.update(jnp.ones((6, 2)), pair.init(jnp.ones(2)))
