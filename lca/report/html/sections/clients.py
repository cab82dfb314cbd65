"""The section on which client holds which examples."""

import numpy as np
from matplotlib.axes import Axes

from lca.report.html import charts
from lca.report.html.blocks import Chart, Section
from lca.report.html.run import Clients, Run


def clients(run: Run) -> Section:
  """Returns the section of the clients' examples by class."""
  title = 'Clients'
  if run.clients is None:
    return Section(
      title,
      'the examples of each client are written when a run starts, as '
      'clients.csv.',
    )
  population = run.clients
  examples, attackers = population.examples, population.byzantine.sum()
  verb = 'attacks' if attackers == 1 else 'attack'
  return Section(
    title,
    f'{len(examples):,} clients hold {examples.min():,.0f} to '
    f'{examples.max():,.0f} examples each, {examples.sum():,.0f} together; '
    f'{attackers or "none"} of them {verb}.',
    [_examples(population), _labels(population)],
  )


MOST_BARS = 300
"""With more clients, the bars count clients instead of examples."""


def _examples(population: Clients) -> Chart:
  """Returns the chart of the clients' numbers of examples."""
  figure, axes = charts.panel(10.4, 1.9, right=0.9)
  examples = population.examples
  many = len(examples) > MOST_BARS
  _, bins = np.histogram(examples, bins=40)
  attacker = {
    'color': charts.ATTACKER_MAP(0.25),
    'edgecolor': charts.ATTACKER,
    'hatch': '////',
  }
  groups = {
    'honest': (~population.byzantine, {'color': charts.HONEST}),
    f'{charts.SIGN} attacker': (population.byzantine, attacker),
  }
  below = np.zeros(len(bins) - 1)
  for name, (mask, look) in groups.items():
    if not mask.any():
      continue
    if many:
      counts, _ = np.histogram(examples[mask], bins)
      widths = np.diff(bins) * 0.9
      axes.bar(
        bins[:-1], counts, widths, below, align='edge', label=name, **look
      )
      below += counts
    else:
      axes.bar(np.flatnonzero(mask), examples[mask], label=name, **look)
  charts.legend(axes)
  if many:
    axes.set(xlabel='examples of a client', ylabel='clients')
    caption = 'How many clients have how many examples.'
  else:
    axes.set(xlim=(-0.5, len(examples) - 0.5), ylabel='examples')
    _label_clients(axes, population)
    caption = 'The number of examples that each client trains on.'
  alt = (
    f'Bar chart of the examples of {len(examples)} clients, from '
    f'{examples.min():.0f} to {examples.max():.0f}.'
  )
  svg = charts.to_svg(figure, 'examples', alt)
  return Chart('Examples', svg, caption, 'full')


def _labels(population: Clients) -> Chart:
  """Returns the map of the examples of each client by class."""
  counts = population.classes.T
  height = 0.75 + min(max(0.2 * len(counts), 1.2), 4.5)
  figure, axes = charts.panel(10.4, height, right=0.9)
  most = max(counts.max(), 1)
  axes.imshow(
    charts.tinted(counts / most, population.byzantine, counts > 0),
    aspect='auto',
  )
  charts.plain(axes)
  charts.ticks(axes.yaxis, range(len(counts)), most=25)
  axes.set_ylabel('class')
  _label_clients(axes, population)
  charts.tint_legend(
    axes, 'few', f'{most:.0f}', bool(population.byzantine.any())
  )
  held = (counts > 0).sum(axis=0)
  alt = (
    f'Heat map of examples by client and class. A client holds {held.min()} to '
    f'{held.max()} of {len(counts)} classes.'
  )
  caption = (
    'Examples of each class (rows) that each client (columns) holds, before '
    'an attack changes labels. White means none.'
  )
  svg = charts.to_svg(figure, 'labels', alt)
  return Chart('Labels', svg, caption, 'full')


def _label_clients(axes: Axes, population: Clients) -> None:
  """Labels the horizontal axis by clients; a few by their sign as well."""
  ids, byzantine = population.ids, population.byzantine
  if len(ids) > charts.MOST_LABELS:
    charts.ticks(axes.xaxis, ids, most=20)
  else:
    names = [
      f'{charts.SIGN}{i}' if attacks else str(i)
      for i, attacks in zip(ids, byzantine, strict=True)
    ]
    charts.ticks(axes.xaxis, names)
  axes.set_xlabel('client', labelpad=2)
