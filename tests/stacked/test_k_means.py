"""Tests of k-means and of the gap statistic."""

import jax.numpy as jnp
import numpy as np
import pytest
from oracles.rflbat import gap_clusters

from lca.stacked import k_means
from lca.stacked.k_means import clusters_by_gap


def blobs(seed, count, n=40, spread=0.3):
  """Returns points around up to three places that are 5 or more apart."""
  rng = np.random.default_rng(seed)
  places = np.array([[0, 0], [5, 1], [2, 6]])
  truth = rng.permutation(np.arange(n) % count)
  points = places[truth] + spread * rng.normal(size=(n, 2))
  return points.astype(np.float32), truth


def same_partition(labels, others):
  labels, others = np.asarray(labels).tolist(), others.tolist()
  pairs = {*zip(labels, others, strict=True)}
  return len(pairs) == len({*labels}) == len({*others})


@pytest.mark.parametrize('count', [1, 2, 3])
def test_the_gap_statistic_finds_the_blobs(count):
  for seed in range(5):
    points, truth = blobs(seed, count)
    labels = clusters_by_gap(points, jnp.ones(40, bool), 9)
    assert same_partition(labels, truth)


def test_it_follows_the_oracle_without_clear_clusters():
  for seed in range(10):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(25, 2)) * [3, 1] + 4 * (rng.random((25, 1)) < 0.4)
    points = points.astype(np.float32)
    labels = clusters_by_gap(points, jnp.ones(25, bool), 6)
    want = gap_clusters(points.astype(float), 6, 25)
    assert same_partition(labels, want)


@pytest.mark.parametrize('k', [1, 2, 4, 7])
def test_the_clusters_are_those_of_scikit_learn_from_the_same_start(k):
  cluster = pytest.importorskip('sklearn.cluster')
  everywhere = jnp.ones(60, bool)
  for seed in range(3):
    points = np.random.default_rng(seed).normal(size=(60, 2))
    points = jnp.asarray(points, jnp.float32)
    starts = k_means._starts(points, everywhere, 9)
    labels, within = k_means._k_means(points, everywhere, starts, k)
    theirs = cluster.KMeans(k, init=starts[:k], n_init=1, tol=0).fit(points)
    np.testing.assert_array_equal(labels, theirs.labels_)
    np.testing.assert_allclose(within, theirs.inertia_, rtol=1e-4)


def test_points_that_are_absent_and_the_place_do_not_matter():
  points, _ = blobs(0, 3)
  present = np.arange(40) % 4 > 0
  labels = clusters_by_gap(points, present, 9)
  moved = np.where(present[:, None], 1e6 * (points - 7), np.nan)
  others = clusters_by_gap(moved.astype(np.float32), present, 9)
  np.testing.assert_array_equal(labels[present], others[present])


@pytest.mark.parametrize('count', [0, 1, 5])
def test_equal_points_are_one_cluster(count):
  points = jnp.full((5, 2), 3.0)
  labels = clusters_by_gap(points, np.arange(5) < count, 4)
  assert not np.any(labels[:count])


def test_three_places_are_three_clusters():
  """All points of a place are equal, so that nothing is left within."""
  points = jnp.array([[0.0, 0], [9, 0], [0, 8]])[jnp.arange(12) % 3]
  labels = clusters_by_gap(points, jnp.ones(12, bool), 9)
  assert same_partition(labels, np.arange(12) % 3)
