"""The directory of one run: its config, its metrics, its summary.

config.json    the config, and each environment it ran in: versions,
               devices, commit
metrics.csv    one row a round
summary.json   the five metrics of the paper's tables, when it is finished;
               null is what is not finite
events.*       the metrics for TensorBoard
checkpoints/   Orbax's
lock           locked by the process that runs it
"""

import contextlib
import csv
import io
import json
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from lca.experiment import environment, files
from lca.experiment.identity import check_same_run
from lca.experiment.summary import Row, is_finished, read_summary

COLUMNS = (
  'round',
  'test_loss',
  'test_accuracy',
  'train_loss',
  'byzantine',
  'rejected',
  'nonfinite',
)


class RunDirectory(contextlib.AbstractContextManager):
  """The files of one run. Nothing is written before `open`.

  Between `open` and the end of the context the directory is locked: no other
  process can open it.

  Attributes:
    path: of the directory, without links.
    config: of the run, as `config.json` gives it back.

  Args:
    path: of the directory, which need not exist; `~` is the user's home.
    config: of the run, as nested dicts.

  Raises:
    ValueError: it holds another config's run, or files but no run of ours, or
      a finished run of fewer rounds from which nothing can go on, or a damaged
      file.
    OSError: the run is not finished, and the directory cannot be made or
      written to, or another process has it.
  """

  def __init__(self, path: str | os.PathLike, config: Mapping[str, Any]):
    self.path = pathlib.Path(path).expanduser().resolve()
    self.config = json.loads(json.dumps(config))
    self._environments: list[dict[str, Any]] = []
    self._files = contextlib.ExitStack()
    self._check_contents()
    if self.summary() is None or not self.finished(config['num_rounds']):
      self._check_access()

  def __exit__(self, kind, error, traceback) -> None:
    if isinstance(error, OSError) and error.filename is None:
      error.filename = str(self.path)  # a failed write does not tell where
    try:
      self._files.close()
    except OSError:
      if error is None:  # otherwise it fails once more
        raise

  def _check_contents(self) -> None:
    """Checks that the directory holds this run, or nothing."""
    file = self.path / 'config.json'
    if file.exists():
      old, self._environments = _read_config(file)
      check_same_run(self.path, old, self.config)
      summary = self.summary()
      # More rounds of a finished run begin anew where there is no checkpoint,
      # and what the run has reached would be lost.
      if (
        summary is not None
        and not self.finished(self.config['num_rounds'])
        and not any(each.name.isdigit() for each in self.checkpoints.glob('*'))
      ):
        raise ValueError(
          f'{self.path} holds a finished run of {summary["num_rounds"]} '
          'rounds, and no checkpoint from which it could go on to '
          f'num_rounds={self.config["num_rounds"]}; choose another --workdir'
        )
    elif self.path.exists():
      # A process that was killed in `open` may have left these.
      opened = {'lock', file.name, files.draft(file).name}
      if {each.name for each in self.path.iterdir()} - opened:
        raise ValueError(
          f'{self.path} has files in it but no run: choose another --workdir'
        )

  def _check_access(self) -> None:
    """Checks that the directory can be opened, and leaves no trace of that."""
    if (self.path / 'lock').exists():
      with self._locked():
        pass
    existing = next(p for p in (self.path, *self.path.parents) if p.exists())
    try:
      with tempfile.TemporaryFile(dir=existing):
        pass
    except OSError as error:
      raise type(error)(
        f'{self.path}: cannot write into {existing} ({error.strerror}); choose '
        'another --workdir'
      ) from None

  @property
  def checkpoints(self) -> pathlib.Path:
    """The folder for the checkpoints."""
    return self.path / 'checkpoints'

  def summary(self) -> dict[str, Any] | None:
    """Returns the summary of a finished run, or None."""
    if not is_finished(self.path):
      return None
    summary = read_summary(self.path)
    if 'num_rounds' not in summary:
      raise ValueError(
        f'{self.path}/summary.json is damaged (no num_rounds): delete it, and '
        'the same command goes on'
      )
    return summary

  def finished(self, num_rounds: int) -> bool:
    """Returns True if the run is complete, with at least as many rounds."""
    summary = self.summary()
    return summary is not None and summary['num_rounds'] >= num_rounds

  def open(self) -> None:
    """Makes the directory, locks it and records the config in it.

    Raises:
      OSError: the directory cannot be made or written to, or another process
        has it.
      ValueError: in the meantime it has become another run's.
    """
    self.path.mkdir(parents=True, exist_ok=True)
    self._files.enter_context(self._locked())
    self._check_contents()
    here = environment.describe()
    if here not in self._environments[-1:]:
      self._environments.append(here)
    about = {'config': self.config, 'environments': self._environments}
    files.write(self.path / 'config.json', _json(about))

  def _locked(self) -> contextlib.AbstractContextManager:
    """Returns a context in which the directory is this process's alone."""
    lock = contextlib.ExitStack()
    try:
      lock.enter_context(files.locked(self.path, wait=False))
    except BlockingIOError:
      raise OSError(
        f'another process is running in {self.path}: wait for it, or choose '
        'another --workdir'
      ) from None
    return lock

  def start(self, rows: Sequence[Row], more: Sequence[str] = ()) -> None:
    """Writes the rounds run so far, and nothing beyond them.

    Args:
      rows: of these rounds.
      more: metrics of a row beside `COLUMNS`.
    """
    self._columns = (*COLUMNS, *more)
    for old in [self.path / 'summary.json', *self.path.glob('events.*')]:
      old.unlink(missing_ok=True)
    files.write(self.path / 'metrics.csv', self._csv(rows, header=True))
    self._events = EventsWriter(str(self.path / 'events'))
    self._files.callback(self._events.close)
    for row in rows:
      self._add_events(row)

  def add(self, row: Row) -> None:
    """Appends one round."""
    with open(self.path / 'metrics.csv', 'a') as file:
      file.write(self._csv([row], header=False))
    self._add_events(row)

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Writes the summary: the run is complete."""
    numbers = {k: v if math.isfinite(v) else None for k, v in summary.items()}
    files.write(self.path / 'summary.json', _json(numbers))

  def _csv(self, rows: Sequence[Row], header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, self._columns, lineterminator='\n')
    if header:
      writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

  def _add_events(self, row: Row) -> None:
    values = [
      Summary.Value(tag=name, simple_value=value)
      for name, value in row.items()
      if name != 'round'
    ]
    event = Event(
      wall_time=time.time(), step=row['round'], summary=Summary(value=values)
    )
    self._events.write_event(event)
    self._events.flush()


class WritesNothing:
  """Stands for the methods of a run directory that write."""

  def open(self) -> None:
    """Makes and locks nothing."""

  def start(self, rows: Sequence[Row], more: Sequence[str] = ()) -> None:
    """Writes nothing."""

  def add(self, row: Row) -> None:
    """Writes nothing."""

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Writes nothing."""


class ReadOnlyRunDirectory(WritesNothing, RunDirectory):
  """The directory of a run in all its processes but the first.

  They check and read the same files, and write nothing.

  Args, Raises: as of RunDirectory.
  """

  def _check_access(self) -> None:
    """Leaves that to the first process."""


def _read_config(
  file: pathlib.Path,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  try:
    found = json.loads(file.read_text())
    return found['config'], found['environments']
  except (ValueError, KeyError, TypeError):
    raise ValueError(
      f'{file} is not the config of a run: choose another --workdir, or '
      'delete the directory to start anew'
    ) from None


def read_config(run: pathlib.Path) -> dict[str, Any]:
  """Reads a run's config, as nested dicts.

  Raises:
    ValueError: the file is damaged, or no config of a run.
  """
  return _read_config(run / 'config.json')[0]


def _json(value: Any) -> str:
  return json.dumps(value, indent=2) + '\n'
