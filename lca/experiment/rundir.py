"""A run's directory: its config, its metrics, its summary.

config.json    the config, and each environment it ran in: versions,
               devices, commit
metrics.csv    one row a round
summary.json   the five metrics of the paper's tables, when it is finished;
               null is what is not finite
events.*       the metrics for TensorBoard
checkpoints/   Orbax's
lock           of the process that runs it
"""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

Row = dict[str, float]

COLUMNS = (
  'round',
  'test_loss',
  'test_accuracy',
  'train_loss',
  'byzantine',
  'rejected',
  'nonfinite',
)

# These may differ when a run is continued: they say where and how it runs, and
# how it ends, not what it computes (beyond rounding).
_FREE = ('parallel', 'checkpoint')
_FREE_KEYS = (
  'data.archive_dir',
  'data.data_dir',
  'eval.batch_size',
  'train.on_nonfinite',
)

# Keys that are younger than runs which others are compared with, and what those
# did: without the key a config is the same run's as with this value, and has
# the same id.
_LATER = {
  'client.dtype': 'float32',
  'client.update_dtype': 'float32',
  'client.drop_rate': 0.0,
  'aggregator.ties': 'mean',
  'aggregator.farthest': 'remaining',
  'aggregator.init': 'last',
}

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class RunDirectory(contextlib.AbstractContextManager):
  """The files of one run. Nothing is written before `claim`.

  When the context ends, the directory is free for another process.

  Attributes:
    path: of the directory, without links.
    config: of the run, as `config.json` gives it back.

  Args:
    path: of the directory, which need not exist.
    config: of the run, as nested dicts.

  Raises:
    ValueError: it holds another config's run, or files but no run of ours, or
      a finished run of fewer rounds from which nothing can go on.
  """

  def __init__(self, path: str | os.PathLike, config: Mapping[str, Any]):
    self.path = pathlib.Path(path).resolve()
    self.config = json.loads(json.dumps(config))
    self._environments: list[dict[str, Any]] = []
    self._files = contextlib.ExitStack()
    self._look()

  def __exit__(self, kind, error, traceback) -> None:
    if isinstance(error, OSError) and error.filename is None:
      error.filename = str(self.path)  # a failed write does not tell where
    try:
      self._files.close()
    except OSError:
      if error is None:  # otherwise it fails once more
        raise

  def _look(self) -> None:
    """Checks that what is there, if anything, is this run."""
    file = self.path / 'config.json'
    if file.exists():
      old, self._environments = _read_config(file)
      check_same_run(self.path, old, self.config)
      self._check_growth()
    elif self.path.exists():
      # What `claim` leaves if it is killed is no stranger's.
      claimed = {'lock', file.name, _draft(file).name}
      if {each.name for each in self.path.iterdir()} - claimed:
        raise ValueError(
          f'{self.path} has files in it but no run: choose another --workdir'
        )

  def _check_growth(self) -> None:
    """Without a checkpoint, a finished run would begin anew and be lost."""
    summary = self.summary()
    if summary is None or self.finished(self.config['num_rounds']):
      return
    if not any(each.name.isdigit() for each in self.checkpoints.glob('*')):
      raise ValueError(
        f'{self.path} holds a finished run of {summary["num_rounds"]} rounds, '
        'and no checkpoint from which it could go on to '
        f'num_rounds={self.config["num_rounds"]}; choose another --workdir'
      )

  @property
  def checkpoints(self) -> pathlib.Path:
    """Where the checkpoints go."""
    return self.path / 'checkpoints'

  def summary(self) -> dict[str, Any] | None:
    """What a finished run has left, or None."""
    there = (self.path / 'summary.json').exists()
    return read_summary(self.path) if there else None

  def finished(self, num_rounds: int) -> bool:
    """Whether the run is complete, with at least as many rounds."""
    summary = self.summary()
    return summary is not None and summary['num_rounds'] >= num_rounds

  def claim(self) -> None:
    """Makes the directory this run's, and this process's until it ends.

    Raises:
      OSError: the directory cannot be made or written to, or is another
        process's.
      ValueError: in the meantime it has become another run's.
    """
    self.path.mkdir(parents=True, exist_ok=True)
    self._lock()
    self._look()
    here = environment()
    if here not in self._environments[-1:]:
      self._environments.append(here)
    about = {'config': self.config, 'environments': self._environments}
    write(self.path / 'config.json', _json(about))

  def _lock(self) -> None:
    try:
      self._files.enter_context(locked(self.path, wait=False))
    except BlockingIOError:
      raise OSError(
        f'another process is running in {self.path}: wait for it, or choose '
        'another --workdir'
      ) from None

  def start(self, rows: Sequence[Row], more: Sequence[str] = ()) -> None:
    """Writes the rounds run so far, and nothing beyond them.

    Args:
      rows: of these rounds.
      more: metrics of a row beside `COLUMNS`.
    """
    self._columns = (*COLUMNS, *more)
    for old in [self.path / 'summary.json', *self.path.glob('events.*')]:
      old.unlink(missing_ok=True)
    write(self.path / 'metrics.csv', self._csv(rows, header=True))
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
    write(self.path / 'summary.json', _json(numbers))

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


class Onlooker(RunDirectory):
  """The same directory for the other processes of a run, which write nothing.

  Args, Raises: as of RunDirectory.
  """

  def claim(self) -> None:
    """Leaves that to the first process."""

  def start(self, rows: Sequence[Row], more: Sequence[str] = ()) -> None:
    """Writes nothing."""

  def add(self, row: Row) -> None:
    """Writes nothing."""

  def finish(self, summary: Mapping[str, Any]) -> None:
    """Writes nothing."""


