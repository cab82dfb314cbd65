"""The parts that all adapters share: the round's task, its clock and its judge.

Adapters run in environments of their own, so this file needs NumPy alone.

Weights are a dict of arrays by name, in the layout of `lca.models.CNN`. Kernels
of convolutions are `[3, 3, in, out]`, those of dense layers `[in, out]`. The
first dense layer reads the features in the order height, width, channel.
"""

import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from typing import NamedTuple

import numpy as np

Weights = dict[str, np.ndarray]

_STARTED = float(os.environ.get('SYSTEMS_STARTED', time.time()))
_PREFIX = 'weights/'


class Task(NamedTuple):
  """The rounds that every system runs.

  Attributes:
    rule: `'fedavg'`, the mean, or `'krum'`.
    f: the number of Byzantine clients that Krum tolerates.
    rounds: how many rounds are run, one after the other.
    epochs: passes over a client's examples in a round.
    batch_size: examples in a batch; the last batch of an epoch is shorter.
    learning_rate: step size of the clients' Adam, which starts anew in every
      round.
    mean, std: the model receives `(pixel - mean) / std`.
    images: `[clients, examples, 28, 28]` uint8.
    labels: `[clients, examples]` integers.
    test_images: `[M, 28, 28]` uint8.
    test_labels: `[M]` integers.
    weights: the server's model before the first round.
  """

  rule: str
  f: int
  rounds: int
  epochs: int
  batch_size: int
  learning_rate: float
  mean: float
  std: float
  images: np.ndarray
  labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  weights: Weights

  def save(self, path: str | os.PathLike) -> None:
    """Writes the task to an .npz file."""
    fields = self._asdict()
    weights = fields.pop('weights')
    fields |= {_PREFIX + name: array for name, array in weights.items()}
    np.savez(path, **fields)

  @property
  def num_clients(self) -> int:
    """The number of clients, all of which take part in each round."""
    return len(self.labels)

  @property
  def num_batches(self) -> int:
    """The number of batches of a client in an epoch."""
    return -(-self.labels.shape[1] // self.batch_size)

  def inputs(self) -> np.ndarray:
    """Returns the clients' images as the model takes them.

    Returns:
      `[clients, examples, 28, 28]` float32.
    """
    return ((self.images - np.float32(self.mean)) / self.std).astype(np.float32)


def load(path: str | os.PathLike, rule: str | None = None) -> Task:
  """Reads a task from an .npz file.

  Args:
    path: of a file that `Task.save` wrote.
    rule: replaces the task's rule, if it is not None.
  """
  with np.load(path) as archive:
    arrays = dict(archive)
  weights = {
    name.removeprefix(_PREFIX): arrays.pop(name)
    for name in list(arrays)
    if name.startswith(_PREFIX)
  }
  plain = {k: x if x.ndim else x.item() for k, x in arrays.items()}
  task = Task(**plain, weights=weights)
  return task._replace(rule=rule) if rule else task


class Clock:
  """Takes the times of an adapter's rounds.

  An adapter calls `start` when its first round begins, and `lap` at the end of
  each round, where the next one begins. Where the system lets it see the moment
  in between, when all clients have trained, it calls `split`.

  Attributes:
    startup: seconds from the start of the process to the first round.
    rounds: for each round, its seconds as `total`, and as `training` those up
      to `split`, or None.
  """

  def __init__(self):
    self.startup = None
    self.rounds: list[dict[str, float | None]] = []
    self._begun = self._trained = None

  def start(self) -> None:
    """Begins the first round; later calls do nothing."""
    if self.startup is None:
      self.startup = time.time() - _STARTED
      self._begun = time.perf_counter()

  def split(self) -> None:
    """Notes that all clients of the round have trained."""
    self._trained = time.perf_counter()

  def lap(self) -> None:
    """Ends a round, and begins the next one."""
    now, trained = time.perf_counter(), self._trained
    training = None if trained is None else trained - self._begun
    self.rounds.append({'total': now - self._begun, 'training': training})
    self._begun, self._trained = now, None


def arguments() -> tuple[Task, pathlib.Path, list[str]]:
  """Returns the task, the file for the final weights, and further words.

  The command line of an adapter is `TASK.npz RULE RESULT.npz [WORD ...]`.
  """
  path, rule, result, *words = sys.argv[1:]
  return load(path, rule), pathlib.Path(result), words


def report(
  clock: Clock,
  weights: Mapping[str, np.ndarray],
  result: str | os.PathLike,
  packages: list[str],
) -> None:
  """Writes the final weights, and prints what was measured as a line of JSON.

  Args:
    clock: has timed all rounds.
    weights: the server's model after the last round.
    result: an .npz file to write the weights to.
    packages: the distributions whose versions belong to the record.
  """
  # Linux counts kilobytes. A worker counts when its process has ended.
  peak = max(
    resource.getrusage(who).ru_maxrss
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  np.savez(result, **{k: np.asarray(x) for k, x in weights.items()})
  measured = {
    'startup': clock.startup,
    'rounds': clock.rounds,
    'peak_mb': peak / 1000,
    'versions': {name: metadata.version(name) for name in packages},
  }
  print(json.dumps(measured), flush=True)


def accuracy(weights: Weights, task: Task, block: int = 100) -> float:
  """Returns the share of the test images that a model classifies correctly.

  The model is computed by NumPy, so that the judge of all systems is the same.

  Args:
    weights: the model.
    task: has the test images.
    block: the number of images that are computed at once.
  """
  right = 0
  for start in range(0, len(task.test_labels), block):
    rows = slice(start, start + block)
    pixels = task.test_images[rows, :, :, None].astype(np.float32)
    found = logits(weights, (pixels - task.mean) / task.std).argmax(1)
    right += int((found == task.test_labels[rows]).sum())
  return right / len(task.test_labels)


def logits(weights: Weights, x: np.ndarray) -> np.ndarray:
  """Computes the paper's CNN in NumPy.

  Args:
    weights: the model.
    x: `[N, height, width, 1]` inputs.

  Returns:
    `[N, classes]` logits.
  """
  x = x.astype(np.float32)
  for name in ('Conv_0', 'Conv_1'):
    n, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = np.concatenate(
      [
        padded[:, i : i + height, j : j + width]
        for i in range(3)
        for j in range(3)
      ],
      axis=-1,
    )
    kernel = weights[f'{name}/kernel']
    x = patches @ kernel.reshape(-1, kernel.shape[-1])
    x = np.maximum(x + weights[f'{name}/bias'], 0)
  # 2 x 2 max-pooling.
  x = x.reshape(n, height // 2, 2, width // 2, 2, -1).max((2, 4))
  x = x.reshape(n, -1)
  x = x @ weights['Dense_0/kernel'] + weights['Dense_0/bias']
  return np.maximum(x, 0) @ weights['Dense_1/kernel'] + weights['Dense_1/bias']
