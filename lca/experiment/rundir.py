"""The directory of one run: its config, its metrics, its summary.

config.json    the config, and each environment that the run was started or
               continued in: versions, devices, commit
metrics.csv    one row a round; see `lca.federated.metrics` for the columns
times.csv      one row a round: when it was finished (UTC), and the seconds that
               it took with its test
clients.csv    one row a client: whether it is an attacker, and its numbers of
               examples in all and in each class, before attacks change labels
forensics.*    evidence of each round, with `eval.forensics`; see
               `lca.experiment.forensics`
summary.json   the number of rounds and the five metrics of the paper's tables;
               there once the run is finished; null stands for NaN and infinity
confusion.csv  the numbers of test examples by class (rows) and by the class
               that the final model predicts (columns)
model.safetensors   the final model; see `lca.experiment.model_files`
best.safetensors    the best model, if `checkpoint.best` is set
events.*       the metrics and the config for TensorBoard
checkpoints/   checkpoints by Orbax, named by their round
lock           an empty file that the process of the run holds locked
"""

import contextlib
import csv
import datetime
import io
import json
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lca.experiment import environment, files, forensics
from lca.experiment.events import Events
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
"""The columns of every metrics.csv; others follow these (see `start`)."""

_TIMES_HEADER = 'round,finished,seconds\n'


class RunDirectory(contextlib.AbstractContextManager):
  """The files of one run, written through this context.

  The constructor checks the directory and leaves nothing behind; `open` makes
  and locks it. Until the context ends, no other process can open it.

  Attributes:
    path: of the directory, absolute and with symbolic links resolved.
    config: of the run, as it reads back from `config.json`.

  Args:
    path: of the directory, which need not exist; `~` is the user's home.
    config: of the run, as nested dicts.

  Raises:
    ValueError: the directory holds the run of another config; or files but no
      run; or a finished run of fewer rounds without a checkpoint to go on from;
      or a damaged file.
    OSError: the run is not finished, and the directory cannot be made or
      written to, or another process has locked it.
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
    # The error of a write names no file. An error with a message of its own has
    # no number, and prints no file.
    if isinstance(error, OSError) and error.errno and error.filename is None:
      error.filename = str(self.path)
    try:
      self._files.close()
    except OSError:
      if error is None:  # otherwise it is the same failure, such as a full disk
        raise

  def _check_contents(self) -> None:
    """Checks that the directory holds this run, or nothing at all."""
    file = self.path / 'config.json'
    if file.exists():
      old, self._environments = read_about(self.path)
      check_same_run(self.path, old, self.config)
      summary = self.summary()
      # Without a checkpoint, more rounds would start the finished run anew and
      # overwrite its results.
      if (
        summary is not None
        and not self.finished(self.config['num_rounds'])
        and not self.begun
      ):
        raise ValueError(
          f'{self.path} holds a finished run of {summary["num_rounds"]} '
          'rounds, but no checkpoint to continue it from to '
          f'num_rounds={self.config["num_rounds"]}; choose another --workdir'
        )
    elif self.path.exists():
      # A process that was killed in `open` may have left these files.
      opened = {'lock', file.name, files.draft(file).name}
      if {each.name for each in self.path.iterdir()} - opened:
        raise ValueError(
          f'{self.path} has files in it, but no run (no config.json): choose '
          'another --workdir'
        )

  def _check_access(self) -> None:
    """Checks that `open` can succeed, and leaves nothing behind."""
    if (self.path / 'lock').exists():
      with self._locked():
        pass
    # Directories that do not exist yet are made in the nearest that does.
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

  @property
  def begun(self) -> int:
    """The round of the last checkpoint; 0 if there is none."""
    steps = [each.name for each in self.checkpoints.glob('*')]
    return max((int(name) for name in steps if name.isdigit()), default=0)

  def summary(self) -> dict[str, Any] | None:
    """Returns the summary of a finished run, or None of an unfinished one.

    Raises:
      ValueError: the file is damaged.
    """
    if not is_finished(self.path):
      return None
    summary = read_summary(self.path)
    if 'num_rounds' not in summary:
      raise ValueError(
        f'{self.path}/summary.json is damaged (no num_rounds): delete it, and '
        'the same command goes on from the last checkpoint'
      )
    return summary

  def finished(self, num_rounds: int) -> bool:
    """Returns True if the run is finished and has at least so many rounds."""
    summary = self.summary()
    return summary is not None and summary['num_rounds'] >= num_rounds

  def open(self) -> None:
    """Makes the directory, locks it and records the config in it.

    Raises:
      OSError: the directory cannot be made or written to, or another process
        has locked it.
      ValueError: another run was started in the directory after the
        constructor had checked it.
    """
    self.path.mkdir(parents=True, exist_ok=True)
    self._files.enter_context(self._locked())
    self._check_contents()
    current = environment.describe()
    if current not in self._environments[-1:]:
      self._environments.append(current)
    about = {'config': self.config, 'environments': self._environments}
    files.write(self.path / 'config.json', _json(about))

  def _locked(self) -> contextlib.AbstractContextManager:
    """Locks the directory and returns the context that unlocks it.

    Raises:
      OSError: another process has locked the directory.
    """
    lock = contextlib.ExitStack()
    try:
      lock.enter_context(files.locked(self.path, wait=False))
    except BlockingIOError:
      raise OSError(
        f'another process is running in {self.path}: wait for it, or choose '
        'another --workdir'
      ) from None
    return lock

  def start(
    self,
    rows: Sequence[Row],
    more: Sequence[str] = (),
    layers: Sequence[str] | None = None,
  ) -> None:
    """Rewrites the metrics with the rounds up to the checkpoint.

    Rounds that a killed process has written after its last checkpoint are
    removed. What an earlier end of the run has left is deleted (summary, model
    and confusion matrix), and the events are written anew.

    Args:
      rows: the metrics of these rounds.
      more: names of metrics beside `COLUMNS`.
      layers: names of the layers in the evidence; None keeps no evidence.
    """
    self._columns = (*COLUMNS, *more)
    if layers is not None:  # first, because damaged files are an error
      self._forensics = forensics.Writer(self.path, layers, len(rows))
    of_the_end = ('summary.json', 'confusion.csv', 'model.safetensors')
    of_the_end = [self.path / name for name in of_the_end]
    for old in [*of_the_end, *self.path.glob('events.*')]:
      old.unlink(missing_ok=True)
    files.write(self.path / 'metrics.csv', self._csv(rows, header=True))
    times = [
      _TIMES_HEADER,
      *_complete_times(self.path / 'times.csv', len(rows)),
    ]
    files.write(self.path / 'times.csv', ''.join(times))
    self._events = Events(self.path, self.config)
    self._files.callback(self._events.close)
    for row in rows:
      self._events.add(row)

  def add(
    self,
    row: Row,
    seconds: float,
    evidence: Mapping[str, np.ndarray] | None = None,
  ) -> None:
    """Appends the metrics of a round that has just been finished.

    Args:
      row: the metrics.
      seconds: that the round took.
      evidence: of the round; None if the run keeps no evidence.
    """
    if evidence is not None:
      self._forensics.add(evidence)
    with open(self.path / 'metrics.csv', 'a') as file:
      file.write(self._csv([row], header=False))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    with open(self.path / 'times.csv', 'a') as file:
      file.write(f'{row["round"]},{now},{seconds:.3f}\n')
    self._events.add(row)

  def write_clients(self, byzantine: np.ndarray, examples: np.ndarray) -> None:
    """Writes who attacks, and who holds how many examples of which class.

    Args:
      byzantine: `[num_clients]` mask of the attackers.
      examples: `[num_clients, num_classes]` numbers of examples.
    """
    classes = [f'class_{c}' for c in range(examples.shape[1])]
    rows = [['client', 'byzantine', 'examples', *classes]]
    for client, (attacks, counts) in enumerate(
      zip(byzantine, examples, strict=True)
    ):
      rows.append([client, int(attacks), counts.sum(), *counts])
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    files.write(self.path / 'clients.csv', text.getvalue())

  def keep(self, name: str, content: str | bytes) -> None:
    """Writes a file of the run, or replaces it, as a whole."""
    files.write(self.path / name, content)

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Writes the summary, which marks the run as finished."""
    self._events.finish()
    numbers = {k: v if math.isfinite(v) else None for k, v in summary.items()}
    files.write(self.path / 'summary.json', _json(numbers))

  def _csv(self, rows: Sequence[Row], header: bool) -> str:
    """Returns lines of metrics.csv; a metric that a row lacks is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, self._columns, lineterminator='\n')
    if header:
      writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class WritesNothing:
  """Overrides the writing methods of a run directory; they do nothing here."""

  def open(self) -> None:
    """Does nothing: no directory is made or locked."""

  def start(
    self,
    rows: Sequence[Row],
    more: Sequence[str] = (),
    layers: Sequence[str] | None = None,
  ) -> None:
    """Does nothing."""

  def add(
    self,
    row: Row,
    seconds: float,
    evidence: Mapping[str, np.ndarray] | None = None,
  ) -> None:
    """Does nothing."""

  def keep(self, name: str, content: str | bytes) -> None:
    """Does nothing."""

  def write_clients(self, byzantine: np.ndarray, examples: np.ndarray) -> None:
    """Does nothing."""

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Does nothing."""


