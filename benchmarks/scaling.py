"""Measures how time and memory of the rules grow with the size of a round.

    python -m benchmarks.scaling --output=scaling
    python -m benchmarks.scaling --output=scaling --figure

Along each axis one number varies: the updates n, the parameters d, the layers
(equal leaves that share the parameters), the virtual CPU devices that share
cores and coordinates, or the window of LEGATO's log. The other numbers stay at
the base point: n = 10, d = 1,000,000, 10 layers, one device, a window of 10.
Along the devices d is 10,000,000, so that a device has enough to do. No
updates are larger than 4 GB: two numbers are never large together. Krum and
Bulyan have f = 1 and the trimmed mean f = n / 10, as in
`benchmarks.aggregators`.

Each point is measured in a process of its own. Its time is the median of the
calls after a first one. Its memory is what XLA allocates on one device beside
the updates: state, temporaries and result. This number is exact even where it
is smaller than the noise of a process. By how much the process really grew is
recorded beside it. Compiling is timed apart, with empty caches. A point whose
process takes longer than --limit, most often to compile, has no numbers, and
the tables say so.

The exponent of a rule along an axis is the slope of a least-squares line in
logarithms. Points whose time is below `FLOOR` are left out of the exponent of
time, because there the time is that of starting programs. In brackets stands
the exponent that the rule's operations have over the same points. It differs
from the formula's power where a formula is a sum or has a logarithm.

The record in --output is written after every point, and the same command goes
on where it stopped. --axes and --rules choose some of the points. --figure
draws and prints what is recorded, and measures nothing.
"""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import figures, record
from lca.report import style

FLOOR = 2.0
"""Milliseconds; the exponents of time are fitted to longer calls alone."""

Row = figures.Row


@dataclasses.dataclass(frozen=True)
class Point:
  """A rule and the size of the updates that it is measured on.

  Attributes:
    rule: a key of `RULES`.
    n: number of updates.
    d: number of parameters.
    layers: number of equal leaves.
    devices: number of virtual CPU devices.
    window: rounds in LEGATO's log.
  """

  rule: str
  n: int = 10
  d: int = 1_000_000
  layers: int = 10
  devices: int = 1
  window: int = 10


def _coordinates(p: Point) -> float:
  return p.n * p.d


def _sorting(p: Point) -> float:
  return p.n * math.log(p.n) * p.d


def _products(p: Point) -> float:
  return p.n**2 * p.d


RULES: Mapping[str, tuple[str, Callable[[Point], float]]] = {
  'mean': ('n d', _coordinates),
  'median': ('n log n d', _sorting),
  'trimmed mean': ('n log n d', _sorting),
  'Krum': ('n² d', _products),
  'layerwise Krum': ('n² d', _products),
  'layerwise cosine Krum': ('n² d', _products),
  'Bulyan': ('n² d + n³', lambda p: p.n**2 * p.d + p.n**3),
  'geometric median': ('n² d', _products),
  'LEGATO': ('(2 n + window) d', lambda p: (2 * p.n + p.window) * p.d),
}
"""By rule, the number of its operations in the literature, or for LEGATO in
`lca.legato`, as a text and as a function of a point."""

AXES: Mapping[str, tuple[int, ...]] = {
  'n': (10, 30, 100, 200, 300, 1000),
  'd': (100_000, 1_000_000, 10_000_000, 100_000_000),
  'layers': (4, 10, 40, 400),
  'devices': (1, 2, 4, 8),
  'window': (2, 5, 10, 20, 40),
}

BASES: Mapping[str, Mapping[str, int]] = {'devices': {'d': 10_000_000}}
"""Fields of the base point that differ along an axis."""

QUANTITIES: Mapping[str, tuple[str, float]] = {
  'ms': ('time, ms', 1),
  'memory_bytes': ('memory, MB', 1e-6),
  'compile_s': ('compiling, s', 1),
}
"""By the key of a row, the name of a quantity and what to multiply it by."""

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def points(axis: str, rule: str) -> list[Point]:
  """Returns the points of a rule along an axis; only LEGATO has a window."""
  if axis == 'window' and rule != 'LEGATO':
    return []
  base = Point(rule, **BASES.get(axis, {}))
  return [dataclasses.replace(base, **{axis: value}) for value in AXES[axis]]


# Measuring.


