"""Tests of FLAME."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca
from lca.aggregators.rules.flame import majority_cluster
from lca.stacked import models_gram

explain = jax.jit(
  lambda updates, params: lca.explain(lca.flame)(updates, params=params)
)


def selected(updates, params):
  """Returns the indices of the clients that FLAME selects."""
  _, info = explain(updates, params)
  return np.flatnonzero(info['selected']).tolist()


def at_angles(*degrees):
  """Returns models of length 1 at angles in the plane, as float32 rows."""
  turned = np.deg2rad(degrees)
  return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)


# The cluster ---------------------------------------------------------------


def test_the_larger_of_two_clusters_by_hand():
  """Four rows of seven lie within 3 degrees, and three lie elsewhere."""
  models = at_angles(40, 0, 41, 1, 2, 42, 3)
  w = np.array([1, 0], np.float32)
  out, info = explain(models - w, w)
  assert np.flatnonzero(info['selected']).tolist() == [1, 3, 4, 6]
  lengths = np.linalg.norm(models - w, axis=1)
  assert np.median(lengths) == lengths[6]  # no row of the cluster is clipped
  want = np.mean((models - w)[[1, 3, 4, 6]], axis=0)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-7)


def test_long_rows_of_the_cluster_are_clipped():
  """The median norm is 4; the model at 100 has the direction of the others."""
  x = jnp.array([[2.0, 0], [4, 0], [100, 0], [0, -3], [0, -9]])
  out, info = explain(x, jnp.array([1.0, 0]))
  np.testing.assert_allclose(out, [(2 + 4 + 4) / 3, 0], rtol=1e-6)
  want = np.array([1, 1, 0.04, 0, 0]) / 3
  np.testing.assert_allclose(info['weights'], want, rtol=1e-5)


def test_clients_that_join_at_once_all_join():
  """At 0 degrees, two are together; those at 5 and -5 join at the same time."""
  none = np.zeros(2, np.float32)
  models = at_angles(0, 5, 0, -5, 60)
  models[3] = models[1] * np.array([1, -1])  # symmetric to the last bit
  assert selected(models, none) == [0, 1, 2, 3]  # three would be a majority
  models = at_angles(0, 5, 0, -6, 60)
  assert selected(models, none) == [0, 1, 2]


def test_a_chain_is_one_cluster():
  """Neighbours are 10 degrees apart, and the ends of the chain are 50."""
  none = np.zeros(2, np.float32)
  models = at_angles(0, 10, 20, 30, 40, 50, 130, 130.1, 130.2)
  assert selected(models, none) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize('n', [1, 2, 3, 4])
def test_few_clients(n):
  """A majority of two are both, and of four it is three."""
  models = at_angles(0, 1, 50, 52)[:n]
  # The last two of four join at 2 degrees, and the pairs at 49.
  want = {1: [0], 2: [0, 1], 3: [0, 1], 4: [0, 1, 2, 3]}[n]
  assert selected(models, np.zeros(2, np.float32)) == want


def test_zero_rows_are_clients_with_the_old_model():
  x = np.zeros((5, 3), np.float32)
  x[3:] = [[0, 90, 0], [0, 0, 90]]
  out, info = explain(x, np.ones(3, np.float32))
  assert np.flatnonzero(info['selected']).tolist() == [0, 1, 2]
  np.testing.assert_array_equal(out, np.zeros(3))
  # All models are zero, and equally near.
  assert selected(np.zeros((5, 3), np.float32), np.zeros(3)) == [0, 1, 2, 3, 4]


# Against the oracle, and HDBSCAN -------------------------------------------


def draw(seed, n, ratio=1.0):
  """Returns updates whose spread is `ratio` of the parameters, and these.

  Some updates have another direction, are NaN or are zero.
  """
  rng = np.random.default_rng([seed, n])
  w, common, other = rng.normal(size=(3, 200))
  x = 2 * rng.random() * common
  x = x + rng.uniform(0.3, 2, size=(n, 1)) * rng.normal(size=(n, 200))
  if seed % 2:
    x[: (n - 1) // 2] += 4 * other
  if seed % 3 == 0:
    x[1] = np.nan
  if seed % 5 == 0:
    x[2] = 0
  return (ratio * x).astype(np.float32), w.astype(np.float32)


@pytest.mark.parametrize('n', [4, 11, 12, 25])
@pytest.mark.parametrize('ratio', [1e-6, 1e-4, 1e-2, 1, 100])
def test_selects_as_in_float64(ratio, n):
  """The cosines of models whose spread is small round to 1 in float32."""
  for seed in range(6):
    x, w = draw(seed, n, ratio)
    want, _ = oracles.flame_cluster(x.astype(float), params=w.astype(float))
    assert selected(x, w) == want


def test_updates_that_are_close_to_each_other():
  """The updates' common part is 1e4 times their spread, and 3 times w."""
  for seed in range(6):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=200).astype(np.float32)
    size = rng.uniform(0.5, 2, size=(11, 1))
    noise = 1e-4 * size * rng.normal(size=(11, 200))
    x = (3 * rng.normal(size=200) + noise).astype(np.float32)
    want, _ = oracles.flame_cluster(x.astype(float), params=w.astype(float))
    assert selected(x, w) == want


