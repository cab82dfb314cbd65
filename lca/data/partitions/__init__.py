"""Partitions: which client holds which training examples.

A partition takes the labels of the training split, the number of clients, a
seed and options of its own, and returns the example indices of each client;
`natural` takes the examples' owners alone. The classes are the labels that
occur. The same arguments give the same partition on every machine.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from lca.data.partitions.by_class import (
  dirichlet,
  labels_per_client,
  one_class,
  shards,
)
from lca.data.partitions.simple import iid, natural
from lca.registry import REQUIRED, Registry

PARTITIONS: Registry[Callable[..., list[np.ndarray]]] = Registry(
  'partition',
  [dirichlet, iid, labels_per_client, natural, one_class, shards],
  brought=['labels', 'owners', 'num_clients', 'seed'],
)
"""Functions `(labels, num_clients, *, seed, ...)` by name.

A partition of one's own is added by `PARTITIONS.register(function)`. It returns
an array of example indices for each client, and is given those of `labels`,
`owners`, `num_clients` and `seed` that it names.
"""


def check(name: str, num_clients: int | None, **options: Any) -> None:
  """Raises what `make` would raise before it has the data.

  Args:
    name: A key of `PARTITIONS`.
    num_clients: How many clients; None for `natural`, which finds them, as
      every partition does that does not name `num_clients`.
    **options: The partition's own.

  Raises:
    ValueError: An unknown name, or a number of clients for `natural`.
    TypeError: An option that the partition does not take, or one that it needs
      and that is missing or None.
  """
  takes = PARTITIONS.parameters(name)
  # A required option that a config leaves at None is missing.
  PARTITIONS.check(
    name,
    [
      k
      for k, value in options.items()
      if value is not None or k not in takes or takes[k].default is not REQUIRED
    ],
  )
  counted = 'num_clients' in inspect.signature(PARTITIONS[name]).parameters
  if counted and num_clients is None:
    raise TypeError(f'partition {name!r} needs num_clients')
  if not counted and num_clients is not None:
    raise ValueError(
      f'partition {name!r} finds its clients in the data: num_clients must be '
      f'None, got {num_clients}'
    )


def make(
  name: str,
  labels: np.ndarray,
  num_clients: int | None,
  *,
  seed: int,
  owners: np.ndarray | None = None,
  **options: Any,
) -> list[np.ndarray]:
  """Partitions by name.

  Args:
    name: A key of `PARTITIONS`.
    labels: [N] class numbers of the training split.
    num_clients: How many clients; None for `natural`, which finds them.
    seed: Determines the partition.
    owners: [N] integers, whose each example is; `natural` needs them.
    **options: The partition's own, all those that it takes and has no default
      for, and no others.

  Returns:
    One array of example indices per client.

  Raises:
    ValueError: An unknown name, no owners or a number of clients for
      `natural`, or values that the partition refuses.
    TypeError: An option that the partition does not take, or one that it needs
      and that is missing or None.

  Examples:
    >>> clients = make('shards', np.arange(12) // 4, 2, seed=0)
    >>> [len(client) for client in clients]
    [6, 6]
  """
  check(name, num_clients, **options)
  takes = inspect.signature(PARTITIONS[name]).parameters
  if 'owners' in takes and owners is None:
    raise ValueError(f'partition {name!r} needs a training split with owners')
  brought = {
    'labels': labels,
    'num_clients': num_clients,
    'seed': seed,
    'owners': owners,
  }
  given = {k: v for k, v in brought.items() if k in takes}
  return PARTITIONS[name](**given, **options)


__all__ = [
  'PARTITIONS',
  'check',
  'dirichlet',
  'iid',
  'labels_per_client',
  'make',
  'natural',
  'one_class',
  'shards',
]
