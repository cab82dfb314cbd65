"""The convolutional networks of the layerwise cosine paper and of LEGATO."""

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
  """3 x 3 convolutions with pooling, then dense layers, with ReLUs between.

  The defaults give the network of the layerwise cosine paper (García-Márquez et
  al. 2025, section 4.1): convolutions with 32 and 64 features, 2 x 2
  max-pooling, a dense layer of width 128, and the output layer. It has
  1,625,866 parameters for 28 x 28 x 1 images and 10 classes.

  With `padding='VALID'` and `dropout=(0.25, 0.5)` it is the network of LEGATO
  (Varma et al. 2021, Table I), with 1,199,882 parameters. The text of that
  paper mentions one dropout layer without its rate; the two rates here are the
  usual ones for this network.

  Flax and PyTorch initialise such layers differently. The fan-in of a layer is
  the number of inputs that each output sums over: 9 times the input channels
  for a convolution.

  - `initial_weights='lecun_normal'` is Flax's default: kernels are drawn from a
    normal distribution that is truncated at two standard deviations and has the
    variance 1 / fan_in; biases are 0.
  - `initial_weights='torch'` is PyTorch's default, which the code of the
    layerwise cosine paper uses: kernels and biases are uniform in
    [-1 / sqrt(fan_in), 1 / sqrt(fan_in)]. The kernels' variance is a third of
    that of `'lecun_normal'`. PyTorch calls this Kaiming's uniform distribution
    with a = sqrt(5). With these weights, losses begin to fall later.

  Attributes:
    num_classes: the width of the output.
    features: the number of output channels of each convolution.
    pool: `'last'` pools after the last convolution, `'each'` after each one.
    hidden: the widths of the hidden dense layers.
    padding: the padding of the convolutions, `'SAME'` or `'VALID'`.
    dropout: the dropout rates before the hidden dense layers and after them.
    initial_weights: `'lecun_normal'` or `'torch'`, see above.

  Raises:
    ValueError: an option has an impossible value.
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
      x: `[batch, height, width, channels]` images, or `[batch, ...]` inputs of
        any shape if there are no convolutions.
      keys: `[batch]` PRNG keys for the dropout of each image; None for testing.

    Returns:
      `[batch, num_classes]` logits.

    Raises:
      ValueError: the inputs of convolutions are not images, or are too small.
    """
    if self.features and x.ndim != 4:
      raise ValueError(
        'convolutions take images [batch, height, width, channels], got '
        f'{list(x.shape)}: pass images, or set model.features=() for a network '
        'without convolutions, which takes inputs of any shape'
      )
    rate_before, rate_after = self.dropout
    sides = x.shape[1:3]
    # A 3 x 3 convolution without padding makes each side 2 pixels shorter.
    shrinkage = 2 if self.padding == 'VALID' else 0
    for i, features in enumerate(self.features, start=1):
      pooled = self.pool == 'each' or i == len(self.features)
      if min(x.shape[1:3]) - shrinkage < (2 if pooled else 1):
        raise ValueError(
          f'images of {sides[0]} x {sides[1]} are too small: no pixel is left '
          f'after convolution {i} of model.features={self.features} with '
          f'model.pool={self.pool!r} and model.padding={self.padding!r}; '
          'use fewer convolutions or larger images'
        )
      convolution = nn.Conv(
        features,
        (3, 3),
        padding=self.padding,
        conv_general_dilated=conv_max_pool if pooled else conv,
        **self._initializers(9 * x.shape[-1]),
      )
      x = nn.relu(convolution(x))
    x = dropout(x, rate_before, keys, 0)
    x = x.reshape(len(x), -1)
    for features in self.hidden:
      x = nn.relu(nn.Dense(features, **self._initializers(x.shape[-1]))(x))
    x = dropout(x, rate_after, keys, 1)
    return nn.Dense(self.num_classes, **self._initializers(x.shape[-1]))(x)

  def _initializers(self, fan_in: int) -> dict[str, Initializer]:
    """Returns the initialisers of a layer, as keyword arguments for it.

    PyTorch's initialisers depend on the layer's fan-in. Flax does not pass the
    fan-in to the initialiser of a bias, so it is an argument of this method.
    """
    if self.initial_weights == 'lecun_normal':
      return {}  # the layer's defaults
    bound = 1 / math.sqrt(fan_in)

    def uniform(key, shape, dtype):
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {'kernel_init': uniform, 'bias_init': uniform}
