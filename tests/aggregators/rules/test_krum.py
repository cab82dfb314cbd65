"""Tests of Krum, Multi-Krum and the medoid."""

import functools

import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca

# Options and ties ----------------------------------------------------------


@pytest.mark.parametrize('power', [1, 2, 4])
@pytest.mark.parametrize('num_neighbors', [None, 1, 6])
@pytest.mark.parametrize('f', [0, 1, 4])
def test_krum_options_follow_the_oracle(f, num_neighbors, power):
  x = pool.stack('leaf', 11)
  hyper = {'f': f, 'num_neighbors': num_neighbors, 'power': power}
  out, info = lca.explain(lca.krum)(jnp.asarray(x), **hyper)
  scores = oracles.krum_scores(x.astype(float), **hyper)
  # Squared distances of norms near 10 have seven digits; one is cancelled.
  np.testing.assert_allclose(info['scores'], scores, rtol=2e-6)
  np.testing.assert_array_equal(out, x[np.argmin(scores)])
  out, info = lca.explain(lca.multi_krum)(jnp.asarray(x), m=3, **hyper)
  np.testing.assert_allclose(info['scores'], scores, rtol=2e-6)
  want = oracles.mix(
    x.astype(float),
    oracles.weights_of('multi_krum', x.astype(float), {'m': 3, **hyper}),
  )
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


def test_powers_default_to_the_square_in_krum_and_to_one_in_the_medoid():
  x = jnp.asarray(pool.stack('leaf', 11))
  scores = lambda rule, **k: lca.explain(rule)(x, **k)[1]['scores']  # noqa: E731
  np.testing.assert_array_equal(
    scores(lca.krum, f=2), scores(lca.krum, f=2, power=2)
  )
  np.testing.assert_array_equal(scores(lca.medoid), scores(lca.medoid, power=1))


@pytest.mark.parametrize('power', [1, 2])
def test_medoid_powers_follow_the_oracle(power):
  x = np.array([[0.0], [1], [2], [3], [99]], np.float32)
  out = lca.medoid(jnp.asarray(x), power=power)
  scores = oracles.medoid_scores(x.astype(float), power=power)
  np.testing.assert_array_equal(out, x[np.argmin(scores)])
  assert out[0] == {1: 2, 2: 3}[power]  # the middle; the nearest to the mean 21


def test_multi_krum_of_one_is_krum():
  x = jnp.asarray(pool.stack('leaf', 11))
  np.testing.assert_array_equal(lca.multi_krum(x, f=3, m=1), lca.krum(x, f=3))


def test_ties_go_to_the_lowest_index():
  x = jnp.array([[9.0], [1], [1], [1], [1], [1], [-9]])
  for rule, hyper, m in [
    (lca.krum, {'f': 1}, 1),
    (lca.multi_krum, {'f': 1, 'm': 3}, 3),
    (lca.medoid, {}, 1),
  ]:
    _, info = lca.explain(rule)(x, **hyper)
    assert np.flatnonzero(info['selected']).tolist() == list(range(1, 1 + m))


# Preconditions -------------------------------------------------------------


@pytest.mark.parametrize(
  ('n', 'hyper', 'values'),
  [
    (4, {'f': 1}, ['n=4', 'f=1']),
    (5, {'f': 2}, ['n=5', 'f=2']),
    (11, {'f': -1}, ['f=-1']),
    (11, {'f': 2.0}, ['integer', 'f=2.0']),
    (11, {'f': 2, 'num_neighbors': 0}, ['num_neighbors=0']),
    (11, {'f': 2, 'num_neighbors': 11}, ['n=11', 'num_neighbors=11']),
    (11, {'f': 2, 'power': 3}, ['power', '3']),
    (11, {'f': 2, 'distance': 'cosine', 'power': 2}, ['power=2', 'cosine']),
    (11, {'f': 2, 'distance': 'manhattan'}, ['manhattan']),
  ],
)
@pytest.mark.parametrize(
  'rule', [lca.krum, functools.partial(lca.multi_krum, m=1)]
)
def test_krum_preconditions(rule, n, hyper, values):
  with pytest.raises(ValueError) as error:
    rule(jnp.zeros((n, 3)), **hyper)
  assert all(value in str(error.value) for value in values), error.value


@pytest.mark.parametrize('m', [0, -1, 10, 12])
def test_multi_krum_needs_m_in_range(m):
  with pytest.raises(ValueError, match=f'n=11, f=2, m={m}'):
    lca.multi_krum(jnp.zeros((11, 3)), f=2, m=m)
  lca.multi_krum(jnp.zeros((11, 3)), f=2, m=9)  # the largest


def test_medoid_preconditions():
  x = jnp.zeros((5, 3))
  with pytest.raises(ValueError, match='3'):
    lca.medoid(x, power=3)
  with pytest.raises(ValueError, match='power=1'):
    lca.medoid(x, distance='cosine', power=1)
  with pytest.raises(ValueError, match='manhattan'):
    lca.medoid(x, distance='manhattan')