@pytest.mark.parametrize('ratio', [1e-6, 1e-4, 1])
@pytest.mark.parametrize('kind', ['1e3', '1e10', '1e17', 'erased', 'scaled'])
def test_other_models_hide_no_near_ones(kind, ratio):
  """A client may send minus w, so that only rounding is left of its model."""
  for seed in range(6):
    rng = np.random.default_rng(seed)
    x, w = draw(2 * seed, 11, ratio)
    bad = rng.permutation(11)[:4]
    if kind == 'erased':
      x[bad] = -w * (1 + rng.integers(-1, 2, size=(4, 1)) * np.float32(2**-23))
    elif kind == 'scaled':
      x[bad] += w * rng.uniform(0, 3, size=(4, 1)).astype(np.float32)
    else:
      x[bad] = float(kind) * rng.normal(size=(4, 200))
    want, _ = oracles.flame_cluster(x.astype(float), params=w.astype(float))
    assert selected(x, w) == want


def test_blocks_of_columns_add_up(monkeypatch):
  """GPUs and TPUs make the models of a block of columns at a time."""
  monkeypatch.setattr(models_gram, '_WIDTH', 30)
  for ratio in (1, 1e-4):
    x, w = draw(1, 11, ratio)
    gram = models_gram.models_gram(x, w)
    want = oracles.model_distances(x.astype(float), params=w.astype(float))
    got = lca.distances(gram, 'cosine')
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-15)


@pytest.mark.parametrize('n', [2, 5, 12, 25])
def test_the_cluster_is_that_of_hdbscan(n):
  cluster = pytest.importorskip('sklearn.cluster')
  find = cluster.HDBSCAN(
    metric='precomputed',
    min_cluster_size=n // 2 + 1,
    min_samples=1,
    allow_single_cluster=True,
    copy=True,
  )
  for seed in range(10):
    rng = np.random.default_rng([seed, n])
    rows = rng.normal(size=(n, 6)) * rng.uniform(0.1, 2, size=(n, 1))
    matrix = oracles.model_distances(rows, params=np.ones(6))
    labels = find.fit(matrix).labels_
    found = majority_cluster(jnp.asarray(matrix), jnp.zeros(n, bool))
    np.testing.assert_array_equal(found, labels == 0)


# Attacks -------------------------------------------------------------------


@pytest.mark.parametrize('scale', [1.0, 100.0, 1e6])
@pytest.mark.parametrize('position', ['first', 'last'])
def test_a_backdoor_in_another_direction_is_left_out(position, scale):
  """Six honest of eleven suffice if they are near each other."""
  rng = np.random.default_rng(1)
  w, backdoor = rng.normal(size=(2, 300))
  x = 0.1 * rng.normal(size=(11, 300))
  bad = np.arange(5) if position == 'first' else np.arange(6, 11)
  x[bad] += scale * backdoor
  honest = np.setdiff1d(np.arange(11), bad)
  x, w = x.astype(np.float32), w.astype(np.float32)
  assert selected(x, w) == honest.tolist()
  out, _ = explain(x, w)
  assert np.linalg.norm(out) <= np.max(np.linalg.norm(x[honest], axis=1))


