"""The papers' figures, each with a table of its numbers, from finished runs.

A figure is in `FIGURES`. A file that `--load` names can add its own there:

    from lca.report.figures import FIGURES, Spec, accuracy
    FIGURES.register(Spec({'my rules': 'my_group'}, accuracy), name='mine')
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lca import models
from lca.experiment import packing
from lca.registry import Registry
from lca.report import formats, tables
from lca.report.runs import Lines, evaluated, read_lines
from lca.stacked.trees import layer_names

Table = list[Sequence[str]]
"""A header and rows."""


# What is drawn.


def _natural(text: str) -> tuple[float, str]:
  """Sorts window=5 before window=10."""
  head, _, number = text.rpartition('=')
  return (float(number), '') if head else (0, text)


def accuracy(axes: Axes, lines: Lines) -> Table:
  """Test accuracy by round: the seeds' mean, and their range shaded."""
  table = [('', 'final', 'last 10', 'best')]
  for name in sorted(lines, key=_natural):
    curves = _curves(axes, name, lines[name], 'test_accuracy')
    numbers = curves[:, -1], curves[:, -10:].mean(1), curves.max(1)
    table.append((name, *map(_with_range, numbers)))
  axes.set(ylim=(0, 1))
  return table


def losses(axes: Axes, lines: Lines) -> Table:
  """Test loss by round of an operator's variants, as `accuracy` draws it."""
  table = [('', 'final', 'last 10', 'lowest', 'slope of the last 10')]
  for place, variant in enumerate(tables.VARIANTS):
    if variant in lines:
      name, runs = variant.replace('_', ' '), lines[variant]
      curves = _curves(axes, name, runs, 'test_loss', color=f'C{place}')
      numbers = (
        curves[:, -1],
        curves[:, -10:].mean(1),
        np.fmin.reduce(curves, 1),
      )
      slope = f'{np.mean([tables.slope(run) for run in runs]):.4f}'
      table.append((name, *map(_with_range, numbers), slope))
  return table


def _curves(axes, name, runs, column, color=None):
  """Draws a line; returns its values `[seeds, evaluations]`."""
  runs = [evaluated(run) for run in runs]
  rounds = runs[0]['round']
  curves = np.stack([run[column] for run in runs])
  (line,) = axes.plot(
    rounds, curves.mean(0), label=name, linewidth=1.2, color=color
  )
  axes.fill_between(
    rounds,
    curves.min(0),
    curves.max(0),
    color=line.get_color(),
    alpha=0.2,
    linewidth=0,
  )
  axes.set(xlabel='round', ylabel=column.replace('_', ' '))
  axes.legend(frameon=False, fontsize='small')
  return curves


def _with_range(values: np.ndarray) -> str:
  """Returns the mean, and the lowest and highest where there are several."""
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
  """Test accuracy after the last round, of `ATTACK x RULE`."""
  pairs = [name.split(' x ') for name in lines]
  attacks = list(dict.fromkeys(attack for attack, _ in pairs))
  attacks.sort(key=lambda attack: attack != 'none')  # which comes first
  rules = list(dict.fromkeys(rule for _, rule in pairs))
  scores = np.full((len(attacks), len(rules)), np.nan)
  for (attack, rule), runs in zip(pairs, lines.values(), strict=True):
    last = [evaluated(run)['test_accuracy'][-1] for run in runs]
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


IMAGES = {'cnn': (28, 28, 1), 'efficientnet_b0': (224, 224, 3)}
"""The shape of an image of each of the layerwise cosine paper's networks."""


def layer_sizes(_: pathlib.Path, model: str) -> dict[str, int]:
  """Parameters of every layer, the paper's: of each weight, bias, statistic."""
  module = models.MODELS[model](num_classes=10)
  images = jnp.zeros((1, *IMAGES[model]))
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  sizes = [leaf.size for leaf in jax.tree.leaves(variables)]
  return dict(zip(layer_names(variables), sizes, strict=True))


LARGEST = 10  # layers that are named


