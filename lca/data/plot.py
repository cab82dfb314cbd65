"""A figure of a partition."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lca.data.federated import FederatedDataset

if TYPE_CHECKING:
  from matplotlib.figure import Figure

# With more clients or classes, the bars or colours cannot be told apart.
_MAX_BARS = 100
_MAX_COLORS = 20


def plot_partition(
  data: FederatedDataset, path: str | Path | None = None
) -> Figure:
  """Draws the number of examples of each class for each client.

  Up to 100 clients with up to 20 classes are drawn as stacked bars, more as a
  heat map. No display is needed.

  Args:
    data: the clients.
    path: the file to save the figure to. Its suffix, such as .png or .svg,
      chooses the format. None does not save the figure.

  Returns:
    The figure.

  Raises:
    ValueError: matplotlib does not know the format.

  Examples:
    >>> import lca.data
    >>> digits = lca.data.load('digits')
    >>> clients = lca.data.federate(
    ...   digits, partition='one_class', num_clients=20, min_examples=1, seed=0)
    >>> plot_partition(clients).axes[0].get_ylabel()
    'examples'
  """
  from matplotlib import colormaps

  # matplotlib.pyplot would choose a display backend and keep every figure in
  # memory, so the figure is made without it.
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
