"""Keeps what a run leaves beside its metrics: models and a confusion matrix."""

import io
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lca.experiment import model_files
from lca.experiment.sections import Checkpoint
from lca.experiment.summary import Row
from lca.federated.server import ServerState
from lca.federated.simulation import Simulation


class Keeping:
  """Writes the models of a run, and its confusion matrix, into its directory.

  All processes of a run must call its methods, because each holds a part of the
  model.

  Args:
    checkpoint: the section of the config.
    simulation: of the run.
    directory: of the run: its `path`, which is None for a run that writes
      nothing, and its method `keep`.
    rows: the metrics of the rounds so far.
  """

  def __init__(
    self,
    checkpoint: Checkpoint,
    simulation: Simulation,
    directory: Any,
    rows: list[Row],
  ):
    self._checkpoint, self._simulation = checkpoint, simulation
    self._directory = directory
    # After a restart the file may hold the model of a later round than the
    # checkpoint. That round is run again, with the same bits on the same
    # devices, and writes the file again.
    self._highest = -math.inf
    for row in rows:
      self._is_best(row)

  def after_round(self, state: Callable[..., ServerState], row: Row) -> None:
    """Keeps the model if this round is the best so far.

    Args:
      state: returns the state after the round, see `Recorder.add`.
      row: the metrics of the round.
    """
    if self._is_best(row):
      self._write(
        model_files.BEST, state(whole=False), row, self._checkpoint.best
      )

  def at_the_end(self, state: ServerState, row: Row) -> None:
    """Keeps the final model and counts its predictions on the test set.

    Args:
      state: after the last round.
      row: the metrics of the last round.
    """
    if self._directory.path is None:
      return
    if self._checkpoint.model:
      self._write(model_files.FINAL, state, row)
    text = io.StringIO()
    counts = self._simulation.confusion(state)
    np.savetxt(text, counts, fmt='%d', delimiter=',')
    self._directory.keep('confusion.csv', text.getvalue())

  def _is_best(self, row: Row) -> bool:
    """Returns True if no earlier row had as good a value, and notes the value.

    The first of equal rounds is the best. A NaN is never the best.
    """
    key = self._checkpoint.best
    if key not in row:  # of a round without a test, or '' for no best model
      return False
    height = row[key] if key.endswith('accuracy') else -row[key]
    if not height > self._highest:
      return False
    self._highest = height
    return True

  def _write(
    self, name: str, state: ServerState, row: Row, chosen_by: str = ''
  ) -> None:
    """Writes the model of a state into the directory."""
    simulation, dataset = self._simulation, self._simulation.data.dataset
    content = model_files.to_bytes(
      jax.device_get(simulation.everywhere(state)),
      simulation.classifier,
      dataset.train.input_spec,
      dataset.num_classes,
      row['round'],
      chosen_by,
    )
    self._directory.keep(name, content)
