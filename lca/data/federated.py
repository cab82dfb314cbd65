"""A data set split over clients, and the padded arrays of the clients."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lca.data import partitions
from lca.data.dataset import Dataset


class ClientData(NamedTuple):
  """The examples of n clients, padded to a common length S.

  Attributes:
    inputs: `[n, S, ...]` of the split's dtype. Row i holds `num_examples[i]`
      examples, followed by zeros.
    labels: `[n, S]` int32, padded in the same way.
    num_examples: `[n]` int32, the number of examples of each client.
  """

  inputs: np.ndarray
  labels: np.ndarray
  num_examples: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class FederatedDataset:
  """A data set, and which of its training examples belong to which client.

  Attributes:
    dataset: the data set; indices point into its training split.
    client_indices: for each client, the `[num_examples]` integer indices of its
      examples.
    root_indices: integer indices of the training examples that the server
      itself keeps, for rules such as FLTrust; None if there are none.
    validation_indices: ascending integer indices of the training examples that
      are held out for validation; None if there are none.
    length: `gather` pads every client to so many examples, or to the largest
      number that a client has, if that is more.

  Raises:
    ValueError: there are no clients, a client has no examples, or an index lies
      outside of the training split.
  """

  dataset: Dataset
  client_indices: Sequence[np.ndarray]
  root_indices: np.ndarray | None = None
  validation_indices: np.ndarray | None = None
  length: int = 0

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
    """The number of clients in the population."""
    return len(self.client_indices)

  @functools.cached_property
  def num_examples(self) -> np.ndarray:
    """The number of examples of each client, `[num_clients]` int32."""
    return np.array([len(i) for i in self.client_indices], np.int32)

  @property
  def server_id(self) -> int | None:
    """The id under which `gather` finds the server's own examples.

    It is `num_clients`, one more than the last client's id, or None if the
    server has no examples.
    """
    return None if self.root_indices is None else self.num_clients

  @functools.cached_property
  def _indices_by_id(self) -> list[np.ndarray]:
    """The example indices of every client, followed by those of the server."""
    root = [] if self.root_indices is None else [self.root_indices]
    return [*self.client_indices, *root]

  @property
  def num_validation(self) -> int:
    """The number of examples that are held out for validation."""
    held_out = self.validation_indices
    return 0 if held_out is None else len(held_out)

  @property
  def max_examples(self) -> int:
    """The number of examples that `gather` pads every client to.

    It is the largest number that a client or the server has, or `length`.
    """
    return max(self.length, *map(len, self._indices_by_id))

  def label_histogram(self) -> np.ndarray:
    """Counts the examples of each class for each client.

    Returns:
      `[num_clients, num_classes]` integers, without the server's examples and
      those held out for validation.
    """
    # np.bincount of older NumPy versions refuses uint64.
    labels = self.dataset.train.labels.astype(int)
    return np.stack(
      [
        np.bincount(labels[indices], minlength=self.dataset.num_classes)
        for indices in self.client_indices
      ]
    )

  def describe(self) -> str:
    """Summarises the clients' sizes and numbers of classes in two lines.

    Returns:
      Text for people to read; the same partition gives the same text.

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
    totals = f'{sizes.sum()} of {len(self.dataset.train)} examples'
    if self.root_indices is not None:
      totals += f', the server {len(self.root_indices)}'
    if self.validation_indices is not None:
      totals += f', {self.num_validation} are held out for validation'
    return (
      f'{self.num_clients} clients hold {totals}\n'
      f'per client {_range_and_median(sizes, "examples")} '
      f'of {_range_and_median(classes, "classes")}'
    )

  def gather(
    self, client_ids: Sequence[int] | np.ndarray, rows: int | None = None
  ) -> ClientData:
    """Copies the examples of some clients into stacked arrays.

    Every client is padded to `max_examples` of the whole population. The shapes
    therefore depend only on the number of rows, and XLA compiles the training
    of a round once for all rounds.

    Args:
      client_ids: `[n]` integers in [0, num_clients), or `server_id`; an id may
        occur more than once.
      rows: the number of rows of the arrays, at least n; None for n. The rows
        after the n-th are zeros, like clients without examples.

    Returns:
      Row i holds the examples of client `client_ids[i]`, in the order of its
      `client_indices`.

    Raises:
      ValueError: an id is out of range.
    """
    ids = np.asarray(client_ids)
    # Negative ids are refused because NumPy would count them from the end.
    unknown = ids[(ids < 0) | (ids >= len(self._indices_by_id))]
    if unknown.size:
      raise ValueError(
        f'client {unknown[0]} is not in [0, {len(self._indices_by_id)})'
      )
    train = self.dataset.train
    shape = (len(ids) if rows is None else rows, self.max_examples)
    spec = train.input_spec
    inputs = np.zeros(shape + spec.shape, spec.dtype)
    labels = np.zeros(shape, np.int32)
    counts = np.zeros(shape[0], np.int32)
    for row, client in enumerate(ids):
      indices = self._indices_by_id[client]
      # Ascending indices let a memory map be read in the order of its file.
      order = np.argsort(indices)
      inputs[row, order] = train.read(indices[order])
      labels[row, : len(indices)] = train.labels[indices]
      counts[row] = len(indices)
    return ClientData(inputs, labels, counts)

  def gathered_shapes(self, rows: int) -> ClientData:
    """Returns the shapes and dtypes of the arrays of `gather`, without data.

    Args:
      rows: the number of rows of the arrays.
    """
    spec, shape = self.dataset.train.input_spec, (rows, self.max_examples)
    return ClientData(
      jax.ShapeDtypeStruct(shape + spec.shape, spec.dtype),
      jax.ShapeDtypeStruct(shape, np.int32),
      jax.ShapeDtypeStruct((rows,), np.int32),
    )


