"""Draws the grids of a request as heat maps."""

import pathlib
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lca.report import formats, frames, style
from lca.report.pivot import Cell, Grid, Pivot, better
from lca.report.requests import Request

Rows = list[Sequence[str]]


def draw(
  pivot: Pivot, request: Request, output: pathlib.Path, columns: int
) -> tuple[dict[str, Rows], list[str]]:
  """Draws a heat map for each panel, and writes them and their numbers.

  Args:
    pivot: the filled grids.
    request: what they show.
    output: folder for `NAME.png`, `NAME.svg`, `NAME.pdf` and `NAME.md`.
    columns: columns of a paper that the figure spans: 1 or 2.

  Returns:
    The numbers of the panels, by title, and notes on all of them.
  """
  # Values of configs may contain dollar signs, which stand for mathematics.
  literal = matplotlib.rc_context({'text.parse_math': False})
  with style.applied(columns), literal:
    figure, fits = _figure(pivot, request)
    style.save(figure, output, request.file)
  notes = [*request.notes, *pivot.notes]
  if not fits:
    notes.append(
      f'Texts of {style.SMALL} pt are wider than their cells: '
      + ('use --columns=2 or ' if columns == 1 else '')
      + 'show fewer columns with --where, or swap x and y.'
    )
  numbers = {
    f'{request.panels}={title}' if title else request.value: _numbers(
      grid, pivot.seeds, f'{request.rows} / {request.columns}'
    )
    for title, grid in pivot.panels.items()
  }
  text = formats.panels_markdown(numbers, notes)
  (output / f'{request.file}.md').write_text(text)
  return numbers, notes


def _numbers(grid: Grid, seeds: int, corner: str) -> Rows:
  """Returns the numbers of a grid as text."""
  return [
    (corner, *grid.columns),
    *(
      (
        name,
        *(cell.number(seeds).text('±', str) if cell else '' for cell in row),
      )
      for name, row in zip(grid.rows, grid.cells, strict=True)
    ),
  ]


def _figure(pivot: Pivot, request: Request) -> tuple[Figure, bool]:
  """Draws the panels; returns the figure, and True if all texts fit."""
  grids = pivot.panels.values()
  texts = [
    [[_text(cell, pivot.seeds) for cell in row] for row in grid.cells]
    for grid in grids
  ]
  lines = [
    line
    for grid in texts
    for row in grid
    for text in row
    for line in text.split('\n')
  ]
  names = [name for grid in grids for name in grid.rows]
  # As many panels side by side as have space for the texts of their cells.
  widest = max(len(grid.columns) for grid in grids)
  panel = (max(map(style.text_width, lines)) + 0.08) * widest + 0.1
  space = style.width() - max(map(style.text_width, names)) - 1
  across = max(1, min(len(grids), int(space / panel)))
  down = -(-len(grids) // across)
  tallest = max(text.count('\n') for g in texts for row in g for text in row)
  cell = (style.LINE * (tallest + 1) + 8) / 72
  # Slanted names take less height than width.
  labels = max(style.text_width(name) for g in grids for name in g.columns)
  height = max(len(grid.rows) for grid in grids) * cell + 0.8 * labels + 0.55
  figure = Figure(figsize=(style.width(), height * down))
  limits = _limits(pivot, request.value)
  drawn, row_names = [], ()
  for place, (title, grid) in enumerate(pivot.panels.items()):
    axes = figure.add_subplot(down, across, place + 1)
    scores = np.array(
      [[_mean(cell) for cell in row] for row in grid.cells], float
    )
    image, in_cells = style.cells(axes, scores, texts[place], limits)
    drawn += [(axes, text) for text in in_cells]
    # The name of a rule or an attack speaks for itself; a number does not.
    named = request.panels in (*frames.NAMES, None)
    axes.set_title(title if named else f'{request.panels}={title}')
    style.name_cells(axes, grid.rows, grid.columns, space / across - 0.1)
    axes.set_xlabel(request.columns)
    if place % across == 0:
      axes.set_ylabel(request.rows)
    elif grid.rows == row_names:
      axes.set_yticks([])  # as in the panel to the left
    row_names = grid.rows
  figure.colorbar(
    image,
    ax=figure.axes,
    label=request.value.replace('_', ' '),
    aspect=max(10, 8 * height * down),
  )
  figure.draw_without_rendering()
  fits = all(
    text.get_window_extent().width <= axes.bbox.width / np.ptp(axes.get_xlim())
    for axes, text in drawn
  )
  return figure, fits


def _mean(cell: Cell | None) -> float:
  return float(np.mean([*cell.values.values()])) if cell else np.nan


def _limits(pivot: Pivot, value: str) -> tuple[float, float]:
  """Returns the ends of the colour map: 0 and 1 for accuracies."""
  if better(value) is max:
    return 0, 1
  means = [
    _mean(cell)
    for grid in pivot.panels.values()
    for row in grid.cells
    for cell in row
  ]
  finite = [mean for mean in means if np.isfinite(mean)] or [0]
  return min(finite), max(finite)


def _text(cell: Cell | None, seeds: int) -> str:
  """Returns the text of a cell: the mean, and below it all the rest."""
  if not cell:
    return ''
  number = cell.number(seeds)
  lines = [_short(number.mean)]
  if number.deviation is not None:
    lines.append(f'±{_short(number.deviation)}')
  for note in number.note.split(', ') if number.note else ():
    # A long name, such as layerwise_cosine_krum, is broken after underscores.
    lines += _wrapped(note)
  return '\n'.join(lines)


def _short(number: float) -> str:
  return f'{number:.2f}' if abs(number) < 1000 else f'{number:.0e}'


def _wrapped(name: str) -> list[str]:
  """Breaks a name after underscores into lines of about 10 characters."""
  lines = ['']
  for part in re.findall('[^_+]+[_+]*|[_+]+', name):
    if lines[-1] and len(lines[-1] + part) > 10:
      lines.append(part)
    else:
      lines[-1] += part
  return lines
