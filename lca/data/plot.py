"""Pictures of a partition."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lca.data.federated import FederatedDataset

if TYPE_CHECKING:
  from matplotlib.figure import Figure

# Beyond these, bars and their colours can't be told apart.
_MAX_BARS = 100
_MAX_COLORS = 20


def plot_partition(
  data: FederatedDataset, path: str | Path | None = None
) -> Figure:
  """Draws how many examples of each class each client holds.

  Up to 100 clients and 20 classes are stacked bars, more are a heat map. It
  needs no display.

  Args:
    data: The clients.
    path: Where to save the figure; its suffix tells the format, as .png or
      .svg. None saves nothing.

  Returns:
    The figure.

  Raises:
    ValueError: A format that matplotlib does not know.

  Examples:
    >>> import lca.data
    >>> digits = lca.data.load('digits')
    >>> clients = lca.data.federate(
    ...   digits, partition='one_class', num_clients=20, min_examples=1, seed=0)
    >>> plot_partition(clients).axes[0].get_ylabel()
    'examples'
  """
  from matplotlib import colormaps

  # Not pyplot, which would choose a backend and keep the figure.
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 4), layout='constrained')
  axes = figure.subplots()
  counts = data.label_histogram()
  num_clients, num_classes = counts.shape
  if num_clients <= _MAX_BARS and num_classes <= _MAX_COLORS:
    colors = colormaps['tab10' if num_classes <= 10 else 'tab20']
    bottoms = np.cumsum(counts, axis=1) - counts
    for label in range(num_classes):
      axes.bar(
        np.arange(num_clients),
        counts[:, label],
        bottom=bottoms[:, label],
        color=colors(label),
        label=str(label),
      )
    axes.set_ylabel('examples')
    figure.legend(title='class', loc='outside center right', reverse=True)
  else:
    image = axes.imshow(counts.T, aspect='auto', origin='lower')
    axes.set_ylabel('class')
    figure.colorbar(image, label='examples')
  axes.set_xlabel('client')
  axes.set_title(data.describe(), loc='left', fontsize='small')
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.yaxis.get_major_locator().set_params(integer=True)
  if path is not None:
    figure.savefig(path)
  return figure
