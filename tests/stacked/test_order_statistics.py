"""Sorting of floats by way of integers."""

import jax.numpy as jnp
import numpy as np

from lca.stacked import order_statistics


def test_sorting_integers_sorts_floats():
  x = np.random.default_rng(0).normal(size=(3, 4, 50)).astype(np.float32)
  x[0, :, :9] = [[np.inf], [-np.inf], [0], [1]]
  np.testing.assert_array_equal(
    order_statistics.sort(jnp.asarray(x)), np.sort(x)
  )
