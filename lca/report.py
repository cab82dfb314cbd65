"""The papers' figures, and the numbers behind them, from finished runs.

    python -m lca.report --figure=legato_5 --workdir=runs/legato

draws the figure as PNG and SVG into WORKDIR/figures, beside a table of its
numbers. The runs are those of a sweep (see `lca.sweep`), by their names there:
`GROUP/LINE/SEED`.
"""

import csv
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lca import sweep

Metrics = Mapping[str, np.ndarray]
"""The columns of a metrics.csv; NaN where a round has no entry."""

Lines = Mapping[str, Sequence[Metrics]]
"""By the line's name, the runs of its seeds."""

Table = list[Sequence[str]]
"""A header and rows."""


def read_metrics(run: pathlib.Path) -> Metrics:
  """Reads `metrics.csv`.

  Raises:
    ValueError: the run is not finished.
  """
  if not (run / 'summary.json').exists():
    raise ValueError(f'{run} is not finished')
  with open(run / 'metrics.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  return {
    name: np.array([float(row[name] or 'nan') for row in rows])
    for name in rows[0]
  }


def read_lines(workdir: pathlib.Path, group: str) -> Lines:
  """Reads a group's runs, lines in the order of the sweep's names.

  Raises:
    ValueError: there are none, or one is not finished.
  """
  lines: dict[str, list[Metrics]] = {}
  for name, place in sweep.names(workdir).items():
    found, line, _ = name.rsplit('/', 2)
    if found == group:
      lines.setdefault(line, []).append(read_metrics(workdir / place))
  if not lines:
    raise ValueError(f'{workdir} holds no runs {group}/...')
  return lines


# What is drawn.


def _natural(text: str) -> list[tuple[float, str]]:
  """Sorts window=5 before window=10."""
  head, _, number = text.rpartition('=')
  return [(float(number), '') if head else (0, text)]


def accuracy(axes: Axes, lines: Lines) -> Table:
  """Test accuracy by round: the seeds' mean, and their range shaded."""
  table = [('', 'final', 'last 10', 'best')]
  for name in sorted(lines, key=_natural):
    runs = [_tested(run) for run in lines[name]]
    rounds = runs[0]['round']
    curves = np.stack([run['test_accuracy'] for run in runs])
    (line,) = axes.plot(rounds, curves.mean(0), label=name, linewidth=1.2)
    axes.fill_between(
      rounds,
      curves.min(0),
      curves.max(0),
      color=line.get_color(),
      alpha=0.2,
      linewidth=0,
    )
    numbers = curves[:, -1], curves[:, -10:].mean(1), curves.max(1)
    table.append((name, *map(_with_range, numbers)))
  axes.set(xlabel='round', ylabel='test accuracy', ylim=(0, 1))
  axes.legend(frameon=False, fontsize='small')
  return table


def _tested(run: Metrics) -> Metrics:
  """The rounds that were evaluated."""
  tested = np.isfinite(run['test_accuracy'])
  return {name: column[tested] for name, column in run.items()}


def _with_range(values: np.ndarray) -> str:
  """The mean, and the lowest and highest where there are several."""
  mean = f'{values.mean():.3f}'
  if len(values) == 1:
    return mean
  return f'{mean} ({values.min():.3f} to {values.max():.3f})'


PILOT_LAYERS = ('params/Conv_0/bias', 'params/Dense_0/kernel')


def pilot(axes: Axes, lines: Lines) -> Table:
  """Normalised norms by round of the two layers of LEGATO's pilot study."""
  table = [('', 'mean norm', 'standard deviation over the rounds')]
  for runs in lines.values():
    for layer in PILOT_LAYERS:
      norms = np.stack([run[f'norm/{layer}'] for run in runs])
      axes.plot(runs[0]['round'], norms[0], label=layer, linewidth=1)
      deviation = f'{norms.std(1).mean():.4f}'
      table.append((layer, f'{norms.mean():.4f}', deviation))
  axes.set(xlabel='round', ylabel='normalised norm')
  axes.legend(frameon=False, fontsize='small')
  return table


FACTOR_ROUNDS = (20, 80)


def factors(axes: Axes, lines: Lines) -> Table:
  """Robustness factors by layer: their mean, and their variance as bars."""
  table = [('', 'mean factor', 'variance over the rounds')]
  first, last = FACTOR_ROUNDS
  for runs in lines.values():
    names = [name for name in runs[0] if name.startswith('factor/')]
    values = np.stack(
      [
        np.stack([run[n][first - 1 : last] for n in names], axis=1)
        for run in runs
      ]
    )
    means, variances = values.mean((0, 1)), values.var(1).mean(0)
    layers = [name.removeprefix('factor/params/') for name in names]
    places = np.arange(len(layers))
    axes.bar(places, means, yerr=variances, capsize=3, color='tab:blue')
    axes.set_xticks(places, layers, rotation=60, ha='right')
    for row in zip(layers, means, variances, strict=True):
      table.append((row[0], f'{row[1]:.4f}', f'{row[2]:.2g}'))
  axes.set(ylabel=f'mean factor, rounds {first} to {last}')
  return table


