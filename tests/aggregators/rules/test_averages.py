"""Tests of MoNNA."""

import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca

# Ties ----------------------------------------------------------------------


def test_a_row_is_its_own_nearest():
  """A row selects itself first, also among rows at cosine distance 0."""
  x = jnp.array([[1.0], [1], [1], [1], [0.1]])
  nearest = lca.nnm(x, f=1, distance='cosine')
  np.testing.assert_allclose(nearest[4], (3 + 0.1) / 4, rtol=1e-6)
  monna = lca.monna(x, f=1, pivot=4, distance='cosine')
  np.testing.assert_allclose(monna, nearest[4], rtol=1e-6)


# The pivot -----------------------------------------------------------------


@pytest.mark.parametrize('kind', ['euclidean', 'cosine'])
@pytest.mark.parametrize('pivot', [0, 7])
def test_monna_follows_the_oracle(kind, pivot):
  x = pool.stack('leaf', 11)
  x[[2, 5]] = np.nan
  hyper = {'f': 4, 'pivot': pivot}
  out = lca.monna(jnp.asarray(x), distance=kind, **hyper)
  rows = x.astype(float)
  weights = oracles.weights_of('monna', rows, hyper, kind)
  assert weights[pivot] > 0 and np.sum(weights > 0) == 7
  want = oracles.mix(rows, weights)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


def test_monna_is_lost_without_its_pivot():
  x = jnp.asarray(pool.stack('leaf', 11)).at[3].set(jnp.inf)
  assert np.all(np.isnan(lca.monna(x, f=4, pivot=3)))
  assert np.all(np.isfinite(lca.monna(x, f=4, pivot=4)))
