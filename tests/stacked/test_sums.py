"""`rows_of` returns the rows; sums are tested in `test_geometry`."""

import jax
import numpy as np
import pytest

import lca


@pytest.mark.parametrize('shape', [(1, 1), (1, 6), (5, 1), (4, 3, 7)])
def test_rows_of_are_the_rows(shape):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  x[0, ..., -1] = np.nan
  got = jax.jit(lambda x: lca.stacked.sums.rows_of(x + 1))(x)
  np.testing.assert_array_equal(np.stack(got), x + 1)
