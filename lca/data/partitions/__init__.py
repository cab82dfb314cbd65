"""Partitions: functions that decide which client holds which examples.

A partition takes the labels of the training split, the number of clients, a
seed and its own options, and returns the example indices of each client. The
exception is `natural`, which takes the owners of the examples and nothing else.
Only labels that occur in the training split count as classes. The same
arguments give the same partition on every machine.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from lca.data.partitions.by_class import (
  dirichlet,
  gamma_similarity,
  labels_per_client,
  one_class,
  shards,
)
from lca.data.partitions.simple import iid, natural
from lca.registry import REQUIRED, Registry

PARTITIONS: Registry[Callable[..., list[np.ndarray]]] = Registry(
  'partition',
  [
    *(dirichlet, gamma_similarity, iid, labels_per_client),
    *(natural, one_class, shards),
  ],
  brought=['labels', 'owners', 'num_clients', 'seed'],
)
"""Functions `(labels, num_clients, *, seed, ...)` by name.

`PARTITIONS.register(function)` adds your own partition. The function receives
those of the arguments `labels`, `owners`, `num_clients` and `seed` that its
signature names, and returns an array of example indices for each client.
"""


def check(name: str, num_clients: int | None, **options: Any) -> None:
  """Checks a partition's name and options, before any data is read.

  Args:
    name: a key of `PARTITIONS`.
    num_clients: the number of clients. It must be None for every partition
      without a parameter `num_clients`, such as `natural`, because these
      partitions derive the clients from the data.
    **options: the options of the partition.

  Raises:
    ValueError: the name is unknown, or `num_clients` is given to a partition
      that derives its clients from the data.
    TypeError: the partition does not take an option, or it needs an option
      that is missing or None.
  """
  parameters = PARTITIONS.parameters(name)
  # Configs hold None for an option that is not set. A required option that is
  # None is therefore left out here, so that the check reports it as missing.
  PARTITIONS.check(
    name,
    [
      k
      for k, value in options.items()
      if value is not None
      or k not in parameters
      or parameters[k].default is not REQUIRED
    ],
  )
  arguments = inspect.signature(PARTITIONS[name]).parameters
  if 'num_clients' in arguments and num_clients is None:
    raise TypeError(f'partition {name!r} needs num_clients')
  if 'num_clients' not in arguments and num_clients is not None:
    raise ValueError(
      f'partition {name!r} derives its clients from the data: num_clients must '
      f'be None, got {num_clients}'
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
  """Calls the partition with a given name.

  Args:
    name: a key of `PARTITIONS`.
    labels: `[N]` class numbers of the training split.
    num_clients: the number of clients; None for `natural`, which makes one
      client per owner.
    seed: the seed that determines the partition.
    owners: `[N]` integers that identify the owner of each example, such as its
      writer; only `natural` needs them.
    **options: the options of the partition; those without a default are
      required.

  Returns:
    One array of example indices per client.

  Raises:
    ValueError: the name is unknown; `natural` is given no owners or a number
      of clients; or the partition refuses a value.
    TypeError: the partition does not take an option, or it needs an option
      that is missing or None.

  Examples:
    >>> clients = make('shards', np.arange(12) // 4, 2, seed=0)
    >>> [len(client) for client in clients]
    [6, 6]
  """
  check(name, num_clients, **options)
  parameters = inspect.signature(PARTITIONS[name]).parameters
  if 'owners' in parameters and owners is None:
    raise ValueError(f'partition {name!r} needs a training split with owners')
  available = {
    'labels': labels,
    'num_clients': num_clients,
    'seed': seed,
    'owners': owners,
  }
  named = {k: v for k, v in available.items() if k in parameters}
  return PARTITIONS[name](**named, **options)


__all__ = [
  'PARTITIONS',
  'check',
  'dirichlet',
  'gamma_similarity',
  'iid',
  'labels_per_client',
  'make',
  'natural',
  'one_class',
  'shards',
]