@contextlib.contextmanager
def locked(folder: pathlib.Path, wait: bool = True) -> Iterator[None]:
  """Keeps others out of a folder; the system frees it however a process ends.

  Args:
    folder: which exists; its file `lock` is locked, if the file system can.
    wait: for who is there.

  Raises:
    BlockingIOError: somebody is there, and it is not to wait.
  """
  with open(folder / 'lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      print(f'no locks here: run no second process in {folder}', flush=True)
    yield


def summarize(rows: Sequence[Row], window: int = 10) -> dict[str, float]:
  """The five metrics of the paper's tables.

  Args:
    rows: of all rounds; those that were not evaluated are left out.
    window: how many evaluations at the end the averages run over.

  Returns:
    `final_test_loss`, `average_test_loss` (of the last `window`),
    `min_test_loss`, `average_test_accuracy`, `max_test_accuracy`.
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
    'min_test_loss': float(np.fmin.reduce(losses)),  # NaN if all are
    'average_test_accuracy': average(accuracies),
    'max_test_accuracy': max(accuracies),
  }


def read_summary(run: pathlib.Path) -> dict[str, float]:
  """Reads what a finished run has left; what was not finite is NaN."""
  summary = json.loads((run / 'summary.json').read_text())
  return {k: math.nan if v is None else v for k, v in summary.items()}


def table(summary: Mapping[str, Any]) -> str:
  """The summary's metrics, as a person reads them."""
  lines = [
    f'{name.replace("_", " "):24}{summary[name]:8.4f}'
    for name in summary
    if name != 'num_rounds'
  ]
  return '\n'.join(lines)


def environment() -> dict[str, Any]:
  """Versions, devices and commit."""
  return {
    'python': platform.python_version(),
    'platform': platform.platform(),
    'packages': {name: metadata.version(name) for name in _PACKAGES},
    'devices': [str(d) for d in jax.devices()],
    'device_kind': jax.devices()[0].device_kind,
    'commit': _commit(),
  }


def _commit() -> str | None:
  """The checkout's commit, marked when files differ; None outside of one."""
  root = pathlib.Path(__file__).resolve().parents[2]
  # Git would also look above, where an environment may lie in another's.
  git = ['git', f'--git-dir={root / ".git"}', f'--work-tree={root}']
  git += ['describe', '--always', '--dirty', '--abbrev=40']
  try:
    done = subprocess.run(git, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def _read_config(
  file: pathlib.Path,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  try:
    found = json.loads(file.read_text())
    return found['config'], found['environments']
  except (ValueError, KeyError, TypeError):
    raise ValueError(
      f'{file} is not the config of a run: choose another --workdir'
    ) from None


def read_config(run: pathlib.Path) -> dict[str, Any]:
  """Reads a run's config, as nested dicts.

  Raises:
    ValueError: what is there is no config of a run.
  """
  return _read_config(run / 'config.json')[0]


def check_same_run(
  path: str | os.PathLike, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
  """Refuses a config that would compute something else.

  Args:
    path: of what the old config made.
    old: config, as nested dicts that were read from JSON.
    new: likewise.

  Raises:
    ValueError: a key differs that counts; it is named with both values.
  """
  for key, before, now in _differences(old, new):
    if not (key == 'num_rounds' and now >= before):
      raise ValueError(
        f'{path} holds the run of another config: {key} was {before!r} '
        f'there and is {now!r} now; choose another --workdir'
      )


def check_same_line(
  line: str, configs: Mapping[str | os.PathLike, Mapping[str, Any]]
) -> None:
  """Refuses runs that are no seeds of one config.

  Args:
    line: what they are named by.
    configs: of each run, by its directory, as nested dicts that were read from
      JSON.

  Raises:
    ValueError: a key differs that counts; it is named with two directories.
  """
  (first, config), *others = configs.items()
  for path, other in others:
    for key, one, two in _differences(config, other):
      if key != 'seed':
        raise ValueError(
          f'{line}: {key} is {one!r} in {first} and {two!r} in {path}, but its '
          'runs are to differ in nothing but their seeds; choose a --workdir '
          'for each'
        )


def _differences(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
  """The keys that count and differ, with both values."""
  old, new = _LATER | _flat(old), _LATER | _flat(new)
  for key in sorted(old.keys() | new.keys()):
    before, now = old.get(key, '(none)'), new.get(key, '(none)')
    if before != now and not _is_free(key):
      yield key, before, now


def run_id(config: Mapping[str, Any]) -> str:
  """Names what a config computes: 16 hexadecimal digits.

  Args:
    config: as nested dicts. Keys that only say where and how it runs do not
      count, nor do later ones that say what was done before they came.
  """
  flat = {
    key: value
    for key, value in _flat(config).items()
    if not _is_free(key) and (key, value) not in _LATER.items()
  }
  text = json.dumps(flat, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_free(key: str) -> bool:
  return key.split('.')[0] in _FREE or key in _FREE_KEYS


def _flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def _json(value: Any) -> str:
  return json.dumps(value, indent=2) + '\n'


def write(file: pathlib.Path, text: str) -> None:
  """Replaces a file at once, so that it is never half-written."""
  with open(_draft(file), 'w') as draft:
    draft.write(text)
    draft.flush()
    os.fsync(draft.fileno())  # before the name is there
  os.replace(draft.name, file)


def _draft(file: pathlib.Path) -> pathlib.Path:
  return file.with_name(file.name + '.tmp')