class ReadOnlyRunDirectory(WritesNothing, RunDirectory):
  """The directory of a run in all of its processes except the first.

  These processes check and read the same files, and write nothing. Arguments
  and errors are those of `RunDirectory`.
  """

  def _check_access(self) -> None:
    """Does nothing: the first process, which writes, checks this."""


def _complete_times(file: pathlib.Path, num_rounds: int) -> list[str]:
  """Returns the lines of a times.csv that belong to the first rounds.

  A run that was begun before there were times lacks lines. A killed process may
  have left a part of a line, or rounds after the last checkpoint.
  """
  lines = file.read_text().splitlines(True) if file.exists() else []
  matches = [re.fullmatch(r'(\d+),[^,]+,[^,]+\n', line) for line in lines]
  return [m[0] for m in matches if m and int(m[1]) <= num_rounds]


def read_about(
  run: pathlib.Path,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Reads the `config.json` of a run.

  Args:
    run: the directory of the run.

  Returns:
    The config as nested dicts, and the environments of the run.

  Raises:
    ValueError: the file is damaged, or not the config of a run.
  """
  file = run / 'config.json'
  try:
    about = json.loads(file.read_text())
    return about['config'], about['environments']
  except (ValueError, KeyError, TypeError):
    raise ValueError(
      f'{file} is not the config of a run, or is damaged: choose another '
      '--workdir, or delete the directory to start anew'
    ) from None


def read_config(run: pathlib.Path) -> dict[str, Any]:
  """Reads the config of a run alone, as `read_about` does."""
  return read_about(run)[0]


def _json(value: Any) -> str:
  return json.dumps(value, indent=2) + '\n'
