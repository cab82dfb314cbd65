"""Makes updates in the shapes of the models that benchmarks aggregate."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lca import models
from lca.stacked import sharding


def cnn(**options: Any) -> Any:
  """Returns the shapes of the layerwise cosine paper's CNN."""
  return _trainable(models.CNN(num_classes=10, **options), (28, 28, 1))


def efficientnet_b0() -> Any:
  """Returns the shapes of an EfficientNet-B0's trainable parameters."""
  return _trainable(models.EfficientNet(num_classes=10), (224, 224, 3))


def _trainable(module: nn.Module, image: Sequence[int]) -> Any:
  """Returns the shapes of a network's parameters, without its statistics."""
  x = jax.ShapeDtypeStruct((1, *image), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  return jax.tree.map(lambda leaf: leaf.shape, {'params': variables['params']})


def legato_cnn() -> Any:
  """Returns the shapes of LEGATO's CNN (Varma et al. 2021, Table I)."""
  return cnn(padding='VALID')


TREES = {
  'a': ('CNN', cnn),
  'b': ('EfficientNet-B0', efficientnet_b0),
  'c': ("LEGATO's CNN", legato_cnn),
}


def stacked(shapes: Any, n: int) -> Any:
  """Returns updates of `n` clients, `[n, ...]` leaves on all devices.

  The clients share a direction and differ by noise. The last client's update is
  ten times as long as the others'.
  """
  rng, devices = np.random.default_rng(0), jax.device_count()

  def leaf(shape):
    noise = rng.standard_normal((n, *shape), np.float32)
    noise += 0.3 * rng.standard_normal(shape, np.float32)
    noise *= 0.008
    noise[-1] *= 10
    return jax.device_put(noise, sharding.by_coordinate(noise.shape, devices))

  return jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))
