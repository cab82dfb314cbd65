"""Composes a config from a setting and presets.

`--config=configs/SETTING.py:PRESET,PRESET` names a setting, which is a file of
this folder, and presets in any order:

- at most one rule, such as `layerwise_cosine_krum` (`aggregators`);
- any number of pre-aggregators, such as `nnm` (`pre_aggregators`), which are
  applied in the order in which they are named;
- at most one attack, such as `label_flipping` (`attacks`);
- at most one partition, such as `dirichlet` (`partitions`), one model, such as
  `cnn` (`models`), and one optimiser of the server, such as `fedadam`
  (`servers`);
- at most one of the setting's own shorthands, such as `fig5` of
  `legato_mnist.py`, which stands for several presets and values.

A preset fills in one section of the config (see `configs/presets.py`). The
result is locked, and its keys are those that all settings share and those of
the chosen presets.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from configs import presets as presets_of
from configs.base import base, federated_sgd
from configs.presets import (
  aggregators,
  attacks,
  models,
  partitions,
  pre_aggregators,
  servers,
)
from lca.aggregators import AGGREGATORS, RULES
from lca.registry import unknown

__all__ = [
  'aggregators',
  'attacks',
  'base',
  'compose',
  'federated_sgd',
  'models',
  'partitions',
  'pre_aggregators',
  'servers',
]


def compose(
  config: ConfigDict,
  presets: str,
  default: str,
  *,
  examples_per_client: int | None = None,
  shorthands: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
) -> ConfigDict:
  """Adds the named presets to a setting and locks it.

  The section `data` gets the options of its data set, those that the setting
  has not set with their defaults.

  Args:
    config: a setting: what all settings share, its data, model and numbers.
    presets: names separated by commas; may be empty. At most one of every
      kind, except pre-aggregators, which are applied in the order given.
    default: the preset of the rule if `presets` names no rule.
    examples_per_client: see `partitions`.
    shorthands: the setting's own names. Each stands for presets, separated by
      commas, and for values of keys. At most one may be among `presets`.

  Returns:
    The config, locked.

  Raises:
    ValueError: an unknown preset, two of one kind, or two shorthands.
  """
  shorthands = shorthands or {}
  if config.data.name is not None:
    options = presets_of.data_options(config.data.name)
    given = config.data.keys()
    config.data.update({k: v for k, v in options.items() if k not in given})
  known = {
    'aggregator': presets_of.aggregators(),
    'pre-aggregator': presets_of.pre_aggregators(),
    'attack': presets_of.attacks(config),
    'partition': presets_of.partitions(examples_per_client),
    'model': presets_of.models(),
    'server': presets_of.servers(),
    'shorthand': shorthands,
  }
  # Replace a shorthand by the presets that it stands for.
  names, shorthand, values = [], None, {}
  for name in filter(None, presets.split(',')):
    if name not in shorthands:
      names.append(name)
      continue
    if shorthand:
      raise ValueError(
        f'{presets!r} names two shorthands, {shorthand!r} and {name!r}; choose '
        'one'
      )
    shorthand, (stands_for, values) = name, shorthands[name]
    names += stands_for.split(',') if stands_for else []
  chosen = _by_kind(presets, names, known)
  # The order matters: the number of attackers follows from the partition and
  # the server, and f follows from the attack.
  partition = (chosen['partition'] or ['iid'])[0]
  config.data.update(known['partition'][partition])
  for name in chosen['model']:
    config.model = ConfigDict(known['model'][name])
  for name in chosen['server']:
    clients_per_round = config.server.clients_per_round
    config.server = ConfigDict(known['server'][name])
    config.server.clients_per_round = clients_per_round
  config.attack = ConfigDict({'name': 'none'})
  for name in chosen['attack']:
    # `known` has presets of the attack from before partition and server were
    # set; they are made again, to refer to the new values.
    config.attack = ConfigDict(presets_of.attacks(config)[name])
  (rule,) = chosen['aggregator'] or [default]
  f = _tolerated(config.attack)
  config.aggregator = ConfigDict(presets_of.aggregators(f)[rule])
  config.aggregator.pre += tuple(chosen['pre-aggregator'])
  for name in chosen['pre-aggregator']:
    # Each pre-aggregator has its own reference, so that its f can be set alone.
    f = _tolerated(config.attack)
    config.aggregator[name] = ConfigDict(presets_of.pre_aggregators(f)[name])
  if config.aggregator.get('num_clients', 0) is None:
    config.aggregator.num_clients = config.data.get_oneway_ref('num_clients')
  if 'f' in config.attack and 'f' in config.aggregator:
    # An attack that takes the server's f into account follows it.
    config.attack.f = config.aggregator.get_oneway_ref('f')
  if _needs_the_server(config.aggregator.name):
    config.data.root_examples = 100
  config.update_from_flattened_dict(values)
  return config.lock()


def _by_kind(
  presets: str, names: Sequence[str], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
  """Sorts the names of presets by their kind.

  Args:
    presets: as the user has named them, for messages.
    names: of the presets.
    known: all presets of each kind by name.

  Raises:
    ValueError: an unknown name, or two presets of one kind.
  """
  chosen = {kind: [] for kind in known}
  for name in names:
    kind = next((kind for kind in known if name in known[kind]), None)
    if kind is None:
      raise ValueError(
        unknown('preset', name, known)
        + '\na file of yours that registers a name needs --load=FILE'
      )
    chosen[kind].append(name)
    if kind != 'pre-aggregator' and len(chosen[kind]) > 1:
      raise ValueError(
        f'{presets!r} names two presets of the {kind}, '
        f'{" and ".join(chosen[kind])}; choose one'
      )
  return chosen


def _tolerated(attack: ConfigDict) -> int | FieldReference | None:
  """Returns f, the number of Byzantine clients that a rule tolerates.

  f is 1 without an attack. If the draw decides how many clients attack, f is a
  placeholder, None, which the user must set. Otherwise f is a reference to
  `attack.num_byzantine`, and follows when this key is set later. The reference
  is one-way: setting f leaves the attack as it is.
  """
  if attack.name == 'none':
    return 1
  if attack.sampled:
    return placeholder(int)
  return attack.get_oneway_ref('num_byzantine')


def _needs_the_server(name: str) -> bool:
  """Returns True if a rule needs an update that the server trains itself."""
  if name in presets_of.OF_THE_SERVER:
    return True
  takes = inspect.signature((RULES | AGGREGATORS)[name]).parameters
  update = takes.get('server_update')
  return update is not None and update.default is update.empty
