"""Keys, variable shapes and images for tests of EfficientNets."""

import functools

import jax
import numpy as np

KEYS = jax.random.split(jax.random.key(3), 4)


@functools.cache
def shapes(module, size=32):
  """Returns the shapes of a module's variables without computing them."""
  image = jax.ShapeDtypeStruct((1, size, size, 3), 'float32')
  return jax.eval_shape(module.init, jax.random.key(0), image)


def tiny_images(count=4, size=8):
  rng = np.random.default_rng(0)
  return rng.normal(size=(count, size, size, 3)).astype(np.float32)
