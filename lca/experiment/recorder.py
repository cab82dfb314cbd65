"""Keeps what a run leaves: metrics, checkpoints, models."""

import contextlib
import datetime
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from lca import progress
from lca.experiment import host
from lca.experiment.keeping import Keeping
from lca.experiment.prepared import Experiment, checkpoints_of, claim, release
from lca.experiment.summary import Row, summarize
from lca.federated.server import ServerState
from lca.federated.simulation import Simulation


class FinishedElsewhere(Exception):
  """Another process has finished the run since it was set up."""


class Recorder(contextlib.AbstractContextManager):
  """All of a run but the rounds themselves, which its caller computes.

  Entering the context locks the run's directory, and reads the last checkpoint.
  After each round `add` tests the model, and writes what is to be kept.
  `finish` ends a run that has all of its rounds.

  Attributes:
    rows: the metrics of all rounds so far, those of earlier processes included.
    stopped: True if the run stops after the round that was added last.

  Args:
    experiment: must not be finished.
    stopping: a function that is called after every round; if it returns True,
      a checkpoint of that round is saved and the run stops.

  Raises:
    OSError, CheckpointError: a file cannot be written; or the checkpoints are
      those of another run, or damaged.
    FinishedElsewhere: see there.
  """

  rows: list[Row]

  def __init__(self, experiment: Experiment, stopping: Callable[[], bool]):
    self._experiment, self._stopping = experiment, stopping
    self._simulation: Simulation = experiment.simulation
    self._num_rounds = experiment.settings.run.num_rounds
    self.stopped = False

  def __enter__(self) -> 'Recorder':
    experiment, simulation = self._experiment, self._simulation
    settings, directory = experiment.settings, experiment.directory
    claim(directory)
    with contextlib.ExitStack() as stack:
      stack.callback(release, directory)
      stack.enter_context(_interrupted(directory.path))
      stack.enter_context(directory)
      if directory.finished(self._num_rounds):
        raise FinishedElsewhere
      # `finish` ends this part of the context before the others.
      self._saving = stack.enter_context(contextlib.ExitStack())
      self._checkpoints = self._saving.enter_context(checkpoints_of(experiment))
      self._state, self.rows = self._checkpoints.restore(simulation.init())
      directory.start(
        self.rows, simulation.more_metrics, simulation.evidence_layers
      )
      directory.write_clients(
        experiment.parts.population.attackers(settings.run.seed),
        simulation.data.label_histogram(),
      )
      self._kept = Keeping(
        settings.checkpoint, simulation, directory, self.rows
      )
      self._contexts = stack.pop_all()
    # Rounds before `first` were run by an earlier process, or call.
    self._first, self._start = len(self.rows), time.monotonic()
    if self._first:
      host.say(f'goes on after round {self._first}')
    return self

  def __exit__(self, kind, error, traceback) -> bool | None:
    return self._contexts.__exit__(kind, error, traceback)

  def take_state(self) -> ServerState:
    """Returns the state to start from, and does not keep it in memory."""
    state, self._state = self._state, None
    return state

  def rounds(self) -> Iterator[int]:
    """Yields the indices of the missing rounds, until the run stops."""
    for round_idx in range(self._first, self._num_rounds):
      yield round_idx
      if self.stopped:
        break

  def add(
    self,
    state: Callable[..., ServerState],
    metrics: dict[str, Any],
    seconds: float,
  ) -> None:
    """Tests the model after a round, and writes what is to be kept.

    Args:
      state: returns the state after the round. It may leave out all but the
        model if it is called with `whole=False`.
      metrics: of the round, see `Simulation.run_round`.
      seconds: that the round took.

    Raises:
      OSError, CheckpointError: a file cannot be written.
      FloatingPointError: the round's aggregate, model or test loss is not
        finite, and `train.on_nonfinite` is 'stop'.
    """
    settings, directory = self._experiment.settings, self._experiment.directory
    begun = time.monotonic()
    row = {'round': len(self.rows) + 1}
    last = row['round'] == self._num_rounds
    evidence = metrics.pop('forensics', None)
    if last or row['round'] % settings.eval.every == 0:
      with progress.seconds(
        f'round {row["round"]}/{self._num_rounds}: testing'
      ):
        row |= self._simulation.evaluate(state(whole=False))
    row |= metrics
    self.rows.append(row)
    directory.add(row, seconds + time.monotonic() - begun, evidence)
    if settings.train.on_nonfinite == 'stop':
      _check_finite(self._simulation, row)
    self._kept.after_round(state, row)
    now = time.monotonic()
    pace = (now - self._start) / max(1, row['round'] - 1 - self._first)
    host.detail(_line(row, self._num_rounds, pace))
    # The pace leaves out the first round, which also compiles.
    if row['round'] == self._first + 1:
      self._start = now
    # A signal to one process stops all processes after the same round.
    self.stopped = host.any_process(self._stopping())
    if self.stopped or last or row['round'] % settings.checkpoint.every == 0:
      self._checkpoints.save(state(whole=True), self.rows)

  def finish(self, state: Callable[..., ServerState]) -> None:
    """Ends the run if it has all of its rounds.

    Args:
      state: returns the state after the last round, see `add`.
    """
    # Waits for the last checkpoint. Only then may the summary mark the run as
    # finished.
    self._saving.close()
    if len(self.rows) >= self._num_rounds:
      with progress.seconds('keeping the final model'):
        self._kept.at_the_end(state(whole=False), self.rows[-1])
      self._experiment.directory.finish(summary_of(self.rows))


@contextlib.contextmanager
def _interrupted(path: Any) -> Iterator[None]:
  """Adds to a KeyboardInterrupt how the run goes on."""
  try:
    yield
  except KeyboardInterrupt as error:  # from Python; main.py takes the signals
    error.add_note(
      f'the run goes on from the last checkpoint in {path}, if the '
      'same command or call is given'
      if path
      else 'nothing was saved: give a workdir for a run that can be continued'
    )
    raise


def summary_of(rows: list[Row]) -> dict[str, Any]:
  """Returns the number of a run's rounds and its five summary metrics."""
  return {'num_rounds': len(rows), **summarize(rows)}


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
  ids = simulation.drawing.attackers(row['round'] - 1)
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
    if name.endswith(('_loss', '_accuracy', '_success_rate'))
  )
  return (
    f'round {row["round"]:>{len(str(num_rounds))}}/{num_rounds}  {metrics}  '
    f'{1 / seconds:.2g} rounds/s  {left} left'
  )
