"""A data set spread over clients, and the rows that a round draws from it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lca.data import partitions
from lca.data.dataset import Dataset


class ClientData(NamedTuple):
  """The examples of n clients, padded to one length S.

  Attributes:
    images: [n, S, H, W, C] uint8; zeros from `num_examples` on.
    labels: [n, S] int32; zeros from `num_examples` on.
    num_examples: [n] int32, how many rows of each client are real.
  """

  images: np.ndarray
  labels: np.ndarray
  num_examples: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class FederatedDataset:
  """A data set and the training examples that each client holds.

  Args:
    dataset: Whose training split the indices point into.
    client_indices: One [num_examples] integer array per client.
    root_indices: [num_examples] integers, what the server holds itself.

  Raises:
    ValueError: No clients, a client without examples, or an index outside of
      the training split.
  """

  dataset: Dataset
  client_indices: Sequence[np.ndarray]
  root_indices: np.ndarray | None = None

  def __post_init__(self):
    if not self.client_indices:
      raise ValueError('a federated data set needs at least one client')
    size = len(self.dataset.train)
    for client, indices in enumerate(self.client_indices):
      if not len(indices):
        raise ValueError(f'client {client} has no examples')
      if indices.min() < 0 or indices.max() >= size:
        raise ValueError(
          f'client {client} has indices from {indices.min()} to '
          f'{indices.max()}, but there are {size} training examples'
        )

  @property
  def num_clients(self) -> int:
    """The population: how many clients hold data."""
    return len(self.client_indices)

  @functools.cached_property
  def num_examples(self) -> np.ndarray:
    """How many examples each client holds, [num_clients] int32."""
    return np.array([len(i) for i in self.client_indices], np.int32)

  @property
  def server_id(self) -> int | None:
    """The number after the clients', if the server holds examples itself."""
    return None if self.root_indices is None else self.num_clients

  @functools.cached_property
  def _holdings(self) -> list[np.ndarray]:
    """The clients' indices, and after them the server's."""
    root = [] if self.root_indices is None else [self.root_indices]
    return [*self.client_indices, *root]

  @property
  def max_examples(self) -> int:
    """The largest number of examples that a client, or the server, holds."""
    return max(map(len, self._holdings))

  def gather(self, client_ids: Sequence[int] | np.ndarray) -> ClientData:
    """Copies the examples of some clients into stacked arrays.

    Every call pads to the largest client of the whole population, so the
    shapes depend on n alone and no round recompiles.

    Args:
      client_ids: [n] numbers in [0, num_clients), or `server_id`; repeats
        allowed.

    Returns:
      Row i holds the examples of `client_ids[i]`, in that client's own order.

    Raises:
      ValueError: An id out of range.
    """
    ids = self._checked(client_ids)
    train = self.dataset.train
    shape = (len(ids), self.max_examples)
    images = np.zeros(shape + train.images.shape[1:], np.uint8)
    labels = np.zeros(shape, np.int32)
    counts = np.array([len(self._holdings[i]) for i in ids], np.int32)
    for row, client in enumerate(ids):
      indices = self._holdings[client]
      # In file order a memory map is read forwards.
      order = np.argsort(indices)
      images[row, order] = train.images[indices[order]]
      labels[row, : len(indices)] = train.labels[indices]
    return ClientData(images, labels, counts)

  def _checked(self, client_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    ids = np.asarray(client_ids)
    # NumPy would take -1 as the last client.
    unknown = ids[(ids < 0) | (ids >= len(self._holdings))]
    if unknown.size:
      raise ValueError(f'client {unknown[0]} is not in [0, {self.num_clients})')
    return ids


def federate(
  dataset: Dataset,
  *,
  partition: str,
  num_clients: int,
  min_examples: int,
  seed: int,
  root_examples: int = 0,
) -> FederatedDataset:
  """Spreads the training split over clients.

  Args:
    dataset: What to spread.
    partition: A key of `partitions.PARTITIONS`.
    num_clients: How many clients the partition makes. Those that stay may be
      fewer: `FederatedDataset.num_clients`.
    min_examples: Clients with fewer are dropped; with exactly as many they
      stay. At least 1.
    seed: Determines the partition.
    root_examples: How many training examples, drawn at random, the server
      holds itself and no client does.

  Returns:
    The clients that stay, numbered from 0 in the partition's order.

  Raises:
    ValueError: No client stays, `min_examples` is below 1, `root_examples`
      leaves no example, or the partition refuses its arguments.
  """
  if min_examples < 1:
    raise ValueError(
      f'min_examples must be at least 1, got {min_examples}: an empty client '
      'has nothing to train on'
    )
  size = len(dataset.train)
  if not 0 <= root_examples < size:
    raise ValueError(
      f'root_examples must lie in [0, {size}), got {root_examples}'
    )
  root, rest = None, np.arange(size)
  if root_examples:
    order = np.random.default_rng([seed, root_examples]).permutation(size)
    root, rest = order[:root_examples], np.sort(order[root_examples:])
  clients = partitions.make(
    partition, dataset.train.labels[rest], num_clients, seed=seed
  )
  clients = [rest[indices] for indices in clients]
  kept = [indices for indices in clients if len(indices) >= min_examples]
  if not kept:
    raise ValueError(
      f'none of {num_clients} clients has min_examples={min_examples} '
      f'examples; the largest has {max(map(len, clients))}'
    )
  return FederatedDataset(dataset, kept, root)
