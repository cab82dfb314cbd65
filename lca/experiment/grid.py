"""Grids: all combinations of presets and values, written in one line of text.

    krum,median x none,alie x aggregator.f=1,2 x data.alpha=0.1,1

A grid is a list of axes, separated by ` x `. An axis lists presets, or values
of one key. `expand` makes a config for each combination of one entry per axis.
"""

import copy
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from lca.attacks import ATTACKS
from lca.data.partitions import PARTITIONS
from lca.experiment import command_line
from lca.models import MODELS


class Axis(NamedTuple):
  """One axis of a grid.

  Attributes:
    key: the key that the axis sets, such as `'data.alpha'`; '' is an axis of
      presets.
    entries: the presets, or the texts of the key's values. Several presets of
      one entry are joined by `+`, and `none` stands for no preset.
  """

  key: str
  entries: tuple[str, ...]


def parse(text: str) -> list[Axis]:
  """Reads the axes of a grid.

  Args:
    text: axes separated by ` x `. An axis is `PRESET,PRESET` or
      `KEY=VALUE,VALUE`. Commas in brackets belong to a value.

  Raises:
    ValueError: an empty entry, a key that two axes set, or the key `seed`.

  Examples:
    >>> parse('nnm+krum,median x model.features=(8,),(8,16)')
    [Axis(key='', entries=('nnm+krum', 'median')), Axis(key='model.features', \
entries=('(8,)', '(8,16)'))]
  """
  axes = []
  for part in re.split(r'\sx\s', f' {text} '):
    key, equals, entries = part.strip().partition('=')
    if not equals:
      key, entries = '', key
    # A comma separates entries unless a bracket closes after it that has not
    # opened after it.
    split = re.split(r',(?![^([]*[)\]])', entries)
    axis = Axis(key, tuple(entry.strip() for entry in split))
    if not all(axis.entries):
      raise ValueError(
        f'the grid has an empty entry in {part.strip()!r}: an axis is '
        'PRESET,PRESET or KEY=VALUE,VALUE, and " x " stands between two axes'
      )
    if key == 'seed':
      raise ValueError('the seed is no axis of a grid: set it with --seeds')
    if key and key in [each.key for each in axes]:
      raise ValueError(f'two axes of the grid set {key}: write them as one')
    axes.append(axis)
  return axes


def expand(
  text: str,
  get_config: Callable[..., ConfigDict],
  presets: str | None = None,
  group: str = 'grid',
) -> tuple[dict[str, ConfigDict], list[str]]:
  """Makes the config of each combination of a grid.

  A combination whose presets lack the key of an axis has one config for all
  values of this key.

  Args:
    text: see `parse`.
    get_config: returns the setting's config. It takes a text of presets,
      separated by commas, or no argument for the setting's own presets.
    presets: presets of all combinations, before those of the grid. None takes
      the setting's own if the grid has no axis of presets.
    group: the first part of all names.

  Returns:
    The configs by name, in the order of the grid with the last axis changing
    fastest. A name is the group and the entries, separated by `/`. The second
    result is a line for each axis that not all combinations have.

  Raises:
    ValueError: see `parse`; presets that cannot be composed, a key that no
      combination has, a value of the wrong type, or an entry given twice.
  """
  axes = parse(text)
  of_presets = [axis for axis in axes if not axis.key]
  configs = _composed(of_presets, get_config, presets, group)
  lacking = {
    axis.key: [
      entries
      for entries, config in configs.items()
      if axis.key not in command_line.flat_keys(config)
    ]
    for axis in axes
    if axis.key
  }
  for key, without in lacking.items():
    if len(without) == len(configs):
      raise ValueError(_nowhere(key, list(configs.values())))
  runs, wrong = {}, {}
  for choice in itertools.product(*(axis.entries for axis in axes)):
    pairs = [*zip(axes, choice, strict=True)]
    entries = tuple(entry for axis, entry in pairs if not axis.key)
    without = {key for key in lacking if entries in lacking[key]}
    if any(e != axis.entries[0] for axis, e in pairs if axis.key in without):
      continue  # the same run as with the first value
    pairs = [pair for pair in pairs if pair[0].key not in without]
    try:
      name, config = _combination(configs[entries], pairs)
    except ValueError as error:
      texts = [f'{axis.key}={e}'.removeprefix('=') for axis, e in pairs]
      wrong['/'.join([group, *texts])] = str(error)
      continue
    if f'{group}/{name}' in runs:
      raise ValueError(f'the grid has {name} twice: give each entry once')
    runs[f'{group}/{name}'] = config
  if wrong:
    raise ValueError(f'the grid has values that fail:\n{listing(wrong)}')
  notes = [
    _note(axis, of_presets, configs, lacking[axis.key])
    for axis in axes
    if lacking.get(axis.key)
  ]
  return runs, notes


