"""Composition of settings and presets.

A config is a setting and presets, `configs/SETTING.py:PRESET,PRESET`: one of
`presets.aggregators()`, one of `attacks()`, one of `partitions()`, one of
`models()`, one of `servers()`, any of `pre_aggregators()`, and one of a
setting's own shorthands for several of them. The result is locked and holds
only the keys of the chosen presets; `configs/base.py` holds those that all
settings share.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from configs import presets as presets_of
from configs.base import archives, base, federated_sgd
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
  'archives',
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

  Args:
    config: a setting.
    presets: names separated by commas; may be empty. At most one of every
      kind, and pre-aggregators in the order in which they are applied.
    default: the aggregator's preset where `presets` names none.
    examples_per_client: see `partitions`.
    shorthands: names of the setting's own, one of which may be among the
      presets: the presets that it stands for, and values of keys.

  Returns:
    The config, locked.

  Raises:
    ValueError: an unknown preset, two of one kind or two shorthands.
  """
  shorthands = shorthands or {}
  known = {
    'aggregator': presets_of.aggregators(),
    'pre-aggregator': presets_of.pre_aggregators(),
    'attack': presets_of.attacks(config),
    'partition': presets_of.partitions(examples_per_client),
    'model': presets_of.models(),
    'server': presets_of.servers(),
    'shorthand': shorthands,
  }
  names, short, values = [], None, {}
  for name in filter(None, presets.split(',')):
    if name not in shorthands:
      names.append(name)
      continue
    if short:
      raise ValueError(
        f'{presets!r} names two shorthands, {short!r} and {name!r}'
      )
    short, (stands_for, values) = name, shorthands[name]
    names += stands_for.split(',') if stands_for else []
  chosen = _by_kind(presets, names, known)
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
    # Anew: how many attack depends on the partition and the server.
    config.attack = ConfigDict(presets_of.attacks(config)[name])
  (rule,) = chosen['aggregator'] or [default]
  f = _tolerated(config.attack)
  config.aggregator = ConfigDict(presets_of.aggregators(f)[rule])
  config.aggregator.pre = tuple(chosen['pre-aggregator'])
  for name in chosen['pre-aggregator']:
    f = _tolerated(config.attack)  # a reference of its own
    config.aggregator[name] = ConfigDict(presets_of.pre_aggregators(f)[name])
  if 'f' in config.attack and 'f' in config.aggregator:
    config.attack.f = config.aggregator.get_oneway_ref('f')
  if _needs_the_server(config.aggregator.name):
    config.data.root_examples = 100
  config.update_from_flattened_dict(values)
  return config.lock()


def _by_kind(
  presets: str, names: Sequence[str], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
  """Returns the names of the presets chosen, by kind."""
  chosen = {kind: [] for kind in known}
  for name in names:
    kind = next((kind for kind in known if name in known[kind]), None)
    if kind is None:
      raise ValueError(unknown('preset', name, known))
    chosen[kind].append(name)
    if kind != 'pre-aggregator' and len(chosen[kind]) > 1:
      raise ValueError(f'{presets!r} names two presets of the {kind}')
  return chosen


def _tolerated(attack: ConfigDict) -> int | FieldReference | None:
  """f: as many as attack; 1 if nobody does; to be set if the draw decides."""
  if attack.name == 'none':
    return 1
  if attack.sampled:
    return placeholder(int)
  return attack.get_oneway_ref('num_byzantine')


def _needs_the_server(name: str) -> bool:
  """Returns True of a rule that compares with an update of the server's own."""
  takes = inspect.signature((RULES | AGGREGATORS)[name]).parameters
  update = takes.get('server_update')
  return update is not None and update.default is update.empty
