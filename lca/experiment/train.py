"""The loop of a run: rounds, tests of the model, checkpoints, metrics.

`set_up` checks a config and prepares the run; `run` then runs its rounds.
"""

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

from lca import progress
from lca.experiment import describe, host
from lca.experiment.checkpoints import Checkpoints
from lca.experiment.keeping import Keeping
from lca.experiment.rundir import (
  ReadOnlyRunDirectory,
  RunDirectory,
  WritesNothing,
)
from lca.experiment.settings import Parts, Settings, from_config
from lca.experiment.summary import Row, summarize
from lca.federated import plan
from lca.federated.server import ServerState
from lca.federated.simulation import Simulation
from lca.typing import PyTree


class Nowhere(WritesNothing, contextlib.AbstractContextManager):
  """Takes the place of directory and checkpoints in a run without a workdir.

  It has the methods of `RunDirectory` and of `Checkpoints` that the loop calls,
  and they keep nothing.
  """

  path = None

  def __exit__(self, kind, error, traceback) -> None:
    """Does nothing: there is nothing to close."""

  def summary(self) -> None:
    """Returns None: there is no finished run."""

  def finished(self, num_rounds: int) -> bool:
    """Returns False: there is no finished run."""
    return False

  def save(self, state: PyTree, rows: list[Row]) -> None:
    """Does nothing."""

  def restore(self, initial: PyTree) -> tuple[PyTree, list[Row]]:
    """Returns the state before the first round, and no rows."""
    return initial, []


class Experiment(NamedTuple):
  """A run that is ready to start or to go on, or that is finished already.

  Attributes:
    settings: the checked config and what was made of it.
    directory: of the run.
    parts: data, clients, attack, rule and server; None if the run is finished.
    simulation: runs the rounds; None if the run is finished.
    plan: memory that a round needs on each device; None if the run is finished.
  """

  settings: Settings
  directory: RunDirectory | Nowhere
  parts: Parts | None
  simulation: Simulation | None
  plan: plan.Plan | None


def train_and_evaluate(
  config: Mapping[str, Any], workdir: str | os.PathLike
) -> dict[str, Any]:
  """Runs a config in a directory, or continues the run that it holds.

  Args:
    config: nested dicts or a ConfigDict; see `lca.experiment.sections` for the
      keys.
    workdir: directory of the run; see `lca.experiment.rundir` for its files.

  Returns:
    The summary: `num_rounds`, and the five metrics of the paper's tables (see
    `lca.experiment.summary.summarize`).

  Raises:
    ValueError, TypeError, OSError, ImportError: see `set_up`.
    OSError, CheckpointError, FloatingPointError: see `run`.
  """
  return run(set_up(config, workdir))


def set_up(
  config: Mapping[str, Any], workdir: str | os.PathLike, jobs: int = 1
) -> Experiment:
  """Checks a config, reads its data and compiles its rounds.

  Everything that needs no data is checked first. The directory is made last,
  after all checks have passed.

  Args:
    config: nested dicts or a ConfigDict; see `lca.experiment.sections` for the
      keys.
    workdir: directory of the run.
    jobs: number of processes that share the host's memory, this one included.

  Returns:
    The experiment, for `run`.

  Raises:
    ValueError, TypeError: an impossible value, an unknown key, or an option
      that does not apply; a workdir that holds the run of another config; a
      round that does not fit into the devices' memory.
    OSError, ImportError: data that cannot be read; a directory that cannot be
      written to, or that another process has locked.
  """
  return prepare(from_config(config), workdir, jobs)


