"""A small network that several tests train."""

from flax import linen as nn


class Normalized(nn.Module):
  """Dense layers with batch normalisation between."""

  num_classes: int

  @nn.compact
  def __call__(self, x, keys=None, mask=None):
    x = nn.Dense(5, use_bias=False)(x.reshape(len(x), -1))
    if mask is not None:
      mask = mask[:, None]
    x = nn.BatchNorm(keys is None, momentum=0.9)(x, mask=mask)
    return nn.Dense(self.num_classes)(nn.relu(x))
