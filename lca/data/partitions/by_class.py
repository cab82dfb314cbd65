"""Partitions that give the clients different mixtures of classes."""

import numpy as np

from lca.data.partitions.simple import check_num_clients, check_positive


def one_class(
  labels: np.ndarray,
  num_clients: int,
  *,
  seed: int,
  examples_per_client: int | None = None,
) -> list[np.ndarray]:
  """Gives each client examples of a single class.

  The classes are put into a random order, and client i gets class number
  `i % num_classes` of this order. Clients with the same class get disjoint
  random parts of its examples. With fewer clients than classes, the examples
  of the remaining classes are not used.

  Args:
    labels: `[N]` class numbers.
    num_clients: the number of clients, from 1 to N.
    seed: the seed that determines the partition.
    examples_per_client: the number of examples that each client gets; None
      shares out all examples of a class among its clients, as evenly as
      possible.

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
  # np.resize repeats the classes from the first one when they run out.
  order = rng.permutation(np.unique(labels))
  client_classes = np.resize(order, [num_clients, 1])
  return _share_out(labels, client_classes, examples_per_client, rng)


def labels_per_client(
  labels: np.ndarray,
  num_clients: int,
  *,
  seed: int,
  labels_per_client: int = 2,
  examples_per_client: int | None = None,
) -> list[np.ndarray]:
  """Gives each client examples of exactly k classes.

  The clients choose one after the other. Each one takes the k classes that the
  fewest clients have taken so far, with ties broken at random. In the end the
  numbers of clients of any two classes differ by at most one. Clients with the
  same class get disjoint random parts of its examples. If `num_clients * k` is
  below the number of classes, the examples of the remaining classes are not
  used. With k = 1 this is `one_class` with the clients in another order.

  Args:
    labels: `[N]` class numbers.
    num_clients: the number of clients, from 1 to N.
    seed: the seed that determines the partition.
    labels_per_client: k, from 1 to the number of classes.
    examples_per_client: the number of examples that each client gets, at least
      k, split over its classes as evenly as possible. None shares out all
      examples of a class among its clients, as evenly as possible.

  Returns:
    One array of example indices per client.

  Raises:
    ValueError: a number is outside of the ranges above, or a class has too few
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
  clients_of_class = np.zeros(len(classes), int)
  client_classes = []
  for _ in range(num_clients):
    # A stable sort of a random order breaks ties at random.
    order = rng.permutation(len(classes))
    fewest = order[np.argsort(clients_of_class[order], kind='stable')[:k]]
    clients_of_class[fewest] += 1
    client_classes.append(classes[fewest])
  return _share_out(labels, np.stack(client_classes), examples_per_client, rng)


def _share_out(
  labels: np.ndarray,
  client_classes: np.ndarray,
  examples_per_client: int | None,
  rng: np.random.Generator,
) -> list[np.ndarray]:
  """Shares the examples of each class out among the clients of this class.

  Args:
    labels: `[N]` class numbers.
    client_classes: `[num_clients, k]`, the k different classes of each client.
    examples_per_client: the number of examples of each client over all of its
      classes; None shares out all examples of each class.
    rng: the generator that shuffles the examples of each class.

  Returns:
    One array of example indices per client.
  """
  num_clients, k = client_classes.shape
  if examples_per_client is not None and examples_per_client < k:
    raise ValueError(
      f'examples_per_client must be at least {k}, one of each class of a '
      f'client, got {examples_per_client}'
    )
  parts = [[] for _ in range(num_clients)]
  for label in np.unique(client_classes):
    examples = rng.permutation(np.flatnonzero(labels == label))
    clients, position = np.nonzero(client_classes == label)
    if examples_per_client is None:
      sizes = _even_sizes(len(examples), len(clients))
    else:
      # This class is number `position` of the client's k classes.
      sizes = _even_sizes(examples_per_client, k)[position]
    # Every client of a class gets at least one of its examples.
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


def _even_sizes(total: int, count: int) -> np.ndarray:
  """Returns `[count]` integers with the sum `total`, as equal as possible.

  If `total` is not a multiple of `count`, the first integers are larger by one.
  """
  return total // count + (np.arange(count) < total % count)