def heat_map(axes: Axes, lines: Lines) -> Table:
  """Test accuracy over the last 10 evaluations, of `ATTACK x RULE`."""
  pairs = [name.split(' x ') for name in lines]
  attacks = list(dict.fromkeys(attack for attack, _ in pairs))
  rules = list(dict.fromkeys(rule for _, rule in pairs))
  scores = np.full((len(attacks), len(rules)), np.nan)
  for (attack, rule), runs in zip(pairs, lines.values(), strict=True):
    last = [_tested(run)['test_accuracy'][-10:].mean() for run in runs]
    scores[attacks.index(attack), rules.index(rule)] = np.mean(last)
  axes.imshow(scores, vmin=0, vmax=1, cmap='RdYlGn', aspect='auto')
  axes.set_xticks(range(len(rules)), rules, rotation=45, ha='right')
  axes.set_yticks(range(len(attacks)), attacks)
  for (row, column), score in np.ndenumerate(scores):
    axes.text(column, row, f'{score:.2f}', ha='center', va='center', size=6)
  return [
    ('', *rules),
    *(
      (a, *(f'{x:.3f}' for x in row))
      for a, row in zip(attacks, scores, strict=True)
    ),
  ]


class Spec(NamedTuple):
  """A figure.

  Attributes:
    panels: a group of runs for each title.
    draw: of one panel; returns its numbers.
    size: of one panel, in inches.
  """

  panels: Mapping[str, str]
  draw: Callable[[Axes, Lines], Table]
  size: tuple[float, float] = (4.5, 3.4)


_FIG6 = {
  'no attack': 'none',
  'Gaussian, sigma = 20': 'sigma20',
  'Gaussian, sigma = 100': 'sigma100',
}

FIGURES = {
  'attacks': Spec(
    {'test accuracy, 3 Byzantine of 15': 'attacks'}, heat_map, (7, 6)
  ),
  'legato_2': Spec({'mean, 4 Gaussian attackers of 25': 'fig2'}, accuracy),
  'legato_3': Spec(
    {'IID': 'fig3_iid', 'one class per worker': 'fig3_non_iid'}, accuracy
  ),
  'legato_4': Spec(
    {'no attack': 'fig4_none', 'Gaussian, sigma = 200': 'fig4_sigma200'}, pilot
  ),
  'legato_5': Spec({'Fall of Empires, 11 of 25': 'fig5'}, accuracy),
  'legato_6': Spec({k: f'fig6_{v}' for k, v in _FIG6.items()}, accuracy),
  'legato_7': Spec({'Gaussian, sigma = 20': 'fig7'}, accuracy),
  'legato_8': Spec(
    {'no attack': 'fig8_none', 'Gaussian, sigma = 20': 'fig8_sigma20'}, factors
  ),
  'legato_9': Spec({k: f'fig9_{v}' for k, v in _FIG6.items()}, accuracy),
}


def draw(
  name: str, workdir: pathlib.Path, output: pathlib.Path
) -> dict[str, Table]:
  """Draws a figure, and writes its table.

  Args:
    name: a key of `FIGURES`.
    workdir: of a sweep with its runs.
    output: where `NAME.png`, `NAME.svg` and `NAME.md` go.

  Returns:
    The numbers of each panel.

  Raises:
    ValueError: an unknown figure, or runs that are missing or not finished.
  """
  if name not in FIGURES:
    raise ValueError(f'unknown figure {name!r}; there are {sorted(FIGURES)}')
  panels, draw_panel, (width, height) = FIGURES[name]
  lines = {t: read_lines(workdir, group) for t, group in panels.items()}
  figure = Figure(figsize=(width * len(panels), height), layout='constrained')
  tables = {}
  for axes, title in zip(
    figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
  ):
    tables[title] = draw_panel(axes, lines[title])
    axes.set_title(title, fontsize='medium')
  output.mkdir(parents=True, exist_ok=True)
  figure.savefig(output / f'{name}.png', dpi=150)
  figure.savefig(output / f'{name}.svg')
  parts = [f'### {title}\n\n{markdown(t)}' for title, t in tables.items()]
  (output / f'{name}.md').write_text('\n\n'.join(parts) + '\n')
  return tables


def markdown(table: Table) -> str:
  """A table as Markdown."""
  header, *rows = table
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  args = flags.FLAGS
  workdir = pathlib.Path(args.workdir)
  output = pathlib.Path(args.output or workdir / 'figures')
  try:
    for name in args.figure:
      tables = draw(name, workdir, output)
      print(f'## {name}\n')
      for title, table in tables.items():
        print(f'{title}\n\n{markdown(table)}\n')
  except ValueError as error:
    sys.exit(f'lca.report: error: {error}')


def _define_flags() -> None:
  flags.DEFINE_list('figure', None, f'Of {", ".join(FIGURES)}.')
  flags.DEFINE_string('workdir', None, 'Of a sweep.')
  flags.DEFINE_string('output', None, 'Folder; WORKDIR/figures by default.')
  flags.mark_flags_as_required(['figure', 'workdir'])


if __name__ == '__main__':
  _define_flags()
  app.run(main)
