"""Models: plain `flax.linen` modules, and the classifier around them."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn

from lca.models.classifier import Classifier
from lca.models.cnn import CNN

MODELS = {'cnn': CNN}


def make(config: Mapping[str, Any], num_classes: int) -> nn.Module:
  """Builds the module that `config.model` describes.

  Raises:
    ValueError: an unknown name, or a width below 1.
  """
  keys = dict(config)
  name = keys.pop('name')
  if name not in MODELS:
    raise ValueError(f'unknown model {name!r}; there are {sorted(MODELS)}')
  for key, value in keys.items():
    if min(value if isinstance(value, Sequence) else [value]) < 1:
      raise ValueError(f'model.{key} must be at least 1, got {value}')
  return MODELS[name](num_classes=num_classes, **keys)


__all__ = ['CNN', 'MODELS', 'Classifier', 'make']
