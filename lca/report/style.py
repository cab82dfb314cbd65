"""The look of all figures: sizes for print, colours, legends and cells.

A figure is as wide as one or two columns of a paper, and no text in it is
smaller than 7 pt. Colours can be told apart by the colour-blind: lines have
those of Okabe and Ito (2008) and a line style each, and maps are cividis
(Nuñez et al. 2018), which becomes lighter from its lowest to its highest value.
"""

import itertools
import logging
import pathlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text

WIDTHS = {1: 3.5, 2: 7.16}
"""The width of a figure in inches, by the columns of a paper that it spans."""

FORMATS = ('png', 'svg', 'pdf')
SMALL = 7
"""The smallest size of a text, in points."""

LINE = SMALL * 1.25
"""The height of a line of small text, in points."""

_COLORS = [  # Okabe and Ito, without their yellow, which is too light on white
  *('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
]
_DASHES = ['-', '--', '-.', ':']
# 28 pairs: the lengths of both lists have no common factor.
_PAIRS = [
  {'color': color, 'linestyle': dashes}
  for color, dashes, _ in zip(
    itertools.cycle(_COLORS), itertools.cycle(_DASHES), range(28), strict=False
  )
]
MAP = 'cividis'


def line(index: int) -> dict[str, Any]:
  """Returns the colour and the dashes of a panel's line with this number."""
  return _PAIRS[index % len(_PAIRS)]


def applied(columns: int) -> AbstractContextManager[None]:
  """Returns a context in which matplotlib draws figures in this style.

  Args:
    columns: of a paper, which the figure spans: 1 or 2.
  """
  return matplotlib.rc_context(
    {
      'figure.figsize': (WIDTHS[columns], 0.7 * WIDTHS[columns]),
      'figure.constrained_layout.use': True,
      'font.size': 8,
      'axes.titlesize': 8,
      'axes.labelsize': 8,
      'xtick.labelsize': SMALL,
      'ytick.labelsize': SMALL,
      'legend.fontsize': SMALL,
      'legend.frameon': False,
      'legend.handlelength': 2.8,  # shows a whole pattern of dashes
      'axes.prop_cycle': cycler(
        **{key: [pair[key] for pair in _PAIRS] for key in _PAIRS[0]}
      ),
      'lines.linewidth': 1.2,
      'hatch.linewidth': 0.4,
      'savefig.dpi': 200,
      'pdf.fonttype': 42,  # publishers refuse the default, Type 3
      # Equal figures give equal files.
      'svg.hashsalt': 'lca',
    }
  )


def width() -> float:
  """Returns the width of a figure in this style, in inches."""
  return matplotlib.rcParams['figure.figsize'][0]


def band(
  axes: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, color: Any
) -> None:
  """Draws a range around a line, so light that other lines and bands show."""
  axes.fill_between(x, low, high, facecolor=color, alpha=0.1, linewidth=0)
  for edge in (low, high):
    axes.plot(x, edge, color=color, linestyle='-', linewidth=0.4, alpha=0.6)


def place_legends(figure: Figure) -> None:
  """Adds legends where they hide no line: below the panels.

  There is one legend for the figure if all panels have the same lines, and one
  below each panel otherwise. Panels that have a legend keep it.
  """
  handles = {
    axes: axes.get_legend_handles_labels()
    for axes in figure.axes
    if axes.get_legend() is None and axes.get_legend_handles_labels()[1]
  }
  if not handles:
    return
  shared, *others = handles.values()
  if all(labels == shared[1] for _, labels in others):
    entries = _legend_columns(shared[1], figure.get_figwidth())
    figure.legend(*shared, loc='outside lower center', ncols=entries)
    return
  for axes, (lines, labels) in handles.items():
    columns = axes.get_subplotspec().get_gridspec().ncols
    axes.legend(
      lines,
      labels,
      loc='upper center',
      bbox_to_anchor=(0.5, 0),
      borderaxespad=4.5,  # leaves space for the axis, in font sizes
      ncols=_legend_columns(labels, figure.get_figwidth() / columns),
    )


def text_width(text: str) -> float:
  """Returns the estimated width of a line of small text, in inches."""
  return len(text) * 0.58 * SMALL / 72


def _legend_columns(labels: Sequence[str], inches: float) -> int:
  """Returns how many entries of a legend fit side by side."""
  entry = max(map(text_width, labels)) + 6 * SMALL / 72  # with its line
  return min(len(labels), max(1, int(inches / entry)))


def cells(
  axes: Axes,
  scores: np.ndarray,
  texts: Sequence[Sequence[str]],
  limits: tuple[float, float],
) -> tuple[AxesImage, list[Text]]:
  """Draws a grid of coloured cells with their texts.

  Args:
    axes: the axes of the panel.
    scores: `[rows, columns]`; a NaN is a hatched cell.
    texts: the text of each cell: its first line is larger.
    limits: the lowest and the highest value of the colour map.

  Returns:
    The image, for a colour bar, and all texts.
  """
  axes.patch.set(facecolor='white', hatch='////', edgecolor='0.6')
  image = axes.imshow(
    np.ma.masked_invalid(scores),
    vmin=limits[0],
    vmax=limits[1],
    cmap=MAP,
    aspect='auto',
  )
  for axis, count in zip((axes.yaxis, axes.xaxis), scores.shape, strict=True):
    axis.set_ticks(np.arange(1, count) - 0.5, minor=True)
  axes.grid(which='minor', color='white', linewidth=0.8)
  drawn = []
  for (row, column), score in np.ndenumerate(scores):
    lines = texts[row][column].split('\n') if texts[row][column] else []
    for place, text in enumerate(lines):
      # The lines are stacked around the middle of the cell.
      above = LINE * ((len(lines) - 1) / 2 - place)
      drawn.append(
        axes.annotate(
          text,
          (column, row),
          xytext=(0, above),
          textcoords='offset points',
          ha='center',
          va='center',
          size=SMALL if place else SMALL + 1,
          color=_contrasting(image, score),
        )
      )
  return image, drawn


def name_cells(
  axes: Axes, rows: Sequence[str], columns: Sequence[str], inches: float
) -> None:
  """Writes the names of the rows and columns of `cells`.

  Args:
    axes: the axes of the panel.
    rows: names of the rows.
    columns: names of the columns, slanted if they are longer than a cell.
    inches: the estimated width of the grid.
  """
  slanted = {'rotation': 45, 'ha': 'right', 'rotation_mode': 'anchor'}
  short = max(map(text_width, columns)) * len(columns) <= inches
  axes.set_xticks(range(len(columns)), columns, **({} if short else slanted))
  axes.set_yticks(range(len(rows)), rows)
  axes.tick_params(which='both', length=0)


def _contrasting(image: AxesImage, score: float) -> str:
  """Returns black or white, whichever contrasts more with a cell's colour."""
  if not np.isfinite(score):
    return 'black'
  red, green, blue, _ = image.cmap(image.norm(score))
  # The relative luminance of WCAG 2; at 0.179 both contrast alike.
  linear = [
    x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4
    for x in (red, green, blue)
  ]
  return (
    'black' if np.dot((0.2126, 0.7152, 0.0722), linear) > 0.179 else 'white'
  )


def save(figure: Figure, output: pathlib.Path, name: str) -> None:
  """Writes `NAME.png`, `NAME.svg` and `NAME.pdf` into a folder, which is made.

  Args:
    figure: drawn in this style.
    output: the folder.
    name: of the files, without a suffix.
  """
  output.mkdir(parents=True, exist_ok=True)
  # fontTools logs a hundred lines for each PDF.
  logging.getLogger('fontTools').setLevel(logging.WARNING)
  # Without the time of drawing equal figures give equal files.
  times = {'svg': {'Date': None}, 'pdf': {'CreationDate': None}}
  for suffix in FORMATS:
    figure.savefig(output / f'{name}.{suffix}', metadata=times.get(suffix))
