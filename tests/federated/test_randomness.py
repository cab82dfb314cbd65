"""Keys draw the same numbers as keys of JAX's threefry2x32."""

import functools

import jax
import numpy as np
import pytest

from lca.federated.randomness import Purpose, key_for


@pytest.mark.parametrize('shape', [(), (0, 3), (6,), (3, 3, 1, 4), (2, 65537)])
def test_keys_draw_what_jaxs_own_would(shape):
  key = jax.random.key(5, impl='threefry2x32')
  for i in (Purpose.TRAIN, 2, 8):  # the same folds as `key_for`
    key = jax.random.fold_in(key, i)
  ours = key_for(5, Purpose.TRAIN, 2, 8)
  for draw in (jax.random.bits, jax.random.normal):
    np.testing.assert_array_equal(draw(ours, shape), draw(key, shape))
    rows = jax.vmap(functools.partial(draw, shape=shape))
    np.testing.assert_array_equal(
      rows(jax.random.split(ours, 3)), rows(jax.random.split(key, 3))
    )
