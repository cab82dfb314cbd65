"""EfficientNet-B0, and the variant without squeeze-and-excitation, Lite0."""

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
  """A row of the network's table: blocks of one width.

  Attributes:
    expand: how many times wider a block is inside.
    kernel: size of its depthwise convolution.
    stride: of its first block; the others have 1.
    features: that its blocks return.
    repeats: the number of its blocks.
  """

  expand: int
  kernel: int
  stride: int
  features: int
  repeats: int


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
  """A convolution without bias, and batch normalisation.

  Attributes:
    features: that it returns.
    padding: of the images, to `ceil(size / stride)` in both cases:
      `'symmetric'` is PyTorch's, `'same'` TensorFlow's, which at stride 2 may
      pad one more after than before.
    epsilon: added to the variance.
    training: normalises by the batch's statistics, and not by the running ones.
    kernel: size.
    stride: in both directions.
    depthwise: one filter for each channel.
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

    Only images of the mask `[batch, 1, 1, 1]` count in the batch's statistics.
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
  """Scales every channel by a gate that looks at all channels' means.

  Hu, Shen and Sun, Squeeze-and-excitation networks, CVPR 2018.

  Attributes:
    features: of the hidden layer.
    activation: of it.
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
  """Mobile inverted bottleneck, without its shortcut.

  A pointwise convolution widens, a depthwise one looks around, squeeze and
  excitation weighs the channels, and a pointwise convolution narrows.

  Attributes:
    stage: that it belongs to.
    stride: of the depthwise convolution.
    squeeze: whether there is squeeze-and-excitation.
    activation: after all convolutions but the last.
    conv_norm: a ConvNorm but for features, kernel and stride.
  """

  stage: Stage
  stride: int
  squeeze: bool
  activation: Callable[[jax.Array], jax.Array]
  conv_norm: Callable[..., ConvNorm]

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Maps `[batch, h, w, c]` to `[batch, h / stride, w / stride, features]`.

    The mask is ConvNorm's.
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
  """EfficientNet-B0 (Tan and Le 2019, Table 1), as the layerwise paper uses it.

  5,288,548 parameters with 1,000 classes. The defaults compute what
  torchvision's and timm's `efficientnet_b0` do, with one difference in
  training: the running variance follows the batch's variance itself, and not
  its unbiased estimate, as everywhere in Flax.

  Attributes:
    num_classes: width of the output.
    stages: the network's table.
    squeeze: whether blocks have squeeze-and-excitation.
    activation: `'swish'` or `'relu6'`.
    padding: of the convolutions, `'symmetric'` (PyTorch's) or `'same'`
      (TensorFlow's).
    epsilon: of batch normalisation.
    dropout: rate before the output layer.
    stochastic_depth: rate at which a block behind the last would be skipped for
      an image; it falls linearly to 0 at the first (Huang et al. 2016).

  References:
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
      x: `[batch, height, width, 3]`.
      keys: `[batch]`, of what is random for each image in training; None for
        testing. With keys the batch's statistics normalise, and the running
        ones, the collection `batch_stats`, take a tenth of them on.
      mask: `[batch]`, False where a row only pads the batch: it does not count
        in the batch's statistics. None counts all.

    Returns:
      `[batch, num_classes]`.

    Raises:
      ValueError: inputs that are no images.
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
    # Names sort as the blocks do. Only a stage's first block has its stride.
    blocks = [
      (f'block{s}_{i}', stage, stage.stride if i == 0 else 1)
      for s, stage in enumerate(self.stages, start=1)
      for i in range(stage.repeats)
    ]
    for place, (name, stage, stride) in enumerate(blocks):
      block = MBConv(
        stage, stride, self.squeeze, activation, conv_norm, name=name
      )
      y = block(x, mask)
      if stride == 1 and y.shape == x.shape:
        rate = self.stochastic_depth * place / len(blocks)
        ones = jnp.ones((len(x), 1, 1, 1), x.dtype)
        y = x + y * dropout(ones, rate, keys, place)
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
"""EfficientNet-Lite0, which runs where squeeze-and-excitation is slow.

4,652,008 parameters with 1,000 classes, as the published weights have them.
"""