def prepare(
  settings: Settings, workdir: str | os.PathLike | None, jobs: int = 1
) -> Experiment:
  """Prepares a run from settings, as `set_up` does from a config.

  Args:
    settings: of the run.
    workdir: directory of the run; None writes nothing.
    jobs: number of processes that share the host's memory, this one included.

  Returns:
    The experiment, for `run` or `run_rounds`.

  Raises:
    ValueError, TypeError, OSError, ImportError: see `set_up`.
  """
  if workdir is None:
    if settings.eval.forensics:
      raise ValueError(
        'eval.forensics keeps its evidence in the directory of the run: give a '
        'workdir, or leave it out'
      )
    if best := settings.checkpoint.best:
      raise ValueError(
        f'checkpoint.best={best!r} keeps a model in the directory of the run: '
        'give a workdir, or leave it out'
      )
    directory = Nowhere()
  else:
    # Of several processes only the first one writes.
    kind = RunDirectory if jax.process_index() == 0 else ReadOnlyRunDirectory
    with _explain_own_lock(pathlib.Path(workdir).expanduser().resolve()):
      directory = kind(workdir, settings.config)
  if directory.finished(settings.run.num_rounds):
    return Experiment(settings, directory, None, None, None)
  parts = settings.parts()
  simulation = parts.simulation()
  for line in describe.lines(settings.config, parts):
    host.say(line)
  host.detail('compiling ...')
  limit = plan.memory_limit(parts.placement.mesh, jobs)
  with progress.seconds('compiling'):
    needed = plan.check(simulation, limit)
  _claim(directory)
  return Experiment(settings, directory, parts, simulation, needed)


_locked_here: weakref.WeakValueDictionary[pathlib.Path | None, Any] = (
  weakref.WeakValueDictionary()
)
"""The directories that experiments of this process have locked, by path.

An experiment that is garbage-collected releases its directory.
"""


@contextlib.contextmanager
def _explain_own_lock(path: pathlib.Path | None) -> Iterator[None]:
  """Changes an OSError's message if this process itself has locked the path."""
  try:
    yield
  except OSError as error:
    if path not in _locked_here:
      raise
    raise OSError(
      f'this process has set up a run in {path} before, and keeps it locked: '
      'run that experiment, or delete the experiment object, or choose another '
      '--workdir'
    ) from error


def _claim(directory: RunDirectory | Nowhere) -> None:
  """Makes and locks the directory, unless this experiment has done so."""
  if _locked_here.get(directory.path) is not directory:
    with _explain_own_lock(directory.path):
      directory.open()
    _locked_here[directory.path] = directory


def run(
  experiment: Experiment, stopping: Callable[[], bool] = lambda: False
) -> dict[str, Any] | None:
  """Runs the rounds that are missing, from the last checkpoint to the end.

  Args:
    experiment: from `set_up`. A finished one is not run again.
    stopping: a function that is called after every round; if it returns True,
      a checkpoint of that round is saved and the run stops.

  Returns:
    The summary, which is also in the run's directory; None if the run was
    stopped.

  Raises:
    OSError, CheckpointError: a file cannot be written; or the checkpoints are
      those of another run, or damaged.
    FloatingPointError: a round's aggregate, model or test loss is not finite,
      and `train.on_nonfinite` is 'stop'.
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
  """Runs the rounds that are missing, like `run`, and returns their state.

  Args:
    experiment: from `prepare`; must not be finished.
    stopping: see `run`.

  Returns:
    The state after the last round, and the metrics of all rounds so far, those
    of earlier calls included.

  Raises:
    OSError, CheckpointError, FloatingPointError: see `run`.
  """
  settings, simulation = experiment.settings, experiment.simulation
  directory, num_rounds = experiment.directory, settings.run.num_rounds
  clients = experiment.parts.population.clients_per_round
  _claim(directory)
  try:
    with directory:
      with checkpoints_of(experiment) as checkpoints:
        state, rows = checkpoints.restore(simulation.init())
        directory.start(
          rows, simulation.more_metrics, simulation.evidence_layers
        )
        directory.write_clients(
          experiment.parts.population.attackers(settings.run.seed),
          simulation.data.label_histogram(),
        )
        kept = Keeping(settings.checkpoint, simulation, directory, rows)
        # Rounds before `first` were run by an earlier process, or call.
        first, start = len(rows), time.monotonic()
        if first:
          host.say(f'goes on after round {first}')
        for round_idx in range(first, num_rounds):
          begun = time.monotonic()
          row = {'round': round_idx + 1}
          last = row['round'] == num_rounds
          name = f'round {row["round"]}/{num_rounds}'
          with progress.bar(name, clients, 'clients') as shown:
            state, metrics = simulation.run_round(
              state, round_idx, last, lambda done: shown.update(done - shown.n)
            )
          evidence = metrics.pop('forensics', None)
          if last or row['round'] % settings.eval.every == 0:
            with progress.seconds(f'{name}: testing'):
              row |= simulation.evaluate(state)
          row |= metrics
          rows.append(row)
          directory.add(row, time.monotonic() - begun, evidence)
          if settings.train.on_nonfinite == 'stop':
            _check_finite(simulation, row)
          kept.after_round(state, row)
          now = time.monotonic()
          seconds = (now - start) / max(1, round_idx - first)
          host.detail(_line(row, num_rounds, seconds))
          # The pace leaves out the first round, which also compiles.
          if round_idx == first:
            start = now
          # A signal to one process stops all processes after the same round.
          stop = host.any_process(stopping())
          if stop or last or row['round'] % settings.checkpoint.every == 0:
            checkpoints.save(state, rows)
          if stop:
            break
      # Leaving the context has waited for the last checkpoint. Only now may
      # the summary mark the run as finished.
      if len(rows) >= num_rounds:
        with progress.seconds('keeping the final model'):
          kept.at_the_end(state, rows[-1])
        directory.finish(summary_of(rows))
  except KeyboardInterrupt as error:  # from Python; main.py takes the signals
    error.add_note(
      f'the run goes on from the last checkpoint in {directory.path}, if the '
      'same command or call is given'
      if directory.path
      else 'nothing was saved: give a workdir for a run that can be continued'
    )
    raise
  finally:
    _locked_here.pop(directory.path, None)
  return state, rows


def summary_of(rows: list[Row]) -> dict[str, Any]:
  """Returns the number of a run's rounds and its five summary metrics."""
  return {'num_rounds': len(rows), **summarize(rows)}


