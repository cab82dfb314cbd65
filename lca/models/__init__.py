"""Models: plain `flax.linen` modules, and the classifier around them."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from lca.models.classifier import Classifier
from lca.models.networks.cnn import CNN
from lca.models.networks.efficientnet import EfficientNet, EfficientNetLite0
from lca.models.pretrained import find_pretrained, load_pretrained

MODELS = {
  'cnn': CNN,
  'efficientnet_b0': EfficientNet,
  'efficientnet_lite0': EfficientNetLite0,
}

PIXELS = {'efficientnet_lite0': ((127.0,), (128.0,))}
"""Mean and deviation that models expect, where those are not the data set's."""

_PADDINGS = ('SAME', 'VALID')


def make(config: Mapping[str, Any], num_classes: int) -> nn.Module:
  """Builds the module that `config.model` describes.

  Raises:
    ValueError: an unknown name, or an option with an impossible value.
  """
  keys = dict(config)
  name = keys.pop('name')
  if name not in MODELS:
    raise ValueError(f'unknown model {name!r}; there are {sorted(MODELS)}')
  if name == 'cnn':
    _check_cnn(keys)
  else:
    _check_efficientnet(keys)
  return MODELS[name](num_classes=num_classes, **keys)


def _check_cnn(keys):
  for key in ('features', 'hidden'):
    if min(keys[key], default=1) < 1:
      raise ValueError(f'model.{key} must be at least 1, got {keys[key]}')
  for key, known in (('pool', ('last', 'each')), ('padding', _PADDINGS)):
    if keys[key] not in known:
      raise ValueError(f'model.{key} must be one of {known}, got {keys[key]!r}')
  rates = keys['dropout']
  if len(rates) != 2 or not all(0 <= rate < 1 for rate in rates):
    raise ValueError(f'model.dropout must be two rates in [0, 1), got {rates}')


def _check_efficientnet(keys):
  for key in ('dropout', 'stochastic_depth'):
    if not 0 <= keys[key] < 1:
      raise ValueError(f'model.{key} must be in [0, 1), got {keys[key]}')


__all__ = [
  'CNN',
  'MODELS',
  'PIXELS',
  'Classifier',
  'EfficientNet',
  'EfficientNetLite0',
  'find_pretrained',
  'load_pretrained',
  'make',
]
