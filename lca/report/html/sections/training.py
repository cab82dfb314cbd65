"""The sections on how well the model has learned."""

import datetime
from collections.abc import Mapping

import numpy as np

from lca.report import style
from lca.report.html import charts
from lca.report.html.blocks import Chart, Section
from lca.report.html.run import Run

_LINES = {
  'test': {'color': charts.HONEST},
  'validation': {'color': charts.GREEN, 'linestyle': '--'},
  'train': {'color': '#767676', 'linestyle': ':'},
}
"""How the same data are drawn in every chart."""

_IRREGULAR = {
  'rejected': 'updates that hold no usable numbers',
  'dropped': 'clients that did not answer',
  'nonfinite': 'entries of the aggregate or the model that are not finite',
  'floored': 'variances that were negative',
}
"""The meaning of the metrics that are zero in an ordinary round."""


def training(run: Run) -> Section:
  """Returns the section of the curves by round."""
  title = 'Training'
  if not len(run.rounds):
    return Section(title, 'the run has not finished its first round yet.')
  metrics = run.metrics
  shown = [_accuracy(run), _loss(run)]
  if 'attack_success_rate' in metrics:
    shown.append(_success(run))
  if run.times:
    shown.append(_seconds(run.times['round'], run.times['seconds']))
  attackers = metrics['byzantine']
  known = attackers[np.isfinite(attackers)]
  if len({*known}) > 1:
    shown.append(_attackers(run.rounds, attackers))
    present = 'The number of attackers varies from round to round.'
  elif known.any():
    count = f'{known[0]:.0f} attacker{"" if known[0] == 1 else "s"}'
    present = f'{count} took part in each round.'
  else:
    present = 'No attacker took part.'
  irregular = {
    name: metrics[name]
    for name in _IRREGULAR
    if name in metrics and np.nansum(metrics[name])
  }
  if irregular:
    shown.append(_events(run.rounds, irregular))
  return Section(title, f'Accuracy and losses by round. {present}', shown)


def _series(run: Run, metric: str) -> dict[str, np.ndarray]:
  """Returns the columns of a metric by the data that it is of."""
  columns = {name: run.metrics.get(f'{name}_{metric}') for name in _LINES}
  return {
    name: column
    for name, column in columns.items()
    if column is not None and np.isfinite(column).any()
  }


def _course(rounds: np.ndarray, values: np.ndarray, digits=3) -> str:
  """Returns the first and the last value of a curve in words."""
  known = np.isfinite(values)
  if not known.any():
    return 'no finite value'
  rounds, values = rounds[known], values[known]
  return (
    f'from {values[0]:.{digits}g} in round {rounds[0]:.0f} to '
    f'{values[-1]:.{digits}g} in round {rounds[-1]:.0f}'
  )


def _courses(rounds: np.ndarray, series: Mapping[str, np.ndarray]) -> str:
  """Returns the courses of several curves in words."""
  texts = (f'{k} {_course(rounds, v)}' for k, v in series.items())
  return '; '.join(texts) or 'no finite value'


def _accuracy(run: Run) -> Chart:
  series = _series(run, 'accuracy')
  figure, axes = charts.panel()
  charts.curves(axes, run.rounds, series, **_LINES)
  axes.set_ylim(0, 1)
  alt = f'Line chart of accuracy: {_courses(run.rounds, series)}.'
  caption = "Share of examples that the server's model classifies correctly."
  return Chart('Accuracy', charts.to_svg(figure, 'accuracy', alt), caption)


def _loss(run: Run) -> Chart:
  series = _series(run, 'loss')
  figure, axes = charts.panel()
  charts.curves(axes, run.rounds, series, **_LINES)
  log = charts.use_log(axes, series.values())
  alt = f'Line chart of loss: {_courses(run.rounds, series)}.'
  caption = (
    "Cross-entropy in nats; train is the mean of the round's honest clients"
    f'{"; logarithmic scale" if log else ""}.'
  )
  return Chart('Loss', charts.to_svg(figure, 'loss', alt), caption)


def _success(run: Run) -> Chart:
  series = {
    'attack success': run.metrics['attack_success_rate'],
    'true label': run.metrics['backdoor_accuracy'],
  }
  figure, axes = charts.panel()
  charts.curves(
    axes,
    run.rounds,
    series,
    **{'attack success': {'color': charts.ATTACKER}},
    **{'true label': _LINES['test']},
  )
  axes.set_ylim(0, 1)
  alt = f'Line chart of attack success: {_courses(run.rounds, series)}.'
  caption = (
    'Share of the test examples of the attack for which the model predicts the '
    "attackers' target, and their true label."
  )
  return Chart('Attack', charts.to_svg(figure, 'attack', alt), caption)