def checkpoints_of(experiment: Experiment) -> Checkpoints | Nowhere:
  """Returns the run's checkpoints as a context."""
  directory = experiment.directory
  if isinstance(directory, Nowhere):
    return directory
  return Checkpoints(
    directory.checkpoints,
    directory.config,
    experiment.settings.checkpoint.keep,
  )


def _check_finite(simulation: Simulation, row: Row) -> None:
  """Raises an error if aggregate, model or test loss are not finite.

  Args:
    simulation: knows which clients attacked.
    row: the round's metrics.

  Raises:
    FloatingPointError: something is not finite; the message names the
      attackers.
  """
  loss = row.get('test_loss', 0.0)
  if row['nonfinite']:
    problem = (
      f'the aggregate, or the model after it, has {row["nonfinite"]} entries '
      'that are not finite'
    )
  elif not math.isfinite(loss):
    problem = (
      f'the test loss is {loss}, although aggregate and model are finite'
    )
  else:
    return
  ids = simulation.attackers(row['round'] - 1)
  attackers = f'the attackers were clients {ids}' if ids else 'nobody attacked'
  raise FloatingPointError(
    f'in round {row["round"]} {problem}. {row["rejected"]} updates were '
    f'rejected (not finite, or too large), {row.get("dropped", 0)} clients did '
    f'not answer; {attackers}. To go on nevertheless, set '
    'train.on_nonfinite=continue'
  )


def _line(row: Row, num_rounds: int, seconds: float) -> str:
  """Returns a line for a person: a round's metrics, the pace, the time left.

  Args:
    row: the round's metrics.
    num_rounds: of the whole run.
    seconds: that a round takes.
  """
  left = datetime.timedelta(
    seconds=round(seconds * (num_rounds - row['round']))
  )
  metrics = '  '.join(
    f'{name.replace("_", " ")} {value:.4f}'
    for name, value in row.items()
    if name.endswith(('_loss', '_accuracy'))
  )
  return (
    f'round {row["round"]:>{len(str(num_rounds))}}/{num_rounds}  {metrics}  '
    f'{1 / seconds:.2g} rounds/s  {left} left'
  )
