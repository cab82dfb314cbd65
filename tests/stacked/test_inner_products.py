"""Distances and angles of rows with a large common part, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pool
import pytest
from jax.sharding import NamedSharding

import lca
from lca.federated.placement import clients_mesh
from lca.stacked import sharding
from lca.stacked.inner_products import GramMatrix

N = 11


def close_rows(ratio, seed=0, shape=(300,), lengths=False):
  """Returns rows `[N, *shape]` that differ by `ratio` of their common part.

  With `lengths`, every row is also multiplied by a factor from 0.3 to 3.
  """
  rng = np.random.default_rng(seed)
  common = rng.normal(size=shape)
  rows = common + ratio * rng.normal(size=(N, *shape))
  if lengths:
    rows *= rng.uniform(0.3, 3, size=(N,) + (1,) * len(shape))
  return np.float32(rows)


def squared_distances(rows):
  """Returns the squared distances, in float64 and from differences."""
  rows = rows.reshape(len(rows), -1).astype(np.float64)
  return np.sum((rows[:, None] - rows) ** 2, axis=-1)


def cosine_distances(rows):
  """Returns 1 - cos in float64: half the squared distances of unit rows."""
  rows = rows.reshape(len(rows), -1).astype(np.float64)
  rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  return squared_distances(rows) / 2


close = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=0)
compiled = jax.jit(
  lambda x: (lca.distances(lca.gram(x)), lca.distances(lca.gram(x), 'cosine'))
)


@pytest.mark.parametrize('ratio', [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize('lengths', [False, True])
def test_distances_of_close_rows(ratio, lengths):
  rows = close_rows(ratio, lengths=lengths)
  euclidean, cosine = compiled(rows)
  # Both sides take the float32 rows, so that rounding the rows is no error.
  close(euclidean, squared_distances(rows))
  close(cosine, cosine_distances(rows))


def test_of_long_rows():
  """Takes rows longer than a block of columns, whose sums round many times."""
  rows = close_rows(1e-5, shape=(100_003,))
  euclidean, cosine = compiled(rows)
  close(euclidean, squared_distances(rows))
  close(cosine, cosine_distances(rows))


def test_far_apart_rows_are_as_ever():
  """Takes these distances from the products, bit for bit, so that ties stay."""
  x = jnp.asarray(pool.stack('leaf', N))
  gram = lca.gram(x)
  np.testing.assert_array_equal(gram.along, 0)
  np.testing.assert_array_equal(
    lca.distances(gram), lca.distances(gram.products)
  )
  np.testing.assert_array_equal(
    lca.distances(gram, 'cosine'), lca.distances(gram.products, 'cosine')
  )


def test_parallel_rows_at_a_distance_keep_their_ties():
  rows = jnp.array([[1.0], [2.0], [2.0], [3.0], [4.0], [7.0]])
  want = np.float32(squared_distances(np.asarray(rows)))
  np.testing.assert_array_equal(lca.distances(lca.gram(rows)), want)


def test_one_leaf_close_and_one_not():
  one, other = close_rows(1e-5), 1e-3 * pool.stack('leaf', N)
  tree = {'close': one, 'far': other, 'none': np.zeros((N, 0), np.float32)}
  want = squared_distances(np.concatenate([one, other], axis=1))
  close(lca.distances(lca.gram(tree)), want)


def test_rows_far_away_and_rejected_and_zero():
  rows = close_rows(1e-6)
  rows[1], rows[4], rows[6], rows[9] = 1e6 * rows[0], 0, np.nan, 1e30
  bad = np.isin(np.arange(N), [6, 9])
  euclidean, cosine = map(np.asarray, compiled(rows))
  for got, want in ((euclidean, squared_distances), (cosine, cosine_distances)):
    assert np.all(np.isinf(got[bad])) and np.all(np.isinf(got[:, bad]))
    there = ~bad & (np.arange(N) != 4)
    near = there & (np.arange(N) != 1)
    close(got[np.ix_(near, near)], want(rows[near]))
    # The row of length 1e6 leaves rounding errors beside differences of 1e-6.
    np.testing.assert_allclose(
      got[np.ix_(there, there)], want(rows[there]), rtol=2e-3, atol=1e-12
    )
  np.testing.assert_array_equal(cosine[4, there], 2)


@pytest.mark.parametrize('scale', [1e-12, 1, 1e12, 0])
def test_identical_rows_are_at_no_distance(scale):
  rows = np.repeat(np.float32(scale) * close_rows(1, seed=3)[:1], N, axis=0)
  euclidean, cosine = compiled(rows)
  size = np.sum(rows[0].astype(float) ** 2)
  np.testing.assert_allclose(euclidean, 0, atol=1e-12 * size)
  np.testing.assert_allclose(cosine, 0, atol=1e-12)


def test_a_row_that_is_near_by_float32_alone_is_not_the_middle():
  """Adds liars whose distance from the others the float32 products lose."""
  rows = close_rows(1e-6)
  liars = 3e-4 * np.random.default_rng(1).normal(size=(5, 300))
  rows[:5] = np.float32(rows[:5] + liars)
  euclidean, cosine = map(np.asarray, compiled(rows))
  close(euclidean[5:, 5:], squared_distances(rows[5:]))
  close(cosine[5:, 5:], cosine_distances(rows[5:]))
  close(euclidean, squared_distances(rows))


def test_bfloat16():
  rows = jnp.asarray(close_rows(2e-2), jnp.bfloat16)
  euclidean, cosine = compiled(rows)
  exact = np.asarray(rows, np.float32)
  close(euclidean, squared_distances(exact))
  close(cosine, cosine_distances(exact))


def test_float64():
  rng = np.random.default_rng(0)
  small = rng.integers(-(2**10), 2**10, size=(N, 300)) * 2.0**-40
  rows = rng.integers(1, 2**10, size=300) * 1.0 + small  # exact sums
  with jax.enable_x64(True):
    gram = lca.gram(jnp.asarray(rows))
    assert gram.dtype == np.float64
    close(lca.distances(gram), squared_distances(small), rtol=1e-9)


def test_vmap_is_a_loop():
  batch = np.stack(
    [
      close_rows(1e-5),
      pool.stack('leaf', N, 1) @ np.ones((50, 300), np.float32),
      close_rows(1e-3, 2),
    ]
  )
  batched = jax.jit(jax.vmap(compiled))(batch)
  for i, rows in enumerate(batch):
    jax.tree.map(
      lambda got, want, i=i: close(got[i], want, atol=1e-5),
      batched,
      compiled(rows),
    )


def test_layers_at_once_are_the_layers():
  layers = [close_rows(1e-5), pool.stack('leaf', N), close_rows(1e-2, 1)]
  grams = lca.geometry.grams(layers)
  for i, layer in enumerate(layers):
    one = jax.tree.map(lambda x, i=i: x[i], grams)
    np.testing.assert_array_equal(
      lca.distances(one), lca.distances(lca.gram(layer))
    )


def test_over_devices():
  mesh = clients_mesh(4)
  rows = close_rows(1e-5, shape=(64, 9))
  spec = sharding.by_coordinate(rows.shape, 4)
  with jax.set_mesh(mesh):
    spread = jax.device_put(rows, NamedSharding(mesh, spec))
    euclidean, cosine = compiled(spread)
  close(euclidean, squared_distances(rows))
  close(cosine, cosine_distances(rows))


@pytest.mark.parametrize('ratio', [1e-5, 1.0])
def test_derivatives_of_distances(ratio):
  rows, moved = close_rows(ratio), np.float32(close_rows(1, seed=2))
  rows[3] = np.nan
  good = np.delete(np.arange(N), 3)

  def distances(x):
    return lca.distances(lca.gram(x))[np.ix_(good, good)]

  _, got = jax.jvp(distances, (rows,), (moved,))
  # d |x_i - x_j|^2 = 2 <x_i - x_j, v_i - v_j>
  x, v = rows[good].astype(float), moved[good].astype(float)
  between = (x[:, None] - x) * (v[:, None] - v)
  want = 2 * np.sum(between, axis=-1)
  np.testing.assert_allclose(got, want, atol=1e-4 * np.max(np.abs(want)))
  cotangent = np.random.default_rng(0).normal(size=want.shape)
  (back,) = jax.vjp(distances, jnp.asarray(rows))[1](jnp.float32(cotangent))
  assert not np.any(np.asarray(back)[3])
  np.testing.assert_allclose(
    np.sum(back[good] * v), np.sum(cotangent * want), rtol=1e-3
  )


# The matrix as an array -------------------------------------------------------


def test_behaves_as_the_array_of_its_products():
  x = jnp.asarray(close_rows(1e-5))
  gram = lca.gram(x)
  array = gram.products
  assert isinstance(gram, GramMatrix)
  assert (len(gram), gram.shape, gram.ndim) == (N, (N, N), 2)
  assert gram.dtype == np.float32
  assert repr(gram) == repr(array)
  same = np.testing.assert_array_equal
  same(np.asarray(gram), array)
  same(jnp.asarray(gram), array)
  same(gram[1, 2:], array[1, 2:])
  same(gram.T, array.T)
  same(jnp.diagonal(gram), jnp.diagonal(array))
  same(jnp.where(array > 0, gram, 0), jnp.where(array > 0, array, 0))
  same(2 * gram - 1, 2 * array - 1)
  same(1 / gram, 1 / array)
  same(gram @ gram, array @ array)
  same(-gram, -array)
  same(gram == gram, array == array)
  same(gram > 1, array > 1)
  same(jnp.stack([gram, gram]), jnp.stack([array, array]))
  same(jnp.stack(list(gram)), array)
  same(gram.sum(axis=1), array.sum(axis=1))
  (copy,) = jax.jit(lambda *grams: grams)(gram)
  same(lca.distances(copy), lca.distances(gram))


def test_a_plain_array_will_do():
  gram = lca.gram(jnp.asarray(pool.stack('leaf', N)))
  for kind in ('euclidean', 'cosine'):
    np.testing.assert_array_equal(
      lca.distances(jnp.asarray(gram), kind), lca.distances(gram, kind)
    )
