"""The layerwise cosine paper's Tables 1 to 6, measured and printed.

The printed numbers are in `layerwise_cosine_tables.csv`. The measured ones come
from the finished runs `TABLE/DATASET/VARIANT` of a sweep, such as
configs/tables.py.
"""

import csv
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lca.experiment import index, packing, rundir
from lca.experiment.summary import (
  Metrics,
  is_finished,
  read_metrics,
  read_summary,
)
from lca.report import runs
from lca.report.formats import Number, Table

METRICS = {
  'final_test_loss': min,
  'average_test_loss': min,
  'min_test_loss': min,
  'average_test_accuracy': max,
  'max_test_accuracy': max,
}
"""The tables' columns, each with the function that picks its best value."""

DATASETS = {
  'cifar10': 'CIFAR-10',
  'celeba_s': 'CelebA-S',
  'celeba_s_non_iid': 'CelebA-S non-IID',
  'emnist': 'EMNIST',
  'emnist_non_iid': 'EMNIST non-IID',
  'fashion_mnist': 'Fashion-MNIST',
}
VARIANTS = ('plain', 'layerwise', 'cosine', 'layerwise_cosine')
TITLES = {
  1: 'Krum, no attack',
  2: 'GeoMed, no attack',
  3: 'Bulyan, no attack',
  4: 'Krum, model replacement',
  5: 'GeoMed, model replacement',
  6: 'Bulyan, model replacement',
}
"""The titles of Tables 1 to 6, by number. The paper calls the attack of Tables
4 to 6 label flipping."""

Runs = Mapping[str, Sequence[pathlib.Path]]
"""Directories of finished runs, one for each seed, by
`TABLE/DATASET/VARIANT`."""


class Block(NamedTuple):
  """Four rows of a printed table: the variants on one data set.

  Attributes:
    table: number of the table.
    dataset: a key of `DATASETS`.
    printed: the paper's metrics by variant, and then by the metric's name.
  """

  table: int
  dataset: str
  printed: Mapping[str, Mapping[str, float]]

  def name(self, variant: str) -> str:
    """Returns the name that a variant's runs have in a sweep."""
    return f'table{self.table}/{self.dataset}/{variant}'


def paper() -> list[Block]:
  """Returns the rows of the printed tables, in the paper's order."""
  file = pathlib.Path(__file__).with_name('layerwise_cosine_tables.csv')
  with open(file, newline='') as lines:
    rows = list(csv.DictReader(lines))
  groups = itertools.groupby(rows, lambda row: (row['table'], row['dataset']))
  return [
    Block(
      int(table),
      dataset,
      {row['variant']: {m: float(row[m]) for m in METRICS} for row in group},
    )
    for (table, dataset), group in groups
  ]


def make(workdir: pathlib.Path, prefix: str = '') -> list[Table]:
  """Fills the tables with the finished runs of a sweep.

  The cells of a run that is not finished are blank, and a note below the table
  counts such rows.

  Args:
    workdir: directory of a sweep, or a packed sweep.
    prefix: text before `TABLE/DATASET/VARIANT` in the runs' names, such as
      `'reduced/'`.

  Returns:
    The tables in this order: Tables 1 to 6, as far as the sweep has runs for
    them, with the data sets that the sweep has runs for; a table for each of
    the sweep's groups `beyond_ATTACK`; and, if there is one of Tables 1 to 6,
    the gains of accuracy over the plain operators, and the slopes of the test
    losses.

  Raises:
    ValueError: no run is finished, or the configs of a row's runs differ in
      more than the seed.
  """
  with packing.opened(workdir) as folder:
    return _make(folder, prefix)


def _make(workdir: pathlib.Path, prefix: str) -> list[Table]:
  """Fills the tables with the finished runs in a directory, as `make` says."""
  pattern = (
    re.escape(prefix) + rf'((table[1-6]|beyond_\w+)/({"|".join(DATASETS)})/\w+)'
  )
  # Directories by TABLE/DATASET/VARIANT, of all runs and of the finished ones.
  all_runs = {
    match[1]: places
    for name, places in index.by_line(workdir).items()
    if (match := re.fullmatch(pattern, name))
  }
  finished = {
    name: done
    for name, places in all_runs.items()
    if (done := [place for place in places if is_finished(place)])
  }
  if not finished:
    raise ValueError(
      f'{workdir} holds no finished run {prefix}TABLE/DATASET/VARIANT'
    )
  for name, places in finished.items():
    runs.check_line(name, places)
  blocks = [
    block
    for block in paper()
    if any(block.name(variant) in all_runs for variant in VARIANTS)
  ]
  paper_tables = [
    _paper_table(number, list(blocks_of_one), finished)
    for number, blocks_of_one in itertools.groupby(blocks, lambda b: b.table)
  ]
  return [
    *paper_tables,
    *_beyond(finished),
    *([_gains(blocks, finished), _slopes(blocks, finished)] if blocks else []),
  ]


