"""Tests of the fast convolutions against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import arrays, normals, value_and_gradients
from flax import linen as nn
from jax import lax

from lca.federated.randomness import Purpose, key_for
from lca.models.kernels import convolution

LAYOUT = ('NHWC', 'HWIO', 'NHWC')

# The tolerance of float32 sums of up to 5 x 5 x 6 or 9 x 8 x 8 products that
# are added up in different orders.
CLOSE = {'rtol': 1e-4, 'atol': 1e-4}


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize('padding', ['SAME', 'VALID', ((2, 0), (1, 1))])
@pytest.mark.parametrize(
  ('batch', 'channels', 'kernel'),
  [
    (1, 1, 3),
    (5, 3, 3),
    (8, 6, 5),
    (4, 2, 1),
    *(
      pytest.param(*c, 3, marks=pytest.mark.thorough) for c in [(5, 1), (1, 3)]
    ),
  ],
)
def test_conv_and_its_gradients_equal_xlas(batch, channels, kernel, padding):
  x, k = arrays(batch, channels, 7, kernel=kernel)
  ours = value_and_gradients(convolution.conv, x, k, padding)
  xlas = value_and_gradients(lax.conv_general_dilated, x, k, padding)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, xlas
  )


@pytest.mark.usefixtures('form')
def test_conv_under_vmap_and_in_a_loop_equals_one_by_one():
  x, _ = arrays(15, 3, 4)
  x = x.reshape(5, 3, 8, 8, 3)
  kernels = normals(5, 3, 3, 3, 4)

  def step(x, kernel):
    def body(_, kernel):
      _, (_, dk) = value_and_gradients(convolution.conv, x, kernel, 'SAME')
      return kernel - 0.01 * dk

    return lax.fori_loop(0, 2, body, kernel)

  together = jax.jit(jax.vmap(step))(x, kernels)
  alone = [jax.jit(step)(x[i], kernels[i]) for i in range(5)]
  np.testing.assert_allclose(together, jnp.stack(alone), **CLOSE)


@pytest.mark.parametrize('padding', ['SAME', 'VALID', ((2, 0), (1, 1))])
@pytest.mark.parametrize(
  ('stride', 'kernel'), [((2, 2), 3), ((2, 1), 5), ((1, 1), 1), ((2, 2), 1)]
)
def test_strided_and_pointwise_equal_xlas(stride, kernel, padding):
  x, k = arrays(3, 4, 7, size=9, kernel=kernel)
  ours = value_and_gradients(convolution.conv, x, k, padding, stride)
  xlas = value_and_gradients(lax.conv_general_dilated, x, k, padding, stride)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, xlas
  )


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
  ours = nn.Conv(8, (3, 3), conv_general_dilated=convolution.conv, **options)
  variables = plain.init(key_for(0, Purpose.INIT), x)
  np.testing.assert_allclose(
    ours.apply(variables, x), plain.apply(variables, x), **CLOSE
  )


def test_no_images_are_convolved_to_none():
  y = convolution.conv_max_pool(
    jnp.ones((0, 16, 16, 32)),
    jnp.ones((3, 3, 32, 64)),
    (1, 1),
    'SAME',
    dimension_numbers=LAYOUT,
  )
  assert y.shape == (0, 8, 8, 64)
