"""Reads what a run, finished or not, has left in its directory."""

import csv
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lca.experiment import forensics, rundir, summary
from lca.experiment.forensics import Forensics
from lca.experiment.summary import Metrics
from lca.report.runs import evaluated


class Clients(NamedTuple):
  """The clients of the population, as `clients.csv` lists them.

  Attributes:
    ids: `[clients]`.
    byzantine: `[clients]`, True for an attacker.
    examples: `[clients]`, the number of examples.
    classes: `[clients, C]`, the number of examples of each class.
  """

  ids: np.ndarray
  byzantine: np.ndarray
  examples: np.ndarray
  classes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
  """A run as its directory describes it.

  Attributes:
    name: in a sweep's index, or the name of the directory.
    config: as nested dicts.
    environments: those that the run was started or continued in.
    metrics: the columns of metrics.csv; no column at all before the first
      round.
    finished: True once the run has left its summary.
    times: the columns `round` and `seconds` of times.csv; no column at all if
      they were not recorded. A run may lack its first rounds.
    clients: None if they were not recorded.
    confusion: `[C, C]` numbers of test examples by true class (rows) and
      predicted class; None if they were not recorded.
    forensics: see `lca.experiment.forensics`; None if they were not recorded.
  """

  name: str
  config: Mapping[str, Any]
  environments: list[dict[str, Any]]
  metrics: Metrics
  finished: bool
  times: Metrics = dataclasses.field(default_factory=dict)
  clients: Clients | None = None
  confusion: np.ndarray | None = None
  forensics: Forensics | None = None

  @property
  def rounds(self) -> np.ndarray:
    """The rounds so far, `[rounds]`, counted from 1."""
    return self.metrics.get('round', np.empty(0))

  @property
  def summary(self) -> dict[str, float] | None:
    """The five numbers of the papers' tables; None before the first test.

    Those of a run that is not finished are of the rounds so far.
    """
    if not len(self.rounds):
      return None
    tested = evaluated(self.metrics)
    columns = tested['test_loss'].tolist(), tested['test_accuracy'].tolist()
    rows = [
      {'test_loss': loss, 'test_accuracy': accuracy}
      for loss, accuracy in zip(*columns, strict=True)
    ]
    return summary.summarize(rows) if rows else None


def read(directory: pathlib.Path, name: str | None = None) -> Run:
  """Reads a run.

  Args:
    directory: of the run.
    name: of the run; None takes that of the directory.

  Raises:
    ValueError: there is no run, or one of its files is damaged.
  """
  if not (directory / 'config.json').exists():
    raise ValueError(
      f'{directory} holds no run (no config.json): give the directory of one '
      'run, or --sweep for that of a sweep'
    )
  config, environments = rundir.read_about(directory)
  finished = summary.is_finished(directory)
  return Run(
    name=name or directory.resolve().name,
    config=config,
    environments=environments,
    metrics=summary.read_metrics(directory)
    if finished
    else _numbers(directory / 'metrics.csv'),
    finished=finished,
    times=_numbers(directory / 'times.csv', but='finished'),
    clients=_clients(directory / 'clients.csv'),
    confusion=_confusion(directory / 'confusion.csv'),
    forensics=forensics.read(directory),
  )


def _columns(file: pathlib.Path) -> dict[str, list[str]]:
  """Reads the columns of a CSV file by name; no column if there is no file.

  A last line that another process is still writing is left out.
  """
  if not file.exists():
    return {}
  header, *rows = [*csv.reader(file.read_text().splitlines())] or [[]]
  if rows and len(rows[-1]) < len(header):
    del rows[-1]
  if any(len(row) != len(header) for row in rows):
    raise _damaged(file, f'a row does not have {len(header)} entries')
  return dict(zip(header, map(list, zip(*rows, strict=True)), strict=False))


def _numbers(file: pathlib.Path, but: str = '') -> dict[str, np.ndarray]:
  """Reads a CSV file of numbers, in which an empty entry is NaN.

  Args:
    file: need not exist; it has no columns then.
    but: the name of a column that is left out.
  """
  columns = _columns(file)
  try:
    return {
      name: np.array([float(entry or 'nan') for entry in column])
      for name, column in columns.items()
      if name != but
    }
  except ValueError as error:
    raise _damaged(file, error) from None


def _clients(file: pathlib.Path) -> Clients | None:
  """Reads a `clients.csv`; returns None if there is none."""
  columns = _numbers(file)
  if not columns:
    return None
  try:
    classes = [v for k, v in columns.items() if k.startswith('class_')]
    return Clients(
      ids=columns['client'].astype(int),
      byzantine=columns['byzantine'].astype(bool),
      examples=columns['examples'],
      classes=np.stack(classes, axis=1),
    )
  except (KeyError, ValueError) as error:
    raise _damaged(file, f'{error} is missing') from None


def _confusion(file: pathlib.Path) -> np.ndarray | None:
  """Reads a `confusion.csv`; returns None if there is none."""
  if not file.exists():
    return None
  try:
    matrix = np.loadtxt(file, delimiter=',', ndmin=2, dtype=int)
    if matrix.shape[0] != matrix.shape[1]:
      raise ValueError(f'it has {matrix.shape} entries and is not square')
  except ValueError as error:
    raise _damaged(file, error) from None
  return matrix


def _damaged(file: pathlib.Path, why: Any) -> ValueError:
  """Returns the error about a damaged file."""
  return ValueError(
    f'{file} is damaged ({why}): delete it, and the page leaves out what it '
    'would show'
  )
