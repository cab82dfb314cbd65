"""Writes the grid of a request as a table, with the best of each column."""

from collections.abc import Mapping, Sequence

import numpy as np

from lca.report.formats import Number, Table
from lca.report.pivot import Cell, Pivot, better, rank
from lca.report.requests import Request

LEVEL = 0.05
"""The level of the test that `significantly_differ` makes."""


def make(pivot: Pivot, request: Request) -> Table:
  """Makes the table of a pivot that has one panel.

  The best mean of each column is marked, and so are those that do not differ
  significantly from it. Nothing is marked in a column of one row, or if the
  metric is neither an accuracy nor a loss.
  """
  (grid,) = pivot.panels.values()
  columns = [
    _marked(cells, request.value, pivot.seeds)
    for cells in zip(*grid.cells, strict=True)
  ]
  rows = [
    [name, *numbers]
    for name, numbers in zip(grid.rows, zip(*columns, strict=True), strict=True)
  ]
  title = f'{request.value} by {request.rows} (rows) and {request.columns}'
  notes = ['The mean and, over several seeds, their standard deviation.']
  if better(request.value) and len(rows) > 1:
    notes[0] += ' In bold the best of each column.'
    if pivot.seeds > 1:
      notes[0] += (
        ' In italics (underlined in LaTeX) what does not differ significantly '
        'from it: a paired t test over the seeds that both have, two-sided, at '
        f'{LEVEL:.0%}, not corrected for the number of comparisons.'
      )
    else:
      notes[0] += ' A single seed allows no test of significance.'
  notes += [*request.notes, *pivot.notes]
  header = [f'{request.rows} / {request.columns}', *grid.columns]
  return Table(request.file, title, header, rows, notes)


def _marked(
  cells: Sequence[Cell | None], value: str, seeds: int
) -> list[Number]:
  """Returns the numbers of a column, in which the best are marked."""
  ranks = [
    rank(value, cell.values.values()) if cell else -np.inf for cell in cells
  ]
  top = max(ranks)
  marks = better(value) and len(cells) > 1 and top > -np.inf
  best = cells[ranks.index(top)]
  numbers = []
  for cell, each in zip(cells, ranks, strict=True):
    number = cell.number(seeds) if cell else Number([])
    if cell and marks:
      number = number._replace(
        best=each == top,
        tied=each != top
        and significantly_differ(cell.values, best.values) is False,
      )
    numbers.append(number)
  return numbers


def significantly_differ(
  one: Mapping[int, float], other: Mapping[int, float]
) -> bool | None:
  """Returns True if two means differ significantly over the seeds.

  A seed decides the partition, the first model, and the clients and batches of
  each round, whatever the rule. So the values are paired by seed: the test is
  Student's on the differences, two-sided. If all differences are equal, it is
  the sign test, which needs 6 seeds to find them significant.

  Args:
    one: values by seed.
    other: values by seed.

  Returns:
    None if fewer than 2 seeds are common to both, or if a value is not finite.
  """
  seeds = sorted(one.keys() & other.keys())
  differences = np.array([one[seed] - other[seed] for seed in seeds])
  if len(seeds) < 2 or not np.isfinite(differences).all():
    return None
  # Accuracies are multiples of one test example, so that a few differences may
  # be equal by chance. Then t is 0 / 0 or infinite, and their sign is tested.
  if np.ptp(differences) < 1e-9:
    return bool(abs(differences[0]) > 1e-9 and 2 * 0.5 ** len(seeds) < LEVEL)
  # Importing scipy.stats takes a second, which reports without tables save.
  from scipy import stats

  return bool(stats.ttest_1samp(differences, 0).pvalue < LEVEL)