def test_a_majority_of_near_rows_is_always_selected():
  """Others may lie anywhere, as near to the majority as they like."""
  for seed in range(20):
    rng = np.random.default_rng(seed)
    models = rng.normal(size=(11, 40))
    near = rng.permutation(11)[:6]
    models[near] = models[near[0]] + 0.02 * rng.normal(size=(6, 40))
    w = rng.normal(size=40)
    chosen = selected((models - w).astype(np.float32), w.astype(np.float32))
    assert {*near.tolist()} <= {*chosen}


def test_rejected_rows_and_models():
  x = pool.stack('leaf', 11)
  x[[1, 4]], x[7] = np.nan, 1e19
  w = np.ones(50, np.float32)
  _, info = explain(x, w)
  assert np.flatnonzero(info['rejected']).tolist() == [1, 4, 7]
  assert not np.any(info['weights'][np.array([1, 4, 7])])
  for lost in (np.nan, np.inf, 1e30):  # no model is left
    out, info = explain(x, np.full(50, lost, np.float32))
    assert np.all(np.isnan(out)) and np.all(info['rejected'])


# Noise ---------------------------------------------------------------------


def test_the_noise_has_its_deviation():
  rng = np.random.default_rng(0)
  tree = {
    'kernel': jnp.asarray(rng.normal(size=(7, 100, 50)), jnp.float32),
    'bias': jnp.asarray(rng.normal(size=(7, 3000)), jnp.bfloat16),
  }
  params = jax.tree.map(lambda x: jnp.ones(x.shape[1:], x.dtype), tree)
  rule = jax.jit(
    lambda key, tree=tree: lca.flame(tree, params=params, noise=0.5, key=key)
  )
  exact = lca.flame(tree, params=params)
  size = lca.geometry.median_norm(lca.geometry.norms_gram(tree))
  one, again, other = (rule(jax.random.key(seed)) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, one, again)
  for name, leaf in exact.items():
    assert one[name].dtype == leaf.dtype
    added = np.asarray(one[name] - leaf, np.float32).ravel() / (0.5 * size)
    drawn = np.asarray(other[name] - leaf, np.float32).ravel() / (0.5 * size)
    assert abs(np.std(added) - 1) < 0.05 and abs(np.mean(added)) < 0.05
    assert abs(np.mean(added * drawn)) < 0.06  # another key, other numbers


# Arguments -----------------------------------------------------------------


def test_what_flame_needs():
  x = jnp.ones((6, 2))
  with pytest.raises(TypeError, match='params'):
    lca.flame(x)
  with pytest.raises(ValueError, match='shaped'):
    lca.flame(x, params=jnp.ones(3))
  with pytest.raises(ValueError, match=r'flame needs a key .*noise=0\.1'):
    lca.flame(x, params=x[0], noise=0.1)
  for noise in (-0.1, np.inf, np.nan):
    with pytest.raises(ValueError, match=f'flame needs .*noise={noise}'):
      lca.flame(x, params=x[0], noise=noise, key=jax.random.key(0))
  with pytest.raises(TypeError, match='flame needs params from the round'):
    lca.stateless(lca.flame).update(x, ())


def test_layers_get_their_own_parameters():
  tree = jax.tree.map(jnp.asarray, pool.stack('pair', 11))
  params = jax.tree.map(lambda x: jnp.cos(jnp.arange(x[0].size)), tree)
  params = jax.tree.map(lambda p, x: p.reshape(x.shape[1:]), params, tree)
  out = lca.layerwise(lca.flame)(tree, params=params)
  for name, leaf in tree.items():
    want = lca.flame(leaf, params=params[name])
    np.testing.assert_allclose(out[name], want, rtol=1e-5, atol=1e-6)
  aggregator = lca.stateless(lca.layerwise(lca.flame))
  same, _ = aggregator.update(tree, (), params=params, key=jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, same, out)
