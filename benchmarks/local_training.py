"""Local training of the paper's CNN, in examples a second, beside PyTorch's.

    python -m benchmarks.local_training

The CNN of 1,625,866 parameters, batches of 64, Adam. PyTorch, where it is
installed, runs the same shapes in the same sitting, with its defaults.
"""

import importlib.util
import os
import statistics
import time

import jax
import numpy as np

BATCH, STEPS, CLIENTS, REPEATS = 64, 8, 8, 5


def with_lca() -> float:
  """One virtual device a core, clients one after the other on each."""
  import optax

  from lca import clients, data, models

  classifier = models.Classifier(models.CNN(10), (127.5,), (127.5,))
  train = clients.LocalTraining(
    losses=classifier.losses,
    optimizer=optax.adam(1e-3),
    batch_size=BATCH,
    local_epochs=1,
    microbatch_size=clients.default_microbatch_size(jax.default_backend()),
  )
  mesh = clients.clients_mesh()
  rng = np.random.default_rng(0)
  shape = (CLIENTS, BATCH * STEPS)
  examples = data.ClientData(
    rng.integers(0, 256, (*shape, 28, 28, 1), dtype=np.uint8),
    rng.integers(0, 10, shape, dtype=np.int32),
    np.full(CLIENTS, BATCH * STEPS, np.int32),
  )
  placed = clients.place_clients(
    (examples, np.arange(CLIENTS, dtype=np.int32)), mesh
  )
  chunk_size = clients.default_chunk_size(jax.default_backend())
  run = clients.train_clients(train, mesh, chunk_size)
  variables = classifier.init(jax.random.key(0), (28, 28, 1))

  def once():
    jax.block_until_ready(run(variables, *placed, jax.random.key(1)))

  return _examples_a_second(once, CLIENTS * STEPS * BATCH)


def with_pytorch() -> float:
  """The same steps, as a PyTorch user would write them."""
  import torch
  from torch import nn

  model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(12544, 128),
    nn.ReLU(),
    nn.Linear(128, 10),
  )
  optimizer = torch.optim.Adam(model.parameters(), 1e-3)
  loss = nn.CrossEntropyLoss()
  images = torch.randn(BATCH, 1, 28, 28)
  labels = torch.randint(0, 10, (BATCH,))

  def once():
    for _ in range(CLIENTS * STEPS):
      optimizer.zero_grad()
      loss(model(images), labels).backward()
      optimizer.step()

  return _examples_a_second(once, CLIENTS * STEPS * BATCH)


def _examples_a_second(run, examples: int) -> float:
  run()
  seconds = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - start)
  return examples / statistics.median(seconds)


def main() -> None:
  jax.config.update('jax_num_cpu_devices', os.cpu_count())
  ours = with_lca()
  print(f'lca      {ours:8.0f} examples/s on {jax.devices()}')
  if importlib.util.find_spec('torch') is None:
    print('PyTorch  not installed')
    return
  theirs = with_pytorch()
  print(f'PyTorch  {theirs:8.0f} examples/s, lca is {ours / theirs:.2f} times')


if __name__ == '__main__':
  main()
