"""The convolutional networks of the two papers."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax
from flax import linen as nn
from flax.typing import Initializer

from lca.models.kernels.convolution import conv, conv_max_pool, dropout
from lca.options import one_of, whole

Pool = Literal['last', 'each']
Padding = Literal['SAME', 'VALID']
InitialWeights = Literal['lecun_normal', 'torch']


class CNN(nn.Module):
  """3 x 3 convolutions with pooling, then dense layers, each with a ReLU.

  By default the layerwise cosine paper's (García-Márquez et al. 2025, 4.1):
  convolutions with 32 and 64 features, 2 x 2 max-pooling, a dense layer of
  128, and the output layer: 1,625,866 parameters on 28 x 28 x 1 images with 10
  classes. With `padding='VALID'` and `dropout=(0.25, 0.5)` it is LEGATO's
  (Varma et al. 2021, Table I): 1,199,882. The paper's text has one dropout
  layer, without a rate; two of these rates are usual for this network.

  Flax and PyTorch start such layers differently. With `initial_weights=
  'lecun_normal'`, Flax's default, a kernel is drawn from a normal distribution
  that is cut off at two deviations and has the variance 1 / fan_in, and biases
  are 0. With `'torch'` kernels and biases are uniform in
  [-1 / sqrt(fan_in), 1 / sqrt(fan_in)], a third of the variance, as by the
  layerwise cosine paper's code: PyTorch's default, Kaiming's uniform
  distribution with a = sqrt(5). The fan-in is the number of inputs that one
  output is a sum over: 9 times the features before a convolution. It matters in
  the first rounds: with `'torch'` the losses fall later.

  Attributes:
    num_classes: width of the output.
    features: of the convolutions.
    pool: after the `'last'` convolution, or after `'each'`.
    hidden: widths of the dense layers between.
    padding: of the convolutions, `'SAME'` or `'VALID'`.
    dropout: rates before and after the hidden dense layers.
    initial_weights: `'lecun_normal'` or `'torch'`, see above.

  Raises:
    ValueError: an option with an impossible value.
  """

  num_classes: int
  features: Sequence[int] = (32, 64)
  pool: Pool = 'last'
  hidden: Sequence[int] = (128,)
  padding: Padding = 'SAME'
  dropout: tuple[float, float] = (0.0, 0.0)
  initial_weights: InitialWeights = 'lecun_normal'

  def __post_init__(self):
    super().__post_init__()
    for field in ('features', 'hidden'):
      for width in getattr(self, field):
        whole(1)(f'model.{field}', width)
    for field, known in (
      ('pool', Pool),
      ('padding', Padding),
      ('initial_weights', InitialWeights),
    ):
      one_of(*get_args(known))(f'model.{field}', getattr(self, field))
    rates = self.dropout
    if len(rates) != 2 or not all(0 <= rate < 1 for rate in rates):
      raise ValueError(
        f'model.dropout must be two rates in [0, 1), got {rates}'
      )

  @nn.compact
  def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
    """Maps images to logits.

    Args:
      x: `[batch, height, width, channels]`; without convolutions
        `[batch, ...]`.
      keys: `[batch]`, of each image's dropout; None for testing.

    Returns:
      `[batch, num_classes]`.

    Raises:
      ValueError: inputs that are no images, or images that are too small.
    """
    if self.features and x.ndim != 4:
      raise ValueError(
        'convolutions take images [batch, height, width, channels], got '
        f'{list(x.shape)}: without any, model.features=(), the network takes '
        'inputs of every shape'
      )
    before, after = self.dropout
    sides = x.shape[1:3]
    lost = 2 if self.padding == 'VALID' else 0
    for i, features in enumerate(self.features, start=1):
      pooled = self.pool == 'each' or i == len(self.features)
      if min(x.shape[1:3]) - lost < (2 if pooled else 1):
        raise ValueError(
          f'the network has nothing left of {sides[0]} x {sides[1]} images '
          f'after convolution {i} of model.features={self.features} with '
          f'model.pool={self.pool!r} and model.padding={self.padding!r}'
        )
      convolution = nn.Conv(
        features,
        (3, 3),
        padding=self.padding,
        conv_general_dilated=conv_max_pool if pooled else conv,
        **self._initializers(9 * x.shape[-1]),
      )
      x = nn.relu(convolution(x))
    x = dropout(x, before, keys, 0)
    x = x.reshape(len(x), -1)
    for features in self.hidden:
      x = nn.relu(nn.Dense(features, **self._initializers(x.shape[-1]))(x))
    x = dropout(x, after, keys, 1)
    return nn.Dense(self.num_classes, **self._initializers(x.shape[-1]))(x)

  def _initializers(self, fan_in: int) -> dict[str, Initializer]:
    """Returns a layer's initialisers; PyTorch's biases know the fan-in."""
    if self.initial_weights == 'lecun_normal':
      return {}  # Flax's own
    bound = 1 / math.sqrt(fan_in)

    def uniform(key, shape, dtype):
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {'kernel_init': uniform, 'bias_init': uniform}
