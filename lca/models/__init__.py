"""Models: plain `flax.linen` modules, and the classifier that wraps them."""

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
"""Classes of modules, or functions that return a module, by name.

`MODELS.register(MLP, name='mlp')` adds your own model. Its options are the
fields of the class, or the parameters of the function. `num_classes` is passed
to it if it has such a parameter. A class may check the values of its options in
`__post_init__`.
"""

MODELS.register(CNN, name='cnn')
MODELS.register(EfficientNet, name='efficientnet_b0')
MODELS.register(EfficientNetLite0, name='efficientnet_lite0')

PIXELS = {'efficientnet_lite0': ((127.0,), (128.0,))}
"""The `(mean, std)` of pixels that a model expects, by the model's name.

All other models are given pixels that are normalised by the data set's own mean
and std.
"""


def make(config: Mapping[str, Any], num_classes: int) -> nn.Module:
  """Builds the module that `config.model` describes.

  Args:
    config: `name`, a key of `MODELS`, and the options of the model.
    num_classes: the number of classes of the data, for models that have this
      parameter.

  Raises:
    ValueError: the name is unknown, or the model refuses an option's value.
    TypeError: the model does not take an option, or it needs an option that is
      missing.
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
