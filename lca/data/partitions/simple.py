"""Partitions that ignore the classes: at random, or by owner."""

import numpy as np


def iid(
  labels: np.ndarray,
  num_clients: int,
  *,
  seed: int,
  examples_per_client: int | None = None,
) -> list[np.ndarray]:
  """Shares the examples out at random, as evenly as possible.

  Args:
    labels: `[N]` class numbers; only N matters, not their values.
    num_clients: the number of clients, from 1 to N.
    seed: the seed that determines the partition.
    examples_per_client: the number of examples that each client gets; None
      shares out all N examples.

  Returns:
    One array of example indices per client. No two clients share an example.
    If `examples_per_client` is None, every example belongs to a client and the
    clients' sizes differ by at most one.

  Raises:
    ValueError: `num_clients` is below 1 or above N, `examples_per_client` is
      below 1, or there are too few examples.

  Examples:
    >>> [len(client) for client in iid(np.zeros(7, int), 3, seed=0)]
    [3, 2, 2]
  """
  check_num_clients(num_clients, len(labels))
  order = np.random.default_rng(seed).permutation(len(labels))
  if examples_per_client is None:
    return np.array_split(order, num_clients)
  check_positive(examples_per_client=examples_per_client)
  needed = num_clients * examples_per_client
  if needed > len(labels):
    raise ValueError(
      f'{num_clients} clients of examples_per_client={examples_per_client} '
      f'need {needed} examples, but there are {len(labels)}'
    )
  return np.split(order[:needed], num_clients)


def natural(owners: np.ndarray) -> list[np.ndarray]:
  """Makes one client per owner: per writer, person or device.

  Args:
    owners: `[N]` integers that identify the owner of each example.

  Returns:
    One array of example indices per owner, sorted by the owners' numbers.
    Every example belongs to exactly one client.

  Examples:
    >>> natural(np.array([7, 3, 7, 7]))
    [array([1]), array([0, 2, 3])]
  """
  order = np.argsort(owners, kind='stable')
  _, starts = np.unique(owners[order], return_index=True)
  return np.split(order, starts[1:])


def check_num_clients(num_clients: int, size: int) -> None:
  """Raises a ValueError unless 1 <= num_clients <= size.

  Args:
    num_clients: the number of clients.
    size: the number of examples.
  """
  if not 1 <= num_clients <= size:
    raise ValueError(
      f'num_clients must be from 1 to the {size} examples, got {num_clients}'
    )


def check_positive(**numbers: int) -> None:
  """Raises a ValueError that names the first number below 1."""
  for name, number in numbers.items():
    if number < 1:
      raise ValueError(f'{name} must be at least 1, got {number}')
