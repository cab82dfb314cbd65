"""Makes the task of all systems from real Fashion-MNIST."""

import jax
import numpy as np

from benchmarks.systems.common import Task
from lca import data, models


def fashion_mnist(
  archive_dir: str | None,
  data_dir: str | None,
  *,
  clients: int,
  examples: int,
  rounds: int,
  f: int,
  test_examples: int = 2_000,
) -> Task:
  """Returns a task: IID clients, and the paper's CNN with Flax's first weights.

  Args:
    archive_dir: the folder of the four idx .gz files; None downloads them.
    data_dir: the folder in which prepared data are kept; None takes the user's.
    clients: number of clients, all of which take part in each round.
    examples: training examples of each client.
    rounds: number of rounds.
    f: the number of Byzantine clients that Krum tolerates.
    test_examples: test images to judge with, at most 10,000.
  """
  dataset = data.load(
    'fashion_mnist', archive_dir=archive_dir, data_dir=data_dir
  )
  rng = np.random.default_rng(0)
  rows = rng.permutation(len(dataset.train))[: clients * examples]
  tests = np.arange(test_examples)
  return Task(
    rule='fedavg',
    f=f,
    rounds=rounds,
    epochs=1,
    batch_size=64,
    learning_rate=1e-3,
    mean=dataset.mean[0],
    std=dataset.std[0],
    images=dataset.train.read(rows).reshape(clients, examples, 28, 28),
    labels=dataset.train.labels[rows].reshape(clients, examples),
    test_images=dataset.test.read(tests)[..., 0],
    test_labels=dataset.test.labels[tests],
    weights=initial_weights(),
  )


def initial_weights() -> dict[str, np.ndarray]:
  """Returns the CNN's first weights; see `common` for their names."""
  image = np.zeros((1, 28, 28, 1), np.float32)
  params = models.CNN(10).init(jax.random.key(0), image)['params']
  return {
    f'{layer}/{name}': np.asarray(array)
    for layer, leaves in params.items()
    for name, array in leaves.items()
  }
