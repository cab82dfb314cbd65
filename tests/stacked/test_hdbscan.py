"""Tests of HDBSCAN against its definition, and scikit-learn's."""

import functools

import jax
import numpy as np
import oracles
import pytest

from lca.stacked.hdbscan import hdbscan, linkage_order

SHAPES = [(2, 2, None), (12, 2, 1), (12, 3, None), (30, 5, None), (30, 3, 7)]


@functools.cache
def jitted(m, samples, single):
  options = {'min_cluster_size': m, 'min_samples': samples}
  return jax.jit(
    functools.partial(hdbscan, allow_single_cluster=single, **options)
  )


def draw(n, seed, digits=None):
  """Returns float32 distances of points around a few centres.

  Rounded to few digits, many of them tie, and points coincide.
  """
  rng = np.random.default_rng([n, seed])
  centres = 4 * rng.normal(size=(rng.integers(1, 5), 2))
  spread = rng.uniform(0.1, 1.5) * rng.normal(size=(n, 2))
  points = centres[rng.integers(0, len(centres), n)] + spread
  matrix = np.linalg.norm(points[:, None] - points, axis=-1)
  return (matrix if digits is None else np.round(matrix, digits)).astype('f4')


def same_clusters(labels, others):
  equal = (labels[:, None] == labels) == (others[:, None] == others)
  return np.all(equal) and np.array_equal(labels < 0, others < 0)


@pytest.mark.parametrize('single', [False, True])
@pytest.mark.parametrize(('n', 'm', 'samples'), SHAPES)
def test_follows_the_definition(n, m, samples, single):
  for seed in range(8):
    for digits in (None, 0, 1):
      matrix = draw(n, seed, digits)
      want = oracles.hdbscan(
        matrix, min_cluster_size=m, min_samples=samples, single=single
      )
      found = jitted(m, samples, single)(matrix)
      np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize('single', [False, True])
@pytest.mark.parametrize(('n', 'm', 'samples'), [(12, 2, 1), (30, 5, 1)])
def test_is_that_of_scikit_learn_without_ties(n, m, samples, single):
  cluster = pytest.importorskip('sklearn.cluster')
  find = cluster.HDBSCAN(
    metric='precomputed',
    min_cluster_size=m,
    min_samples=samples,
    allow_single_cluster=single,
    copy=True,
  )
  for seed in range(12):
    matrix = draw(n, seed)
    want = find.fit(matrix.astype(float)).labels_
    found = np.asarray(jitted(m, samples, single)(matrix))
    assert same_clusters(found, want)


def test_is_mostly_that_of_scikit_learn_with_core_distances():
  """Core distances tie: a point is often as far from two clusters."""
  cluster = pytest.importorskip('sklearn.cluster')
  find = cluster.HDBSCAN(metric='precomputed', min_cluster_size=5, copy=True)
  matrices = [draw(30, seed) for seed in range(20)]
  same = [
    same_clusters(
      np.asarray(jitted(5, None, False)(matrix)),
      find.fit(matrix.astype(float)).labels_,
    )
    for matrix in matrices
  ]
  assert np.mean(same) > 0.8


@pytest.mark.parametrize('digits', [None, 0])
def test_the_order_of_the_points_does_not_matter(digits):
  find = jitted(3, None, False)
  for seed in range(8):
    matrix = draw(12, seed, digits)
    labels = np.asarray(find(matrix))
    order = np.random.default_rng(seed).permutation(12)
    moved = np.asarray(find(matrix[np.ix_(order, order)]))
    assert same_clusters(moved, labels[order])
    # Clusters are numbered by their first points.
    first = [np.argmax(moved == k) for k in range(moved.max() + 1)]
    assert first == sorted(first)


def test_points_that_are_left_out():
  find = jitted(3, None, False)
  for seed in range(8):
    matrix = draw(12, seed)
    absent = np.random.default_rng(seed).random(12) < 0.3
    unknown = absent[:, None] | absent
    labels = np.asarray(find(np.where(unknown, np.nan, matrix), absent))
    kept = np.flatnonzero(~absent)
    want = oracles.hdbscan(matrix[np.ix_(kept, kept)], min_cluster_size=3)
    np.testing.assert_array_equal(labels[kept], want)
    assert np.all(labels[absent] == -1)
  assert np.all(np.asarray(find(matrix, np.ones(12, bool))) == -1)


def test_points_that_coincide():
  """At an infinite density, and beside clusters of a finite one."""
  x = np.array([0.0, 0, 0, 5, 5, 5, 9, 9.5, 9.9, 20], np.float32)
  matrix = abs(x[:, None] - x)
  labels = jitted(3, 1, False)(matrix)
  np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1, 2, 2, 2, -1])
  nowhere = np.zeros((12, 12), np.float32)
  assert np.all(np.asarray(jitted(3, None, False)(nowhere)) == -1)
  assert np.all(np.asarray(jitted(3, None, True)(nowhere)) == 0)


@pytest.mark.parametrize('n', [1, 2, 4])
def test_few_points_are_noise(n):
  matrix = draw(n, 0)
  for single in (False, True):
    labels = jitted(5, None, single)(matrix)
    np.testing.assert_array_equal(labels, np.full(n, -1))


@pytest.mark.parametrize('size', [1e-45, 1e-38, 1e-30, 1e30, 3e38])
def test_distances_of_any_size(size):
  """Subnormal ones, which may count as zeros, and the largest ones."""
  x = np.array([0.0, 0.01, 0.02, 0.7, 0.71, 0.72, 1.0])
  matrix = (size * abs(x[:, None] - x)).astype(np.float32)
  labels = np.asarray(jitted(3, 1, False)(matrix))
  if size >= 1e-30:
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1, 1])
  assert labels.shape == (7,)


def test_infinite_distances_separate_clusters():
  matrix = np.full((8, 8), np.inf, np.float32)
  for members in ([0, 2, 4], [1, 3, 5]):
    matrix[np.ix_(members, members)] = 1
  np.fill_diagonal(matrix, 0)
  labels = jitted(3, 1, False)(matrix)
  np.testing.assert_array_equal(labels, [0, 1, 0, 1, 0, 1, -1, -1])


def test_vmap_is_a_loop():
  matrices = np.stack([draw(12, seed, 0) for seed in range(5)])
  find = jitted(3, None, False)
  for labels, matrix in zip(jax.vmap(find)(matrices), matrices, strict=True):
    np.testing.assert_array_equal(labels, find(matrix))


@pytest.mark.parametrize('digits', [None, 0])
def test_clusters_are_runs_of_the_order(digits):
  matrix = draw(12, 3, digits)
  order, steps = jax.jit(linkage_order)(matrix)
  assert sorted(np.asarray(order).tolist()) == list(range(12))
  for threshold in np.unique(steps[1:]):
    run = np.cumsum(np.asarray(steps) > threshold)
    runs = {frozenset(np.asarray(order)[run == k].tolist()) for k in run}
    joined = oracles.connected(matrix, range(12), threshold)
    assert runs == {frozenset(part) for part in joined}


def test_follows_float64():
  """In float32 these distances are all 1."""
  with jax.enable_x64(True):
    matrix = 1 + 1e-9 * draw(12, 1).astype(float)
    np.fill_diagonal(matrix, 0)
    want = oracles.hdbscan(matrix, min_cluster_size=2, min_samples=1)
    found = jitted(2, 1, False)(matrix)
    np.testing.assert_array_equal(found, want)
    assert np.max(want) > 0
