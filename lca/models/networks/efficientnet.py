"""EfficientNet-B0, and Lite0, its variant without squeeze-and-excitation."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from lca.models.kernels.convolution import conv, dropout
from lca.options import one_of

ACTIVATIONS = {'swish': nn.swish, 'relu6': nn.relu6}

Padding = Literal['symmetric', 'same']


class Stage(NamedTuple):
  """A stage of the network: a row of Table 1 of the paper.

  Attributes:
    expand: the factor by which a block widens its inputs internally.
    kernel: the size of the depthwise convolutions.
    stride: the stride of the first block; all other blocks have stride 1.
    features: the number of output channels of each block.
    repeats: the number of blocks.
  """

  expand: int
  kernel: int
  stride: int
  features: int
  repeats: int


# Expansion, kernel, stride, features and repeats of each stage.
B0 = (
  Stage(1, 3, 1, 16, 1),
  Stage(6, 3, 2, 24, 2),
  Stage(6, 5, 2, 40, 2),
  Stage(6, 3, 2, 80, 3),
  Stage(6, 5, 1, 112, 3),
  Stage(6, 5, 2, 192, 4),
  Stage(6, 3, 1, 320, 1),
)


class ConvNorm(nn.Module):
  """A convolution without bias, followed by batch normalisation.

  Attributes:
    features: the number of output channels.
    padding: `'symmetric'`, as in PyTorch, or `'same'`, as in TensorFlow, where
      stride 2 may pad one row or column more at the end than at the start. Both
      give outputs with sides `ceil(side / stride)`.
    epsilon: the constant that is added to the variance.
    training: True normalises by the statistics of the batch, False by the
      running statistics.
    kernel: the size of the kernel in both directions.
    stride: the stride in both directions.
    depthwise: True applies one filter to each channel.
  """

  features: int
  padding: Padding
  epsilon: float
  training: bool
  kernel: int = 1
  stride: int = 1
  depthwise: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Maps `[batch, h, w, c]` to `[batch, h / stride, w / stride, features]`.

    Args:
      x: the images.
      mask: `[batch, 1, 1, 1]` booleans, False for images that do not count in
        the batch's statistics. None counts all images.
    """
    x = nn.Conv(
      self.features,
      (self.kernel, self.kernel),
      self.stride,
      'SAME' if self.padding == 'same' else self.kernel // 2,
      feature_group_count=self.features if self.depthwise else 1,
      use_bias=False,
      conv_general_dilated=conv,
      name='conv',
    )(x)
    return nn.BatchNorm(
      not self.training, momentum=0.9, epsilon=self.epsilon, name='norm'
    )(x, mask=mask)


