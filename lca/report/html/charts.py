"""Draws charts as SVG that stands inside an HTML page.

The colours are Okabe and Ito's, which colour-blind readers can tell apart. Blue
stands for honest clients. Attackers are vermilion, and have a sign or a hatch
besides.
"""

import contextlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.style
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator

HONEST, ATTACKER, GREEN = '#0072B2', '#D55E00', '#009E73'
HONEST_MAP = LinearSegmentedColormap.from_list(
  'honest', ['#E4F0F8', HONEST, '#00304B']
)
ATTACKER_MAP = LinearSegmentedColormap.from_list(
  'attacker', ['#FCE8DA', ATTACKER, '#5A2700']
)
SIGN = '\N{BLACK UP-POINTING TRIANGLE}'
"""Stands before the id of an attacker."""

MOST_LABELS = 40
"""The largest number of rows or columns of a map that each have a label."""

_STYLE = {
  'axes.axisbelow': True,
  'axes.edgecolor': '#8A8A8A',
  'axes.facecolor': 'none',
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'axes.spines.right': False,
  'axes.spines.top': False,
  'figure.facecolor': 'none',
  'font.size': 9,
  'grid.color': '#E3E3E3',
  'grid.linewidth': 0.8,
  'hatch.linewidth': 0.7,
  'image.interpolation': 'none',  # stores a pixel for each cell of a map
  'legend.borderaxespad': 0.4,
  'legend.columnspacing': 1.2,
  'legend.frameon': False,
  'legend.handlelength': 1.6,
  'lines.linewidth': 1.8,
  'svg.fonttype': 'none',
  'svg.hashsalt': 'lca',
  'text.parse_math': False,  # names of runs may contain dollar signs
  'xtick.color': '#8A8A8A',
  'xtick.labelcolor': 'black',
  'ytick.color': '#8A8A8A',
  'ytick.labelcolor': 'black',
}


def style() -> contextlib.AbstractContextManager:
  """Returns the context that all charts are drawn in.

  The settings of the user's own matplotlib do not count there, so that a run
  looks alike for all users.
  """
  return matplotlib.style.context(['default', _STYLE])


def panel(
  width: float = 3.9,
  height: float = 2.6,
  *,
  left: float = 0.5,
  right: float = 0.12,
  top: float = 0.3,
  bottom: float = 0.42,
) -> tuple[Figure, Axes]:
  """Returns a figure with one pair of axes.

  The margins are fixed, because measuring texts takes as long as drawing them.

  Args:
    width: of the figure in inches, as all lengths here.
    height: of the figure.
    left: margin.
    right: margin.
    top: margin; the default has room for a legend of one line.
    bottom: margin.
  """
  figure = Figure(figsize=(width, height))
  box = (
    left / width,
    bottom / height,
    1 - (left + right) / width,
    1 - (top + bottom) / height,
  )
  return figure, figure.add_axes(box)


def to_svg(figure: Figure, key: str, alt: str) -> Markup:
  """Returns a figure as an SVG element for a page.

  Args:
    figure: is drawn within the context of `style`.
    key: precedes the element's ids, so that they are unique on the page.
    alt: says in words what the chart shows.
  """
  file = io.StringIO()
  nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
  FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
  svg = file.getvalue()
  svg = svg[svg.index('<svg ') :]
  # The page's own style says what this element does, for all charts at once.
  svg = re.sub(r'<defs>\s*<style.*?</style>\s*</defs>', '', svg, flags=re.S)
  # Texts take the font of the page.
  svg = re.sub(r' font-family: [^;"]*;', '', svg)
  # Ids that nothing refers to are left out; others are made unique.
  used = {*re.findall(r'(?:url\(|href=")#([^)"]+)', svg)}
  prefix = re.sub(r'\W+', '-', key)
  svg = re.sub(
    r' id="([^"]*)"',
    lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else '',
    svg,
  )
  svg = re.sub(r'(url\(|href=")#', rf'\1#{prefix}-', svg)
  svg = re.sub(r'\n\s*', '\n', svg)
  # Two digits after the point are a hundredth of a dot.
  svg = re.sub(
    r' d="[^"]*"', lambda m: re.sub(r'(\.\d\d)\d+', r'\1', m[0]), svg
  )
  return Markup(
    svg.replace('<svg ', f'<svg role="img" aria-label="{escape(alt)}" ', 1)
  )


def legend(axes: Axes, **options) -> None:
  """Draws the legend in a line above the axes."""
  axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=4, **options)


def curves(
  axes: Axes, rounds: np.ndarray, series: Mapping[str, np.ndarray], **styles
) -> None:
  """Draws values by round, with a legend if there are several series.

  Args:
    axes: to draw on.
    rounds: `[R]`.
    series: values by name, each `[R]`; those that are not finite are left out.
    **styles: options of a line by the name of its series.
  """
  for name, values in series.items():
    values = np.asarray(values, float)
    shown = np.isfinite(values)
    marker = 'o' if shown.sum() <= 20 else None
    how = {'marker': marker, 'markersize': 3.5} | styles.get(name, {})
    axes.plot(rounds[shown], values[shown], label=name, **how)
  axes.set_xlabel('round', labelpad=2)
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  axes.yaxis.set_major_locator(MaxNLocator(5))
  if len(series) > 1:
    legend(axes)


