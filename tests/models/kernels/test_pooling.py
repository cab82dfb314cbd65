"""Tests of pooling against Flax's."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import arrays, flax_pool, normals, value_and_gradients
from flax import linen as nn

from lca.federated.randomness import Purpose, key_for
from lca.models.kernels import convolution, pooling

# The tolerance of float32 sums of up to 5 x 5 x 6 or 9 x 8 x 8 products that
# are added up in different orders.
CLOSE = {'rtol': 1e-4, 'atol': 1e-4}


@pytest.mark.parametrize('size', [8, 7])
def test_max_pool_equals_flaxs(size):
  x, _ = arrays(2, 3, 1, size=size)

  def scalar(pool, x):
    return jnp.sum(jnp.sin(pool(x)))

  np.testing.assert_array_equal(pooling.max_pool(x), flax_pool(x))
  np.testing.assert_allclose(
    jax.grad(lambda x: scalar(pooling.max_pool, x))(x),
    jax.grad(lambda x: scalar(flax_pool, x))(x),
    rtol=1e-6,
  )


def test_entries_that_tie_share_the_gradient():
  x = jnp.array([[3.0, 3.0, 1.0, 2.0], [0.0, 3.0, 1.0, 0.0]])[None, ..., None]
  g = jax.grad(lambda x: jnp.sum(6 * pooling.max_pool(x)))(x)
  np.testing.assert_array_equal(g[0, ..., 0], [[2, 2, 0, 6], [0, 2, 0, 0]])


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('channels', [1, 32])
@pytest.mark.parametrize('size', [17, 16])
def test_conv_max_pool_goes_through_flaxs_door(channels, size):
  x, _ = arrays(3, channels, 1, size=size)
  plain = nn.Conv(64, (3, 3))
  ours = nn.Conv(64, (3, 3), conv_general_dilated=convolution.conv_max_pool)
  variables = plain.init(key_for(0, Purpose.INIT), x)
  variables['params']['bias'] += 0.5

  def pool_after_relu(variables, x):
    return flax_pool(nn.relu(plain.apply(variables, x)))

  def pool_before_bias(variables, x):
    return nn.relu(ours.apply(variables, x))

  def values_and_gradients(function):
    def scalar(*args):
      y = function(*args)
      return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True))

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **CLOSE),
    values_and_gradients(pool_before_bias)(variables, x),
    values_and_gradients(pool_after_relu)(variables, x),
  )


@pytest.mark.usefixtures('form')
def test_conv_max_pool_under_vmap_equals_one_by_one():
  x, _ = arrays(4, 32, 1, size=16)
  x = x.reshape(2, 2, *x.shape[1:])
  kernels = normals(2, 3, 3, 32, 64)

  def gradients(x, kernel):
    return value_and_gradients(convolution.conv_max_pool, x, kernel, 'SAME')

  together = jax.vmap(gradients)(x, kernels)
  alone = [gradients(*pair) for pair in zip(x, kernels, strict=True)]
  jax.tree.map(
    lambda a, *b: np.testing.assert_allclose(a, jnp.stack(b), **CLOSE),
    together,
    *alone,
  )


def test_conv_max_pool_exports_for_every_platform():
  def gradients(x, kernel):
    return value_and_gradients(convolution.conv_max_pool, x, kernel, 'SAME')

  shapes = [(2, 16, 16, 32), (3, 3, 32, 64)]
  arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  platforms = ('cpu', 'cuda', 'tpu')
  exported = jax.export.export(jax.jit(gradients), platforms=platforms)(
    *arguments
  )
  assert exported.platforms == platforms
