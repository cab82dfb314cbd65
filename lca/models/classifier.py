"""A module with its inputs and its loss: what is trained and what is tested."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.typing import DTypeLike

from lca.models.pretrained import load_pretrained
from lca.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Classifier:
  """An image classifier under the cross-entropy loss.

  Attributes:
    module: from images `[batch, height, width, channels]`, and keys `[batch]`
      for what is random in training, to logits. One with the collection
      `batch_stats` also takes a mask `[batch]` of the images that count in
      them.
    mean: per channel, in pixel units.
    std: per channel; the module sees `(pixel - mean) / std`.
    resize: images are scaled, bicubically, until their shorter side is that
      long; 0 leaves them as they are.
    crop: the side of the square that is then cut out of the middle; 0 keeps
      all.
    pretrained: weights to start from (see `load_pretrained`); '' draws them.
    dtype: that a training step computes in, forward and backward, such as
      `'bfloat16'`; None is the parameters' own. The parameters, their
      gradients, batch statistics and losses keep theirs, and so does testing.

  Raises:
    ValueError: a negative size, or a crop larger than what it is cut out of.
  """

  module: nn.Module
  mean: tuple[float, ...]
  std: tuple[float, ...]
  resize: int = 0
  crop: int = 0
  pretrained: str | os.PathLike = ''
  dtype: DTypeLike | None = None

  def __post_init__(self):
    for field in ('resize', 'crop'):
      value = getattr(self, field)
      if value < 0:
        raise ValueError(f'model.{field} must be at least 0, got {value}')
    if self.resize and self.crop and self.crop > self.resize:
      raise ValueError(
        f'model.crop={self.crop} is larger than model.resize={self.resize}'
      )

  def init(self, key: jax.Array, input_spec: jax.ShapeDtypeStruct) -> PyTree:
    """The variables to start from.

    Args:
      key: of what is drawn: all, or the output layer of pretrained weights of
        other classes.
      input_spec: shape and dtype of one input, without a batch.

    Raises:
      ValueError, ImportError, OSError: see `load_pretrained`; images too small
        for the crop.
    """
    variables = self._draw(key, input_spec)
    if not self.pretrained:
      return variables
    return load_pretrained(variables, self.pretrained)

  @functools.partial(jax.jit, static_argnums=(0, 2))
  def _draw(self, key, input_spec):
    images = jnp.zeros((1, *input_spec.shape), input_spec.dtype)
    return self.module.init(key, self._inputs(images))

  def logits(self, variables: PyTree, images: jax.Array) -> jax.Array:
    """Maps images `[batch, ...]`, uint8, to logits `[batch, classes]`."""
    return self.module.apply(variables, self._inputs(images))

  def losses(
    self,
    variables: PyTree,
    images: jax.Array,
    labels: jax.Array,
    keys: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, PyTree]:
    """Training losses, and what a training step changes beside the parameters.

    Args:
      variables: of the module.
      images: `[batch, ...]`, uint8.
      labels: `[batch]`.
      keys: `[batch]`, of what is random for each image; None as in testing.
      mask: `[batch]`, False where a row only pads the batch: it does not count
        in the batch's statistics. None counts all.

    Returns:
      `[batch]` cross-entropies in nats, and the new `{'batch_stats': ...}`, or
      `{}` of a module without them.
    """
    # Statistics of batches stay as they are: flax.linen sums them in float32.
    variables = {**variables, 'params': self._computed(variables['params'])}
    x, updated = self._computed(self._inputs(images)), {}
    if 'batch_stats' in variables:
      logits, updated = self.module.apply(
        variables, x, keys, mask, mutable=['batch_stats']
      )
    else:
      logits = self.module.apply(variables, x, keys)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return _cross_entropies(logits, labels), updated

  def test(
    self,
    variables: PyTree,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Weighted sums over a batch of the loss and of correct predictions."""
    logits = self.logits(variables, images)
    losses = _cross_entropies(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    losses = jnp.where(weights > 0, losses, 0)  # of padding, maybe not finite
    return jnp.sum(weights * losses), jnp.sum(weights * correct)

  def _computed(self, tree):
    return jax.tree.map(lambda x: x.astype(self.dtype or x.dtype), tree)

  def _inputs(self, images):
    pixels = _resized(images.astype(jnp.float32), self.resize, self.crop)
    return (pixels - jnp.array(self.mean)) / jnp.array(self.std)


def _resized(images, resize, crop):
  """The middle of the resized images, as torchvision's transforms cut it."""
  sides = images.shape[1:3]
  scaled = tuple(int(resize * s / min(sides)) if resize else s for s in sides)
  shape = (crop or scaled[0], crop or scaled[1])
  if min(scaled) < max(shape) and crop:
    raise ValueError(f'images of {scaled} have no middle of model.crop={crop}')
  offsets = [round((s - c) / 2) for s, c in zip(scaled, shape, strict=True)]
  if scaled == sides:
    top, left = offsets
    return images[:, top : top + shape[0], left : left + shape[1]]
  # What is not kept is not computed.
  images = jax.image.scale_and_translate(
    images,
    (len(images), *shape, images.shape[-1]),
    (1, 2),
    jnp.array([new / old for new, old in zip(scaled, sides, strict=True)]),
    -jnp.array(offsets, jnp.float32),
    'cubic',
  )
  return jnp.clip(images, 0, 255)  # which a cubic overshoots


_cross_entropies = optax.softmax_cross_entropy_with_integer_labels
