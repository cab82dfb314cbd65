"""The section on what the rule did with each client's update."""

from collections.abc import Mapping

import numpy as np

from lca.experiment.forensics import Forensics
from lca.report.html import charts
from lca.report.html.blocks import Chart, Section, Table
from lca.report.html.run import Run

MOST_CLIENTS = 250
"""With more clients than these, the map has a row for each place in a round."""

_GROUPS = {
  'honest': {'color': charts.HONEST},
  'attackers': {'color': charts.ATTACKER, 'linestyle': '--'},
}
"""How the lines of the two groups are drawn."""

_CURVES = {
  'contributors': (
    'Contributors',
    'Clients whose updates have a part in at least one layer of the aggregate.',
  ),
  'angle': (
    'Angle',
    'Degrees between the aggregate and the mean of the honest updates.',
  ),
  'distance': (
    'Distance',
    'From the aggregate to the mean of the honest updates, in units of the '
    "honest updates' deviation from it.",
  ),
  'krum_bound': (
    'Krum bound',
    "The sine of the angle that Krum's theorem allows. The theorem needs it "
    'to lie below the dashed line at 1.',
  ),
}
"""Titles and captions of the curves by the names of `Forensics.per_round`."""


def forensics(run: Run) -> Section:
  """Returns the section of whom the rule chose, and what came of it."""
  title = 'Forensics'
  seen = run.forensics
  if seen is None:
    return Section(
      title,
      'whom the rule chose in each round and layer is recorded with '
      '--config.eval.forensics=True.',
    )
  per_round, per_layer = seen.per_round(), seen.per_layer()
  text = "What the rule made of each client's update."
  content: list[Chart | Table] = []
  if seen.selected is not None or seen.weights is not None:
    content.append(_chosen(seen))
  else:
    text += ' This rule works on coordinates and chooses no clients.'
  if 'byzantine_share' in per_round and seen.byzantine.any():
    text += (
      f' In the mean over the rounds, {_mean(per_round["byzantine_share"]):.1%}'
      ' of the aggregate came from attackers.'
    )
    content.append(_shares(seen, per_layer['byzantine_share']))
  if 'attackers_selected' in per_round:
    content.append(_rates(seen, per_round))
  content += [
    _curve(seen, name, per_round[name]) for name in _CURVES if name in per_round
  ]
  content += [_norms(seen), _layers(seen, per_layer)]
  return Section(title, text, content)


def _mean(values: np.ndarray) -> float:
  """Returns the mean of the values that are finite; NaN if there are none."""
  values = values[np.isfinite(values)]
  return float(values.mean()) if len(values) else float('nan')


def _parts(seen: Forensics) -> tuple[np.ndarray, str]:
  """Returns the part of each client in the aggregate of a round.

  Returns:
    The parts `[R, n]` in [0, 1], and the text that says what they mean.
  """
  if seen.weights is None:
    assert seen.selected is not None
    return seen.selected.mean(1), 'the share of the layers that it is part of'
  weights = np.clip(np.nan_to_num(seen.weights), 0, None).mean(1)
  most = weights.max(1, keepdims=True)
  return (
    weights / np.where(most > 0, most, 1),
    "its weight in the mean over the layers, beside the round's largest",
  )


def _chosen(seen: Forensics) -> Chart:
  """Returns the map of who was chosen, clients by rounds."""
  parts, meaning = _parts(seen)
  ids = np.unique(seen.clients)
  if len(ids) <= MOST_CLIENTS:
    attackers = np.isin(ids, seen.clients[seen.byzantine])
    order = np.lexsort((ids, ~attackers))
    ids, attackers = ids[order], attackers[order]
    values = np.full((len(ids), len(seen.rounds)), np.nan)
    where = {client: row for row, client in enumerate(ids)}
    for column, (who, part, answered) in enumerate(
      zip(seen.clients, parts, seen.answered, strict=True)
    ):
      rows = [where[client] for client in who]
      values[rows, column] = np.where(answered, part, np.nan)
    attacking = np.broadcast_to(attackers[:, None], values.shape)
    labels = [
      f'{charts.SIGN}{i}' if x else f'{i}'
      for i, x in zip(ids, attackers, strict=True)
    ]
    axis, white = 'client', 'did not take part or did not answer'
  else:
    order = np.lexsort((-parts, ~seen.byzantine))
    values, attacking = (
      np.take_along_axis(x, order, axis=1).T
      for x in (np.where(seen.answered, parts, np.nan), seen.byzantine)
    )
    labels = range(1, len(values) + 1)
    axis, white = 'clients of the round, ordered', 'did not answer'
  figure, axes = charts.panel(
    10.4, 0.8 + np.clip(0.16 * len(values), 1.2, 6.5), left=0.6
  )
  image = charts.tinted(values, attacking, np.isfinite(values))
  charts.map_by_round(axes, image)
  charts.ticks(axes.yaxis, labels)
  axes.set_ylabel(axis)
  charts.tint_legend(axes, 'no part', 'largest part', bool(attacking.any()))
  if len(ids) <= MOST_CLIENTS and 0 < attackers.sum() < len(ids):
    axes.axhline(attackers.sum() - 0.5, color='black', linewidth=0.8)
  took = {
    'attackers': parts[seen.byzantine & seen.answered] > 0,
    'honest clients': parts[~seen.byzantine & seen.answered] > 0,
  }
  texts = (f'{x.mean():.0%} of the {k}' for k, x in took.items() if len(x))
  alt = (
    f'Heat map of {len(values)} clients by {len(seen.rounds)} rounds: '
    f'{" and ".join(texts)} had a part in the aggregate.'
  )
  caption = (
    f"A client's part in the aggregate of a round is {meaning}. Attackers "
    f'({charts.SIGN}) stand above the others. White: the client {white}.'
  )
  svg = charts.to_svg(figure, 'chosen', alt)
  return Chart('Who was chosen', svg, caption, 'full')