def sizes(axes: Axes, layers: Mapping[str, int]) -> Table:
  """Parameters by layer, the largest first."""
  names = sorted(layers, key=lambda name: -layers[name])
  total = sum(layers.values())
  axes.bar(range(len(names)), [layers[n] for n in names], color='tab:blue')
  axes.set(yscale='log', ylabel='parameters')
  if len(names) <= LARGEST:
    labels = [name.removeprefix('params/') for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=60, ha='right')
  else:
    axes.set(xlabel='layers, the largest first')
  rest = names[LARGEST:]
  rows = {name: layers[name] for name in names[:LARGEST]}
  if rest:
    rows[f'{len(rest)} others'] = sum(layers[name] for name in rest)
  table = [('', 'parameters', 'share')]
  for name, size in (rows | {'all': total}).items():
    table.append((name, f'{size:,}', f'{size / total:.1%}'))
  return table


COLUMNS = 3  # of panels

Drawn = tuple[Figure, dict[str, Table]]
"""A figure, and the numbers of each of its panels."""


class Spec(NamedTuple):
  """Draws a figure of panels.

  Attributes:
    panels: a group of runs for each title.
    draw: of one panel, from what was read; returns its numbers.
    size: of one panel, in inches.
    read: of a workdir and a group; a panel without contents is left out.
  """

  panels: Mapping[str, str]
  draw: Callable[[Axes, Any], Table]
  size: tuple[float, float] = (4.5, 3.4)
  read: Callable[[pathlib.Path, str], Any] = read_lines

  def __call__(self, name: str, workdir: pathlib.Path, prefix: str) -> Drawn:
    """Draws the figure, for `draw`."""
    panels, draw_panel, (width, height), read = self
    if prefix and read is layer_sizes:
      raise ValueError(
        f'{name} shows networks, not runs {prefix}...: no --scale'
      )
    contents = {t: read(workdir, prefix + group) for t, group in panels.items()}
    contents = {title: each for title, each in contents.items() if each}
    if not contents:
      raise ValueError(f'{workdir} holds no finished run of {name}')
    columns = min(len(contents), COLUMNS)
    rows = -(-len(contents) // columns)
    figure = Figure(
      figsize=(width * columns, height * rows), layout='constrained'
    )
    numbers = {}
    for place, (title, content) in enumerate(contents.items(), start=1):
      axes = figure.add_subplot(rows, columns, place)
      numbers[title] = draw_panel(axes, content)
      axes.set_title(title, fontsize='medium')
    return figure, numbers


FIGURES: Registry[Callable[[str, pathlib.Path, str], Drawn]] = Registry(
  'figure'
)
"""The figures by name: functions of that name, a workdir and a prefix."""


_FIG6 = {
  'no attack': 'none',
  'Gaussian, sigma = 20': 'sigma20',
  'Gaussian, sigma = 100': 'sigma100',
}

FIGURES |= {
  'attacks': Spec(
    {'test accuracy, 3 Byzantine of 15': 'attacks'}, heat_map, (7, 6)
  ),
  'legato_iid_none': Spec({'IID, no attack': 'iid_none'}, accuracy),
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
  'lca_1': Spec(
    {'CNN': 'cnn', 'EfficientNet-B0': 'efficientnet_b0'},
    sizes,
    read=layer_sizes,
  ),
}
# Figures 3 to 8 are the curves behind Tables 1 to 6.
FIGURES |= {
  f'lca_{table + 2}': Spec(
    {f'{title}, {v}': f'table{table}/{k}' for k, v in tables.DATASETS.items()},
    losses,
    read=functools.partial(read_lines, partial=True),
  )
  for table, title in tables.TITLES.items()
}


def draw(
  name: str, workdir: pathlib.Path, output: pathlib.Path, prefix: str = ''
) -> dict[str, Table]:
  """Draws a figure, and writes its table.

  Args:
    name: a key of `FIGURES`.
    workdir: of a sweep with its runs, or a packed sweep.
    output: where `NAME.png`, `NAME.svg` and `NAME.md` go.
    prefix: what stands before the groups in the runs' names.

  Returns:
    The numbers of each panel.

  Raises:
    ValueError: an unknown figure; runs that are missing or not finished, of
      Figures 3 to 8 of the layerwise cosine paper all of them; a prefix, of a
      figure that reads no runs.
  """
  make = FIGURES.find(name)
  with packing.opened(workdir) as folder:
    figure, numbers = make(name, folder, prefix)
  output.mkdir(parents=True, exist_ok=True)
  figure.savefig(output / f'{name}.png', dpi=150)
  figure.savefig(output / f'{name}.svg')
  parts = [
    f'### {title}\n\n{formats.markdown(t)}' for title, t in numbers.items()
  ]
  (output / f'{name}.md').write_text('\n\n'.join(parts) + '\n')
  return numbers
