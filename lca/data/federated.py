"""A data set spread over clients, and the rows that a round draws from it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lca.data import partitions
from lca.data.dataset import Dataset


class ClientData(NamedTuple):
  """The examples of n clients, padded to one length S.

  Attributes:
    inputs: [n, S, ...], of the split's dtype; zeros from `num_examples` on.
    labels: [n, S] int32; zeros from `num_examples` on.
    num_examples: [n] int32, how many rows of each client are real.
  """

  inputs: np.ndarray
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

  def label_histogram(self) -> np.ndarray:
    """How many examples of each class each client holds.

    Returns:
      [num_clients, num_classes] integers; without what the server holds.
    """
    # The bincount of older NumPy takes no uint64.
    labels = self.dataset.train.labels.astype(int)
    return np.stack(
      [
        np.bincount(labels[indices], minlength=self.dataset.num_classes)
        for indices in self.client_indices
      ]
    )

  def describe(self) -> str:
    """Sizes and classes of the clients in two lines.

    Returns:
      Lines for people to read; the same for the same partition.

    Examples:
      >>> from lca.data import load
      >>> clients = federate(
      ...   load('digits'), partition='labels_per_client', num_clients=20,
      ...   min_examples=30, seed=0, root_examples=100)
      >>> print(clients.describe())
      20 clients hold 1337 of 1437 examples, the server 100
      per client 65 to 69 examples (median 67) of 2 to 2 classes (median 2)
    """
    sizes = self.num_examples
    classes = np.count_nonzero(self.label_histogram(), axis=1)
    held = f'{sizes.sum()} of {len(self.dataset.train)} examples'
    if self.root_indices is not None:
      held += f', the server {len(self.root_indices)}'
    return (
      f'{self.num_clients} clients hold {held}\n'
      f'per client {_spread(sizes, "examples")} '
      f'of {_spread(classes, "classes")}'
    )

  def gather(
    self, client_ids: Sequence[int] | np.ndarray, rows: int | None = None
  ) -> ClientData:
    """Copies the examples of some clients into stacked arrays.

    Every call pads to the largest client of the whole population, so the
    shapes depend on n alone and no round recompiles.

    Args:
      client_ids: [n] numbers in [0, num_clients), or `server_id`; repeats
        allowed.
      rows: Of the arrays, at least n, or None for n. Those that are no client's
        are zeros: clients without examples.

    Returns:
      Row i holds the examples of `client_ids[i]`, in that client's own order.

    Raises:
      ValueError: An id out of range.
    """
    ids = np.asarray(client_ids)
    # NumPy would take -1 as the last client.
    unknown = ids[(ids < 0) | (ids >= len(self._holdings))]
    if unknown.size:
      raise ValueError(f'client {unknown[0]} is not in [0, {self.num_clients})')
    train = self.dataset.train
    shape = (len(ids) if rows is None else rows, self.max_examples)
    spec = train.input_spec
    inputs = np.zeros(shape + spec.shape, spec.dtype)
    labels = np.zeros(shape, np.int32)
    counts = np.zeros(shape[0], np.int32)
    for row, client in enumerate(ids):
      indices = self._holdings[client]
      order = np.argsort(indices)
      inputs[row, order] = train.read(indices[order])
      labels[row, : len(indices)] = train.labels[indices]
      counts[row] = len(indices)
    return ClientData(inputs, labels, counts)


def _spread(counts: np.ndarray, what: str) -> str:
  # General format, but with every digit of any number of examples.
  median = f'{np.median(counts):.15g}'
  return f'{counts.min()} to {counts.max()} {what} (median {median})'


def federate(
  dataset: Dataset,
  *,
  partition: str,
  num_clients: int | None,
  min_examples: int,
  seed: int,
  root_examples: int = 0,
  **options: Any,
) -> FederatedDataset:
  """Spreads the training split over clients.

  Args:
    dataset: What to spread.
    partition: A key of `partitions.PARTITIONS`.
    num_clients: How many clients the partition makes; None for `natural`, which
      makes one of each owner. Those that stay may be fewer:
      `FederatedDataset.num_clients`.
    min_examples: Clients with fewer are dropped; with exactly as many they
      stay. At least 1.
    seed: Determines the partition.
    root_examples: How many training examples, drawn at random, the server
      holds itself and no client does.
    **options: The partition's own, as `alpha` of `dirichlet`.

  Returns:
    The clients that stay, numbered from 0 in the partition's order.

  Raises:
    ValueError: No client stays, `min_examples` is below 1, `root_examples`
      leaves no example, or the partition refuses its arguments.
    TypeError: An option that the partition does not take, or lacks.
  """
  if min_examples < 1:
    raise ValueError(
      f'min_examples must be at least 1, got {min_examples}: an empty client '
      'has nothing to train on'
    )
  train = dataset.train
  size = len(train)
  if not 0 <= root_examples < size:
    raise ValueError(
      f'root_examples must lie in [0, {size}), got {root_examples}'
    )
  root, rest = None, np.arange(size)
  if root_examples:
    # Clients keep the order of the file, as they do without a server's part.
    order = np.random.default_rng([seed, root_examples]).permutation(size)
    root, rest = order[:root_examples], np.sort(order[root_examples:])
  clients = partitions.make(
    partition,
    train.labels[rest],
    num_clients,
    seed=seed,
    owners=None if train.owners is None else train.owners[rest],
    **options,
  )
  kept = [rest[np.asarray(i, int)] for i in clients if len(i) >= min_examples]
  if not kept:
    raise ValueError(
      f'none of {len(clients)} clients has min_examples={min_examples} '
      f'examples; the largest has {max(map(len, clients))}'
    )
  return FederatedDataset(dataset, kept, root)
