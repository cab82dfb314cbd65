"""The loop: rounds, evaluation, checkpoints, metrics."""

import contextlib
import datetime
import math
import os
import pathlib
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from lca.experiment import describe, host
from lca.experiment.checkpoints import Checkpoints
from lca.experiment.rundir import (
  ReadOnlyRunDirectory,
  RunDirectory,
  WritesNothing,
)
from lca.experiment.settings import Parts, Settings, from_config
from lca.experiment.summary import Row, summarize
from lca.federated import plan
from lca.federated.round import ServerState
from lca.federated.simulation import Simulation
from lca.typing import PyTree


class Nowhere(WritesNothing, contextlib.AbstractContextManager):
  """Stands for the directory of a run, and its checkpoints, and keeps nothing.

  It has those methods of `RunDirectory` and of `Checkpoints` that the loop
  calls.
  """

  path = None

  def __exit__(self, kind, error, traceback) -> None:
    """Has nothing to close."""

  def summary(self) -> None:
    """Returns None: no run has been finished here."""

  def finished(self, num_rounds: int) -> bool:
    """Returns False."""
    return False

  def save(self, state: PyTree, rows: list[Row]) -> None:
    """Writes nothing."""

  def restore(self, initial: PyTree) -> tuple[PyTree, list[Row]]:
    """Returns the state before the first round, and no rows."""
    return initial, []


class Experiment(NamedTuple):
  """A run that is ready to start, or to go on.

  Attributes:
    settings: what the run is.
    directory: of the run.
    parts: what it is made of; None if it is finished.
    simulation: of the parts; None likewise.
    plan: what a round needs of each device; None likewise.
  """

  settings: Settings
  directory: RunDirectory | Nowhere
  parts: Parts | None
  simulation: Simulation | None
  plan: plan.Plan | None


def train_and_evaluate(
  config: Mapping[str, Any], workdir: str | os.PathLike
) -> dict[str, Any]:
  """Runs a config in a directory, or goes on with the run that it holds.

  Args:
    config: nested dicts or a ConfigDict; see `lca.experiment.sections` for the
      keys.
    workdir: of the run; see `lca.experiment.rundir` for what it will hold.

  Returns:
    The summary: `num_rounds`, and the five metrics of the paper's tables.

  Raises:
    ValueError, TypeError, OSError, ImportError: see `set_up`.
    OSError, CheckpointError, FloatingPointError: see `run`.
  """
  return run(set_up(config, workdir))


def set_up(
  config: Mapping[str, Any], workdir: str | os.PathLike, jobs: int = 1
) -> Experiment:
  """Checks all that can be known before the training, and prepares it.

  What needs no data is checked first. The run gets its directory last, once
  nothing has been found wrong.

  Args:
    config: nested dicts or a ConfigDict; see `lca.experiment.sections` for the
      keys.
    workdir: of the run.
    jobs: processes that share the host's memory, this one included.

  Returns:
    The experiment, for `run`.

  Raises:
    ValueError, TypeError: an option that cannot be, or does not apply; a
      workdir that holds another config's run; a round that does not fit into
      the devices' memory.
    OSError, ImportError: data that cannot be had, or a directory that cannot
      be written or is another process's.
  """
  return prepare(from_config(config), workdir, jobs)


def prepare(
  settings: Settings, workdir: str | os.PathLike | None, jobs: int = 1
) -> Experiment:
  """Prepares a run of settings; `set_up` does so of a config.

  Args:
    settings: what is to run.
    workdir: of the run; None writes nothing.
    jobs: processes that share the host's memory, this one included.

  Returns, Raises: as `set_up`.
  """
  if workdir is None:
    directory = Nowhere()
  else:
    # The first process writes for all the others.
    here = RunDirectory if jax.process_index() == 0 else ReadOnlyRunDirectory
    with _naming_the_holder(pathlib.Path(workdir).expanduser().resolve()):
      directory = here(workdir, settings.config)
  if directory.finished(settings.run.num_rounds):
    return Experiment(settings, directory, None, None, None)
  parts = settings.parts()
  simulation = parts.simulation()
  for line in describe.lines(settings.config, parts):
    host.say(line)
  host.say('compiling ...')
  needed = plan.check(simulation, plan.memory_limit(parts.placement.mesh, jobs))
  _claim(directory)
  return Experiment(settings, directory, parts, simulation, needed)


_held: weakref.WeakValueDictionary[pathlib.Path | None, Any] = (
  weakref.WeakValueDictionary()
)
"""The directories that experiments of this process hold, by path."""


@contextlib.contextmanager
def _naming_the_holder(path: pathlib.Path | None) -> Iterator[None]:
  """Says of a directory that cannot be had if this process itself holds it."""
  try:
    yield
  except OSError as error:
    if path not in _held:
      raise
    raise OSError(
      f'this process has set up a run in {path} before, and holds it: run that '
      'experiment, or delete it, or choose another --workdir'
    ) from error


