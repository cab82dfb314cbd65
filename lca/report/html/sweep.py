"""Writes the pages of a sweep: an index, and a page for each run.

The index compares the runs by the keys in which they differ. The name of a
rule, an attack or a data set stands for the keys that follow from the name.
"""

import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lca.experiment import identity, packing
from lca.report import frames, style
from lca.report.groups import show
from lca.report.html import charts, pages
from lca.report.html import run as runs
from lca.report.html.blocks import Chart, Link, Section, Table
from lca.report.html.run import Run
from lca.report.runs import evaluated

MOST_MAPS = 12
"""With more values of the other keys, the index has no map of accuracies."""

MOST_LINES = 12
"""The largest number of lines in a panel."""


class Member(NamedTuple):
  """A run of the sweep.

  Attributes:
    run: as its own page shows it.
    page: address of its page, relative to the index.
    keys: the values of the keys in which the sweep's runs differ, by key. A run
      that lacks a key has ''.
  """

  run: Run
  page: str
  keys: Mapping[str, str]


def write_sweep(
  workdir: str | os.PathLike, output: pathlib.Path | None = None
) -> pathlib.Path:
  """Writes the pages of a sweep.

  Args:
    workdir: directory of a sweep, or a packed sweep.
    output: folder to write into; None stands for `report` in the directory.

  Returns:
    The page that links to the others.

  Raises:
    ValueError: there is no run, a file of a run is damaged, or the sweep is
      packed and `output` is None.
    OSError: a page cannot be written.
  """
  workdir = pathlib.Path(workdir).expanduser()
  if output is None:
    if packing.is_packed(workdir):
      raise ValueError(
        f'{workdir} is a file, which pages cannot be written into: give '
        '--output=FOLDER'
      )
    output = workdir / 'report'
  with packing.opened(workdir) as folder:
    members, absent = _read(folder)
    if not members:
      raise ValueError(
        f'{workdir} holds no run that has begun: give the directory of a '
        'sweep, or --run for that of one run'
      )
    for member in members:
      pages.write_page(member.run, output / member.page, '../index.html')
  finished = [member for member in members if member.run.finished]
  with charts.style():
    sections = [_table(members), _maps(finished), _curves(finished)]
  shared = [pages.facts(member.run.config).items() for member in members]
  pages.write(
    output / 'index.html',
    'sweep.html',
    title=workdir.resolve().stem,
    finished=len(finished),
    unfinished=len(members) - len(finished),
    absent=len(absent),
    common=dict(x for x in shared[0] if all(x in each for each in shared)),
    sections=[section for section in sections if section is not None],
  )
  return output / 'index.html'


def _read(folder: pathlib.Path) -> tuple[list[Member], list[str]]:
  """Reads the runs of a sweep, and the names of those that have not begun."""
  found, absent = frames.read(folder)
  values = [
    {name: run.about[name] for name in frames.NAMES}
    | identity.compared_values(run.config)
    for run in found
  ]
  keys = _varying(values)
  members, taken = [], set()
  for run, value in zip(found, values, strict=True):
    page = re.sub(r'[^\w-]+', '-', os.path.relpath(run.path, folder))
    while page in taken:  # such as x-1 of x.1 beside another x-1
      page += '-'
    taken.add(page)
    members.append(
      Member(
        run=runs.read(run.path, run.about['name']),
        page=f'runs/{page}.html',
        keys={key: show(value[key]) if key in value else '' for key in keys},
      )
    )
  return members, absent


