"""A config of the keys that all settings share, with their defaults.

`lca/experiment/sections.py` says what every key means and has the defaults, in
one class for each section; `client` has two, in
`lca/experiment/client_sections.py`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import presets
from lca.experiment import client_sections, sections
from lca.registry import options_of, type_of


def base() -> ConfigDict:
  """Returns a config of the layerwise cosine paper's federated training.

  A setting adds its data; `configs.common.compose` adds the sections
  `aggregator` and `attack` from presets.
  """
  config = _section(sections.Run)
  for name, section in sections.SECTIONS.items():
    config[name] = _section(section)
  config.model = ConfigDict(presets.models()['cnn'])
  return config


def federated_sgd(config: ConfigDict, batch_size: int) -> None:
  """Replaces the clients' training by one gradient of one batch a round.

  Args:
    config: its section `client` is replaced, in place.
    batch_size: examples of the batch.
  """
  config.client = _section(client_sections.Gradient)
  config.client.batch_size = batch_size


def _section(section: type) -> ConfigDict:
  """Returns a section's keys and defaults as a config.

  A key whose default is None becomes a placeholder, which takes values of the
  key's type.
  """
  return ConfigDict(
    {
      name: placeholder(type_of(key)) if key.default is None else key.default
      for name, key in options_of(section).items()
    }
  )
