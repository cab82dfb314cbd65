"""Tests of the depthwise convolution against XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import value_and_gradients
from flax import linen as nn
from jax import lax

from lca.models.kernels import convolution

# The tolerance of float32 sums of up to 5 x 5 x 6 or 9 x 8 x 8 products that
# are added up in different orders.
CLOSE = {'rtol': 1e-4, 'atol': 1e-4}


def padded_by(style, kernel):
  return 'SAME' if style == 'same' else ((kernel // 2, kernel // 2),) * 2


@pytest.mark.usefixtures('form')
@pytest.mark.parametrize(
  ('kernel', 'stride', 'size', 'style'),
  [
    (3, (1, 1), (8, 7), 'symmetric'),
    (3, (2, 2), (8, 7), 'symmetric'),
    (3, (2, 2), (8, 7), 'same'),
    (5, (1, 1), (3, 6), 'same'),
    (5, (2, 2), (9, 6), 'symmetric'),
    (5, (2, 2), (1, 6), 'same'),
    (3, (3, 1), (7, 2), 'symmetric'),
  ],
)
def test_depthwise_and_its_gradients_equal_xlas(kernel, stride, size, style):
  with jax.enable_x64(True):
    rng = np.random.default_rng(kernel)
    x = rng.normal(size=(2, *size, 5))
    k = rng.normal(size=(kernel, kernel, 1, 5))
    padding = padded_by(style, kernel)
    ours = value_and_gradients(
      convolution.conv, x, k, padding, stride, groups=5
    )
    xlas = value_and_gradients(
      lax.conv_general_dilated, x, k, padding, stride, groups=5
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
      ours,
      xlas,
    )


@pytest.mark.parametrize('stride', [1, 2])
def test_depthwise_takes_its_own_form(stride, monkeypatch):
  def native(*args, **options):
    raise AssertionError('a native convolution')

  x = jnp.ones((2, 6, 6, 4))
  module = nn.Conv(
    4,
    (3, 3),
    stride,
    feature_group_count=4,
    conv_general_dilated=convolution.conv,
  )
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  monkeypatch.setattr(convolution.lax, 'conv_general_dilated', native)
  jax.make_jaxpr(jax.grad(lambda v: jnp.sum(module.apply(v, x))))(variables)
  two_a_channel = nn.Conv(
    8, (3, 3), feature_group_count=4, conv_general_dilated=convolution.conv
  )
  with pytest.raises(AssertionError, match='native'):
    jax.eval_shape(two_a_channel.init, jax.random.key(0), x)


@pytest.mark.parametrize('stride', [(1, 1), (2, 2)])
def test_depthwise_under_vmap_and_in_a_loop_equals_one_by_one(stride):
  rng = np.random.default_rng(2)
  x = rng.normal(size=(3, 2, 7, 7, 4)).astype(np.float32)
  kernels = rng.normal(size=(3, 3, 3, 1, 4)).astype(np.float32)

  def step(conv, x, kernel):
    def body(_, kernel):
      _, (_, dk) = value_and_gradients(conv, x, kernel, 'SAME', stride, 4)
      return kernel - 0.01 * dk

    return lax.fori_loop(0, 2, body, kernel)

  ours = functools.partial(step, convolution.conv)
  xlas = functools.partial(step, lax.conv_general_dilated)
  together = jax.jit(jax.vmap(ours))(x, kernels)
  alone = [jax.jit(xlas)(x[i], kernels[i]) for i in range(3)]
  np.testing.assert_allclose(together, jnp.stack(alone), **CLOSE)


@pytest.mark.parametrize('stride', [(1, 1), (2, 2)])
def test_depthwise_keeps_bfloat16_and_sums_in_float32(stride):
  rng = np.random.default_rng(4)
  x = rng.normal(size=(4, 16, 16, 3)).astype(jnp.bfloat16)
  k = rng.normal(size=(3, 3, 1, 3)).astype(jnp.bfloat16)
  halves = value_and_gradients(convolution.conv, x, k, 'SAME', stride, 3)
  _, (dx, dk) = halves
  assert (dx.dtype, dk.dtype) == (jnp.bfloat16, jnp.bfloat16)
  wide = value_and_gradients(
    convolution.conv,
    x.astype('float32'),
    k.astype('float32'),
    'SAME',
    stride,
    3,
  )
  # Outputs are rounded to 8 bits before the sine, and so are their gradients.
  # The errors of about 1e-2 in each of up to 1024 terms of a kernel's gradient
  # add up to this, times the square root of their number.
  for half, full in zip(halves[1], wide[1], strict=True):
    np.testing.assert_allclose(
      half.astype('float32'), full, rtol=0.05, atol=1.0
    )