def measure(point: Point, repeats: int, budget: float, limit: float) -> Row:
  """Measures a point in a process of its own.

  Args:
    point: the point to measure.
    repeats: calls that the median is taken of.
    budget: seconds for the calls.
    limit: seconds for the process.

  Returns:
    The row of `benchmarks.scaling_point.measure`, or the point with `error` if
    the process failed or took too long.
  """
  fields = dataclasses.asdict(point)
  asked = {'point': fields, 'repeats': repeats, 'budget': budget}
  command = [sys.executable, '-m', 'benchmarks.scaling_point']
  try:
    done = subprocess.run(
      [*command, json.dumps(asked)],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      timeout=limit,
    )
  except subprocess.TimeoutExpired:
    return fields | {'error': f'did not end within {limit:g} s'}
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['no message'])[-1]
    return fields | {'error': f'exit code {done.returncode}: {last[:120]}'}
  return json.loads(done.stdout.splitlines()[-1])


class Results:
  """The rows that were measured, and the JSON file that holds them.

  Attributes:
    file: the JSON file.
    about: the environment of the measurements.
    rows: the rows by their points.

  Args:
    file: see the attribute; what it holds is continued.
  """

  def __init__(self, file: pathlib.Path):
    self.file = file
    self.about: Row = {}
    self.rows: dict[Point, Row] = {}
    if file.exists():
      held = json.loads(file.read_text())
      self.about = held['environment']
      self.rows = {_point_of(row): row for row in held['rows']}

  def check(self, environment: Row) -> None:
    """Takes the environment of what is measured from now on.

    Raises:
      ValueError: the rows were measured in another environment.
    """
    if self.about not in ({}, environment):
      raise ValueError(
        f'{self.file} was measured in another environment: choose another '
        '--output'
      )
    self.about = environment

  def add(self, row: Row) -> None:
    """Adds a row and writes the file, which is never half written."""
    self.rows[_point_of(row)] = row
    raw = {'environment': self.about, 'rows': [*self.rows.values()]}
    self.file.parent.mkdir(parents=True, exist_ok=True)
    temporary = self.file.with_suffix('.tmp')
    temporary.write_text(json.dumps(raw, indent=1) + '\n')
    os.replace(temporary, self.file)

  def along(self, axis: str, rule: str) -> list[Row]:
    """Returns the rows of a rule along an axis that have numbers."""
    rows = (self.rows.get(point) for point in points(axis, rule))
    return [row for row in rows if row and 'ms' in row]


def _point_of(row: Row) -> Point:
  names = [field.name for field in dataclasses.fields(Point)]
  return Point(**{name: row[name] for name in names})


def measure_missing(
  results: Results, wanted: Sequence[Point], measured: Callable[[Point], Row]
) -> None:
  """Measures those points that the results lack, and adds each at once.

  Args:
    results: the results to complete.
    wanted: the points.
    measured: returns the row of a point.
  """
  for point in dict.fromkeys(wanted):
    if point not in results.rows:
      row = measured(point)
      results.add(row)
      numbers = [row.get('error', '')] * ('error' in row) or [
        f'{scale * row[key]:.4g} {name.split()[-1]}'
        for key, (name, scale) in QUANTITIES.items()
      ]
      sizes = list(dataclasses.asdict(point).values())[1:]
      print(f'{point.rule:22}', *sizes, *numbers, flush=True)


# Exponents.


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
  """Returns the e of the curve `y = c x^e` that fits best in logarithms.

  Args:
    x: positive values of an axis.
    y: what was measured there, positive.

  Returns:
    The exponent, or None for fewer than three points.
  """
  if len(x) < 3:
    return None
  slope, _ = np.polyfit(np.log(x), np.log(y), 1)
  return float(slope)


def cell(results: Results, axis: str, rule: str, key: str) -> str:
  """Returns an exponent as text, with its theory and the range of its fit.

  Only a time has a theory. A range with all values of the axis is left out.

  Args:
    results: what was measured.
    axis: a key of `AXES`.
    rule: a key of `RULES`.
    key: a key of `QUANTITIES`.
  """
  floor = FLOOR if key == 'ms' else 0
  rows = [row for row in results.along(axis, rule) if row[key] > floor]
  x, y = [row[axis] for row in rows], [row[key] for row in rows]
  measured = exponent(x, y)
  if measured is None:
    return ''
  text = f'{measured:z.2f}'
  if key == 'ms':
    in_theory = [RULES[rule][1](_point_of(row)) for row in rows]
    text += f' ({exponent(x, in_theory):z.2f})'
  low, high = AXES[axis][0], AXES[axis][-1]
  start = f' from {x[0]:,}' if x[0] > low else ''
  end = f' to {x[-1]:,}' if x[-1] < high else ''
  return f'{text},{start}{end}' if start or end else text


