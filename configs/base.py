"""The keys that all settings share, as a config.

Their defaults and what they mean stand in `lca.experiment.sections`, one class
for each section. Where there is a choice, None leaves it to the code.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import presets
from lca.experiment import sections
from lca.registry import options_of, type_of


def base() -> ConfigDict:
  """Returns the layerwise cosine paper's federated training, without its data.

  The sections `aggregator` and `attack` come with their presets.
  """
  config = _section(sections.Run)
  for name, section in sections.SECTIONS.items():
    config[name] = _section(section)
  config.model = ConfigDict(presets.models()['cnn'])
  return config


def federated_sgd(config: ConfigDict, batch_size: int) -> None:
  """Turns the clients' part of a round into one gradient of one batch."""
  config.client = _section(sections.Gradient)
  config.client.batch_size = batch_size


def archives(data: ConfigDict) -> None:
  """Adds the keys of data that are downloaded, or prepared from archives."""
  data.archive_dir = placeholder(str)  # where the archives lie; None downloads
  data.data_dir = placeholder(str)  # of prepared data; None is TFDS's


def _section(section: type) -> ConfigDict:
  """Returns a section's keys and defaults; None may become its type's value."""
  return ConfigDict(
    {
      name: placeholder(type_of(key)) if key.default is None else key.default
      for name, key in options_of(section).items()
    }
  )
