"""Models: plain `flax.linen` modules, and the classifier around them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from lca.models.classifier import Classifier
from lca.models.networks.cnn import CNN
from lca.models.networks.efficientnet import EfficientNet, EfficientNetLite0
from lca.models.pretrained import find_pretrained, load_pretrained
from lca.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry(
  'model', brought=['num_classes', 'parent', 'name']
)
"""Modules by name: classes, or functions of `num_classes` and options.

A model of one's own is added by `MODELS.register(MLP, name='mlp')`. Its options
are the class's fields, and it checks their values itself, in `__post_init__`.
"""

MODELS.register(CNN, name='cnn')
MODELS.register(EfficientNet, name='efficientnet_b0')
MODELS.register(EfficientNetLite0, name='efficientnet_lite0')

PIXELS = {'efficientnet_lite0': ((127.0,), (128.0,))}
"""Mean and deviation that models expect, where those are not the data set's."""


def make(config: Mapping[str, Any], num_classes: int) -> nn.Module:
  """Builds the module that `config.model` describes.

  Args:
    config: `name`, one of `MODELS`, and the model's own options.
    num_classes: of the data; given to a model that names it.

  Raises:
    ValueError: an unknown name, or an option with an impossible value.
    TypeError: an option that the model does not take, or one that it lacks.
  """
  options = dict(config)
  name = options.pop('name')
  MODELS.check(name, options)
  if 'num_classes' in inspect.signature(MODELS[name]).parameters:
    options['num_classes'] = num_classes
  return MODELS[name](**options)


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
