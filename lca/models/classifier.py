"""A module with its inputs and its loss: what is trained and what is tested."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

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
  """

  module: nn.Module
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> PyTree:
    """Random variables for images of `image_shape`, without a batch."""
    return self.module.init(key, jnp.zeros((1, *image_shape)))

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
    x, updated = self._inputs(images), {}
    if 'batch_stats' in variables:
      logits, updated = self.module.apply(
        variables, x, keys, mask, mutable=['batch_stats']
      )
    else:
      logits = self.module.apply(variables, x, keys)
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

  def _inputs(self, images):
    pixels = images.astype(jnp.float32)
    return (pixels - jnp.array(self.mean)) / jnp.array(self.std)


_cross_entropies = optax.softmax_cross_entropy_with_integer_labels