def _claim(directory: RunDirectory | Nowhere) -> None:
  """Claims the directory, unless this experiment holds it already."""
  if _held.get(directory.path) is not directory:
    with _naming_the_holder(directory.path):
      directory.open()
    _held[directory.path] = directory


def run(
  experiment: Experiment, stopping: Callable[[], bool] = lambda: False
) -> dict[str, Any] | None:
  """Runs the rounds that are missing.

  Args:
    experiment: from `set_up`. One that has been run to its end already is not
      run again.
    stopping: asked after every round; if it says so, that round is saved and
      was the last one for now.

  Returns:
    The summary, which also stands in the run's directory; None of a run that
    was stopped.

  Raises:
    OSError, CheckpointError: what must be written cannot be, or the checkpoints
      are not of this run, or damaged.
    FloatingPointError: a round's aggregate, model or test loss is not finite,
      and `config.train.on_nonfinite` is 'stop'.
  """
  directory, num_rounds = (
    experiment.directory,
    experiment.settings.run.num_rounds,
  )
  if experiment.simulation is None or directory.finished(num_rounds):
    return directory.summary()
  _, rows = run_rounds(experiment, stopping)
  if len(rows) < num_rounds:
    return None
  return summary_of(rows)


def run_rounds(
  experiment: Experiment, stopping: Callable[[], bool] = lambda: False
) -> tuple[ServerState, list[Row]]:
  """Runs the rounds that are missing; all are saved.

  Args:
    experiment: from `prepare`, not finished.
    stopping: see `run`.

  Returns:
    The state after the last round, and the metrics of all rounds.

  Raises:
    As `run`.
  """
  settings, simulation = experiment.settings, experiment.simulation
  directory, num_rounds = experiment.directory, settings.run.num_rounds
  _claim(directory)
  try:
    with directory:
      with checkpoints_of(experiment) as checkpoints:
        state, rows = checkpoints.restore(simulation.init())
        directory.start(rows, simulation.more_metrics)
        first, start = len(rows), time.monotonic()
        for round_idx in range(first, num_rounds):
          row = {'round': round_idx + 1}
          last = row['round'] == num_rounds
          state, metrics = simulation.run_round(state, round_idx, last)
          if last or row['round'] % settings.eval.every == 0:
            row |= simulation.evaluate(state)
          row |= metrics
          rows.append(row)
          directory.add(row)
          if settings.train.on_nonfinite == 'stop':
            _check_finite(simulation, row)
          now = time.monotonic()
          seconds = (now - start) / max(1, round_idx - first)
          host.say(_line(row, num_rounds, seconds))
          if round_idx == first:  # whose compilation is no pace
            start = now
          stop = host.any_process(stopping())
          if stop or last or row['round'] % settings.checkpoint.every == 0:
            checkpoints.save(state, rows)
          if stop:
            break
      # A run is finished only once its last checkpoint is saved.
      if len(rows) >= num_rounds:
        directory.finish(summary_of(rows))
  finally:
    _held.pop(directory.path, None)
  return state, rows


def summary_of(rows: list[Row]) -> dict[str, Any]:
  """Returns the summary of a run's rounds."""
  return {'num_rounds': len(rows), **summarize(rows)}


def checkpoints_of(experiment: Experiment) -> Checkpoints | Nowhere:
  """Returns the run's checkpoints, to be used as a context."""
  directory = experiment.directory
  if isinstance(directory, Nowhere):
    return directory
  return Checkpoints(
    directory.checkpoints,
    directory.config,
    experiment.settings.checkpoint.keep,
  )


def _check_finite(simulation: Simulation, row: Row) -> None:
  """Raises if a round's aggregate, its model or its test loss is not finite."""
  loss = row.get('test_loss', 0.0)
  if row['nonfinite']:
    found = (
      f'the aggregate has {row["nonfinite"]} entries that are not finite, or '
      'the model has them after its step'
    )
  elif not math.isfinite(loss):
    found = (
      f'the test loss is {loss}, though every entry of the aggregate is finite'
    )
  else:
    return
  ids = simulation.attackers(row['round'] - 1)
  attackers = f'the attackers were clients {ids}' if ids else 'nobody attacked'
  raise FloatingPointError(
    f'in round {row["round"]} {found}; {row["rejected"]} updates were not '
    f'finite, or too large, and {row.get("dropped", 0)} did not come; '
    f'{attackers}. With train.on_nonfinite=continue the run goes on'
  )


def _line(row: Row, num_rounds: int, seconds: float) -> str:
  """Returns a line on a round for a person, where one takes so many seconds."""
  left = datetime.timedelta(
    seconds=round(seconds * (num_rounds - row['round']))
  )
  metrics = '  '.join(
    f'{name.replace("_", " ")} {row[name]:.4f}'
    for name in ('test_loss', 'test_accuracy', 'train_loss')
    if name in row
  )
  return (
    f'round {row["round"]:>{len(str(num_rounds))}}/{num_rounds}  {metrics}  '
    f'{1 / seconds:.2g} rounds/s  {left} left'
  )