def dirichlet(
  labels: np.ndarray,
  num_clients: int,
  *,
  seed: int,
  alpha: float,
  redraw_below: int = 0,
) -> list[np.ndarray]:
  """Shares each class out in proportions drawn from a Dirichlet distribution.

  For every class k, independently of the others,

    p_k ~ Dir(alpha, ..., alpha) over the n clients,

  and client j gets the share p_kj of the class. A share has the mean 1 / n and
  the variance (n - 1) / (n^2 (n alpha + 1)). The smaller alpha is, the more
  skewed is the partition: near 0 one client has the whole class, and for large
  alpha all shares are equal. Shares are rounded to whole examples. Clients
  differ in their classes and in their sizes, and a client may get no example.

  Several partitions go by the name "Dirichlet", and the same alpha means
  different things in them:

  - By class, as here and in Yurochkin et al.: a Dirichlet over clients is drawn
    for every class. byzfl does the same. FedML and Flower do so too, but they
    repeat the draw until no client is too small, which changes the
    distribution; this function repeats a draw only with `redraw_below`.
  - By client, as in Hsu et al.: a Dirichlet over classes, centred on the class
    frequencies of the whole data set, is drawn for every client, and all
    clients get the same number of examples. Alpha then skews the classes but
    not the sizes.
  - FedLab has both: by client for its balanced partition, and by class, with
    repeated draws, for its unbalanced one.

  Args:
    labels: `[N]` class numbers.
    num_clients: n, from 1 to N.
    seed: the seed that determines the partition.
    alpha: the concentration, above 0.
    redraw_below: the draw is repeated, at most 1,000 times, until every client
      has at least this many examples. 0 takes the first draw.

  Returns:
    One array of example indices per client, possibly empty. Every example
    belongs to exactly one client.

  Raises:
    ValueError: `num_clients` is below 1 or above N, `alpha` is not a positive
      number, `redraw_below` is negative, or no draw gives every client as many.

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
  if redraw_below < 0:
    raise ValueError(f'redraw_below must be at least 0, got {redraw_below}')
  rng = np.random.default_rng(seed)
  for _ in range(_MOST_DRAWS if redraw_below else 1):
    clients = _dirichlet(labels, num_clients, alpha, rng)
    if min(map(len, clients)) >= redraw_below:
      return clients
  raise ValueError(
    f'in {_MOST_DRAWS} draws of alpha={alpha} some of {num_clients} clients '
    f'always had fewer than redraw_below={redraw_below} of {len(labels)} '
    'examples: lower redraw_below or num_clients, or raise alpha'
  )


_MOST_DRAWS = 1000


def _dirichlet(labels, num_clients, alpha, rng):
  """Draws a partition of `dirichlet` once."""
  parts = [[] for _ in range(num_clients)]
  for label in np.unique(labels):
    examples = rng.permutation(np.flatnonzero(labels == label))
    shares = rng.dirichlet(np.full(num_clients, alpha))
    cuts = np.rint(np.cumsum(shares)[:-1] * len(examples)).astype(int)
    # The clients take their shares in a new random order for each class. If all
    # shares are equal, rounding favours the same places in every class: in a
    # fixed order the same clients would gain each time.
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
  """Sorts the examples by class, cuts them into shards, and deals the shards.

  The sizes of two shards differ by at most one example. Each client gets
  `shards_per_client` random shards. A shard that is not larger than the
  smallest class holds at most two classes. The order of the examples within a
  class is random.

  Args:
    labels: `[N]` class numbers.
    num_clients: the number of clients.
    seed: the seed that determines the partition.
    shards_per_client: s. There are `num_clients * s` shards, at most N.

  Returns:
    One array of example indices per client. Every example belongs to exactly
    one client, and the clients' sizes differ by at most s.

  Raises:
    ValueError: a number is below 1, or there are more shards than examples.

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
  # The stable sort keeps the random order within a class.
  order = order[np.argsort(labels[order], kind='stable')]
  pieces = np.array_split(order, count)
  dealt = rng.permutation(count).reshape(num_clients, shards_per_client)
  return [np.concatenate([pieces[i] for i in client]) for client in dealt]


def gamma_similarity(
  labels: np.ndarray,
  num_clients: int,
  *,
  seed: int,
  gamma: float = 0.5,
) -> list[np.ndarray]:
  """Shares a part of the examples out at random, and the rest by class.

  Each client gets an equal share of the random part. The rest is sorted by
  class and cut into as many pieces as there are clients, which get one each.

  Args:
    labels: `[N]` class numbers.
    num_clients: the number of clients.
    seed: the seed that determines the partition.
    gamma: the share of the examples, in [0, 1], that is shared out at random:
      1 is `iid`, 0 is the most skewed.

  Returns:
    One array of example indices per client. Every example belongs to exactly
    one client, and the clients' sizes differ by at most two.

  Raises:
    ValueError: `num_clients` is below 1 or above N, or `gamma` lies outside
      [0, 1].

  Examples:
    >>> labels = np.repeat(np.arange(4), 5)
    >>> clients = gamma_similarity(labels, 4, seed=0, gamma=0.0)
    >>> [labels[client].tolist() for client in clients][:2]
    [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]

  References:
    Karimireddy et al., SCAFFOLD: Stochastic controlled averaging for federated
    learning, ICML 2020, section 7: "s% similarity".
  """
  check_num_clients(num_clients, len(labels))
  if not 0 <= gamma <= 1:
    raise ValueError(f'gamma must lie in [0, 1], got {gamma}')
  order = np.random.default_rng(seed).permutation(len(labels))
  shared, rest = np.split(order, [round(gamma * len(labels))])
  # The stable sort keeps the random order within a class.
  rest = rest[np.argsort(labels[rest], kind='stable')]
  pieces = (np.array_split(part, num_clients) for part in (shared, rest))
  return [np.concatenate(pair) for pair in zip(*pieces, strict=True)]
