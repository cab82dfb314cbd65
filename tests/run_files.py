"""Helpers that make small runs and read the files in their directories."""

import os
import struct

from tensorboardX.proto import event_pb2

from configs import digits
from lca.experiment.rundir import RunDirectory


def config(presets='layerwise_cosine_krum,label_flipping', **changes):
  """Returns the config of a small run of three rounds on the digits.

  Args:
    presets: names separated by commas.
    **changes: values of keys, such as `num_rounds=4`.
  """
  config = digits.get_config(presets)
  small = {
    'num_rounds': 3,
    'model.features': (2, 3),
    'model.hidden': (8,),
    'client.local_epochs': 1,
    'checkpoint.every': 2,
    'parallel.mesh': 2,
  }
  config.update_from_flattened_dict(small | changes)
  return config


def tiny(rule, **changes):
  """Returns the config of a run of one round that is as small as can be.

  Args:
    rule: presets, separated by commas.
    **changes: values of keys, such as `num_rounds=4`.
  """
  config = digits.get_config(rule).unlock()
  small = {
    'num_rounds': 1,
    'model.features': (2,),
    'model.hidden': (4,),
    'client.local_epochs': 1,
  }
  config.update_from_flattened_dict(small | changes)
  return config


def events(workdir):
  """Returns the events in the event files, which are TFRecords."""
  found = []
  for path in sorted(workdir.glob('events.*')):
    content = path.read_bytes()
    while content:
      (size,) = struct.unpack('<Q', content[:8])
      found.append(event_pb2.Event.FromString(content[12 : 12 + size]))
      content = content[16 + size :]
  return found


def event_steps(workdir, tag):
  """Returns the steps of a scalar in the event files."""
  return [
    event.step
    for event in events(workdir)
    for value in event.summary.value
    if value.tag == tag
  ]


ROW = {'round': 1, 'test_loss': 0.5, 'test_accuracy': 0.75}
CONFIG = {'num_rounds': 1, 'seed': 0}


def finished(path, summary=None):
  """Writes the files of a finished run of one round, without checkpoints."""
  with RunDirectory(path, CONFIG) as directory:
    directory.open()
    directory.start([ROW])
    directory.finish(summary or {'num_rounds': 1, 'final_test_loss': 0.5})


PATIENCE = 120  # seconds to wait at most for what takes a second or two


def read(file):
  """Returns the text of a file; '' if there is none."""
  return file.read_text() if file.exists() else ''


def last_row(workdir):
  """Returns the last round in metrics.csv; 0 if there is none."""
  *_, last = ['0', *read(workdir / 'metrics.csv').splitlines()[1:]]
  return int(last.split(',')[0])


def checkpoints(workdir):
  """Returns rounds of complete checkpoints, and names of unfinished ones."""
  folder = workdir / 'checkpoints'
  names = os.listdir(folder) if folder.exists() else []
  complete = sorted(int(name) for name in names if name.isdigit())
  return complete, [name for name in names if not name.isdigit()]