def listing(problems: Mapping[str, str]) -> str:
  """Returns lines that give each problem once, and the names that have it.

  Args:
    problems: a problem by the name of the config.

  Examples:
    >>> print(listing({'a': 'too large', 'b': 'unknown', 'c': 'too large'}))
      too large
        a
        c
      unknown
        b
  """
  lines = []
  for problem in dict.fromkeys(problems.values()):
    names = [name for name, each in problems.items() if each == problem]
    lines += [f'  {problem}', *(f'    {name}' for name in names)]
  return '\n'.join(lines)


def _composed(
  axes: Sequence[Axis],
  get_config: Callable[..., ConfigDict],
  presets: str | None,
  group: str,
) -> dict[tuple[str, ...], ConfigDict]:
  """Makes a config for each combination of presets.

  Args:
    axes: the axes of presets.
    get_config: see `expand`.
    presets: see `expand`.
    group: see `expand`.

  Returns:
    The configs by the entries of the axes.

  Raises:
    ValueError: presets that cannot be composed.
  """
  configs, wrong = {}, {}
  for entries in itertools.product(*(axis.entries for axis in axes)):
    names = [presets, *(e.replace('+', ',') for e in entries if e != 'none')]
    own = presets is None and not axes
    arguments = [] if own else [','.join(filter(None, names))]
    try:
      configs[entries] = get_config(*arguments)
    except ValueError as error:
      # The message on an unknown preset goes on with a list of all presets.
      message = str(error).splitlines()[0].removesuffix(' there are:')
      wrong['/'.join([group, *entries])] = message
  if wrong:
    raise ValueError(f'the grid has presets that fail:\n{listing(wrong)}')
  return configs


def _combination(
  config: ConfigDict, pairs: Sequence[tuple[Axis, str]]
) -> tuple[str, ConfigDict]:
  """Returns the name and the config of one combination.

  The name has values as the config holds them, so that `0.1` and `.1` are the
  same run of the same name.

  Args:
    config: of the combination's presets.
    pairs: the axes, without those whose key the config lacks, and their entry.
  """
  config, parts = copy.deepcopy(config), []
  for axis, entry in pairs:
    if axis.key:
      command_line.set_key(config, axis.key, entry)
      value = command_line.value_of(config, axis.key)
      entry = f'{axis.key}={value}'.replace(' ', '')
    parts.append(entry)
  return '/'.join(parts), config


def _nowhere(key: str, configs: Sequence[ConfigDict]) -> str:
  """Returns the message on a key that no combination has."""
  messages = []
  for config in configs:
    try:
      command_line.check_key(config, key)
    except ValueError as error:
      messages.append(str(error))
  # Only the configs with a similar key lead to a suggestion.
  message = max(messages, key=lambda each: 'did you mean' in each)
  section, _, option = key.partition('.')
  # The presets of these sections have the names of their functions.
  known = {'attack': ATTACKS, 'data': PARTITIONS, 'model': MODELS}
  registry = known.get(section, {})
  having = [name for name in registry if option in registry.parameters(name)]
  hint = f'. Presets with this key: {", ".join(having)}' if having else ''
  return f'no combination of the grid has {key}: {message}{hint}'


def _note(
  axis: Axis,
  of_presets: Sequence[Axis],
  configs: Mapping[tuple[str, ...], ConfigDict],
  lacking: Sequence[tuple[str, ...]],
) -> str:
  """Returns the line on an axis whose key some combinations lack.

  The line names the presets that never go with the key, and beside them the
  single combinations that lack it.

  Args:
    axis: sets the key.
    of_presets: the axes of presets.
    configs: configs by the entries of these axes.
    lacking: the entries of the configs without the key.
  """
  never, explained = [], set()
  for position, presets in enumerate(of_presets):
    for preset in presets.entries:
      having = {each for each in configs if each[position] == preset}
      if having <= {*lacking}:
        never.append(preset)
        explained |= having
  never += ['/'.join(each) for each in lacking if each not in explained]
  verb = 'has' if len(never) == 1 else 'have'
  count = len(axis.entries)
  instead = f'one run instead of {count}' if count > 1 else 'it is not set'
  return f'{", ".join(never)} {verb} no {axis.key}: {instead}'