def _shares(seen: Forensics, shares: np.ndarray) -> Chart:
  """Returns the map of the attackers' share, layers by rounds."""
  figure, axes = charts.panel(
    *(10.4, 0.8 + np.clip(0.2 * len(seen.layers), 0.8, 6.5)),
    left=1.6,
    right=0.8,
    top=0.1,
  )
  image = charts.map_by_round(axes, shares.T, cmap='Oranges', vmin=0, vmax=1)
  axes.set_facecolor('#E3E3E3')
  charts.ticks(axes.yaxis, _names(seen))
  charts.color_bar(figure, axes, image, 'share')
  means = [_mean(column) for column in shares.T]
  worst = int(np.nanargmax(np.nan_to_num(means)))
  alt = (
    f'Heat map of {len(seen.layers)} layers by {len(seen.rounds)} rounds. The '
    f'attackers have most in {seen.layers[worst]}: {means[worst]:.0%} in the '
    'mean over the rounds.'
  )
  caption = (
    "The attackers' share of each layer of the aggregate: the lengths of their "
    'weighted updates, divided by those of all clients. Grey: no share exists.'
  )
  svg = charts.to_svg(figure, 'shares', alt)
  return Chart("The attackers' share", svg, caption, 'full')


def _names(seen: Forensics) -> list[str]:
  """Returns the layers' names as they fit beside a map."""
  return [name.removeprefix('params/') for name in seen.layers]


def _rates(seen: Forensics, per_round: Mapping[str, np.ndarray]) -> Chart:
  """Returns the curves of how often each group was chosen."""
  rates = {group: per_round[f'{group}_selected'] for group in _GROUPS}
  rates = {k: x for k, x in rates.items() if np.isfinite(x).any()}
  figure, axes = charts.panel()
  charts.curves(axes, seen.rounds, rates, **_GROUPS)
  charts.from_zero(axes)
  texts = (f'{_mean(x):.0%} of the {k}' for k, x in rates.items())
  alt = f'Line chart of selection rates; on average {" and ".join(texts)}.'
  caption = (
    'Share of the attackers, and of the honest clients, that have a part in '
    'the aggregate, in the mean over the layers.'
  )
  return Chart('Selection rate', charts.to_svg(figure, 'rates', alt), caption)


def _curve(seen: Forensics, name: str, values: np.ndarray) -> Chart:
  """Returns the curve of one number of the whole model."""
  title, caption = _CURVES[name]
  figure, axes = charts.panel()
  charts.curves(axes, seen.rounds, {name: values}, **{name: _GROUPS['honest']})
  known = values[np.isfinite(values)]
  if name == 'krum_bound':
    axes.axhline(1, color='black', linestyle='--', linewidth=1)
  if name == 'contributors':
    charts.from_zero(axes, whole=True)
  elif not charts.use_log(axes, [values]):
    charts.from_zero(axes)
  alt = f'Line chart: {title.lower()} '
  alt += (
    f'between {known.min():.3g} and {known.max():.3g}.'
    if len(known)
    else 'without a finite value.'
  )
  return Chart(title, charts.to_svg(figure, name, alt), caption)


def _norms(seen: Forensics) -> Chart:
  """Returns the curves of the norms of attackers and honest clients."""
  squares = np.square(seen.norms, dtype=float).sum(1)
  norms = np.where(seen.answered & np.isfinite(squares), squares**0.5, np.nan)
  figure, axes = charts.panel()
  texts, medians = [], {}
  masks = {'honest': ~seen.byzantine, 'attackers': seen.byzantine}
  for group, mask in masks.items():
    # [R, 3] of each round that has a norm of this group
    of_group = [x[m & np.isfinite(x)] for x, m in zip(norms, mask, strict=True)]
    ranges = np.array(
      [
        np.quantile(x, [0, 0.5, 1]) if len(x) else [np.nan] * 3
        for x in of_group
      ]
    )
    if not np.isfinite(ranges).any():
      continue
    low, medians[group], high = ranges.T
    axes.fill_between(
      *(seen.rounds, low, high),
      color=_GROUPS[group]['color'],
      alpha=0.18,
      linewidth=0,
    )
    texts.append(f'{group} {_mean(medians[group]):.3g}')
  charts.curves(axes, seen.rounds, medians, **_GROUPS)
  if not charts.use_log(axes, medians.values(), factor=20):
    charts.from_zero(axes)
  alt = f'Line chart of norms; median on average: {", ".join(texts)}.'
  caption = (
    "Norms of the clients' updates as they arrived: the median, in a band from "
    'the smallest to the largest.'
  )
  return Chart('Norms', charts.to_svg(figure, 'norms', alt), caption)


def _layers(seen: Forensics, per_layer: Mapping[str, np.ndarray]) -> Table:
  """Returns the table of means over the rounds, a row for each layer."""
  columns = {}
  if 'attackers_selected' in per_layer:
    got_in = np.nan_to_num(per_layer['attackers_selected']) > 0
    columns['rounds with an attacker'] = [f'{x:.0%}' for x in got_in.mean(0)]
  digits = {'byzantine_share': '.1%', 'angle': '.1f', 'distance': '.2f'}
  titles = {'byzantine_share': "attackers' share", 'angle': 'angle (degrees)'}
  for name, form in digits.items():
    if name in per_layer:
      means = map(_mean, per_layer[name].T)
      columns[titles.get(name, name)] = [f'{mean:{form}}' for mean in means]
  return Table(
    'Layers, in the mean over the rounds',
    ('layer', *columns),
    [*zip(seen.layers, *columns.values(), strict=True)],
    numeric=range(1, len(columns) + 1),
  )