def from_zero(axes: Axes, whole: bool = False) -> None:
  """Starts the vertical axis at zero.

  Args:
    axes: of values that are not negative.
    whole: True labels whole numbers alone.
  """
  axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
  axes.yaxis.set_major_locator(MaxNLocator(5, integer=whole))


def use_log(axes: Axes, series: Iterable[np.ndarray], factor=100) -> bool:
  """Makes the vertical axis logarithmic if values differ by a large factor.

  Returns:
    True if the axis is logarithmic now.
  """
  values = np.concatenate([[], *(np.ravel(x) for x in series)])
  values = values[np.isfinite(values)]
  if not len(values) or values.min() <= 0:
    return False
  wide = bool(values.max() > factor * values.min())
  if wide:
    axes.set_yscale('log')
    # Decades alone would be few labels where the values span one or two.
    few = values.max() < 1000 * values.min()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.yaxis.set_major_formatter('{x:g}')
    axes.yaxis.set_minor_formatter('')
  return wide


def tinted(
  values: np.ndarray, attackers: np.ndarray, present: np.ndarray
) -> np.ndarray:
  """Returns the colours of a map, `[rows, columns, 4]`.

  Args:
    values: `[rows, columns]` in [0, 1], from pale to dark.
    attackers: mask, broadcast to `values`: vermilion instead of blue.
    present: mask, broadcast to `values`: cells that are not present are white.
  """
  attackers, present = (
    np.broadcast_to(mask, values.shape)[..., None]
    for mask in (attackers, present)
  )
  values = np.nan_to_num(values)  # of cells that are not present
  colors = np.where(attackers, ATTACKER_MAP(values), HONEST_MAP(values))
  return np.where(present, colors, 1.0)


def tint_legend(axes: Axes, pale: str, dark: str, attackers: bool) -> None:
  """Explains the colours of `tinted` above the axes.

  Args:
    axes: of the map.
    pale: what a pale cell stands for.
    dark: what a dark cell stands for.
    attackers: True if there are any.
  """
  maps = {'honest': HONEST_MAP}
  if attackers:
    maps[f'{SIGN} attacker'] = ATTACKER_MAP
  cells = [
    Patch(facecolor=colors(end), label=f'{who}, {text}')
    for who, colors in maps.items()
    for end, text in ((0.0, pale), (1.0, dark))
  ]
  legend(axes, handles=cells)


def ticks(axis, labels: Sequence, most: int = MOST_LABELS) -> None:
  """Labels the cells of a map along one axis, all of them or every k-th.

  Args:
    axis: `axes.xaxis` or `axes.yaxis`.
    labels: one for each cell.
    most: the largest number of labels.
  """
  step = -(-len(labels) // most)
  places = range(0, len(labels), step)
  axis.set_ticks(places, [str(labels[place]) for place in places])


def plain(axes: Axes) -> None:
  """Takes the frame, the grid and the marks of the ticks from a map."""
  axes.grid(False)
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)


def numbers(axes: Axes, values: np.ndarray, texts, limit: float) -> None:
  """Writes a number into each cell, white on cells that are darker.

  Args:
    axes: of the map.
    values: `[rows, columns]`, which colour the cells.
    texts: of the cells, in the same order, row by row.
    limit: the value from which on a cell is dark.
  """
  for (row, column), text in zip(np.ndindex(values.shape), texts, strict=True):
    dark = values[row, column] > limit
    axes.text(
      *(column, row, text),
      color='white' if dark else 'black',
      ha='center',
      va='center_baseline',
      fontsize=8,
    )


def color_bar(figure: Figure, axes: Axes, image, label: str) -> None:
  """Draws the scale of a map's colours at its right side."""
  box = axes.get_position()
  width, _ = figure.get_size_inches()
  bar = figure.add_axes(
    (box.x1 + 0.1 / width, box.y0, 0.12 / width, box.height)
  )
  figure.colorbar(image, cax=bar)
  bar.set_ylabel(label, labelpad=3)
  bar.yaxis.set_major_locator(MaxNLocator(5))
  bar.grid(False)
  bar.spines[:].set_visible(False)


def map_by_round(axes: Axes, image: np.ndarray, **options) -> AxesImage:
  """Draws a map whose columns are the rounds from 1 on.

  Args:
    axes: to draw on.
    image: `[rows, R]` values, or `[rows, R, 4]` colours.
    **options: of `imshow`.
  """
  rows, rounds = image.shape[:2]
  drawn = axes.imshow(
    image,
    aspect='auto',
    extent=(0.5, rounds + 0.5, rows - 0.5, -0.5),
    **options,
  )
  plain(axes)
  axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
  axes.set_xlabel('round', labelpad=2)
  return drawn
