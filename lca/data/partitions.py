"""Who holds which training examples.

A partition takes the labels of the training split, the number of clients and a
seed, and returns the example indices of each client.
"""

import numpy as np


def iid(labels: np.ndarray, num_clients: int, *, seed: int) -> list[np.ndarray]:
  """Shares the examples out at random, as evenly as can be.

  Args:
    labels: [N] class numbers; only their number matters here.
    num_clients: How many clients, from 1 to N.
    seed: Determines the partition.

  Returns:
    One array of example indices per client. Together they hold every example
    once; their sizes differ by at most one.

  Raises:
    ValueError: `num_clients` is below 1 or above N.

  Examples:
    >>> [len(client) for client in iid(np.zeros(7, int), 3, seed=0)]
    [3, 2, 2]
  """
  if not 1 <= num_clients <= len(labels):
    raise ValueError(
      f'num_clients must be from 1 to the {len(labels)} examples, '
      f'got {num_clients}'
    )
  order = np.random.default_rng(seed).permutation(len(labels))
  return np.array_split(order, num_clients)


PARTITIONS = {'iid': iid}


def make(
  name: str, labels: np.ndarray, num_clients: int, *, seed: int
) -> list[np.ndarray]:
  """Partitions by name.

  Args:
    name: A key of `PARTITIONS`.
    labels: [N] class numbers of the training split.
    num_clients: How many clients.
    seed: Determines the partition.

  Returns:
    One array of example indices per client.

  Raises:
    ValueError: An unknown name, or values that the partition refuses.
  """
  if name not in PARTITIONS:
    raise ValueError(
      f'unknown partition {name!r}; known: {", ".join(sorted(PARTITIONS))}'
    )
  return PARTITIONS[name](labels, num_clients, seed=seed)
