"""Tests of Winograd's form of a convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import arrays, flax_pool
from jax import lax

from lca.models.kernels import convolution, winograd

LAYOUT = ('NHWC', 'HWIO', 'NHWC')


@pytest.mark.parametrize(
  ('batch', 'sides', 'padding'),
  [
    (5, (8, 6), ((1, 1), (1, 1))),
    (3, (7, 9), ((0, 0), (0, 0))),
    (2, (5, 4), ((2, 0), (1, 2))),
    (40, (6, 6), ((1, 1), (0, 0))),  # two blocks, the second not full
    (1, (3, 3), ((0, 0), (0, 0))),
  ],
)
def test_winograds_convolution_is_one(batch, sides, padding):
  with jax.enable_x64(True):
    rng = np.random.default_rng(batch)
    x = rng.normal(size=(batch, *sides, 3))
    kernel = rng.normal(size=(3, 3, 3, 4))

    def xlas(x, kernel):
      return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=LAYOUT
      )

    def ours(function, *arrays):
      return jax.jit(functools.partial(function, padding=padding))(*arrays)

    y, pull = jax.vjp(xlas, x, kernel)
    got = ours(winograd.conv, x, kernel)
    np.testing.assert_allclose(got, y, rtol=1e-12, atol=1e-12)
    g = rng.normal(size=y.shape)
    got = ours(winograd.conv_gradients, x, kernel, g)
    for a, b in zip(got, pull(g), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)

    if min(y.shape[1:3]) < 2:
      return
    pooled, pull = jax.vjp(lambda *xk: flax_pool(xlas(*xk)), x, kernel)
    largest, winners = ours(winograd.conv_max_pool, x, kernel)
    np.testing.assert_allclose(largest, pooled, rtol=1e-12, atol=1e-12)
    g = rng.normal(size=pooled.shape)
    got = ours(winograd.conv_max_pool_gradients, x, kernel, winners, g)
    for a, b in zip(got, pull(g), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_winograds_error_in_float32_is_near_that_of_a_sum():
  def xlas(x, kernel):
    return lax.conv_general_dilated(
      x, kernel, (1, 1), 'VALID', dimension_numbers=LAYOUT
    )

  x, kernel = arrays(8, 32, 64, size=10)
  with jax.enable_x64(True):
    exact = np.asarray(xlas(x.astype('float64'), kernel.astype('float64')))

  def error(y):
    return np.std(np.asarray(y, np.float64) - exact)

  fast = winograd.conv(x, kernel, ((0, 0), (0, 0)))
  assert error(fast) < 3 * error(xlas(x, kernel))
  assert error(fast) < 1e-6 * np.std(exact)


@pytest.mark.parametrize(
  ('size', 'channels', 'features', 'dtype', 'pays'),
  [
    (16, 32, 64, 'float32', True),
    (8, 32, 64, 'float32', False),
    (16, 32, 32, 'float32', False),
    (16, 16, 256, 'float32', False),
    (16, 32, 64, 'bfloat16', False),
  ],
)
def test_winograds_form_is_for_heavy_convolutions(
  size, channels, features, dtype, pays, monkeypatch
):
  taken = []

  def conv(*args):
    taken.append(args)
    return convolution._conv_with_padding(*args)

  monkeypatch.setattr(winograd, 'conv', conv)
  x = jnp.ones((1, size, size, channels), dtype)
  kernel = jnp.ones((3, 3, channels, features), dtype)
  jax.eval_shape(
    functools.partial(
      convolution.conv,
      window_strides=(1, 1),
      padding='SAME',
      dimension_numbers=LAYOUT,
    ),
    x,
    kernel,
  )
  assert bool(taken) == pays
