"""Reads the sections of a config: fills in defaults, and refuses unknown keys.

`lca.experiment.sections` has the sections, their keys and their defaults.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from lca import data as datasets
from lca.experiment.client_sections import MODES, Gradient, Training
from lca.experiment.sections import (
  ATTACKERS,
  DEFAULTS,
  NAMED,
  SECTIONS,
  Data,
  defaults,
)
from lca.registry import check_options, options_of

S = TypeVar('S')


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config as nested dicts, with defaults for what it leaves out.

  The result is a new dict; `config` is not changed.

  Args:
    config: nested dicts, or a ConfigDict. `model`, `aggregator` and `attack`
      have no defaults and must be there.

  Raises:
    TypeError: a key at the top that is neither a key nor a section; the message
      names the nearest one.
    ValueError: an unknown `client.mode`, a key of the other mode, or a missing
      section.
  """
  plain = getattr(config, 'to_dict', lambda: dict(config))()
  check_options('a config', optional_parameters([*DEFAULTS, *NAMED]), plain)
  if lacking := [name for name in NAMED if name not in plain]:
    raise ValueError(
      f'the config lacks {" and ".join(lacking)}: these sections have no '
      'defaults; take them from the presets of configs/presets.py, or write '
      'them with at least a name'
    )
  completed = DEFAULTS | plain
  for name in SECTIONS:
    given = dict(plain.get(name, {}))
    section = of_client(given) if name == 'client' else SECTIONS[name]
    completed[name] = defaults(section) | given
  if completed['attack'].get('name') != 'none':
    completed['attack'] = ATTACKERS | completed['attack']
  return completed


def of_client(given: Mapping[str, Any]) -> type[Training] | type[Gradient]:
  """Returns the class of the section `client` in the mode of the given keys.

  Args:
    given: the section's keys; without `mode` they are those of `'training'`.

  Raises:
    ValueError: an unknown mode, or a key of the other mode.
  """
  mode = given.get('mode', Training.mode)
  if mode not in MODES:
    raise ValueError(
      f'client.mode must be one of {sorted(MODES)}, got {mode!r}'
    )
  all_keys = {k for section in MODES.values() for k in options_of(section)}
  if other := sorted(all_keys - {*options_of(MODES[mode])} & {*given}):
    raise ValueError(
      f'client.mode={mode!r} does not go with the keys {", ".join(other)}, '
      'which belong to the other mode: leave them out; in a config file '
      'configs.common.federated_sgd changes the section as a whole'
    )
  return MODES[mode]


def read(
  name: str,
  section: type[S],
  given: Mapping[str, Any],
  more: Iterable[str] = (),
  because: str = '',
) -> S:
  """Checks the keys of a section and returns the section as its dataclass.

  Args:
    name: of the section, such as `'server'`.
    section: its dataclass.
    given: the section's keys and their values.
    more: names of keys that are allowed beside the dataclass's, such as the
      options of the server's optimiser.
    because: the choice that allows the keys of `more`, for messages, such as
      `"server.optimizer='adam'"`.

  Returns:
    The section, without the keys of `more`.

  Raises:
    TypeError: an unknown key; the message names the nearest one.
    ValueError: a value that the section refuses.
  """
  fields = options_of(section)
  who = f"the config's section {name!r}" + (f' ({because})' if because else '')
  check_options(who, optional_parameters([*fields, *more]), given)
  return section(**{k: v for k, v in given.items() if k in fields})


def optional_parameters(names: Iterable[str]) -> dict[str, inspect.Parameter]:
  """Returns parameters with these names for `check_options`, none required."""
  kind = inspect.Parameter.KEYWORD_ONLY
  return {k: inspect.Parameter(k, kind, default=None) for k in names}


CLASSIFIER_KEYS = ('resize', 'crop', 'pretrained', 'batch_stats')
"""The keys of the section `model` that are no options of the module."""


SOURCE_KEYS = {'archive_dir', 'data_dir', 'image_size'}
"""The keys of the section `data` that say where the data lie and how large
their images are (see `lca.data.load`)."""


def source_keys(name: str | None) -> set[str]:
  """Returns the keys of the section `data` that are options of a data set.

  The keys in `SOURCE_KEYS` are allowed in every config. A data set that a user
  registers also has the options of its function.

  Args:
    name: of the data set. Only a registered data set has options of its own.

  Raises:
    TypeError: an option has the name of a key that all data sets share, or of
      an option of a partition.
  """
  known = datasets.SOURCES
  own = {*known.parameters(name)} if name in known else set()
  partitions = map(datasets.PARTITIONS.parameters, datasets.PARTITIONS)
  others = {*options_of(Data)}.union(*partitions)
  if taken := sorted(own & others):
    raise TypeError(
      f'data set {name!r} has the options {", ".join(taken)}, but config.data '
      'has keys of these names, which mean something else: rename the options'
    )
  return SOURCE_KEYS | own
