"""Makes the Markdown table and the goals from a record."""

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.systems.catalogue import RULES, SYSTEMS

Record = dict[str, Any]
"""A record. `runs` has a dict for each run: `system`, `rule`, and either the
numbers of `running.run`, or `failure`, a line of text."""

_COLUMNS = (
  'system',
  'FedAvg round, s',
  'Krum round, s',
  'training, s',
  'aggregation, s',
  'first round, s',
  'start-up, s',
  'peak memory, MB',
  'test accuracy',
  "times lca's",
)

QUIET = 0.3
"""Cores that other programs may keep busy during a run that counts."""

GOALS = (
  ('plain PyTorch', ('pytorch',), 3.0),
  ("the paper's stack", ('flexible',), 4.0),
  ('every system', tuple(name for name in SYSTEMS if name != 'lca'), 1.0),
)
"""Each goal: its name, the systems, and how many times lca's time a round of
theirs takes at least."""


def runs_of(record: Record, system: str, rule: str) -> list[Record]:
  """Returns the runs of a system and rule that did not fail.

  Runs during which other programs kept more than `QUIET` cores busy are left
  out, unless all are such.
  """
  runs = [
    run
    for run in record['runs']
    if (run['system'], run['rule']) == (system, rule) and 'failure' not in run
  ]
  return [run for run in runs if run['elsewhere'] <= QUIET] or runs


def round_seconds(
  record: Record, system: str, rule: str, part: str = 'total'
) -> float | None:
  """Returns the median seconds of a round, without each run's first.

  Args:
    record: see `Record`.
    system: a key of `SYSTEMS`.
    rule: one of `RULES`.
    part: `'total'`, `'training'`, or `'aggregation'`, the rest of the round.

  Returns:
    None if nothing was measured.
  """
  seconds = []
  for run in runs_of(record, system, rule):
    for each in run['rounds'][1:]:
      if part == 'total':
        seconds.append(each['total'])
      elif each['training'] is not None:
        training = each['training']
        rest = each['total'] - training
        seconds.append(training if part == 'training' else rest)
  return _median(seconds)


def ratio(record: Record, system: str, rule: str) -> float | None:
  """Returns how many times as long as lca's a system's round takes."""
  mine = round_seconds(record, 'lca', rule)
  theirs = round_seconds(record, system, rule)
  return theirs / mine if mine and theirs else None


def markdown(record: Record) -> str:
  """Returns the table, the notes on the systems, and the goals."""
  names = [
    name
    for name in SYSTEMS
    if any(run['system'] == name for run in record['runs'])
  ]
  rows = [_row(record, name) for name in names]
  lines = [_COLUMNS, ('---', *['---:'] * (len(_COLUMNS) - 1)), *rows]
  table = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
  notes = '\n'.join(
    f'- {SYSTEMS[name].title}: {SYSTEMS[name].note}'
    for name in names
    if SYSTEMS[name].note
  )
  return '\n\n'.join(filter(None, [table, notes, '\n'.join(goals(record))]))


def goals(record: Record) -> list[str]:
  """Returns a line for each goal: the ratio of each rule, met or not.

  A goal is judged only if all systems that it names, and lca, have been
  measured while the machine was quiet.
  """
  lines = []
  for name, systems, bound in GOALS:
    parts = []
    for rule in RULES:
      if all(_quiet(record, system, rule) for system in ('lca', *systems)):
        least = min(ratio(record, system, rule) for system in systems)
        met = 'met' if least >= bound else 'not met'
        parts.append(f'{rule} {least:.1f}, {met}')
      else:
        parts.append(f'{rule} not judged')
    lines.append(f'- {bound:g} times as fast as {name}: {"; ".join(parts)}')
  return lines


def _quiet(record: Record, system: str, rule: str) -> bool:
  """Returns True if there are runs, and all that count were undisturbed."""
  runs = runs_of(record, system, rule)
  return bool(runs) and all(run['elsewhere'] <= QUIET for run in runs)


def _row(record: Record, system: str) -> list[str]:
  """Returns the cells of a system."""
  runs = [run for rule in RULES for run in runs_of(record, system, rule)]
  title = SYSTEMS[system].title
  if not runs:
    failure = next(x for x in record['runs'] if x['system'] == system)
    return [title, failure['failure'], *[''] * (len(_COLUMNS) - 2)]

  def both(function):
    return ', '.join(function(rule) for rule in RULES)

  def accuracy(rule):
    of_rule = runs_of(record, system, rule)
    return _text(_median(x['accuracy'] for x in of_rule), 3)

  busiest = max(run['elsewhere'] for run in runs)
  return [
    title + (f' (others kept {busiest:.1f} cores busy)' * (busiest > QUIET)),
    *(_text(round_seconds(record, system, rule)) for rule in RULES),
    both(lambda r: _text(round_seconds(record, system, r, 'training'))),
    both(lambda r: _text(round_seconds(record, system, r, 'aggregation'))),
    _text(_median(run['rounds'][0]['total'] for run in runs)),
    _text(_median(run['startup'] for run in runs), 1),
    f'{_median(run["peak_mb"] for run in runs):,.0f}',
    both(accuracy),
    both(lambda r: _text(ratio(record, system, r), 1)),
  ]


def _median(values: Iterable[float]) -> float | None:
  """Returns the median; None if there are no values."""
  values = list(values)
  return statistics.median(values) if values else None


def _text(value: float | None, digits: int = 2) -> str:
  return '-' if value is None else f'{value:.{digits}f}'
