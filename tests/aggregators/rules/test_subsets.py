"""Tests of MDA and SMEA."""

import functools

import jax
import jax.numpy as jnp
import pytest

import lca


def test_mda_breaks_ties_by_the_mean_distance_or_the_order():
  """0, 1, 3, 4 and 1, 3, 4, 5 have the same diameter; the latter are closer."""
  x = jnp.array([0.0, 1.0, 3.0, 4.0, 5.0, 100.0, 200.0])
  assert lca.mda(x, f=3) == (1 + 3 + 4 + 5) / 4
  assert lca.mda(x, f=3, ties='first') == (0 + 1 + 3 + 4) / 4
  assert lca.mda(x[::-1], f=3, ties='first') == (1 + 3 + 4 + 5) / 4


@pytest.mark.parametrize('rule', [lca.mda, lca.smea])
def test_subsets_are_compared_a_few_at_a_time(rule):
  updates = {str(i): jnp.ones((60, 4 + i)) for i in range(5)}
  form = jax.jit(functools.partial(lca.layerwise(rule), f=2))
  used = form.lower(updates).compile().memory_analysis()
  # The Gram matrices of all 1,770 subsets of 58 clients would take 119 MB.
  assert used.temp_size_in_bytes < 30e6