class SqueezeExcite(nn.Module):
  """Multiplies each channel by a gate between 0 and 1.

  The gates are computed from the means of all channels by two dense layers.

  Attributes:
    features: the width of the hidden layer.
    activation: the activation of the hidden layer.

  References:
    Hu, Shen and Sun, Squeeze-and-excitation networks, CVPR 2018.
  """

  features: int
  activation: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[batch, height, width, channels]` to the same shape."""
    dense = functools.partial(
      nn.Conv, kernel_size=(1, 1), conv_general_dilated=conv
    )
    means = jnp.mean(x, axis=(1, 2), keepdims=True)
    hidden = self.activation(dense(self.features, name='reduce')(means))
    return x * nn.sigmoid(dense(x.shape[-1], name='expand')(hidden))


class MBConv(nn.Module):
  """A mobile inverted bottleneck, without its shortcut.

  A pointwise convolution increases the number of channels, a depthwise
  convolution mixes neighbouring pixels, squeeze-and-excitation scales the
  channels, and a pointwise convolution reduces their number again.

  Attributes:
    stage: the stage to which the block belongs.
    stride: the stride of the depthwise convolution.
    squeeze: True has squeeze-and-excitation.
    activation: the activation after all convolutions but the last one.
    conv_norm: makes a `ConvNorm` with the network's padding and epsilon from
      features, kernel and stride.
  """

  stage: Stage
  stride: int
  squeeze: bool
  activation: Callable[[jax.Array], jax.Array]
  conv_norm: Callable[..., ConvNorm]

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Maps `[batch, h, w, c]` to `[batch, h / stride, w / stride, features]`.

    Args:
      x: the images.
      mask: `[batch, 1, 1, 1]` booleans or None, as in `ConvNorm`.
    """
    stage, features = self.stage, x.shape[-1]
    wide = features * stage.expand
    if stage.expand > 1:
      x = self.activation(self.conv_norm(wide, name='expand')(x, mask))
    depthwise = self.conv_norm(
      wide,
      kernel=stage.kernel,
      stride=self.stride,
      depthwise=True,
      name='depthwise',
    )
    x = self.activation(depthwise(x, mask))
    if self.squeeze:
      squeezed = max(1, features // 4)
      x = SqueezeExcite(squeezed, self.activation, name='squeeze')(x)
    return self.conv_norm(stage.features, name='project')(x, mask)


class EfficientNet(nn.Module):
  """EfficientNet-B0 (Tan and Le 2019, Table 1).

  The layerwise cosine paper uses this network. It has 5,288,548 parameters with
  1,000 classes. The defaults compute the same as `efficientnet_b0` of
  torchvision and timm, with one difference in training: as everywhere in Flax,
  the running variance follows the biased variance of the batch and not the
  unbiased one.

  Attributes:
    num_classes: the width of the output.
    stages: the stages of the network.
    squeeze: True has squeeze-and-excitation in each block.
    activation: `'swish'` or `'relu6'`.
    padding: the padding of the convolutions, `'symmetric'` (as in PyTorch) or
      `'same'` (as in TensorFlow), see `ConvNorm`.
    epsilon: the constant that batch normalisation adds to the variance.
    dropout: the dropout rate before the output layer.
    stochastic_depth: sets the probability with which training skips a block for
      an image (Huang et al. 2016). For block i of n, counted from 0, it is
      `stochastic_depth * i / n`. Only blocks with a shortcut can be skipped.

  Raises:
    ValueError: an option has an impossible value.

  References:
    Huang et al., Deep networks with stochastic depth, ECCV 2016.

    Tan and Le, EfficientNet: rethinking model scaling for convolutional neural
    networks, ICML 2019.
  """

  num_classes: int
  stages: Sequence[Stage] = B0
  squeeze: bool = True
  activation: Literal['swish', 'relu6'] = 'swish'
  padding: Padding = 'symmetric'
  epsilon: float = 1e-5
  dropout: float = 0.2
  stochastic_depth: float = 0.2

  def __post_init__(self):
    super().__post_init__()
    one_of(*sorted(ACTIVATIONS))('model.activation', self.activation)
    one_of(*get_args(Padding))('model.padding', self.padding)
    for field in ('dropout', 'stochastic_depth'):
      if not 0 <= getattr(self, field) < 1:
        raise ValueError(
          f'model.{field} must be in [0, 1), got {getattr(self, field)}'
        )

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    keys: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """Maps images to logits.

    Args:
      x: `[batch, height, width, 3]` images.
      keys: `[batch]` PRNG keys for the dropout and stochastic depth of each
        image in training; None for testing. With keys, batch normalisation uses
        the statistics of the batch, and moves the running statistics (the
        collection `batch_stats`) towards them by a tenth of the difference.
      mask: `[batch]` booleans, False for rows that only pad the batch and do
        not count in its statistics. None counts all rows.

    Returns:
      `[batch, num_classes]` logits.

    Raises:
      ValueError: the inputs are not images.
    """
    if x.ndim != 4:
      raise ValueError(
        'the network takes images [batch, height, width, channels], got '
        f'{list(x.shape)}'
      )
    activation = ACTIVATIONS[self.activation]
    conv_norm = functools.partial(
      ConvNorm,
      padding=self.padding,
      epsilon=self.epsilon,
      training=keys is not None,
    )
    if mask is not None:
      mask = mask[:, None, None, None]
    stem = conv_norm(32, kernel=3, stride=2, name='stem')
    x = activation(stem(x, mask))
    # Sorted by name, the blocks are in the network's order; `load_pretrained`
    # relies on this. Only a stage's first block has the stage's stride.
    blocks = [
      (f'block{s}_{i}', stage, stage.stride if i == 0 else 1)
      for s, stage in enumerate(self.stages, start=1)
      for i in range(stage.repeats)
    ]
    for block_idx, (name, stage, stride) in enumerate(blocks):
      block = MBConv(
        stage, stride, self.squeeze, activation, conv_norm, name=name
      )
      y = block(x, mask)
      if stride == 1 and y.shape == x.shape:
        # The shortcut. Stochastic depth is dropout of an image's whole block.
        rate = self.stochastic_depth * block_idx / len(blocks)
        ones = jnp.ones((len(x), 1, 1, 1), x.dtype)
        y = x + y * dropout(ones, rate, keys, block_idx)
      x = y
    x = activation(conv_norm(1280, name='head')(x, mask))
    x = dropout(jnp.mean(x, axis=(1, 2)), self.dropout, keys, len(blocks))
    return nn.Dense(self.num_classes, name='classifier')(x)


EfficientNetLite0 = functools.partial(
  EfficientNet,
  squeeze=False,
  activation='relu6',
  padding='same',
  epsilon=1e-3,
)
"""EfficientNet-Lite0, for devices on which squeeze-and-excitation is slow.

It has 4,652,008 parameters with 1,000 classes, like the published weights.
"""
