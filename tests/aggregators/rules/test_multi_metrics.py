"""Tests of multi-metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca
from lca.aggregators.rules.multi_metrics import _features

explain = jax.jit(lca.explain(lca.multi_metrics))


# Features ------------------------------------------------------------------


def test_the_features_are_sums_of_distances():
  """The rows are longer than a chunk of columns; one is rejected, one zero."""
  x = pool.stack('wide', 5)
  x[1], x[3] = np.nan, 0
  tree = {'a': jnp.asarray(x[:, :99_000]), 'b': jnp.asarray(x[:, 99_000:])}
  good = np.arange(5) != 1
  got = jax.jit(_features)(tree, lca.gram(tree), good)
  want = oracles.distance_sums(x.astype(float))
  np.testing.assert_allclose(got[good], want, rtol=1e-5)
  assert not np.any(got[1])


@pytest.mark.parametrize('ratio', [1e-2, 1e-4, 1e-6])
def test_differences_of_norms_keep_their_digits(ratio):
  rng = np.random.default_rng(0)
  x = rng.normal(size=300) + ratio * rng.normal(size=(9, 300))
  x[4] *= 3
  x = x.astype(np.float32)
  norms = np.linalg.norm(x.astype(float), axis=1)
  got = lca.geometry.norm_differences(lca.gram(jnp.asarray(x)))
  want = norms[:, None] - norms
  near = np.arange(9) != 4
  np.testing.assert_allclose(
    got[near][:, near], want[near][:, near], rtol=1e-3, atol=1e-4 * ratio
  )
  np.testing.assert_allclose(got[4], want[4], rtol=1e-5, atol=1e-6)


# Singular covariances ------------------------------------------------------


@pytest.mark.parametrize('n', [1, 2, 3])
def test_few_clients_have_a_singular_covariance(n):
  x = pool.stack('leaf', n)
  _, info = explain(x)
  want = oracles.multi_metrics_scores(x.astype(float))
  np.testing.assert_allclose(info['scores'], want, rtol=1e-4, atol=1e-4)
  assert np.sum(info['selected']) == 1


def test_features_that_are_proportional_count_once():
  """On a ray, cosines say nothing and both other distances are the same."""
  x = np.linspace(1, 2, 10, dtype=np.float32)[:, None] ** 3
  _, info = explain(x)
  v = np.sum(np.abs(x.astype(float) - x.T), axis=1)
  np.testing.assert_allclose(
    info['scores'], v**2 / np.var(v, ddof=1), rtol=1e-4
  )
  assert np.flatnonzero(info['selected']).tolist() == [
    *sorted(np.argsort(v)[:3])
  ]


# Selection -----------------------------------------------------------------


@pytest.mark.parametrize(
  ('fraction', 'count'), [(0.01, 1), (0.3, 3), (0.5, 5), (1.0, 11)]
)
def test_a_fraction_of_the_clients_is_selected(fraction, count):
  x = pool.stack('leaf', 11)
  _, info = lca.explain(lca.multi_metrics)(x, fraction=fraction)
  scores = oracles.multi_metrics_scores(x.astype(float))
  want = np.sort(np.argsort(scores)[:count])
  np.testing.assert_array_equal(np.flatnonzero(info['selected']), want)


def test_more_examples_weigh_more():
  x, sizes = pool.stack('leaf', 11), np.arange(1.0, 12.0, dtype=np.float32)
  out, info = explain(x, weights=sizes)
  _, equal = explain(x)
  np.testing.assert_array_equal(info['selected'], equal['selected'])
  want = np.average(x, axis=0, weights=sizes * info['selected'])
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
  aggregator = lca.make_aggregator(
    {'name': 'multi_metrics', 'weights': 'examples'}
  )
  same, _ = aggregator.update(x, (), weights=sizes)
  np.testing.assert_allclose(same, out, rtol=1e-6)


# Attacks -------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['replacement', 'other direction', 'copies'])
def test_a_backdoor_is_left_out(kind):
  """One attacker of eleven, or two that send the same."""
  for seed in range(10):
    rng = np.random.default_rng(seed)
    common, backdoor = rng.normal(size=(2, 2000))
    x = common + rng.uniform(0.8, 1.2, (11, 1)) * rng.normal(size=(11, 2000))
    bad = rng.permutation(11)[: 1 + (kind == 'copies')]
    if kind == 'replacement':
      x[bad] += 10 * backdoor
    elif kind == 'copies':
      x[bad] = common + 2 * backdoor
    else:  # as long as the others' updates
      x[bad] += backdoor - common
    _, info = explain(x.astype(np.float32))
    assert not np.any(info['selected'][bad])
