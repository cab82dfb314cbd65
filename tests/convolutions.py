"""Inputs and gradients for tests of convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def arrays(batch, channels, features, size=8, kernel=3):
  rng = np.random.default_rng(batch + channels + kernel)
  x = rng.normal(size=(batch, size, size, channels))
  k = rng.normal(size=(kernel, kernel, channels, features))
  return jnp.asarray(x, 'float32'), jnp.asarray(k, 'float32')


def normals(*shape):
  return jnp.float32(np.random.default_rng(1).normal(size=shape))


def value_and_gradients(conv, x, kernel, padding, stride=(1, 1), groups=1):
  """Returns a scalar function of a convolution, and its gradients."""

  def scalar(x, kernel):
    y = conv(
      x,
      kernel,
      stride,
      padding,
      dimension_numbers=LAYOUT,
      feature_group_count=groups,
    )
    return jnp.sum(jnp.sin(y))  # gives each output a different gradient

  return jax.jit(jax.value_and_grad(scalar, argnums=(0, 1)))(x, kernel)


def flax_pool(x):
  return nn.max_pool(x, (2, 2), (2, 2))