def _seconds(rounds: np.ndarray, seconds: np.ndarray) -> Chart:
  figure, axes = charts.panel()
  charts.curves(axes, rounds, {'seconds': seconds})
  if not charts.use_log(axes, [seconds], factor=20):
    charts.from_zero(axes)
  alt = f'Line chart of seconds a round: {_course(rounds, seconds)}.'
  caption = (
    f'Wall time of each round with its test: {np.median(seconds):.2f} s in the '
    f'median, {datetime.timedelta(seconds=round(seconds.sum()))} h in all. '
    'The first round after a start compiles.'
  )
  return Chart('Seconds', charts.to_svg(figure, 'seconds', alt), caption)


def _attackers(rounds: np.ndarray, attackers: np.ndarray) -> Chart:
  figure, axes = charts.panel()
  look = {'color': charts.ATTACKER, 'linestyle': '--'}
  charts.curves(axes, rounds, {'attackers': attackers}, attackers=look)
  charts.from_zero(axes, whole=True)
  alt = (
    f'Line chart of the attackers in a round: {np.nanmin(attackers):.0f} to '
    f'{np.nanmax(attackers):.0f}, {np.nanmean(attackers):.2g} on average.'
  )
  caption = 'Byzantine clients that took part in each round.'
  return Chart('Attackers', charts.to_svg(figure, 'attackers', alt), caption)


def _events(rounds: np.ndarray, events: Mapping[str, np.ndarray]) -> Chart:
  figure, axes = charts.panel()
  looks = {name: style.line(i) for i, name in enumerate(events)}
  charts.curves(axes, rounds, events, **looks)
  charts.legend(axes)
  charts.from_zero(axes, whole=True)
  totals = [f'{np.nansum(x):.0f} {name}' for name, x in events.items()]
  alt = f'Line chart of irregular numbers; in all {", ".join(totals)}.'
  texts = (
    f'{total} ({_IRREGULAR[name]})'
    for total, name in zip(totals, events, strict=True)
  )
  caption = f'In each round; in all {", ".join(texts)}.'
  return Chart('Irregular', charts.to_svg(figure, 'irregular', alt), caption)


def predictions(run: Run) -> Section:
  """Returns the section of the final model's predictions on the test set."""
  title = 'Predictions'
  matrix = run.confusion
  if matrix is None:
    return Section(
      title,
      'a confusion matrix is written at the end of a run, as confusion.csv.',
    )
  totals = matrix.sum(axis=1)
  shares = matrix / np.maximum(totals, 1)[:, None]
  correct = np.diag(shares)
  return Section(
    title,
    f'The final model on the {totals.sum():,} test examples: it classifies '
    f'{np.trace(matrix) / max(totals.sum(), 1):.1%} of them correctly.',
    [_confusion(matrix, shares), _by_class(correct, totals)],
  )


def _confusion(matrix: np.ndarray, shares: np.ndarray) -> Chart:
  figure, axes = charts.panel(5.2, 4.3, right=0.75, top=0.1, bottom=0.45)
  image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1, aspect='auto')
  classes = range(len(matrix))
  charts.ticks(axes.xaxis, classes, most=25)
  charts.ticks(axes.yaxis, classes, most=25)
  axes.set(xlabel='predicted class', ylabel='true class')
  charts.plain(axes)
  caption = ''
  if len(matrix) <= 12:
    caption = 'Numbers of test examples, none where a cell is empty. '
    charts.numbers(axes, shares, [str(x or '') for x in matrix.flat], 0.5)
  charts.color_bar(figure, axes, image, 'share of the true class')
  wrong = matrix - np.diag(np.diag(matrix))
  true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
  alt = f'Heat map of the confusion matrix of {len(matrix)} classes.'
  if most := wrong.max():
    alt += (
      f' The most frequent error takes class {true} for class {predicted}, '
      f'{most} times.'
    )
  return Chart(
    'Confusion matrix',
    charts.to_svg(figure, 'confusion', alt),
    f'{caption}The colour is the share of the true class: a perfect model '
    'colours the diagonal alone.',
    'half',
  )


def _by_class(correct: np.ndarray, totals: np.ndarray) -> Chart:
  figure, axes = charts.panel(5.2, 4.3, left=0.45, top=0.1, bottom=0.45)
  places = np.arange(len(correct))
  axes.barh(places, correct, color=charts.HONEST, height=0.75)
  axes.set(xlim=(0, 1.12), xlabel='accuracy', ylabel='class')
  axes.set_xticks(np.linspace(0, 1, 6))
  axes.set_ylim(len(correct) - 0.4, -0.6)
  charts.ticks(axes.yaxis, places, most=25)
  axes.grid(axis='y', visible=False)
  axes.grid(axis='x', visible=True)
  if len(correct) <= 25:
    for place, share in enumerate(correct):
      axes.text(share + 0.015, place, f'{share:.2f}', va='center', fontsize=8)
  worst, best = correct.argmin(), correct.argmax()
  alt = (
    f'Bar chart of accuracy by class, from {correct[worst]:.3f} of class '
    f'{worst} to {correct[best]:.3f} of class {best}.'
  )
  return Chart(
    'Accuracy by class',
    charts.to_svg(figure, 'by-class', alt),
    f'Share of each class that is classified correctly. The classes have '
    f'{totals.min()} to {totals.max()} test examples.',
    'half',
  )
