"""Tests of the clips and of centred clipping."""

import functools

import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest
from compositions import same, uneven
from pool import with_rows

import lca

# Clips are quotients of rounded norms; averages are sums of rounded products.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)


# clip_to_median_norm -------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize('median', ['interpolated', 'lower'])
@pytest.mark.parametrize('n', [11, 12])
def test_clip_to_median_norm_follows_the_oracle(n, median):
  tree = uneven('pair', n)
  tree['bias'][4, 2] = np.inf
  tree['kernel'][6] = 0
  got = lca.clip_to_median_norm(tree, median=median)
  same(got, oracles.clip_to_median_norm(tree, median), CLOSE)
  assert np.all(np.isnan(got['kernel'][4]))  # the whole row, not one leaf


def test_clip_to_median_norm_keeps_dtypes_and_short_rows():
  x = jnp.array([[1.0, 0], [0, 2], [3, 0], [0, 40]], jnp.bfloat16)
  out = lca.clip_to_median_norm(x)
  assert out.dtype == jnp.bfloat16
  assert out.tolist() == [[1, 0], [0, 2], [2.5, 0], [0, 2.5]]


def test_clip_to_median_norm_refuses():
  with pytest.raises(ValueError, match='upper'):
    lca.clip_to_median_norm(jnp.ones((3, 2)), median='upper')


# arc and static_clip -------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize('n', [10, 25])
def test_arc_clips_as_many_as_the_paper_says(n):
  """k = floor(2 (f / n) (n - f)), which is often whole before the floor."""
  x = np.arange(1.0, n + 1, dtype=np.float32)[:, None]
  for f in range((n + 1) // 2):
    out = np.asarray(lca.arc(jnp.asarray(x), f=f))
    np.testing.assert_allclose(out, oracles.arc_matrix(x, f=f) @ x, rtol=1e-6)


def test_arc_clips_nothing_to_an_infinite_threshold():
  x = np.array([[1.0], [2], [3], [4], [50], [np.inf]], np.float32)
  out = lca.arc(jnp.asarray(x).at[3:].set(jnp.inf), f=1)
  np.testing.assert_array_equal(out, [[1], [2], [3], *[[np.nan]] * 3])
  # With one infinite row, k = 1: the second largest norm is the threshold.
  np.testing.assert_array_equal(
    lca.arc(jnp.asarray(x), f=1), [[1], [2], [3], [4], [50], [np.nan]]
  )


@pytest.mark.quick
def test_static_clip_of_zeros_and_short_rows():
  x = jnp.array([[0.0, 0], [3, 4], [6, 8], [jnp.nan, 1]])
  out = lca.static_clip(x, threshold=5.0)
  CLOSE(out, [[0, 0], [3, 4], [3, 4], [0, 0]])


# The error of sums of rounded products, over several iterations.
CLOSE_AFTER_STEPS = functools.partial(
  np.testing.assert_allclose, rtol=2e-5, atol=1e-5
)


# centered_clip -------------------------------------------------------------


@pytest.mark.parametrize('start', ['zero', 'mean'])
@pytest.mark.parametrize('num_iters', [1, 3])
def test_centered_clip_may_start_elsewhere(start, num_iters):
  hyper = {'threshold': 3.0, 'num_iters': num_iters, 'init': start}
  clip, state = lca.centered_clip(**hyper), jnp.zeros(50)
  for seed in range(3):
    x = with_rows(pool.stack('leaf', 11, seed), [2], 'nan')
    out, state = clip.update(jnp.asarray(x), state)
    want, _ = oracles.centered_clip(x.astype(float), None, **hyper)
    CLOSE_AFTER_STEPS(out, want)


def test_centered_clip_of_updates_within_reach_is_the_mean():
  x = jnp.asarray(pool.stack('leaf', 11))
  pair = lca.centered_clip(threshold=1e6)
  out, _ = pair.update(x, pair.init(x[0]))
  CLOSE_AFTER_STEPS(out, np.mean(x, axis=0))


def test_centered_clip_follows_the_clients_in_steps():
  x = jnp.full((5, 1), 10.0)
  pair = lca.centered_clip(threshold=4.0)
  state = pair.init(x[0])
  for want in (4, 8, 10, 10):
    out, state = pair.update(x, state)
    CLOSE_AFTER_STEPS(out, [want])


@pytest.mark.quick
def test_centered_clip_divides_by_all_clients():
  x = jnp.array([[1.0], [1], [jnp.nan], [jnp.inf]])
  pair = lca.centered_clip(threshold=4.0)
  out, _ = pair.update(x, pair.init(x[0]))
  CLOSE_AFTER_STEPS(out, [0.5])
