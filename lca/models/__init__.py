"""Models: plain `flax.linen` modules, and the classifier around them."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from lca.models.classifier import Classifier
from lca.models.cnn import CNN

MODELS = {'cnn': CNN}


def make(config: Mapping[str, Any], num_classes: int) -> nn.Module:
  """Builds the module that `config.model` describes.

  Raises:
    ValueError: for an unknown name.
  """
  keys = dict(config)
  name = keys.pop('name')
  if name not in MODELS:
    raise ValueError(f'unknown model {name!r}; there are {sorted(MODELS)}')
  return MODELS[name](num_classes=num_classes, **keys)


__all__ = ['CNN', 'MODELS', 'Classifier', 'make']
