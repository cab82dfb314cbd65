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
      for what is random in training, to logits.
    mean: per channel, in pixel units.
    std: per channel; the module sees `(pixel - mean) / std`.
  """

  module: nn.Module
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> PyTree:
    """Random variables for images of `image_shape`, without a batch."""
    return self.module.init(key, jnp.zeros((1, *image_shape)))

  def logits(
    self,
    variables: PyTree,
    images: jax.Array,
    keys: jax.Array | None = None,
  ) -> jax.Array:
    """Maps images `[batch, ...]`, uint8, to logits `[batch, classes]`.

    With `keys`, `[batch]`, as in training.
    """
    pixels = images.astype(jnp.float32)
    x = (pixels - jnp.array(self.mean)) / jnp.array(self.std)
    return self.module.apply(variables, x, keys)

  def losses(
    self,
    variables: PyTree,
    images: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
  ) -> jax.Array:
    """`[batch]` training losses: cross-entropies in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(
      self.logits(variables, images, keys), labels
    )

  def test(
    self,
    variables: PyTree,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Weighted sums over a batch of the loss and of correct predictions."""
    logits = self.logits(variables, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = jnp.argmax(logits, axis=-1) == labels
    losses = jnp.where(weights > 0, losses, 0)  # of padding, maybe not finite
    return jnp.sum(weights * losses), jnp.sum(weights * correct)
