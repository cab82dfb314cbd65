"""The papers' figures, each with a table of its numbers, from finished runs.

`draw` draws a figure of the registry `FIGURES`. A file that `--load` names can
register figures of its own:

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
from lca.report import formats, layers, style, tables
from lca.report.runs import Lines, evaluated, read_lines
from lca.stacked.trees import layer_names

Rows = list[Sequence[str]]
"""The numbers of a panel as text: a header, and the rows below it."""


# The contents of one panel. Each function draws on the axes, and returns the
# numbers that it has drawn.


def _natural(text: str) -> tuple[float, str]:
  """Returns a key for sorting that puts window=5 before window=10."""
  head, _, number = text.rpartition('=')
  return (float(number), '') if head else (0, text)


def accuracy(axes: Axes, lines: Lines) -> Rows:
  """Draws test accuracy by round: the mean of the seeds, their range shaded."""
  rows = [('', 'final', 'last 10', 'best')]
  for place, name in enumerate(sorted(lines, key=_natural)):
    curves = _curves(axes, name, lines[name], 'test_accuracy', place)
    numbers = curves[:, -1], curves[:, -10:].mean(1), curves.max(1)
    rows.append((name, *map(_with_range, numbers)))
  axes.set(ylim=(0, 1))
  return rows


def losses(axes: Axes, lines: Lines) -> Rows:
  """Draws the test loss of an operator's variants by round, as `accuracy`."""
  rows = [('', 'final', 'last 10', 'lowest', 'slope of the last 10')]
  for place, variant in enumerate(tables.VARIANTS):
    if variant in lines:
      name, runs = variant.replace('_', ' '), lines[variant]
      curves = _curves(axes, name, runs, 'test_loss', place)
      numbers = (
        curves[:, -1],
        curves[:, -10:].mean(1),
        np.fmin.reduce(curves, 1),
      )
      slope = f'{np.mean([tables.slope(run) for run in runs]):.4f}'
      rows.append((name, *map(_with_range, numbers), slope))
  return rows


def _curves(axes, name, runs, column, place):
  """Draws one line, and returns its values, `[seeds, evaluations]`."""
  runs = [evaluated(run) for run in runs]
  rounds = runs[0]['round']
  curves = np.stack([run[column] for run in runs])
  (line,) = axes.plot(rounds, curves.mean(0), label=name, **style.line(place))
  if len(runs) > 1:
    style.band(axes, rounds, curves.min(0), curves.max(0), line.get_color())
  axes.set(xlabel='round', ylabel=column.replace('_', ' '))
  return curves


def _with_range(values: np.ndarray) -> str:
  """Returns the mean and, if there are several values, their range as text."""
  mean = f'{values.mean():.3f}'
  if len(values) == 1:
    return mean
  return f'{mean} ({values.min():.3f} to {values.max():.3f})'


PILOT_LAYERS = ('params/Conv_0/bias', 'params/Dense_0/kernel')
"""The two layers of LEGATO's pilot study (Varma et al. 2021, Fig. 4)."""


def pilot(axes: Axes, lines: Lines) -> Rows:
  """Draws the normalised norms of `PILOT_LAYERS` by round.

  The curves are those of the first seed; the numbers are means over all seeds.
  """
  rows = [('', 'mean norm', 'standard deviation over the rounds')]
  for runs in lines.values():
    for layer in PILOT_LAYERS:
      # [seeds, rounds]
      norms = np.stack([run[f'norm/{layer}'] for run in runs])
      axes.plot(runs[0]['round'], norms[0], label=layer)
      deviation = f'{norms.std(1).mean():.4f}'
      rows.append((layer, f'{norms.mean():.4f}', deviation))
  axes.set(xlabel='round', ylabel='normalised norm')
  return rows


FACTOR_ROUNDS = (20, 80)
"""The first and the last round whose factors LEGATO's Fig. 8 averages."""