_HEADER = (
  'data set',
  'method',
  'seeds',
  *(m.replace('_', ' ') for m in METRICS),
)
# Notes below the tables.
_OURS = (
  'Ours: the mean over the seeds, and their standard deviation where there are '
  'several.'
)
_IN_BRACKETS = (
  "In brackets what the paper prints; in bold the best of a data set's "
  'variants, of ours and of theirs.'
)
_BULYAN = (
  'Ours is multi_krum(m=5, f=1) in all four rows, the Bulyan of the '
  "paper's section 4.3. The printed rows are other algorithms. Bulyan and "
  "Layerwise Bulyan are client 0's update: the published code sorts its "
  'distances in place, and these rows are no target. The two cosine rows are '
  'bulyan_trimmed: the 5 updates of lowest score, once, and then the trimmed '
  'mean of section 2.4.'
)


def _paper_table(number: int, blocks: list[Block], finished: Runs) -> Table:
  """Makes one of Tables 1 to 6, with the data sets of the given blocks."""
  names = [block.name(v) for block in blocks for v in VARIANTS]
  printed = len(DATASETS) * len(VARIANTS)
  missing = printed - sum(name in finished for name in names)
  notes = [f'{_OURS} {_IN_BRACKETS}', *_settings(names, finished)]
  if missing:
    notes.append(f'{missing} of {printed} rows have no finished run.')
  absent = DATASETS.keys() - {block.dataset for block in blocks}
  if absent:
    left_out = ', '.join(t for d, t in DATASETS.items() if d in absent)
    notes.append(f'The sweep has no runs of {left_out}.')
  if number in (3, 6):
    notes.append(_BULYAN)
  return Table(
    f'table{number}',
    f"The paper's Table {number}: {TITLES[number]}",
    _HEADER,
    [row for block in blocks for row in _block_rows(block, finished)],
    notes,
  )


def _block_rows(block: Block, finished: Runs) -> list[list[str | Number]]:
  """Makes the rows of the variants on one data set, the best in bold."""
  ours = {v: _values(finished.get(block.name(v), ())) for v in VARIANTS}
  numbers = {}
  for metric, best in METRICS.items():
    cells = [
      Number(ours[v][metric], block.printed[v][metric]) for v in VARIANTS
    ]
    # A single measured variant is not marked as the best. The paper always has
    # four.
    means = [cell.mean for cell in cells if cell.mean is not None]
    finite = [mean for mean in means if np.isfinite(mean)]
    top = best(finite) if len(means) > 1 and finite else None
    printed = best(cell.paper for cell in cells)
    numbers[metric] = [
      cell._replace(
        best=top is not None and cell.mean == top,
        paper_best=cell.paper == printed,
      )
      for cell in cells
    ]
  operator = TITLES[block.table].split(',')[0]
  return [
    [
      DATASETS[block.dataset],
      operator if variant == 'plain' else f'{_words(variant)} {operator}',
      str(len(ours[variant]['final_test_loss'])),
      *(numbers[metric][row] for metric in METRICS),
    ]
    for row, variant in enumerate(VARIANTS)
  ]


def _values(places: Sequence[pathlib.Path]) -> dict[str, list[float]]:
  """Returns each metric's values in the summaries, one for each seed."""
  summaries = [read_summary(place) for place in places]
  return {metric: [s[metric] for s in summaries] for metric in METRICS}


def _words(variant: str) -> str:
  """Returns a variant's name for readers, such as `Layerwise cosine`."""
  return variant.replace('_', ' ').capitalize()


def _settings(names: Sequence[str], finished: Runs) -> list[str]:
  """Returns a note on the runs' size, which need not be the paper's.

  There is no note if none of the names has a finished run.
  """
  places = [place for name in names for place in finished.get(name, ())]
  texts = {
    f'{config["data"]["name"]} with {config["model"]["name"]}, '
    f'{config["num_rounds"]} rounds, '
    f'{config["server"]["clients_per_round"]} clients a round, '
    f'local epochs {config["client"]["local_epochs"]}, '
    f'batch size {config["client"]["batch_size"]}'
    for config in map(rundir.read_config, places)
  }
  return [f'What ran: {"; ".join(sorted(texts))}.'] if texts else []


