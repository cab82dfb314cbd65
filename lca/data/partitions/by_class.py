"""Partitions by which a client holds some classes, or more of some."""

import numpy as np

from lca.data.partitions.simple import check_num_clients, check_positive


def one_class(
  labels: np.ndarray,
  num_clients: int,
  *,
  seed: int,
  examples_per_client: int | None = None,
) -> list[np.ndarray]:
  """Gives each client examples of one class only.

  Client i holds class `i % num_classes` of a random order of the classes. The
  clients of a class share its examples out at random, disjointly. With fewer
  clients than classes, the classes that nobody holds are left out.

  Args:
    labels: [N] class numbers.
    num_clients: How many clients, from 1 to N.
    seed: Determines the partition.
    examples_per_client: How many each client gets; None shares all examples of
      a class out to its clients, as evenly as can be.

  Returns:
    One array of example indices per client.

  Raises:
    ValueError: `num_clients` is below 1 or above N, `examples_per_client` is
      below 1, or a class has too few examples for its clients.

  Examples:
    >>> labels = np.array([4, 4, 4, 4, 9, 9, 9, 9])
    >>> clients = one_class(labels, 3, seed=0)
    >>> [np.unique(labels[client]).size for client in clients]
    [1, 1, 1]

  References:
    Varma et al. 2021, LEGATO: A layerwise gradient aggregation algorithm for
    mitigating Byzantine attacks in federated learning, section V-A: 25 clients
    of 1,000 examples each.
  """
  check_num_clients(num_clients, len(labels))
  rng = np.random.default_rng(seed)
  # np.resize begins anew where the classes end.
  held = np.resize(rng.permutation(np.unique(labels)), [num_clients, 1])
  return _deal(labels, held, examples_per_client, rng)


def labels_per_client(
  labels: np.ndarray,
  num_clients: int,
  *,
  seed: int,
  labels_per_client: int = 2,
  examples_per_client: int | None = None,
) -> list[np.ndarray]:
  """Gives each client examples of exactly k classes.

  One client after the other draws its k classes at random among those that
  the fewest clients hold so far, so that in the end any two classes are held
  equally often, give or take one. The clients of a class share its examples
  out at random, disjointly. If `num_clients * k` is below the number of
  classes, those that nobody holds are left out. With k = 1 it is `one_class`
  but for the clients' order.

  Args:
    labels: [N] class numbers.
    num_clients: How many clients, from 1 to N.
    seed: Determines the partition.
    labels_per_client: k, from 1 to the number of classes.
    examples_per_client: How many each client gets, at least k, split over its
      classes as evenly as can be. None shares all examples of a class out to
      its clients, as evenly as can be.

  Returns:
    One array of example indices per client.

  Raises:
    ValueError: A number out of the ranges above, or a class has too few
      examples for its clients.

  Examples:
    >>> labels = np.repeat([0, 1, 2], 10)
    >>> clients = labels_per_client(labels, 3, seed=0)
    >>> [np.unique(labels[client]).size for client in clients]
    [2, 2, 2]
    >>> [len(client) for client in clients]
    [10, 10, 10]
  """
  check_num_clients(num_clients, len(labels))
  classes = np.unique(labels)
  k = labels_per_client
  if not 1 <= k <= len(classes):
    raise ValueError(
      f'labels_per_client must be from 1 to the {len(classes)} classes, got {k}'
    )
  rng = np.random.default_rng(seed)
  holders = np.zeros(len(classes), int)
  held = []
  for _ in range(num_clients):
    order = rng.permutation(len(classes))
    fewest = order[np.argsort(holders[order], kind='stable')[:k]]
    holders[fewest] += 1
    held.append(classes[fewest])
  return _deal(labels, np.stack(held), examples_per_client, rng)


def _deal(
  labels: np.ndarray,
  held: np.ndarray,
  examples_per_client: int | None,
  rng: np.random.Generator,
) -> list[np.ndarray]:
  """Shares each class out among the clients that hold it.

  Args:
    labels: [N] class numbers.
    held: [num_clients, k], the classes of each client, all different.
    examples_per_client: Over its k classes; None for all of each class.
    rng: Decides who gets which example.

  Returns:
    One array of example indices per client.
  """
  num_clients, k = held.shape
  if examples_per_client is not None and examples_per_client < k:
    raise ValueError(
      f'examples_per_client must be at least {k}, one of each class that a '
      f'client holds, got {examples_per_client}'
    )
  parts = [[] for _ in range(num_clients)]
  for label in np.unique(held):
    examples = rng.permutation(np.flatnonzero(labels == label))
    clients, position = np.nonzero(held == label)
    if examples_per_client is None:
      sizes = _even(len(examples), len(clients))
    else:
      sizes = _even(examples_per_client, k)[position]
    needed = max(sizes.sum(), len(clients))
    if needed > len(examples):
      raise ValueError(
        f'class {label} has {len(examples)} examples, but its {len(clients)} '
        f'clients need {needed}'
      )
    ends = np.cumsum(sizes)
    for client, end, size in zip(clients, ends, sizes, strict=True):
      parts[client].append(examples[end - size : end])
  return [np.concatenate(part) for part in parts]


