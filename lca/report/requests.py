"""Reads which heat maps and tables a command line asks for."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from lca.experiment import command_line
from lca.registry import unknown


class Request(NamedTuple):
  """A grid of cells to fill with the finished runs of a sweep.

  A key is a column of `lca.report.rows`, such as `aggregator`, `data.alpha` or
  `attack.num_byzantine`.

  Attributes:
    rows: the key whose values are the grid's rows.
    columns: the key whose values are its columns.
    value: the metric in the cells, a column of `lca.report.rows`.
    panels: a key for each of whose values there is a grid; None is one grid.
    worst_over: keys of which each cell takes the worst value.
    best: keys of which each cell takes the best value.
    choose: keys whose value is chosen by the validation accuracy.
    where: the values, as texts, that a run must have, by key.
    name: of the files, without a suffix; '' names them by the request.
  """

  rows: str
  columns: str
  value: str
  panels: str | None = None
  worst_over: tuple[str, ...] = ()
  best: tuple[str, ...] = ()
  choose: tuple[str, ...] = ()
  where: Mapping[str, Sequence[str]] = {}
  name: str = ''

  @property
  def axes(self) -> tuple[str, ...]:
    """The keys that tell cells apart."""
    panels = (self.panels,) if self.panels else ()
    return (*panels, self.rows, self.columns)

  @property
  def file(self) -> str:
    """The name of the files, without a suffix."""
    if self.name:
      return self.name
    parts = [self.value, 'by', *self.axes]
    for word, keys in (
      ('worst', self.worst_over),
      ('best', self.best),
      ('chosen', self.choose),
    ):
      parts += [word, *keys] if keys else []
    for key, values in self.where.items():
      parts += ['where', f'{key}={",".join(values)}']
    return re.sub(r'[^\w.,=+-]', '.', '_'.join(parts))

  @property
  def notes(self) -> list[str]:
    """Sentences on which runs a grid shows, for the text below it."""
    notes = []
    if self.where:
      conditions = [f'{k}={" or ".join(v)}' for k, v in self.where.items()]
      notes.append(f'Only runs with {", ".join(conditions)}.')
    picked = [f'the best {key}' for key in self.best]
    picked += [f'the worst {key}' for key in self.worst_over]
    if picked:
      notes.append(f'Each cell is of, and names, {", then ".join(picked)}.')
    return notes


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flags of heat maps and tables by config keys.

  Args:
    flag_values: the flags to which these are added.
  """
  command_line.define_list(
    'heatmap',
    [],
    'x:KEY,y:KEY,value:METRIC, and if wanted panels:KEY, worst-over:KEY, '
    'best:KEY (several keys are joined by +) and name:FILE. Draws a heat map '
    'of the runs by any keys of their configs.',
    flag_values,
  )
  command_line.define_list(
    'table',
    [],
    'rows:KEY,columns:KEY,value:METRIC, and if wanted worst-over:KEY, best:KEY '
    'and name:FILE. Writes a table of the runs by any keys of their configs.',
    flag_values,
  )
  flags.DEFINE_multi_string(
    'where',
    [],
    'KEY=VALUE. Heat maps and tables take the runs alone that have this value. '
    'May be repeated: a run has one of the values given for each key.',
    flag_values=flag_values,
  )
  for name, text in (
    ('worst_over', 'Keys, such as attack, of which each cell takes the worst.'),
    ('best', 'Keys, such as aggregator, of which each cell takes the best.'),
    (
      'choose',
      'Keys, such as client.learning_rate, whose value is chosen by the '
      'validation accuracy under the worst attack.',
    ),
  ):
    flags.DEFINE_list(name, [], text, flag_values=flag_values)
  flags.DEFINE_alias('worst-over', 'worst_over', flag_values=flag_values)
  flags.DEFINE_enum(
    'columns',
    None,
    ['1', '2'],
    'Columns of a paper that figures span: 1 is 3.5 inches; 2, if not given, '
    'are 7.16.',
    flag_values=flag_values,
  )


def from_flags(args: flags.FlagValues) -> tuple[list[Request], list[Request]]:
  """Returns the heat maps and the tables that the flags ask for.

  Raises:
    ValueError: a flag's value is malformed, or a flag would change nothing.
  """
  shared = {
    'worst_over': tuple(args.worst_over),
    'best': tuple(args.best),
    'choose': tuple(args.choose),
    'where': _conditions(args.where),
  }
  heat_maps, tables = [], []

  def request(given: dict[str, Any]) -> Request:
    """Makes a request, whose own reductions replace those of the flags."""
    for name in ('worst_over', 'best'):
      if keys := given.pop(name.replace('_', '-'), None):
        given[name] = tuple(keys.split('+'))
    return _checked(Request(**shared | given))

  for parts in args.heatmap:
    optional = ('panels', *_OPTIONAL)
    given = _parts('heatmap', parts, ('x', 'y', 'value'), optional)
    given |= {'columns': given.pop('x'), 'rows': given.pop('y')}
    heat_maps.append(request(given))
  for parts in args.table:
    given = _parts('table', parts, ('rows', 'columns', 'value'), _OPTIONAL)
    tables.append(request(given))
  if not heat_maps and not tables:
    for name, value in shared.items():
      if value:
        raise ValueError(
          f'--{name} applies to --heatmap and --table alone: give one of them'
        )
  if args.columns and not heat_maps and not args.figure:
    raise ValueError('--columns applies to --heatmap and --figure alone')
  return heat_maps, tables


_OPTIONAL = ('worst-over', 'best', 'name')
"""The parts that a heat map or a table may have."""


def _parts(
  flag: str,
  parts: Sequence[str],
  required: Sequence[str],
  optional: Sequence[str],
) -> dict[str, str]:
  """Reads texts such as `x:aggregator.f`."""
  form = ','.join(f'{part}:{part.upper()}' for part in required)
  given: dict[str, str] = {}
  for text in parts:
    part, _, key = text.partition(':')
    if part not in (*required, *optional):
      known = {'part': [*required, *optional]}
      raise ValueError(f'--{flag}: {unknown("part", part, known)}')
    if not key or part in given:
      wrong = 'is given twice' if part in given else 'has no value'
      raise ValueError(f'--{flag}: {part} {wrong}; the form is {form}')
    given[part] = key
  if lacking := [part for part in required if part not in given]:
    raise ValueError(f'--{flag} lacks {", ".join(lacking)}; the form is {form}')
  return given


def _conditions(texts: Sequence[str]) -> dict[str, list[str]]:
  """Reads texts such as `data.alpha=0.1`."""
  conditions: dict[str, list[str]] = {}
  for text in texts:
    key, equals, value = text.partition('=')
    if not (key and equals):
      raise ValueError(f'--where={text}: the form is --where=KEY=VALUE')
    conditions.setdefault(key, []).append(value)
  return conditions


def _checked(request: Request) -> Request:
  """Refuses a key that two parts of a request name."""
  keys = (
    *request.axes,
    *request.worst_over,
    *request.best,
    *request.choose,
  )
  for key in keys:
    if key == 'seed' or keys.count(key) > 1:
      wrong = (
        'cells are means over the seeds; --where=seed=N takes one of them'
        if key == 'seed'
        else 'it is given twice'
      )
      raise ValueError(
        f'{key} cannot be an axis or a key of --worst-over, --best or '
        f'--choose: {wrong}'
      )
  return request
