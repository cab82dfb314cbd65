"""Times the clients' part of a round, in examples a second, beside PyTorch.

    python -m benchmarks.local_training --output=local_training.json

There are two settings. `training` takes the layerwise cosine paper's CNN
(1,625,866 parameters) through steps of Adam on batches of 64. `gradients` takes
LEGATO's CNN (1,199,882 parameters) and 25 workers, and computes the gradient of
one batch of 50 for each. PyTorch, where it is installed, runs the same shapes
with its defaults. Both take turns, so that other work of the machine slows both
of them.
"""

import collections
import importlib.util
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags

from benchmarks import record
from lca.experiment import host

_OUTPUT = flags.DEFINE_string(
  'output', None, 'A JSON file for what was measured.'
)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls.', lower_bound=1)


class Setting(NamedTuple):
  """The work of the clients in a round.

  Attributes:
    clients: number of clients, which train one after the other on each device.
    batch_size: examples in a batch.
    steps: steps of Adam for each client; 0 means one gradient instead.
    padding: padding of the convolutions.
    dropout: dropout rates before and after the hidden layer.
  """

  clients: int
  batch_size: int
  steps: int
  padding: str = 'SAME'
  dropout: tuple[float, float] = (0.0, 0.0)

  @property
  def examples(self) -> int:
    """The examples of all clients together."""
    return self.clients * self.batch_size * max(1, self.steps)


SETTINGS = {
  'training': Setting(clients=8, batch_size=64, steps=8),
  'gradients': Setting(25, 50, 0, padding='VALID', dropout=(0.25, 0.5)),
}


def with_lca(setting: Setting) -> Callable[[], None]:
  """Returns a call of lca's training, as `main.py` runs it on CPU.

  Each core is a JAX device, on which clients train one after the other.
  """
  import optax

  from lca import data, models
  from lca.federated import clients, placement

  backend = jax.default_backend()
  cnn = models.CNN(10, padding=setting.padding, dropout=setting.dropout)
  classifier = models.Classifier(cnn, (127.5,), (127.5,))
  common = {
    'losses': classifier.losses,
    'batch_size': setting.batch_size,
    'microbatch_size': placement.default_microbatch_size(backend),
  }
  train = clients.LocalGradient(**common)
  if setting.steps:
    train = clients.LocalTraining(
      **common, optimizer=optax.adam(1e-3), local_epochs=1
    )
  mesh = placement.clients_mesh()
  rng = np.random.default_rng(0)
  shape = (setting.clients, setting.examples // setting.clients)
  examples = data.ClientData(
    rng.integers(0, 256, (*shape, 28, 28, 1), dtype=np.uint8),
    rng.integers(0, 10, shape, dtype=np.int32),
    np.full(setting.clients, shape[1], np.int32),
  )
  placed = placement.place_clients(
    (examples, np.arange(setting.clients, dtype=np.int32)), mesh
  )
  chunk_size = placement.default_chunk_size(backend)
  run = placement.train_clients(train, mesh, chunk_size)
  image = jax.ShapeDtypeStruct((28, 28, 1), np.uint8)
  variables = classifier.init(jax.random.key(0), image)

  blank = placement.blank_results(mesh, variables, setting.clients)

  def once():
    jax.block_until_ready(
      run(variables, *placed, jax.random.key(1), *blank(), 0, setting.clients)
    )

  return once


def with_pytorch(setting: Setting) -> Callable[[], None]:
  """Returns a call of the same steps, as a PyTorch user would write them."""
  import torch
  from torch import nn

  before, after = setting.dropout
  padding = setting.padding.lower()
  side = 14 if padding == 'same' else 12
  model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=padding),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=padding),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Dropout(before),
    nn.Flatten(),
    nn.Linear(64 * side**2, 128),
    nn.ReLU(),
    nn.Dropout(after),
    nn.Linear(128, 10),
  )
  optimizer = torch.optim.Adam(model.parameters(), 1e-3)
  loss = nn.CrossEntropyLoss()
  images = torch.randn(setting.batch_size, 1, 28, 28)
  labels = torch.randint(0, 10, (setting.batch_size,))

  def gradients():
    optimizer.zero_grad()
    loss(model(images), labels).backward()

  def once():
    updates = []
    for _ in range(setting.clients):
      for _ in range(setting.steps):
        gradients()
        optimizer.step()
      if not setting.steps:
        gradients()
        updates.append([p.grad.clone() for p in model.parameters()])

  return once


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  host.use_all_cores()
  systems = {'lca': with_lca}
  torch = importlib.util.find_spec('torch') is not None
  if torch:
    systems['torch'] = with_pytorch
  results = {}
  for name, setting in SETTINGS.items():
    calls = {system: make(setting) for system, make in systems.items()}
    for call in calls.values():
      call()  # compiles, and is not timed
    seconds = collections.defaultdict(list)
    for _ in range(_REPEATS.value):
      for system, call in calls.items():
        start = time.perf_counter()
        call()
        seconds[system].append(time.perf_counter() - start)
    results[name] = dict(seconds)
    medians = {s: statistics.median(values) for s, values in seconds.items()}
    for system, median in medians.items():
      rate = setting.examples / median
      times = median / medians['lca']
      print(f'{name:10} {system:6} {rate:6.0f} examples/s {times:5.2f} x')
  if _OUTPUT.value:
    about = {
      'environment': record.environment(with_others=torch),
      'settings': {name: s._asdict() for name, s in SETTINGS.items()},
      'seconds': results,
    }
    text = json.dumps(about, indent=1) + '\n'
    pathlib.Path(_OUTPUT.value).write_text(text)


if __name__ == '__main__':
  app.run(main)
