"""The loop of a run: rounds, tests of the model, checkpoints, metrics.

`set_up` checks a config and prepares the run; `run` then runs its rounds.
"""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from lca import progress
from lca.experiment.prepared import (
  Experiment,
  checkpoints_of,
  prepare,
  set_up,
)
from lca.experiment.recorder import FinishedElsewhere, Recorder, summary_of
from lca.experiment.summary import Row
from lca.federated.server import ServerState
from lca.federated.simulation import Simulation

__all__ = [
  'Experiment',
  'checkpoints_of',
  'prepare',
  'run',
  'run_rounds',
  'set_up',
  'summary_of',
  'train_and_evaluate',
]


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
  try:
    _, rows = run_rounds(experiment, stopping)
  except FinishedElsewhere:
    return directory.summary()
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
  with Recorder(experiment, stopping) as recorder:
    state = recorder.take_state()
    for round_idx in recorder.rounds():
      state, metrics, seconds = one_round(
        experiment.simulation,
        state,
        round_idx,
        experiment.settings.run.num_rounds,
      )
      recorder.add(_constant(state), metrics, seconds)
    recorder.finish(_constant(state))
  return state, recorder.rows


def one_round(
  simulation: Simulation,
  state: ServerState,
  round_idx: int,
  num_rounds: int,
) -> tuple[ServerState, Any, float]:
  """Runs a round, and shows how many clients have trained.

  Args:
    simulation: runs the round.
    state, round_idx: see `Simulation.run_round`.
    num_rounds: rounds of the whole run.

  Returns:
    The two results of `Simulation.run_round`, and the seconds that it took.
  """
  begun, number = time.monotonic(), round_idx + 1
  name, clients = f'round {number}/{num_rounds}', simulation.clients_per_round
  with progress.bar(name, clients, 'clients') as shown:
    state, metrics = simulation.run_round(
      state,
      round_idx,
      number == num_rounds,
      lambda done: shown.update(done - shown.n),
    )
  return state, metrics, time.monotonic() - begun


def _constant(state: ServerState) -> Callable[..., ServerState]:
  """Returns a function that returns the whole state."""
  return lambda whole: state