def factors(axes: Axes, lines: Lines) -> Rows:
  """Draws a bar for each layer's mean robustness factor.

  The error bar of a layer is the variance of its factor over the rounds.
  """
  rows = [('', 'mean factor', 'variance over the rounds')]
  first, last = FACTOR_ROUNDS
  for runs in lines.values():
    names = [name for name in runs[0] if name.startswith('factor/')]
    # [seeds, rounds, layers]
    values = np.stack(
      [
        np.stack([run[n][first - 1 : last] for n in names], axis=1)
        for run in runs
      ]
    )
    means, variances = values.mean((0, 1)), values.var(1).mean(0)
    layers = [name.removeprefix('factor/params/') for name in names]
    places = np.arange(len(layers))
    axes.bar(
      places, means, yerr=variances, capsize=3, color=style.line(0)['color']
    )
    axes.set_xticks(places, layers, rotation=60, ha='right')
    for layer, mean, variance in zip(layers, means, variances, strict=True):
      rows.append((layer, f'{mean:.4f}', f'{variance:.2g}'))
  axes.set(ylabel=f'mean factor, rounds {first} to {last}')
  return rows


def heat_map(axes: Axes, lines: Lines) -> Rows:
  """Draws the last test accuracy of each attack (rows) and rule (columns).

  Args:
    axes: the axes of the panel.
    lines: the lines of a group, which are named `ATTACK x RULE`.
  """
  pairs = [name.split(' x ') for name in lines]
  attacks = list(dict.fromkeys(attack for attack, _ in pairs))
  attacks.sort(key=lambda attack: attack != 'none')  # 'none' first
  rules = list(dict.fromkeys(rule for _, rule in pairs))
  scores = np.full((len(attacks), len(rules)), np.nan)
  for (attack, rule), runs in zip(pairs, lines.values(), strict=True):
    last = [evaluated(run)['test_accuracy'][-1] for run in runs]
    scores[attacks.index(attack), rules.index(rule)] = np.mean(last)
  texts = [['' if np.isnan(x) else f'{x:.2f}' for x in row] for row in scores]
  image, _ = style.cells(axes, scores, texts, (0, 1))
  style.name_cells(axes, attacks, rules, style.width() - 2)
  axes.figure.colorbar(image, ax=axes, label='test accuracy', aspect=30)
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
  """Returns the number of parameters of every layer of a network.

  A layer is a weight, a bias or a statistic, as in the paper. The first
  argument, a workdir, is not used: a network needs no runs.
  """
  module = models.MODELS[model](num_classes=10)
  images = jnp.zeros((1, *IMAGES[model]))
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  sizes = [leaf.size for leaf in jax.tree.leaves(variables)]
  return dict(zip(layer_names(variables), sizes, strict=True))


LARGEST = 10
"""The number of layers that `sizes` lists by name, from the largest one on."""


def sizes(axes: Axes, layers: Mapping[str, int]) -> Rows:
  """Draws the parameters of each layer, the largest layer first."""
  names = sorted(layers, key=lambda name: -layers[name])
  total = sum(layers.values())
  named = len(names) <= LARGEST
  axes.bar(
    range(len(names)),
    [layers[name] for name in names],
    width=0.8 if named else 1,  # hundreds of bars stand without gaps
    color=style.line(0)['color'],
  )
  axes.set(yscale='log', ylabel='parameters')
  if named:
    labels = [name.removeprefix('params/') for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=60, ha='right')
  else:
    axes.set(xlabel='layers, the largest first')
  rest = names[LARGEST:]
  listed = {name: layers[name] for name in names[:LARGEST]}
  if rest:
    listed[f'{len(rest)} others'] = sum(layers[name] for name in rest)
  rows = [('', 'parameters', 'share')]
  for name, size in (listed | {'all': total}).items():
    rows.append((name, f'{size:,}', f'{size / total:.1%}'))
  return rows


# Figures of several panels.

PANEL_WIDTH = 2.3
"""The smallest width of a panel, in inches."""

Drawn = tuple[Figure, dict[str, Rows]]
"""A figure, and the numbers of its panels by title."""


