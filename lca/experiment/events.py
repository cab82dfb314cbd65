"""The metrics and the config of a run for TensorBoard.

Tags stand in groups, such as `test/loss` and `clients/byzantine`. The tab
HPARAMS lists runs by the keys of their configs and by their last metrics.
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

from lca.experiment.identity import flat
from lca.experiment.summary import Row

# The groups of metrics; metrics that are not listed form the group `metrics`.
_TAGS = {
  'test_loss': 'test/loss',
  'test_accuracy': 'test/accuracy',
  'validation_loss': 'validation/loss',
  'validation_accuracy': 'validation/accuracy',
  'attack_success_rate': 'attack/success_rate',
  'backdoor_accuracy': 'attack/backdoor_accuracy',
  'train_loss': 'train/loss',
  'byzantine': 'clients/byzantine',
  'rejected': 'clients/rejected',
  'dropped': 'clients/dropped',
  'detection_precision': 'detection/precision',
  'detection_recall': 'detection/recall',
  'detection_f1': 'detection/f1',
  'false_positive_rate': 'detection/false_positive_rate',
  'nonfinite': 'health/nonfinite',
  'floored': 'health/floored',
}

# Sections and keys without influence on results, which HPARAMS leaves out.
_LEFT_OUT = (
  'parallel.',
  'checkpoint.',
  'train.',
  'eval.',
  'data.archive_dir',
  'data.data_dir',
)


def tag_of(name: str) -> str:
  """Returns the tag of a metric, such as 'test/loss' of 'test_loss'.

  A metric of a layer, such as `'norm/params/Conv_0/bias'`, is in the group
  `layers`, and one of a class, such as `'test_accuracy/3'`, in `classes`.
  """
  group = 'layers' if '/' in name else 'metrics'
  if name.startswith('test_accuracy/'):
    group = 'classes'
  return _TAGS.get(name, f'{group}/{name}')


class Events:
  """Writes the events of one run.

  Args:
    run: the directory of the run.
    config: of the run, as nested dicts.
  """

  def __init__(self, run: pathlib.Path, config: Mapping[str, Any]):
    self._writer = EventsWriter(str(run / 'events'))
    numbers = {
      key: value if isinstance(value, bool | int | float | str) else str(value)
      for key, value in flat(config).items()
      if value is not None and not key.startswith(_LEFT_OUT)
    }
    shown = ('test/accuracy', 'test/loss', 'train/loss')
    about, start, self._end = hparams(numbers, dict.fromkeys(shown))
    for summary in (about, start):
      self._write(summary)

  def add(self, row: Row) -> None:
    """Writes the metrics of one round."""
    values = [
      Summary.Value(tag=tag_of(name), simple_value=value)
      for name, value in row.items()
      if name != 'round'
    ]
    self._write(Summary(value=values), row['round'])

  def finish(self) -> None:
    """Writes that the run has finished."""
    self._write(self._end)

  def close(self) -> None:
    """Closes the file."""
    self._writer.close()

  def _write(self, summary: Summary, step: int = 0) -> None:
    self._writer.write_event(
      Event(wall_time=time.time(), step=step, summary=summary)
    )
    self._writer.flush()