def _even(total: int, count: int) -> np.ndarray:
  """Integers [count] that sum to `total`, the first ones larger by one."""
  return total // count + (np.arange(count) < total % count)


def dirichlet(
  labels: np.ndarray, num_clients: int, *, seed: int, alpha: float
) -> list[np.ndarray]:
  """Shares each class out in proportions drawn from a Dirichlet distribution.

  For every class k, independently of the others,

    p_k ~ Dir(alpha, ..., alpha) over the n clients,

  and client j gets the share p_kj of the class: 1 / n in the mean, with a
  variance of (n - 1) / (n^2 (n alpha + 1)). The smaller alpha, the more skewed:
  near 0 one client has the whole class, and for large alpha all shares are
  equal. Shares are cut to the nearest example. Clients differ in their classes
  and in their sizes; a client may be left without any example.

  This is the direction of Yurochkin et al., which byzfl, FedML and Flower
  follow, too; the latter two draw again until no client is too small, which
  changes the distribution, and we don't. Hsu et al. draw in the other
  direction: for every *client* its mix of classes, from a Dirichlet around the
  mix of the whole data set, and give all clients the same number of examples.
  There alpha skews the mix alone, and the same alpha means another partition.
  FedLab has both directions: by class, drawn again until no client is too
  small, where its partition is not balanced, and by client where it is.

  Args:
    labels: [N] class numbers.
    num_clients: n, from 1 to N.
    seed: Determines the partition.
    alpha: The concentration, above 0.

  Returns:
    One array of example indices per client, some perhaps empty. Together they
    hold every example once.

  Raises:
    ValueError: `num_clients` is below 1 or above N, or `alpha` is not a
      positive number.

  Examples:
    >>> clients = dirichlet(np.repeat([0, 1], 500), 4, seed=0, alpha=0.5)
    >>> sum(len(client) for client in clients)
    1000

  References:
    Yurochkin et al. 2019, Bayesian nonparametric federated learning of neural
    networks, section 4; Hsu et al. 2019, Measuring the effects of
    non-identical data distribution for federated visual classification.
  """
  check_num_clients(num_clients, len(labels))
  if not 0 < alpha < np.inf:
    raise ValueError(f'alpha must be positive and finite, got {alpha}')
  rng = np.random.default_rng(seed)
  parts = [[] for _ in range(num_clients)]
  for label in np.unique(labels):
    examples = rng.permutation(np.flatnonzero(labels == label))
    shares = rng.dirichlet(np.full(num_clients, alpha))
    cuts = np.rint(np.cumsum(shares)[:-1] * len(examples)).astype(int)
    # In another order for each class: which client gets what is left over by
    # rounding depends on its place alone when all shares are equal.
    order = rng.permutation(num_clients)
    for client, piece in zip(order, np.split(examples, cuts), strict=True):
      parts[client].append(piece)
  return [np.concatenate(part) for part in parts]


def shards(
  labels: np.ndarray,
  num_clients: int,
  *,
  seed: int,
  shards_per_client: int = 2,
) -> list[np.ndarray]:
  """Sorts by class, cuts into shards and deals each client some of them.

  Shards are of equal size, give or take one example, and dealt at random. A
  shard that is no larger than the smallest class spans two classes at most.
  Examples of one class are sorted at random.

  Args:
    labels: [N] class numbers.
    num_clients: How many clients.
    seed: Determines the partition.
    shards_per_client: s. There are `num_clients * s` shards, N at most.

  Returns:
    One array of example indices per client. Together they hold every example
    once; their sizes differ by at most s.

  Raises:
    ValueError: A number below 1, or more shards than examples.

  Examples:
    >>> clients = shards(np.repeat(np.arange(10), 60), 100, seed=0)
    >>> {len(client) for client in clients}
    {6}

  References:
    McMahan et al. 2017, Communication-efficient learning of deep networks from
    decentralized data, section 3: 100 clients of 2 shards of 300 examples.
  """
  check_num_clients(num_clients, len(labels))
  check_positive(shards_per_client=shards_per_client)
  count = num_clients * shards_per_client
  if count > len(labels):
    raise ValueError(
      f'{num_clients} clients of shards_per_client={shards_per_client} need '
      f'{count} shards, but there are {len(labels)} examples'
    )
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(labels))
  order = order[np.argsort(labels[order], kind='stable')]
  pieces = np.array_split(order, count)
  dealt = rng.permutation(count).reshape(num_clients, shards_per_client)
  return [np.concatenate([pieces[i] for i in client]) for client in dealt]
