"""Every way to select entries of given ranks gives those of a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lca
from lca.stacked import rank_selection

WAYS = ['by_sorting', 'by_network', 'by_merging', 'on_cpu']


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('n', [1, 2, 3, 7, 8, 33])
def test_the_entries_are_those_of_a_sort(way, n):
  rng = np.random.default_rng(n)
  keys = rng.integers(-5, 5, (n, 40), dtype=np.int32)
  keys[:, 0] = np.iinfo(np.int32).max
  ranks = sorted({0, n // 3, n // 2, n - 1})
  got = getattr(rank_selection, way)(jnp.asarray(keys), ranks)
  np.testing.assert_array_equal(jnp.stack(got), np.sort(keys, axis=0)[ranks])


def test_many_rows_are_merged(monkeypatch):
  """A network of so many rows would take minutes."""
  monkeypatch.delattr(rank_selection, 'by_network')
  rows = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
  median = jax.jit(lca.median)(rows)
  np.testing.assert_allclose(median, np.median(rows, axis=0), rtol=1e-6)
  trimmed = jax.jit(lambda x: lca.trimmed_mean(x, f=40))(rows)
  wanted = np.sort(rows, axis=0)[40:-40].mean(axis=0)
  np.testing.assert_allclose(trimmed, wanted, rtol=1e-5, atol=1e-6)
