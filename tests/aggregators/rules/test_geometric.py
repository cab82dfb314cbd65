"""Tests of the geometric median."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca

# Options that give other definitions ---------------------------------------


def test_the_geometric_median_may_start_from_zero():
  """After one step, each row's weight is proportional to 1 / its norm."""
  x = pool.stack('leaf', 11)
  out = lca.geometric_median(jnp.asarray(x), init='zero', num_iters=1)
  weights = 1 / np.linalg.norm(x.astype(float), axis=1)
  want = weights / weights.sum() @ x.astype(float)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)


# Derivatives beside rejected rows ------------------------------------------


def test_the_geometric_median_of_float32_has_a_derivative_under_x64():
  x = pool.stack('leaf', 11)
  gradient = jax.grad(lambda x: jnp.sum(lca.geometric_median(x)))
  want = gradient(jnp.asarray(x))
  with jax.enable_x64(True):
    got = gradient(jnp.asarray(x, jnp.float32))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


# The geometric median ------------------------------------------------------


@pytest.mark.parametrize('init', ['medoid', 'mean'])
def test_geometric_median_ends_where_the_sum_of_distances_is_least(init):
  x = pool.stack('leaf', 25)
  x[:6] += 100
  out = lca.geometric_median(jnp.asarray(x), init=init, num_iters=1000)
  rows = x.astype(float)
  best = oracles.geometric_median_weights(rows) @ rows
  got = oracles.sum_of_distances(rows, np.asarray(out, float))
  # The objective is flat near its minimum: float32 resolves the sum of
  # distances, not the point.
  assert got <= oracles.sum_of_distances(rows, best) * (1 + 1e-6)


def test_a_median_among_many_has_a_derivative():
  """For an even number of scalars, there are many geometric medians."""
  x = jnp.array([[0.0], [1], [2], [3]])
  one = jnp.ones((4, 1))
  rule = functools.partial(lca.geometric_median, tol=1e-6)
  gradient = jax.jit(jax.grad(lambda x: rule(x)[0]))(x)
  assert np.all(np.isfinite(gradient))
  # If all rows move alike, so does the median, wherever it lies.
  moved = jax.jit(lambda x: jax.jvp(rule, (x,), (one,))[1])(x)
  np.testing.assert_allclose(moved, [1], rtol=1e-4)


def test_the_geometric_median_has_a_derivative_beside_a_row_far_away():
  x, along = np.random.default_rng(0).normal(size=(2, 6, 3))
  x[5] *= 1e8
  rule = functools.partial(lca.geometric_median, tol=1e-7)
  single = jnp.asarray(x, jnp.float32), jnp.asarray(along, jnp.float32)
  _, got = jax.jit(lambda x, v: jax.jvp(rule, (x,), (v,)))(*single)
  with jax.enable_x64(True):
    exact = functools.partial(lca.geometric_median, tol=1e-14, num_iters=9000)
    step = 1e-5
    ahead, behind = (exact(jnp.asarray(x + s * along)) for s in (step, -step))
    want = (ahead - behind) / (2 * step)
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_geometric_median_on_a_line_is_the_median():
  x = jnp.array([[0.0], [1], [2], [10], [1e6]])
  np.testing.assert_allclose(lca.geometric_median(x), [2], atol=1e-3)


def test_geometric_median_in_one_step():
  """From equal weights, weights become 1 / the distance to the mean."""
  x = pool.stack('leaf', 11)
  out = lca.geometric_median(jnp.asarray(x), num_iters=1, init='mean')
  rows = x.astype(float)
  weights = 1 / np.linalg.norm(rows - rows.mean(axis=0), axis=1)
  want = (weights / weights.sum()) @ rows
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)
