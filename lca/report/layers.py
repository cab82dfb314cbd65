"""A map of layers and rounds: where an attacker was chosen, and what it did."""

import pathlib

import numpy as np
from matplotlib.axes import Axes

from lca.experiment import forensics, index
from lca.experiment.forensics import Forensics
from lca.experiment.summary import is_finished
from lca.report import style

LEVELS = (0.5, 50.0)
"""The ends of the colour map: distances from the honest mean, in deviations."""


def read_evidence(workdir: pathlib.Path, line: str) -> list[Forensics]:
  """Reads the evidence of a line's finished runs, one for each seed.

  Args:
    workdir: directory of a sweep.
    line: name of the line, such as `'forensics/krum'`.

  Returns:
    The evidence by seed; empty if no run is finished, or none keeps evidence of
    a choice of clients.
  """
  runs = index.by_line(workdir).get(line, [])
  found = map(forensics.read, filter(is_finished, runs))
  return [
    each for each in found if each is not None and each.selected is not None
  ]


def entered(axes: Axes, seeds: list[Forensics]) -> list[tuple[str, ...]]:
  """Draws the first seed's layers by round, and counts over all seeds.

  The colour is the distance between aggregate and honest mean, in deviations of
  the honest clients. A dot marks a layer into which an attacker was chosen.

  Args:
    axes: the axes of the panel.
    seeds: the evidence of runs that differ in their seed.

  Returns:
    For each layer, the share of rounds with a chosen attacker, and the median
    distances of the rounds with and without one.
  """
  first, *_ = seeds
  names = [name.removeprefix('params/') for name in first.layers]
  numbers = first.per_layer()
  image = axes.imshow(
    numbers['distance'].T,
    norm='log',
    vmin=LEVELS[0],
    vmax=LEVELS[1],
    cmap=style.MAP,
    aspect='auto',
    interpolation='nearest',
    extent=(0.5, len(first.rounds) + 0.5, len(names) - 0.5, -0.5),
  )
  rounds, layers = np.nonzero(numbers['attackers_selected'] > 0)
  axes.scatter(
    first.rounds[rounds], layers, s=9, color='white', edgecolor='black', lw=0.6
  )
  axes.set_yticks(range(len(names)), names)
  axes.set(xlabel='round')
  bar = axes.figure.colorbar(image, ax=axes, orientation='horizontal')
  bar.set_label('distance, in deviations')
  every = [each.per_layer() for each in seeds]
  chosen = np.concatenate([each['attackers_selected'] > 0 for each in every])
  distance = np.concatenate([each['distance'] for each in every])
  rows = [('', 'rounds with an attacker', 'distance then', 'distance else')]
  parts = {name: (slice(None), k) for k, name in enumerate(names)}
  for name, part in (parts | {'all layers': ...}).items():
    within, far = chosen[part], distance[part]
    shares = f'{within.mean():.0%}', _median(far[within]), _median(far[~within])
    rows.append((name, *shares))
  return rows


def _median(values: np.ndarray) -> str:
  """Returns the median as text; '-' if there are no values."""
  return f'{np.median(values):.2f}' if values.size else '-'
