"""The fast convolution and pooling against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from lca.models import layers

LAYOUT = ('NHWC', 'HWIO', 'NHWC')

# Sums of up to 5 x 5 x 6 or 9 x 8 x 8 products in float32, in another order.
CLOSE = {'rtol': 1e-4, 'atol': 1e-4}


@pytest.fixture(params=['cpu', 'accelerator'])
def form(request, monkeypatch):
  """Runs a test in the CPU's form and in the one for accelerators."""
  if request.param == 'accelerator':
    monkeypatch.setattr(
      layers.lax,
      'platform_dependent',
      lambda *args, cpu, default: default(*args),
    )


def arrays(batch, channels, features, size=8, kernel=3):
  keys = jax.random.split(jax.random.key(batch + channels + kernel), 2)
  x = jax.random.normal(keys[0], (batch, size, size, channels))
  k = jax.random.normal(keys[1], (kernel, kernel, channels, features))
  return x, k


def value_and_gradients(conv, x, kernel, padding):
  def scalar(x, kernel):
    y = conv(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT)
    return jnp.sum(jnp.sin(y))  # every output has a cotangent of its own

  return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1)))(x, kernel)


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('padding', ['SAME', 'VALID', ((2, 0), (1, 1))])
@pytest.mark.parametrize(
  ('batch', 'channels', 'kernel'),
  [(1, 1, 3), (5, 1, 3), (1, 3, 3), (5, 3, 3), (8, 6, 5), (4, 2, 1)],
)
def test_conv_and_its_gradients_equal_xlas(batch, channels, kernel, padding):
  x, k = arrays(batch, channels, 7, kernel=kernel)
  ours = value_and_gradients(layers.conv, x, k, padding)
  xlas = value_and_gradients(lax.conv_general_dilated, x, k, padding)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, xlas
  )


@pytest.mark.usefixtures('form')
def test_conv_under_vmap_and_in_a_loop_equals_one_by_one():
  x, _ = arrays(15, 3, 4)
  x = x.reshape(5, 3, 8, 8, 3)
  kernels = jax.random.normal(jax.random.key(9), (5, 3, 3, 3, 4))

  def step(x, kernel):
    def body(_, kernel):
      _, (_, dk) = value_and_gradients(layers.conv, x, kernel, 'SAME')
      return kernel - 0.01 * dk

    return lax.fori_loop(0, 2, body, kernel)

  together = jax.jit(jax.vmap(step))(x, kernels)
  alone = [jax.jit(step)(x[i], kernels[i]) for i in range(5)]
  np.testing.assert_allclose(together, jnp.stack(alone), **CLOSE)


@pytest.mark.parametrize(
  'options',
  [
    {'strides': (2, 2)},
    {'kernel_dilation': (2, 2)},
    {'feature_group_count': 4},
    {'strides': (2, 2), 'padding': 'VALID'},
    {},
  ],
)
def test_flax_takes_conv_through_its_door(options):
  x, _ = arrays(3, 4, 8)
  plain = nn.Conv(8, (3, 3), **options)
  ours = nn.Conv(8, (3, 3), conv_general_dilated=layers.conv, **options)
  variables = plain.init(jax.random.key(0), x)
  np.testing.assert_allclose(
    ours.apply(variables, x), plain.apply(variables, x), **CLOSE
  )


@pytest.mark.parametrize('size', [8, 7])
def test_max_pool_equals_flaxs(size):
  x, _ = arrays(2, 3, 1, size=size)

  def scalar(pool, x):
    return jnp.sum(jnp.sin(pool(x)))

  def flax_pool(x):
    return nn.max_pool(x, (2, 2), (2, 2))

  np.testing.assert_array_equal(layers.max_pool(x), flax_pool(x))
  np.testing.assert_allclose(
    jax.grad(lambda x: scalar(layers.max_pool, x))(x),
    jax.grad(lambda x: scalar(flax_pool, x))(x),
    rtol=1e-6,
  )