def _beyond(finished: Runs) -> list[Table]:
  """Makes a table for each group `beyond_ATTACK`, which the paper lacks."""
  tables = []
  for group in sorted({name.split('/')[0] for name in finished}):
    if not group.startswith('beyond_'):
      continue
    names = [name for name in finished if name.startswith(f'{group}/')]
    rows = []
    for name in names:
      _, dataset, rule = name.split('/')
      values = _values(finished[name])
      numbers = [Number(values[metric]) for metric in METRICS]
      seeds = str(len(finished[name]))
      rows.append([DATASETS[dataset], rule, seeds, *numbers])
    attack = group.removeprefix('beyond_').replace('_', ' ')
    title = f'Beyond the tables, attack: {attack}'
    notes = [_OURS, *_settings(names, finished)]
    tables.append(Table(group, title, _HEADER, rows, notes))
  return tables


_GAINS = (
  'The average test accuracy of the plain operator and of the best of its '
  'variants, in brackets as the paper prints them. Its "exceeding 16 %" '
  '(section 5.1) are points: 0.885 - 0.724, layerwise cosine Krum in Table 1 '
  'on CelebA-S non-IID, which is 1.22 times the plain one. Its "over 12 %" are '
  '11.8 points, 0.946 - 0.828, or 1.14 times: layerwise cosine Bulyan in Table '
  '3 on CIFAR-10.'
)


def _gains(blocks: Sequence[Block], finished: Runs) -> Table:
  """Makes the table of how far the best variant is ahead of the plain one."""
  rows = []
  for block in blocks:
    ours = {
      v: float(
        np.mean(_values(finished[block.name(v)])['average_test_accuracy'])
      )
      for v in VARIANTS
      if block.name(v) in finished
    }
    printed = {
      v: row['average_test_accuracy'] for v, row in block.printed.items()
    }
    name, *measured = _gain(ours)
    printed_name, *figures = _gain(printed)
    numbers = [
      Number([] if value is None else [value], figure, digits=digits)
      for value, figure, digits in zip(
        measured, figures, (3, 3, 1, 2), strict=True
      )
    ]
    rows.append([*_about(block), f'{name} ({printed_name})'.strip(), *numbers])
  header = ('best variant', 'plain', 'best', 'points gained', 'best over plain')
  title = 'Gains of accuracy over the plain operators'
  return Table('gains', title, (*_ABOUT, *header), rows, [_GAINS])


def _gain(accuracies: Mapping[str, float]) -> tuple[str | float | None, ...]:
  """Compares the plain operator with the best of its variants.

  Args:
    accuracies: the accuracies that are known, by variant.

  Returns:
    The best variant's name for readers, the plain operator's accuracy, the best
    variant's, the points gained, and the ratio of both. The name is empty and
    the others are None if the plain operator or all variants are missing.
  """
  # The reversed order lets the paper's method, the last one, win ties in `max`.
  others = [v for v in reversed(VARIANTS[1:]) if v in accuracies]
  if 'plain' not in accuracies or not others:
    return '', None, None, None, None
  name = max(others, key=lambda v: accuracies[v])
  plain, best = accuracies['plain'], accuracies[name]
  return _words(name), plain, best, 100 * (best - plain), best / plain


_ABOUT = ('table', 'operator and attack', 'data set')


def _about(block: Block) -> tuple[str, str, str]:
  """Returns the entries of the columns `_ABOUT`."""
  return str(block.table), TITLES[block.table], DATASETS[block.dataset]


_SLOPES = (
  'Nats a round: the slope of a line through the last 10 test losses, by least '
  'squares; the mean over the seeds. Above 0 the test loss rises, as the paper '
  'says of the plain operators (section 5.1).'
)


def slope(run: Metrics, window: int = 10) -> float:
  """Returns how fast the test loss rises at the end of a run.

  The slope is that of the line through the last evaluations, by least squares.

  Args:
    run: metrics of the run.
    window: number of evaluations, at the end, that the line is fitted to.

  Returns:
    The slope in nats a round; NaN if there are fewer than 2 evaluations, or if
    one of these losses is not finite.
  """
  tested = runs.evaluated(run)
  rounds, losses = tested['round'][-window:], tested['test_loss'][-window:]
  if len(rounds) < 2 or not np.isfinite(losses).all():
    return float('nan')
  return float(np.polyfit(rounds, losses, 1)[0])


def _slopes(blocks: Sequence[Block], finished: Runs) -> Table:
  """Makes the table of the variants' slopes of the test loss."""

  def row(block):
    for variant in VARIANTS:
      places = finished.get(block.name(variant), ())
      values = [slope(read_metrics(place)) for place in places]
      yield Number(values, digits=4)

  rows = [[*_about(block), *row(block)] for block in blocks]
  header = (*_ABOUT, *(_words(v).lower() for v in VARIANTS))
  return Table('slopes', 'Slopes of the test loss', header, rows, [_SLOPES])