def _range_and_median(counts: np.ndarray, unit: str) -> str:
  # '.15g' prints 2.5 and 3 without further zeros, but does not round large
  # numbers to 6 digits as the default 'g' does.
  median = f'{np.median(counts):.15g}'
  return f'{counts.min()} to {counts.max()} {unit} (median {median})'


def federate(
  dataset: Dataset,
  *,
  partition: str,
  num_clients: int | None,
  min_examples: int,
  seed: int,
  root_examples: int = 0,
  validation: float = 0.0,
  **options: Any,
) -> FederatedDataset:
  """Splits the training examples of a data set over clients.

  Args:
    dataset: the data set to split.
    partition: a key of `partitions.PARTITIONS`.
    num_clients: the number of clients that the partition makes; None for
      `natural`, which makes one per owner. After `min_examples` has been
      applied, `FederatedDataset.num_clients` may be smaller.
    min_examples: the smallest number of examples, at least 1, with which a
      client is kept; clients with fewer are dropped.
    seed: the seed that determines the partition.
    root_examples: the number of training examples that the server keeps for
      itself; they are drawn at random, and no client gets them.
    validation: the share, in [0, 1), of the training examples that is held out
      for validation, rounded to whole examples. They are drawn at random,
      before the server's examples, and nobody trains on them. The draw depends
      on `seed` alone, and a larger share contains all examples of a smaller
      one.
    **options: the options of the partition, such as `alpha` for `dirichlet`.

  Returns:
    The clients that are kept, numbered from 0 in the partition's order.

  Raises:
    ValueError: no client is kept, `min_examples` is below 1, `root_examples` or
      `validation` leaves no example for the clients, `validation` is less than
      an example, or the partition refuses a value.
    TypeError: the partition does not take an option, or it needs an option
      that is missing.
  """
  if min_examples < 1:
    raise ValueError(
      f'min_examples must be at least 1, got {min_examples}: an empty client '
      'has nothing to train on'
    )
  train = dataset.train
  held_out, rest = _hold_out(validation, len(train), seed)
  if not 0 <= root_examples < len(rest):
    raise ValueError(
      f'root_examples must lie in [0, {len(rest)}), got {root_examples}'
    )
  root = None
  if root_examples:
    # The remaining indices are sorted so that clients see the examples in the
    # order of the file, as they do without root examples.
    order = np.random.default_rng([seed, root_examples]).permutation(rest)
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
  return FederatedDataset(dataset, kept, root, held_out)


def _hold_out(
  share: float, size: int, seed: int
) -> tuple[np.ndarray | None, np.ndarray]:
  """Draws the examples that are held out for validation.

  Args:
    share: of the training examples, see `federate`.
    size: number of training examples.
    seed: see `federate`.

  Returns:
    The ascending indices of the examples that are held out, None if there are
    none; and the ascending indices of all others.

  Raises:
    ValueError: the share is no part of the examples, or the clients are left
      without any.
  """
  if not 0 <= share < 1:
    raise ValueError(f'validation must lie in [0, 1), got {share}')
  if not share:
    return None, np.arange(size)
  number = round(share * size)
  if not 1 <= number < size:
    raise ValueError(
      f'validation={share} of {size} training examples is {number}: at least '
      'one example must be held out, and at least one left for the clients'
    )
  # No seed of the root examples, [seed, number], gives the same stream.
  order = np.random.default_rng([seed, 0, 1]).permutation(size)
  return np.sort(order[:number]), np.sort(order[number:])
