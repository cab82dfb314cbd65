"""The convolutional network of the layerwise cosine paper."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from lca.models.layers import conv, max_pool


class CNN(nn.Module):
  """Two convolutions and two dense layers (García-Márquez et al. 2025, 4.1).

  3 x 3 convolutions with 32 and 64 features, each with a ReLU, 2 x 2
  max-pooling, a dense layer of 128 with a ReLU, and the output layer:
  1,625,866 parameters on 28 x 28 x 1 images with 10 classes.

  Attributes:
    num_classes: width of the output.
    features: of the convolutions.
    hidden: width of the dense layer between.
  """

  num_classes: int
  features: Sequence[int] = (32, 64)
  hidden: int = 128

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps images `[batch, height, width, channels]` to logits."""
    for features in self.features:
      x = nn.Conv(features, (3, 3), conv_general_dilated=conv)(x)
      x = nn.relu(x)
    x = max_pool(x)
    x = x.reshape(len(x), -1)
    x = nn.relu(nn.Dense(self.hidden)(x))
    return nn.Dense(self.num_classes)(x)
