"""The metrics of a run: those of each round, and the summary of all rounds.

A finished run has left `metrics.csv`, with one row a round, and `summary.json`,
with the five metrics of the layerwise cosine paper's tables.
"""

import csv
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lca.experiment import files

Row = dict[str, float]
"""The metrics of a round by name."""

Metrics = Mapping[str, np.ndarray]
"""The columns of a metrics.csv by name, each `[num_rounds]`; NaN where a round
has no entry, such as the test loss of a round that was not tested."""


def summarize(rows: Sequence[Row], window: int = 10) -> dict[str, float]:
  """Returns the five metrics of the layerwise cosine paper's tables.

  Args:
    rows: the metrics of all rounds. Rounds without a test are left out.
    window: the averages are over the last so many tests.

  Returns:
    `final_test_loss`, `average_test_loss`, `min_test_loss`,
    `average_test_accuracy`, `max_test_accuracy`. Losses are in nats, accuracies
    in [0, 1]. The minimum leaves out tests whose loss is NaN.
  """
  tested = [row for row in rows if 'test_loss' in row]
  losses = [row['test_loss'] for row in tested]
  accuracies = [row['test_accuracy'] for row in tested]

  def average(values):
    last = values[-window:]
    return sum(last) / len(last)

  return {
    'final_test_loss': losses[-1],
    'average_test_loss': average(losses),
    'min_test_loss': float(np.fmin.reduce(losses)),  # NaN only if all are
    'average_test_accuracy': average(accuracies),
    'max_test_accuracy': max(accuracies),
  }


def as_text(summary: Mapping[str, Any]) -> str:
  """Returns the metrics of a summary as lines for a person to read."""
  lines = [
    f'{name.replace("_", " "):24}{summary[name]:8.4f}'
    for name in summary
    if name != 'num_rounds'
  ]
  return '\n'.join(lines)


def is_finished(run: pathlib.Path) -> bool:
  """Returns True if the directory `run` holds a finished run."""
  return (run / 'summary.json').exists()


def read_summary(run: pathlib.Path) -> dict[str, float]:
  """Reads the summary of a finished run; null in the file becomes NaN.

  Args:
    run: the directory of the run.

  Raises:
    ValueError: the file is damaged.
  """
  file = run / 'summary.json'
  remedy = (
    'delete it, and the same command goes on from the last checkpoint, or '
    'starts anew if there is none'
  )
  summary = files.read_json(file, remedy)
  for name, value in summary.items():
    if not isinstance(value, int | float | None):
      raise ValueError(f'{file} is damaged ({name} is {value!r}): {remedy}')
  return {k: math.nan if v is None else v for k, v in summary.items()}


def read_metrics(run: pathlib.Path) -> Metrics:
  """Reads the metrics of a finished run.

  Args:
    run: the directory of the run.

  Returns:
    The columns by name, each `[num_rounds]`.

  Raises:
    ValueError: the run is not finished, or the file is damaged.
  """
  if not is_finished(run):
    raise ValueError(f'{run} is not finished')
  num_rounds = read_summary(run).get('num_rounds')
  file = run / 'metrics.csv'
  try:
    with open(file, newline='') as lines:
      header, *rows = [*csv.reader(lines, strict=True)] or [[]]
    if num_rounds not in (None, len(rows)):
      raise ValueError(f'it holds {len(rows)} rounds of {num_rounds}')
    if any(len(row) != len(header) for row in rows):
      raise ValueError(f'a row does not have {len(header)} entries')
    return {
      name: np.array([float(entry or 'nan') for entry in column])
      for name, *column in zip(header, *rows, strict=True)
    }
  except (ValueError, csv.Error, FileNotFoundError) as error:
    raise ValueError(
      f'{file} is damaged ({error}): delete the directory {run}, and the same '
      'command runs it anew'
    ) from None