class Spec(NamedTuple):
  """A figure of panels, each of which shows one group of runs.

  Attributes:
    panels: the group of each panel, by the panel's title.
    draw: draws one panel from what `read` returned, and returns its numbers.
    height: of one panel, in inches.
    read: reads a group of a workdir. A panel is left out if `read` returns
      nothing for its group.
  """

  panels: Mapping[str, str]
  draw: Callable[[Axes, Any], Rows]
  height: float = 2.6
  read: Callable[[pathlib.Path, str], Any] = read_lines

  def __call__(self, name: str, workdir: pathlib.Path, prefix: str) -> Drawn:
    """Draws the figure; see `lca.report.figures.draw` for the arguments."""
    panels, draw_panel, height, read = self
    if prefix and read is layer_sizes:
      raise ValueError(
        f'{name} shows networks, not runs {prefix}...: leave out --scale'
      )
    contents = {t: read(workdir, prefix + group) for t, group in panels.items()}
    contents = {
      title: content for title, content in contents.items() if content
    }
    if not contents:
      raise ValueError(f'{workdir} holds no finished run of {name}')
    columns = min(len(contents), int(style.width() / PANEL_WIDTH))
    rows = -(-len(contents) // columns)
    figure = Figure(figsize=(style.width(), height * rows))
    numbers = {}
    for place, (title, content) in enumerate(contents.items(), start=1):
      axes = figure.add_subplot(rows, columns, place)
      numbers[title] = draw_panel(axes, content)
      axes.set_title(title)
    style.place_legends(figure)
    return figure, numbers


FIGURES: Registry[Callable[[str, pathlib.Path, str], Drawn]] = Registry(
  'figure'
)
"""The figures by name. Each is a function of its name, the workdir's directory
and the prefix of the runs' names."""


_FIG6 = {
  'no attack': 'none',
  'Gaussian, sigma = 20': 'sigma20',
  'Gaussian, sigma = 100': 'sigma100',
}

_PARTITIONS = {'iid': 'IID', 'dirichlet': 'Dirichlet'}
_LAYERWISE = {
  'layerwise Krum': 'layerwise_krum',
  'cosine': 'layerwise_cosine_krum',
  'cosine, no clip': 'layerwise_cosine_krum_noclip',
}

FIGURES |= {
  'attacks': Spec(
    {'test accuracy, 3 Byzantine of 15': 'attacks'}, heat_map, 5.2
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
  'layers_entered': Spec(
    {
      f'{rule}, {name}': f'{partition}/{preset}'
      for partition, name in _PARTITIONS.items()
      for rule, preset in _LAYERWISE.items()
    },
    layers.entered,
    3.0,
    read=layers.read_evidence,
  ),
}
# The layerwise cosine paper's Figures 3 to 8 show the test losses behind its
# Tables 1 to 6. A panel shows the runs that are finished so far.
FIGURES |= {
  f'lca_{table + 2}': Spec(
    {f'{title}, {v}': f'table{table}/{k}' for k, v in tables.DATASETS.items()},
    losses,
    read=functools.partial(read_lines, partial=True),
  )
  for table, title in tables.TITLES.items()
}


def draw(
  name: str,
  workdir: pathlib.Path,
  output: pathlib.Path,
  prefix: str = '',
  columns: int = 2,
) -> dict[str, Rows]:
  """Draws a figure, and writes it and its numbers.

  Args:
    name: a key of `FIGURES`.
    workdir: directory of a sweep, or a packed sweep.
    output: folder for `NAME.png`, `NAME.svg`, `NAME.pdf` and, with the numbers,
      `NAME.md`.
    prefix: text before the groups in the runs' names, such as `'reduced/'`.
    columns: columns of a paper that the figure spans: 1 or 2.

  Returns:
    The numbers of the panels, by their titles.

  Raises:
    ValueError: the figure is unknown; a run of it is missing or not finished
      (one finished run is enough for Figures 3 to 8 of the layerwise cosine
      paper); or there is a prefix, but the figure reads no runs.
  """
  make = FIGURES.find(name)
  with packing.opened(workdir) as folder, style.applied(columns):
    figure, numbers = make(name, folder, prefix)
    style.save(figure, output, name)
  (output / f'{name}.md').write_text(formats.panels_markdown(numbers))
  return numbers
