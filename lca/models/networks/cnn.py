"""The convolutional networks of the two papers."""

from collections.abc import Sequence
from typing import Literal

import jax
from flax import linen as nn

from lca.models.kernels.convolution import conv, conv_max_pool, dropout


class CNN(nn.Module):
  """3 x 3 convolutions with pooling, then dense layers, each with a ReLU.

  By default the layerwise cosine paper's (García-Márquez et al. 2025, 4.1):
  convolutions with 32 and 64 features, 2 x 2 max-pooling, a dense layer of
  128, and the output layer: 1,625,866 parameters on 28 x 28 x 1 images with 10
  classes. With `padding='VALID'` and `dropout=(0.25, 0.5)` it is LEGATO's
  (Varma et al. 2021, Table I): 1,199,882. The paper's text has one dropout
  layer, without a rate; two of these rates are usual for this network.

  Attributes:
    num_classes: width of the output.
    features: of the convolutions.
    pool: after the `'last'` convolution, or after `'each'`.
    hidden: widths of the dense layers between.
    padding: of the convolutions, `'SAME'` or `'VALID'`.
    dropout: rates before and after the hidden dense layers.
  """

  num_classes: int
  features: Sequence[int] = (32, 64)
  pool: Literal['last', 'each'] = 'last'
  hidden: Sequence[int] = (128,)
  padding: Literal['SAME', 'VALID'] = 'SAME'
  dropout: tuple[float, float] = (0.0, 0.0)

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Maps images to logits.

    Args:
      x: `[batch, height, width, channels]`.
      keys: `[batch]`, of each image's dropout; None for testing.

    Returns:
      `[batch, num_classes]`.
    """
    before, after = self.dropout
    for i, features in enumerate(self.features, start=1):
      pooled = self.pool == 'each' or i == len(self.features)
      convolution = nn.Conv(
        features,
        (3, 3),
        padding=self.padding,
        conv_general_dilated=conv_max_pool if pooled else conv,
      )
      x = nn.relu(convolution(x))
    x = dropout(x, before, keys, 0)
    x = x.reshape(len(x), -1)
    for width in self.hidden:
      x = nn.relu(nn.Dense(width)(x))
    x = dropout(x, after, keys, 1)
    return nn.Dense(self.num_classes)(x)