def tables(results: Results) -> str:
  """Returns the exponents as Markdown, with the points that have no numbers."""
  parts = ['# How the rules scale']
  for key, (name, _) in QUANTITIES.items():
    theory = key == 'ms'
    lines = [
      [rule, *[operations] * theory]
      + [cell(results, axis, rule, key) for axis in AXES]
      for rule, (operations, _) in RULES.items()
    ]
    header = ['rule', *['operations'] * theory, *AXES]
    parts += [f'## Exponents: {name}', figures.table(header, lines)]
  missing = [
    f'- {row["rule"]}, n = {row["n"]:,}, d = {row["d"]:,}, {row["layers"]} '
    f'layers, {row["devices"]} devices: {row["error"]}'
    for row in results.rows.values()
    if 'error' in row
  ]
  if missing:
    parts += ['## Points without numbers', '\n'.join(missing)]
  wanted = {point for a in AXES for r in RULES for point in points(a, r)}
  if absent := wanted - results.rows.keys():
    parts.append(f'{len(absent)} of {len(wanted)} points are not measured yet.')
  return '\n\n'.join(parts) + '\n'


# The figure.


def draw(results: Results) -> Figure:
  """Draws a row of panels for each quantity, with a panel for each axis."""
  figure = Figure(figsize=(style.width(), 6.4))
  grid = figure.subplots(len(QUANTITIES), len(AXES), sharey='row')
  for (key, (name, scale)), line in zip(QUANTITIES.items(), grid, strict=True):
    for axis, axes in zip(AXES, line, strict=True):
      _draw_panel(axes, results, axis, key, scale)
      axes.set_xlabel(axis if axis != 'window' else "LEGATO's window")
      if key == 'ms':
        axes.axhline(FLOOR, color='0.7', linewidth=0.8, zorder=0)
    line[0].set_ylabel(name)
  for axes in grid.flat[1:]:  # the legend has the lines of one panel
    for drawn in axes.lines:
      drawn.set_label('_')
  style.place_legends(figure)
  return figure


def _draw_panel(
  axes: Axes, results: Results, axis: str, key: str, scale: float
) -> None:
  """Draws a line for each rule, with a marker of its own."""
  axes.set(xscale='log', yscale='log')
  shown = [x for x in AXES[axis] if x != 200]  # too near to 300 for a text
  texts = [f'{x:,}' if x < 10_000 else f'1e{math.log10(x):.0f}' for x in shown]
  axes.set_xticks(shown, texts)
  axes.minorticks_off()
  for index, (rule, marker) in enumerate(zip(RULES, 'osD^v<>PX', strict=True)):
    rows = results.along(axis, rule)
    axes.plot(
      [row[axis] for row in rows],
      [scale * row[key] for row in rows],
      label=rule,
      marker=marker,
      markersize=3,
      **style.line(index),
    )
  axes.grid(color='0.92')
  axes.set_axisbelow(True)


def report(results: Results, output: pathlib.Path) -> None:
  """Writes the tables and the figure into a folder, and prints the tables."""
  text = tables(results)
  output.mkdir(parents=True, exist_ok=True)
  (output / 'scaling.md').write_text(text)
  with style.applied(columns=2):
    style.save(draw(results), output, 'scaling')
  print(f'\n{text}')


def define_flags() -> None:
  """Defines the flags of the command."""
  flags.DEFINE_string('output', None, 'Folder of the record, tables, figure.')
  flags.DEFINE_multi_enum('axes', [*AXES], [*AXES], 'Axes to measure.')
  flags.DEFINE_multi_enum('rules', [*RULES], [*RULES], 'Rules to measure.')
  flags.DEFINE_integer('repeats', 7, 'Calls that a median is taken of.', 1)
  flags.DEFINE_float('budget', 15, 'Seconds for the calls of a point.')
  flags.DEFINE_float('limit', 120, 'Seconds for the process of a point.')
  flags.DEFINE_bool('figure', False, 'Draw and print the record alone.')
  flags.mark_flag_as_required('output')


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  args = flags.FLAGS
  output = pathlib.Path(args.output)
  results = Results(output / 'scaling.json')
  if not args.figure:
    results.check(record.environment(with_others=False))
    wanted = [p for a in args.axes for r in args.rules for p in points(a, r)]
    limits = args.repeats, args.budget, args.limit
    measure_missing(results, wanted, lambda point: measure(point, *limits))
  report(results, output)


if __name__ == '__main__':
  define_flags()
  app.run(main)
