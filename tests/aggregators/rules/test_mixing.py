"""Tests of NNM and bucketing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca

KEY = jax.random.key(5)
# Weights are quotients of rounded norms; rows are sums of rounded products.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)


# Buckets and neighbours ----------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize('bucket_size', [1, 2, 5, 11])
def test_bucket_sizes(bucket_size):
  x = pool.stack('leaf', 11)
  x[[2, 3, 7]] = np.nan
  out = lca.bucketing(jnp.asarray(x), key=KEY, bucket_size=bucket_size)
  order = np.asarray(jax.random.permutation(KEY, 11))
  hyper = {'order': order, 'bucket_size': bucket_size}
  CLOSE(out, oracles.pre_aggregate('bucketing', x, hyper))
  assert len(out) == -(-11 // bucket_size)


def test_buckets_of_two_by_default():
  x = jnp.asarray(pool.stack('leaf', 11))
  out = lca.bucketing(x, key=KEY)
  np.testing.assert_array_equal(out, lca.bucketing(x, key=KEY, bucket_size=2))
  other = lca.bucketing(x, key=jax.random.key(6))
  assert not np.allclose(out, other)


@pytest.mark.quick
def test_nnm_takes_itself_and_the_lowest_index():
  x = jnp.array([[0.0], [1], [-1], [10], [11]])
  out = lca.nnm(x, f=2)
  CLOSE(out[0], [0])
  CLOSE(out[3], [(10 + 11 + 1) / 3])
  tied = jnp.array([[0.0], [2], [-2], [4], [50]])
  # Client 1 averages 2, 0 and 4; client 0 averages 0, 2 and -2.
  CLOSE(lca.nnm(tied, f=2)[:2, 0], [0, 2])
  few = lca.nnm(jnp.array([[0.0], [2], [-2], [2], [-2]]), f=2)
  CLOSE(few[0], [0])  # 0, 2 and -2, the first two of four at one distance
  np.testing.assert_allclose(few[1], [4 / 3], rtol=1e-6)


# Preconditions -------------------------------------------------------------


def test_bucketing_needs_a_key():
  with pytest.raises(TypeError, match='key'):
    lca.bucketing(jnp.ones((6, 2)))
