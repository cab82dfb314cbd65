"""Tests of the coordinate-wise rules."""

import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca

# Options that give other definitions ---------------------------------------


@pytest.mark.parametrize('middle', ['lower', 'upper'])
def test_meamed_may_measure_from_another_median(middle):
  x = pool.stack('leaf', 12)
  out = lca.meamed(jnp.asarray(x), f=3, median=middle)
  rows = x.astype(float)
  away = np.abs(rows - oracles.coordinate_median(rows, median=middle))
  nearest = np.argsort(away, axis=0)[:9]
  want = np.take_along_axis(rows, nearest, axis=0).mean(axis=0)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)


# Against the oracles -------------------------------------------------------


@pytest.mark.parametrize('kind', ['interpolated', 'lower', 'upper'])
@pytest.mark.parametrize('n', [1, 2, 3, 4, 5, 8, 11, 12, 25, 26])
def test_median_is_exact(n, kind):
  """The entries include ties, infinities and NaN, for every n."""
  rng = np.random.default_rng(n)
  x = rng.integers(-2, 3, size=(n, 40)).astype(np.float32)
  x[rng.random(x.shape) < 0.1] = np.inf
  x[rng.random(x.shape) < 0.1] = -np.inf
  x[rng.random(x.shape) < 0.05] = np.nan
  out = np.asarray(lca.median(jnp.asarray(x), median=kind))
  want = oracles.coordinate_median(x.astype(float), median=kind)
  # A selected NaN may be returned as NaN or as the inf that it sorts with.
  unclear = np.isnan(x).any(axis=0) & ~np.isfinite(want)
  assert not np.any(np.isfinite(out[unclear]))
  np.testing.assert_array_equal(out[~unclear], want[~unclear])


def test_median_does_not_overflow():
  x = jnp.array([[3e38], [3e38], [3e38], [3.2e38]])
  np.testing.assert_allclose(lca.median(x), [3e38], rtol=1e-6)
  x = jnp.array([[-3e38], [3e38]])
  np.testing.assert_allclose(lca.median(x), [0], atol=1e31)
  x = jnp.array([[3e38], [3e38], [3.2e38], [3.2e38]])
  for out in (lca.median(x), lca.trimmed_mean(x, f=0)):
    assert np.float32(3e38) <= out[0] <= np.float32(3.2e38)


@pytest.mark.parametrize(('n', 'f', 'f_above'), [
  (1, 0, 0), (2, 0, 1), (5, 2, 2), (6, 2, 0), (6, 0, 3), (11, 3, 5),
  (25, 11, 11), (26, 5, 5),
])  # fmt: skip
def test_trimmed_mean_follows_the_oracle(n, f, f_above):
  rng = np.random.default_rng(n)
  x = rng.normal(size=(n, 50)).astype(np.float32)
  x[rng.random(x.shape) < 0.2] = 0.5  # ties
  out = lca.trimmed_mean(jnp.asarray(x), f=f, f_above=f_above)
  want = oracles.trimmed_mean(x.astype(float), f=f, f_above=f_above)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
  if f == f_above:
    same = lca.trimmed_mean(jnp.asarray(x), f=f)
    np.testing.assert_array_equal(out, same)


@pytest.mark.parametrize('large', [1e9, 1e38, np.inf, np.nan])
def test_what_is_trimmed_leaves_no_trace(large):
  x = pool.stack('leaf', 11)
  clean = np.sort(x, axis=0)
  x[[2, 5]] = large
  x[[7, 9]] = -large
  out = lca.trimmed_mean(jnp.asarray(x), f=4)
  other = x.copy()
  other[[2, 5]] = np.inf
  other[[7, 9]] = np.inf if np.isnan(large) else -np.inf
  same = lca.trimmed_mean(jnp.asarray(other), f=4)
  np.testing.assert_array_equal(out, same)
  assert np.all(out >= clean[0]) and np.all(out <= clean[-1])


@pytest.mark.parametrize(('n', 'f'), [(3, 1), (4, 1), (7, 2), (11, 4), (12, 5)])
def test_meamed_shares_the_last_places(n, f):
  """Small whole numbers have exact distances to the median, with ties."""
  rng = np.random.default_rng(n)
  x = rng.integers(-3, 4, size=(n, 60)).astype(np.float32)
  out = lca.meamed(jnp.asarray(x), f=f)
  want = oracles.meamed(x.astype(float), f=f)
  np.testing.assert_allclose(out, want, rtol=1e-6, atol=1e-6)


def test_meamed_by_hand():
  x = jnp.array([[0.0], [1], [2], [3], [4]])
  np.testing.assert_allclose(lca.meamed(x, f=1), [2])  # 1, 2, 3, half 0 and 4
  x = jnp.array([[0.0], [1], [2], [3], [9]])
  np.testing.assert_allclose(lca.meamed(x, f=1), [1.5])


@pytest.mark.parametrize(('n', 'f'), [(3, 1), (4, 1), (8, 2), (12, 4), (9, 0)])
def test_phocas_shares_the_last_places(n, f):
  """Trimmed means of few small whole numbers are exact, and there are ties."""
  rng = np.random.default_rng(n)
  x = rng.integers(-3, 4, size=(n, 60)).astype(np.float32)
  out = lca.phocas(jnp.asarray(x), f=f)
  want = oracles.phocas(x.astype(float), f=f)
  np.testing.assert_allclose(out, want, rtol=1e-6, atol=1e-6)


def test_phocas_by_hand():
  x = jnp.array([[0.0], [0], [0], [6], [9]])
  # The trimmed mean is 2, and 9 is farthest from it; meamed measures from 0.
  np.testing.assert_allclose(lca.phocas(x, f=1), [1.5])
  x = jnp.array([[0.0], [4], [4], [7], [9]])
  # The trimmed mean is 5: 0 is farthest. The median is 4: 9 is farthest.
  np.testing.assert_allclose(lca.phocas(x, f=1), [6])
  np.testing.assert_allclose(lca.meamed(x, f=1), [3.75])


@pytest.mark.parametrize('large', [1e9, 1e38, np.inf, np.nan])
def test_what_phocas_leaves_out_leaves_no_trace(large):
  x = pool.stack('leaf', 11)
  x[[2, 5]] = large
  x[[7, 9]] = -large
  other = x.copy()
  other[[2, 5]] = 1e30
  other[[7, 9]] = 1e30 if np.isnan(large) else -1e30
  out = lca.phocas(jnp.asarray(x), f=4)
  np.testing.assert_array_equal(out, lca.phocas(jnp.asarray(other), f=4))


@pytest.mark.parametrize('theta', range(6))
def test_sign_majority_follows_the_oracle(theta):
  rng = np.random.default_rng(0)
  x = rng.integers(-1, 3, size=(5, 40)).astype(np.float32)
  out = lca.sign_majority(jnp.asarray(x), theta=theta)
  want = oracles.sign_majority(x.astype(float), theta=theta)
  np.testing.assert_allclose(out, want, rtol=1e-6)
