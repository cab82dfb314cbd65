"""Arranges the runs of a sweep in a grid by any two keys of their configs.

The runs of one cell may differ in their seeds alone, over which the cell takes
the mean. Other keys that differ are an error, unless the request says how to
reduce them: `worst_over` and `best` take one of their values and name it, and
`choose` takes one of them by the validation accuracy.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lca.experiment import packing
from lca.registry import unknown
from lca.report.choice import choose
from lca.report.formats import Number
from lca.report.frames import Run, read
from lca.report.groups import Group, check_seeds, group, order, show
from lca.report.requests import Request


class Cell(NamedTuple):
  """A cell of a grid.

  Attributes:
    values: of the metric by seed, of the finished runs, at least one.
    picked: the values of the keys `best` and then `worst_over` that the cell
      has been reduced to.
    incomplete: True if `best` or `worst_over` had to leave out a value none of
      whose runs is finished.
    choices: from how many values `best` and `worst_over` picked.
  """

  values: dict[int, float]
  picked: Group
  incomplete: bool = False
  choices: tuple[int, ...] = ()

  def number(self, seeds: int) -> Number:
    """Returns the cell for a table in which others have so many seeds."""
    notes = [*self.picked]
    if self.incomplete:
      notes[-1] += '*'
    if len(self.values) < seeds:
      notes.append(f'n={len(self.values)} of {seeds}')
    return Number([*self.values.values()], note=', '.join(notes))


class Grid(NamedTuple):
  """The cells of one panel.

  Attributes:
    rows: the values of the rows' key, as texts.
    columns: those of the columns' key.
    cells: `[rows][columns]`; None where no run is finished.
  """

  rows: Sequence[str]
  columns: Sequence[str]
  cells: Sequence[Sequence[Cell | None]]


class Pivot(NamedTuple):
  """The grids that a request asks for.

  Attributes:
    panels: the grids by the value of the panels' key; '' for a single grid.
    seeds: the largest number of seeds, finished or not, of any cell.
    notes: sentences on what is missing and on what was chosen.
  """

  panels: dict[str, Grid]
  seeds: int
  notes: list[str]


def better(value: str) -> Callable | None:
  """Returns `max` for an accuracy, `min` for a loss, and None for others."""
  if 'accuracy' in value:
    return max
  return min if 'loss' in value else None


def rank(value: str, numbers: Iterable[float]) -> float:
  """Returns the mean of a metric's numbers so that a larger one is better.

  A mean that is NaN is worse than all others.
  """
  mean = float(np.mean([*numbers]))
  if np.isnan(mean):
    return -np.inf
  return mean if better(value) is max else -mean


def make(workdir: str | os.PathLike, request: Request) -> Pivot:
  """Fills the grids of a request with the finished runs of a sweep.

  Args:
    workdir: directory of runs, or a packed sweep.
    request: what is asked for.

  Raises:
    ValueError: no run is finished; a key, a value or a metric is unknown; or
      runs of a cell differ in more than their seeds.
  """
  with packing.opened(workdir) as folder:
    runs, absent = read(folder)
    if not any(run.metrics is not None for run in runs):
      raise ValueError(
        f'{folder} holds no finished run: give the directory of a sweep'
      )
    notes = []
    if absent:
      some = ', '.join(absent[:3]) + ', ...' * (len(absent) > 3)
      notes.append(
        f'{len(absent)} runs of the sweep have no config yet, and are not '
        f'counted: {some}.'
      )
    runs = _filtered(runs, request)
  if request.choose:
    runs, chosen = choose(runs, request)
    notes += chosen
    if not runs:
      raise ValueError(f'--choose finds nothing to choose. {chosen[-1]}')
  _check_value(runs, request)
  return _filled(runs, request, notes)


def _filtered(runs: Sequence[Run], request: Request) -> list[Run]:
  """Returns the runs that have the values `request.where`."""
  known = {key: None for run in runs for key in run.about}
  for key in (
    *request.axes,
    *request.worst_over,
    *request.best,
    *request.choose,
    *request.where,
  ):
    if key not in known:
      kinds = {'differ between the runs': [], 'are the same in all runs': []}
      for each in known:
        same = len({show(run.about.get(each)) for run in runs}) == 1
        kinds[[*kinds][same]].append(each)
      raise ValueError(unknown('config key', key, kinds))
  for key, texts in request.where.items():
    there = {show(run.about.get(key)) for run in runs}
    wanted = {text if text in there else _number(text) for text in texts}
    if absent := sorted(wanted - there):
      raise ValueError(
        f'--where={key}={absent[0]}: no run has this value; its values are '
        f'{", ".join(sorted(there, key=order))}'
      )
    runs = [run for run in runs if show(run.about.get(key)) in wanted]
  if not any(run.metrics is not None for run in runs):
    raise ValueError(
      'no finished run has all values of --where; leave one of them out'
    )
  return [*runs]


def _number(text: str) -> str:
  """Returns a number as `show` writes it; another text is returned as it is."""
  try:
    return show(float(text))
  except ValueError:
    return text


def _check_value(runs: Sequence[Run], request: Request) -> None:
  """Checks that all finished runs have the metric, and that it has a best."""
  finished = [run for run in runs if run.metrics is not None]
  lacking = [run for run in finished if request.value not in run.results]
  if lacking and len(lacking) == len(finished):
    known = {'metric': {key: None for run in runs for key in run.results}}
    raise ValueError(unknown('metric', request.value, known))
  if lacking:
    raise ValueError(
      f'{len(lacking)} of {len(finished)} runs have no {request.value}, such '
      f'as {lacking[0].about["name"]}: filter with --where=KEY=VALUE'
    )
  if not better(request.value) and (request.best or request.worst_over):
    raise ValueError(
      '--worst-over and --best know which accuracy and which loss is better, '
      f'but not which {request.value}'
    )


def _filled(
  runs: Sequence[Run], request: Request, notes: Sequence[str]
) -> Pivot:
  """Fills the grids with runs, which are finished or not."""
  rows, columns = (
    sorted({show(run.about.get(key)) for run in runs}, key=order)
    for key in (request.rows, request.columns)
  )
  panels = {}
  for panel, of_panel in group(runs, request.axes[:-2]).items():
    by_cell = group(of_panel, (request.rows, request.columns))
    shown = []
    for values, here in zip(
      (rows, columns), zip(*by_cell, strict=True), strict=True
    ):
      # The mean has no f: a panel without the key has one row or column, which
      # the other panels do not have.
      kinds = {value == 'None' for value in here}
      shown.append([value for value in values if (value == 'None') in kinds])
    cells = [
      [_cell(by_cell.get((row, column), []), request) for column in shown[1]]
      for row in shown[0]
    ]
    panels[', '.join(panel)] = Grid(*shown, cells)
  keys = (*request.axes, *request.best, *request.worst_over)
  seeds = max(len(same) for same in group(runs, keys).values())
  return Pivot(panels, seeds, [*notes, *_gaps(panels, seeds)])


_REMEDY = (
  'name the key as an axis or panels, reduce it with --worst-over=KEY or '
  '--best=KEY, choose its value with --choose=KEY, or filter with '
  '--where=KEY=VALUE'
)


def _cell(runs: Sequence[Run], request: Request) -> Cell | None:
  """Reduces the runs of a cell: to the best rule, say, by its worst attack."""
  keys = (*request.axes, *request.best, *request.worst_over)
  by_best = {}
  for best, of_best in group(runs, request.best).items():
    by_worst = {}
    for worst, same in group(of_best, request.worst_over).items():
      check_seeds(same, keys, _REMEDY)
      values = {
        run.about['seed']: run.results[request.value]
        for run in same
        if run.metrics is not None
      }
      by_worst[worst] = Cell(values, ()) if values else None
    by_best[best] = _reduced(by_worst, min, request.value)
  return _reduced(by_best, max, request.value)


def _reduced(
  cells: Mapping[Group, Cell | None], pick: Callable, value: str
) -> Cell | None:
  """Picks the best or the worst of cells, of which some may be None."""
  done = {name: cell for name, cell in cells.items() if cell}
  if not done:
    return None
  name = pick(done, key=lambda name: rank(value, done[name].values.values()))
  cell = done[name]
  return cell._replace(
    picked=(*name, *cell.picked),
    incomplete=cell.incomplete or len(done) < len(cells),
    choices=(len(cells), *cell.choices),
  )


def _gaps(panels: Mapping[str, Grid], seeds: int) -> Iterator[str]:
  """Yields sentences on cells whose runs are missing or not finished."""
  cells = [c for grid in panels.values() for row in grid.cells for c in row]
  done = [cell for cell in cells if cell]
  if empty := len(cells) - len(done):
    yield f'Empty cells, which have no finished run: {empty} of {len(cells)}.'
  if fewer := sum(len(cell.values) < seeds for cell in done):
    yield f'Cells with fewer than {seeds} finished seeds: {fewer}.'
  if incomplete := sum(cell.incomplete for cell in done):
    yield (
      'Cells with a *, which leave out values that have no finished run yet: '
      f'{incomplete}.'
    )
  choices = sorted({math.prod(cell.choices) for cell in done})
  if len(choices) > 1:
    yield (
      f'The best or worst is one of {choices[0]} to {choices[-1]} '
      'combinations: some cells have fewer runs than others.'
    )