def _varying(values: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the keys in which runs differ, except for the seed.

  An option of a rule or an attack is left out if all runs with the same name of
  this rule or attack have the same value. Likewise, any key is left out if all
  runs with the same data set have the same value, and `aggregator.f` if all
  runs with the same rule and number of attackers have the same value.

  Args:
    values: of each run by dotted key, with the names of rule and attack.
  """

  def several(key, among):
    return len({show(each.get(key, '')) for each in among}) > 1

  found = []
  for key in dict.fromkeys(key for each in values for key in each):
    section, _, option = key.partition('.')
    names = [section] if option and section in frames.NAMES else []
    if key not in (*frames.NAMES, 'data.name'):
      names.append('data.name')
    if key == 'aggregator.f':  # it follows the number of attackers
      names.append('attack.num_byzantine')
    groups: dict[Any, list] = {}
    for each in values:
      group = tuple(each.get(name) for name in names)
      groups.setdefault(group, []).append(each)
    if key != 'seed' and any(several(key, x) for x in groups.values()):
      found.append(key)
  return found


def _table(members: Sequence[Member]) -> Section:
  """Returns the section with a row for each run."""
  keys = list(members[0].keys)
  results = {
    'final accuracy': lambda run: evaluated(run.metrics)['test_accuracy'][-1],
    'average accuracy': lambda run: run.summary['average_test_accuracy'],
    'max accuracy': lambda run: run.summary['max_test_accuracy'],
    'final loss': lambda run: run.summary['final_test_loss'],
  }
  unfinished = not all(member.run.finished for member in members)
  rows = []
  for member in members:
    run = member.run
    state = 'finished'
    if not run.finished:
      state = f'after round {len(run.rounds)}'
    rows.append(
      [
        Link(run.name, member.page),
        *([state] if unfinished else []),
        *(
          pages.number(result(run)) if run.finished else ''
          for result in results.values()
        ),
        *member.keys.values(),
        str(run.config.get('seed', '')),
      ]
    )
  # The results come first, so that they are in sight beside many keys.
  before = ['run', *(['state'] if unfinished else [])]
  header = [*before, *results, *keys, 'seed']
  return Section(
    'Runs',
    'Each run with the keys in which the runs differ. An average is over the '
    'last 10 tests, and the losses are in nats.',
    [
      Table(
        'Results',
        header,
        rows,
        numeric=range(len(before), len(before) + len(results)),
        sortable=True,
      )
    ],
  )


def _maps(members: Sequence[Member]) -> Section | None:
  """Returns the section of the accuracies by attack and rule.

  Returns None unless both differ among the runs, and if the other keys have
  more than `MOST_MAPS` combinations of values.
  """
  maps: dict[str, dict[tuple[str, str], list[float]]] = {}
  for member in members:
    rule, attack, others = _labels(member.keys)
    last = evaluated(member.run.metrics)['test_accuracy'][-1]
    cells = maps.setdefault(others, {})
    cells.setdefault((attack, rule), []).append(last)
  each_cell = (cell for cells in maps.values() for cell in cells)
  varied = [len({*texts}) > 1 for texts in zip(*each_cell, strict=True)]
  if len(maps) > MOST_MAPS or varied != [True, True]:
    return None
  drawn = [
    _map(f'map-{number}', title, cells)
    for number, (title, cells) in enumerate(maps.items())
  ]
  return Section(
    'Attacks and rules',
    "Test accuracy of each run's final model, in the mean over the seeds.",
    drawn,
  )


def _labels(keys: Mapping[str, str]) -> tuple[str, ...]:
  """Returns texts that name a run's rule, its attack, and its other keys.

  The options of a rule or an attack stand behind its name. Each text is '' if
  the run has no such key.
  """
  texts: dict[str, list[str]] = {section: [] for section in (*frames.NAMES, '')}
  for key, value in keys.items():
    section, _, option = key.partition('.')
    if section not in frames.NAMES:
      section, option = '', key
    if value != '':
      texts[section].append(f'{option} = {value}' if option else value)
  return tuple(map(', '.join, texts.values()))


def _map(
  key: str, title: str, cells: Mapping[tuple[str, str], Sequence[float]]
) -> Chart:
  """Returns the map of one combination of the other keys.

  Args:
    key: see `lca.report.html.charts.to_svg`.
    title: the combination as text; '' if there are no other keys.
    cells: the accuracies of all seeds by attack and rule.
  """
  attacks, rules = (list(dict.fromkeys(x)) for x in zip(*cells, strict=True))
  attacks.sort(key=lambda attack: attack != 'none')  # 'none' first
  scores = np.full((len(attacks), len(rules)), np.nan)
  for (attack, rule), values in cells.items():
    scores[attacks.index(attack), rules.index(rule)] = np.mean(values)
  texts = [['' if math.isnan(x) else f'{x:.2f}' for x in row] for row in scores]
  below = 0.2 + 0.055 * max(map(len, rules))
  figure, axes = charts.panel(
    # The scale of the colours needs some height.
    *(10.4, 0.2 + below + max(0.9, 0.24 * len(attacks))),
    left=0.3 + 0.075 * max(map(len, attacks)),
    right=0.8,
    top=0.1,
    bottom=below,
  )
  image, _ = style.cells(axes, scores, texts, (0, 1))
  charts.plain(axes)
  style.name_cells(axes, attacks, rules, inches=7)
  charts.color_bar(figure, axes, image, 'test accuracy')
  row, column = np.unravel_index(np.nanargmin(scores), scores.shape)
  alt = (
    f'Heat map of the accuracies of {len(rules)} rules against {len(attacks)} '
    f'attacks. The lowest is {scores[row, column]:.2f}, of {rules[column]} '
    f'against {attacks[row]}.'
  )
  return Chart(
    title or 'Final test accuracy',
    charts.to_svg(figure, key, alt),
    'Rows are attacks, columns are rules. A hatched cell has no finished run.',
    'full',
  )


def _curves(members: Sequence[Member]) -> Section | None:
  """Returns the section of test accuracy by round, a panel for each attack."""
  if not members:
    return None
  panels: dict[str, dict[str, list[Run]]] = {}
  for member in members:
    rule, attack, others = _labels(member.keys)
    line = ', '.join(filter(None, (rule, others))) or 'all runs'
    panels.setdefault(attack, {}).setdefault(line, []).append(member.run)
  # The same line looks alike in all panels.
  lines = list(dict.fromkeys(x for panel in panels.values() for x in panel))
  looks = {line: style.line(i) for i, line in enumerate(lines)}
  parts = -(-len(lines) // MOST_LINES)
  size = -(-len(lines) // parts)
  drawn = []
  for attack in sorted(panels, key=lambda attack: attack != 'none'):
    for part in range(parts):
      chosen = {
        line: panels[attack][line]
        for line in lines[part * size : (part + 1) * size]
        if line in panels[attack]
      }
      if chosen:
        more = f' ({part + 1} of {parts})' if parts > 1 else ''
        title = (attack or 'Test accuracy') + more
        drawn.append(_panel(f'curve-{len(drawn)}', title, chosen, looks))
  return Section(
    'Curves',
    'Test accuracy by round: the mean of the seeds, in a band from their '
    'lowest to their highest value.',
    drawn,
  )


def _panel(
  key: str,
  title: str,
  lines: Mapping[str, Sequence[Run]],
  looks: Mapping[str, Mapping[str, Any]],
) -> Chart:
  """Returns one panel of curves.

  Args:
    key: see `lca.report.html.charts.to_svg`.
    title: of the panel.
    lines: the runs of all seeds by the name of a line.
    looks: colour and dashes of each line.
  """
  columns = 2 if max(map(len, lines)) < 28 else 1
  below = 0.55 + 0.16 * -(-len(lines) // columns)
  figure, axes = charts.panel(height=2.2 + below, top=0.08, bottom=below)
  last = {}
  for line, of_seeds in lines.items():
    tested = [evaluated(run.metrics) for run in of_seeds]
    accuracies = np.stack([each['test_accuracy'] for each in tested])
    rounds, mean = tested[0]['round'], accuracies.mean(0)
    # Dots would hide the other lines; the line of a single test has no length.
    look = looks[line] | {'marker': 'o' if len(rounds) == 1 else None}
    charts.curves(axes, rounds, {line: mean}, **{line: look})
    if len(tested) > 1:
      low, high = accuracies.min(0), accuracies.max(0)
      style.band(axes, rounds, low, high, looks[line]['color'])
    last[line] = mean[-1]
  axes.set_ylim(0, 1)
  figure.legend(loc='lower left', ncols=columns, fontsize=8)
  worst, best = (choose(last, key=last.__getitem__) for choose in (min, max))
  ends = f'{last[worst]:.3f} of {worst} to {last[best]:.3f} of {best}'
  if len(last) == 1:
    ends = f'{last[best]:.3f} of {best}'
  alt = f'Line chart of test accuracy, {title}: the last is {ends}.'
  # A folder may hold the same run twice.
  seeds = max(
    len({run.config.get('seed') for run in of_seeds})
    for of_seeds in lines.values()
  )
  return Chart(
    title,
    charts.to_svg(figure, key, alt),
    f'Ends at {ends}; {"1 seed" if seeds == 1 else f"{seeds} seeds"} a line.',
  )
