"""Tests of the partitions."""

import functools
import itertools

import numpy as np
import pytest

from lca.data import partitions

LABELS = np.arange(103) % 10
# Ten classes of 60 examples each, in random order.
SHUFFLED = np.random.default_rng(7).permutation(np.repeat(np.arange(10), 60))
# Classes of unequal sizes, whose numbers have gaps.
UNEVEN = np.random.default_rng(8).permutation(
  np.repeat([0, 2, 3, 11], [40, 90, 170, 97])
)

# All partitions by class or at random, with options for both sets of labels.
OPTIONS = [
  ('iid', {}),
  ('iid', {'examples_per_client': 9}),
  ('one_class', {}),
  ('one_class', {'examples_per_client': 9}),
  ('labels_per_client', {}),
  ('labels_per_client', {'labels_per_client': 3, 'examples_per_client': 10}),
  ('dirichlet', {'alpha': 0.3}),
  ('shards', {}),
  ('shards', {'shards_per_client': 3}),
  ('gamma_similarity', {}),
  ('gamma_similarity', {'gamma': 0.1}),
]
COMPLETE = [case for case in OPTIONS if 'examples_per_client' not in case[1]]


def counts(labels, clients):
  """Counts the examples of each class for each client.

  Returns:
    `[num_clients, num_classes]` integers.
  """
  return np.array(
    [
      [np.sum(labels[c] == label) for label in np.unique(labels)]
      for c in clients
    ]
  )


def num_classes(labels, clients):
  return [len(set(labels[client])) for client in clients]


@pytest.mark.parametrize('labels', [SHUFFLED, UNEVEN], ids=['even', 'uneven'])
@pytest.mark.parametrize('num_clients', [7, 12])
@pytest.mark.parametrize(('name', 'options'), OPTIONS)
def test_no_example_is_given_twice(name, options, num_clients, labels):
  clients = partitions.make(name, labels, num_clients, seed=3, **options)
  assert len(clients) == num_clients
  given = np.concatenate(clients)
  assert np.issubdtype(given.dtype, np.integer)
  assert len(np.unique(given)) == len(given)
  assert given.min() >= 0 and given.max() < len(labels)


@pytest.mark.parametrize('labels', [SHUFFLED, UNEVEN], ids=['even', 'uneven'])
@pytest.mark.parametrize('num_clients', [10, 37])
@pytest.mark.parametrize(('name', 'options'), COMPLETE)
def test_every_example_is_given(name, options, num_clients, labels):
  clients = partitions.make(name, labels, num_clients, seed=3, **options)
  np.testing.assert_array_equal(
    np.sort(np.concatenate(clients)), np.arange(len(labels))
  )


@pytest.mark.parametrize(('name', 'options'), OPTIONS)
def test_the_seed_alone_determines_the_partition(name, options):
  first = partitions.make(name, SHUFFLED, 12, seed=3, **options)
  np.random.seed(0)  # noqa: NPY002 (the global state must not matter)
  again = partitions.make(name, SHUFFLED, 12, seed=3, **options)
  other = partitions.make(name, SHUFFLED, 12, seed=4, **options)
  assert all(map(np.array_equal, first, again))
  assert not all(map(np.array_equal, first, other))


@pytest.mark.parametrize(('name', 'options'), OPTIONS)
@pytest.mark.parametrize('dtype', [np.uint8, np.int64, np.uint64])
def test_the_type_of_the_labels_does_not_matter(name, options, dtype):
  got = partitions.make(name, UNEVEN.astype(dtype), 12, seed=3, **options)
  expected = partitions.make(name, UNEVEN, 12, seed=3, **options)
  assert all(map(np.array_equal, got, expected))


# The partitions of 12 examples over 3 clients, as recorded when they were first
# published. If a partition drew other random numbers, every published seed
# would give other clients.
RECORDED = [
  ('iid', {}, [[9, 2, 7, 4], [5, 11, 0, 3], [6, 10, 8, 1]]),
  ('one_class', {}, [[2, 8, 11, 5], [9, 6, 3, 0], [4, 10, 1, 7]]),
  ('labels_per_client', {}, [[3, 6, 2, 8], [1, 7, 5, 11], [0, 9, 10, 4]]),
  (
    'dirichlet',
    {'alpha': 1.0},
    [[10], [1, 11], [6, 0, 3, 9, 7, 4, 8, 5, 2]],
  ),
  ('shards', {}, [[7, 4, 3, 6], [10, 1, 11, 8], [9, 0, 2, 5]]),
]


@pytest.mark.quick
@pytest.mark.parametrize(('name', 'options', 'expected'), RECORDED)
def test_a_seed_means_the_same_partition_everywhere(name, options, expected):
  clients = partitions.make(name, np.arange(12) % 3, 3, seed=0, **options)
  assert [client.tolist() for client in clients] == expected


@pytest.mark.parametrize(('name', 'options'), OPTIONS)
@pytest.mark.parametrize('num_clients', [0, -1, 398])
def test_an_impossible_number_of_clients(name, options, num_clients):
  with pytest.raises(ValueError, match=f'the 397 examples, got {num_clients}$'):
    partitions.make(name, UNEVEN, num_clients, seed=0, **options)


# Independent and identically distributed.


@pytest.mark.parametrize('num_clients', [1, 7, 100, 103])
def test_iid_uses_every_example_once_and_evenly(num_clients):
  clients = partitions.iid(LABELS, num_clients, seed=3)
  sizes = [len(client) for client in clients]
  assert len(clients) == num_clients
  assert max(sizes) - min(sizes) <= 1
  np.testing.assert_array_equal(
    np.sort(np.concatenate(clients)), np.arange(len(LABELS))
  )


def test_iid_does_not_look_at_the_labels():
  first = partitions.iid(LABELS, 7, seed=3)
  again = partitions.iid(LABELS[::-1], 7, seed=3)
  assert all(map(np.array_equal, first, again))


@pytest.mark.parametrize('examples_per_client', [None, 1000])
def test_iid_mixes_the_classes(examples_per_client):
  labels = np.repeat(np.arange(10), 1000)
  clients = partitions.iid(
    labels, 10, seed=0, examples_per_client=examples_per_client
  )
  # 100 of each class are expected, with a deviation of 9.
  assert counts(labels, clients).min() > 50
  assert counts(labels, clients).max() < 150


@pytest.mark.parametrize('examples_per_client', [1, 10, 14])
def test_iid_gives_each_client_that_many(examples_per_client):
  clients = partitions.iid(
    LABELS, 7, seed=3, examples_per_client=examples_per_client
  )
  assert [len(client) for client in clients] == [examples_per_client] * 7


def test_iid_needs_enough_examples():
  message = '7 clients of examples_per_client=15 need 105 .* there are 103'
  with pytest.raises(ValueError, match=message):
    partitions.iid(LABELS, 7, seed=3, examples_per_client=15)
  with pytest.raises(ValueError, match='at least 1, got 0'):
    partitions.iid(LABELS, 7, seed=3, examples_per_client=0)


# One class, or a few.


def test_one_class_as_in_legato():
  labels = np.repeat(np.arange(10), 3000)
  clients = partitions.one_class(labels, 25, seed=0, examples_per_client=1000)
  assert [len(client) for client in clients] == [1000] * 25
  assert num_classes(labels, clients) == [1] * 25
  classes = [labels[client[0]] for client in clients]
  assert sorted(classes[:10]) == list(range(10))
  assert classes[:10] != list(range(10))
  assert classes[10:] == classes[:10] + classes[:5]


def test_one_class_shares_all_of_a_class_evenly():
  clients = partitions.one_class(UNEVEN, 6, seed=1)
  classes = [UNEVEN[client[0]] for client in clients]
  sizes = {0: [40], 2: [90], 3: [170], 11: [97]}
  for label in classes[:2]:  # 6 clients: two of the 4 classes have 2 clients
    (size,) = sizes[label]
    sizes[label] = [size - size // 2, size // 2]
  for label, client in zip(classes, clients, strict=True):
    assert len(client) == sizes[label].pop(0)
  assert not any(sizes.values())


def test_one_class_leaves_out_classes_that_nobody_holds():
  clients = partitions.one_class(SHUFFLED, 3, seed=0)
  assert [len(client) for client in clients] == [60] * 3
  assert len({SHUFFLED[client[0]] for client in clients}) == 3


def test_one_class_draws_examples_at_random():
  labels = np.zeros(1000, int)
  first, second = partitions.one_class(labels, 2, seed=0)
  # Of 500 examples drawn from 1000, 250 are expected in the first half, with a
  # standard deviation of 8.
  assert 200 < np.sum(first < 500) < 300
  assert 200 < np.sum(second < 500) < 300


@pytest.mark.parametrize(
  ('num_clients', 'examples_per_client', 'needed'), [(9, 2, 6), (15, None, 5)]
)
def test_a_class_with_too_few_examples(
  num_clients, examples_per_client, needed
):
  labels = np.repeat([0, 1, 7], [20, 20, 4])
  holders = num_clients // 3
  message = f'class 7 has 4 .* its {holders} clients need {needed}$'
  with pytest.raises(ValueError, match=message):
    partitions.one_class(
      labels, num_clients, seed=0, examples_per_client=examples_per_client
    )


@pytest.mark.parametrize('num_clients', [5, 12, 40])
@pytest.mark.parametrize('k', [1, 2, 3, 7, 10])
def test_labels_per_client_are_exactly_k(num_clients, k):
  clients = partitions.labels_per_client(
    SHUFFLED, num_clients, seed=2, labels_per_client=k
  )
  assert num_classes(SHUFFLED, clients) == [k] * num_clients
  table = counts(SHUFFLED, clients)
  holders = np.count_nonzero(table, axis=0)
  assert holders.sum() == num_clients * k
  assert holders.max() - holders.min() <= 1
  for column, clients_of_class in zip(table.T, holders, strict=True):
    if clients_of_class:
      sizes = column[column > 0]
      assert sizes.sum() == 60
      assert sizes.max() - sizes.min() <= 1


def test_labels_per_client_combines_the_classes_freely():
  clients = partitions.labels_per_client(SHUFFLED, 45, seed=0)
  pairs = {tuple(np.unique(SHUFFLED[client])) for client in clients}
  assert pairs <= set(itertools.combinations(range(10), 2))
  # A fixed cycle of the classes would make 5 different pairs only. 45 random
  # draws from the 45 pairs give 45 (1 - 1/e) = 28 different ones on average.
  assert len(pairs) > 20


def test_labels_per_client_splits_the_examples_of_a_client():
  clients = partitions.labels_per_client(
    SHUFFLED, 12, seed=0, labels_per_client=3, examples_per_client=11
  )
  for row in counts(SHUFFLED, clients):
    assert sorted(row[row > 0]) == [3, 4, 4]


def test_labels_per_client_names_the_class_that_is_too_small():
  labels = np.repeat([0, 1, 7], [20, 20, 4])
  with pytest.raises(ValueError, match=r'class 7 has 4 .* 2 clients need 6$'):
    partitions.labels_per_client(labels, 3, seed=0, examples_per_client=6)


@pytest.mark.parametrize('k', [0, 5])
def test_labels_per_client_names_an_impossible_k(k):
  with pytest.raises(ValueError, match=f'from 1 to the 4 classes, got {k}'):
    partitions.labels_per_client(UNEVEN, 7, seed=0, labels_per_client=k)


def test_every_class_of_a_client_needs_an_example():
  with pytest.raises(ValueError, match=r'at least 3, one of each .* got 2'):
    partitions.labels_per_client(
      UNEVEN, 7, seed=0, labels_per_client=3, examples_per_client=2
    )
  with pytest.raises(ValueError, match=r'at least 1, one of each .* got 0'):
    partitions.one_class(UNEVEN, 7, seed=0, examples_per_client=0)


# Dirichlet.


CLASSES, PER_CLASS = 100, 2000


def dirichlet_shares(num_clients, alpha):
  """Returns `[num_classes, num_clients]` shares of the classes."""
  labels = np.arange(CLASSES * PER_CLASS) % CLASSES
  clients = partitions.dirichlet(labels, num_clients, seed=5, alpha=alpha)
  table = [np.bincount(labels[c], minlength=CLASSES) for c in clients]
  return np.array(table).T / PER_CLASS


def rising(x, power):
  return np.prod(x + np.arange(power))


DIRICHLETS = [(5, 0.5), (20, 10.0), (100, 0.1), (3, 1e-3), (1, 0.5)]


@pytest.mark.parametrize(('num_clients', 'alpha'), DIRICHLETS)
def test_dirichlet_has_the_mean_of_its_distribution(num_clients, alpha):
  n = num_clients
  mean = dirichlet_shares(n, alpha).mean(axis=0)
  # The mean over independent classes has the variance of a share divided by
  # their number. Rounding to whole examples moves each end of a share by at
  # most half an example.
  variance = (n - 1) / (n**2 * (n * alpha + 1))
  tolerance = 5 * np.sqrt(variance / CLASSES) + 1 / PER_CLASS
  np.testing.assert_allclose(mean, 1 / n, rtol=0, atol=tolerance)


@pytest.mark.parametrize(('num_clients', 'alpha'), DIRICHLETS)
def test_dirichlet_has_the_variance_of_its_distribution(num_clients, alpha):
  n = num_clients
  squares = (dirichlet_shares(n, alpha) ** 2).sum(axis=1)
  # The moments of the sum over clients of p_j^2 follow from
  # E prod p_j^a_j = prod rising(alpha, a_j) / rising(n alpha, sum a_j).
  mean = n * rising(alpha, 2) / rising(n * alpha, 2)
  second = n * rising(alpha, 4) + n * (n - 1) * rising(alpha, 2) ** 2
  variance = second / rising(n * alpha, 4) - mean**2
  # Rounding moves a share by at most d = 1 / PER_CLASS, and its square by at
  # most 2 p d + d^2.
  rounding = 2 / PER_CLASS + n / PER_CLASS**2
  # At n = 1 the variance is 0, up to the rounding of float64.
  tolerance = 4 * np.sqrt(max(variance, 0) / CLASSES) + rounding
  assert abs(squares.mean() - mean) < tolerance


def test_dirichlet_draws_each_class_anew_and_sizes_differ():
  shares = dirichlet_shares(20, 0.5)
  # Over 20 clients, the correlation of two independent classes has a standard
  # deviation of 1 / sqrt(19), and the mean over 4950 pairs one of 0.003.
  correlations = np.corrcoef(shares)[np.triu_indices(CLASSES, 1)]
  assert abs(correlations.mean()) < 0.02
  assert np.ptp(shares.sum(axis=0)) > 1  # more than a whole class


def test_dirichlet_spreads_what_rounding_leaves_over():
  # An equal share of the 6 examples of a class is 0.6 for each of 10 clients.
  # If the order of the clients were fixed, the same 4 of them would get nothing
  # of all 100 classes.
  labels = np.arange(600) % 100
  clients = partitions.dirichlet(labels, 10, seed=0, alpha=1e9)
  sizes = [len(client) for client in clients]
  # 60 are expected, with a standard deviation of sqrt(100 * 0.6 * 0.4) = 5.
  assert min(sizes) > 40 and max(sizes) < 80


def test_dirichlet_may_leave_a_client_empty():
  clients = partitions.dirichlet(UNEVEN, 50, seed=0, alpha=1e-3)
  sizes = [len(client) for client in clients]
  # Each of the four classes belongs almost entirely to one client.
  assert len(clients) == 50 and sizes.count(0) >= 40


def test_dirichlet_is_drawn_again_until_every_client_has_enough():
  draw = functools.partial(partitions.dirichlet, UNEVEN, 8, seed=0, alpha=0.4)
  smallest = min(map(len, draw()))
  assert min(map(len, draw(redraw_below=smallest + 5))) >= smallest + 5
  same = draw(redraw_below=smallest)
  assert all(map(np.array_equal, draw(), same))
  with pytest.raises(ValueError, match=r'always had fewer than redraw_below=9'):
    draw(redraw_below=90_000)
  with pytest.raises(ValueError, match='at least 0, got -1'):
    draw(redraw_below=-1)


@pytest.mark.parametrize('alpha', [0.0, -1.0, np.inf, np.nan])
def test_dirichlet_names_an_impossible_alpha(alpha):
  with pytest.raises(ValueError, match=f'alpha must be positive .* {alpha}$'):
    partitions.dirichlet(UNEVEN, 5, seed=0, alpha=alpha)


# Shards.


@pytest.mark.parametrize('s', [1, 2, 5])
def test_shards_of_whole_classes(s):
  # A shard has 600 / (20 s) examples, which divides the 60 examples of a class.
  # Every shard therefore has a single class.
  clients = partitions.shards(SHUFFLED, 20, seed=0, shards_per_client=s)
  assert [len(client) for client in clients] == [30] * 20
  table = counts(SHUFFLED, clients)
  assert np.count_nonzero(table, axis=1).max() <= s
  assert not (table % (30 // s)).any()


@pytest.mark.parametrize('s', [1, 2, 3])
def test_shards_are_runs_of_the_sorted_labels(s):
  labels = np.random.default_rng(9).permutation(397)
  runs = [set(run) for run in np.array_split(np.arange(397), 11 * s)]
  for client in partitions.shards(labels, 11, seed=0, shards_per_client=s):
    client_labels = set(labels[client])
    dealt = [run for run in runs if run <= client_labels]
    assert len(dealt) == s and set().union(*dealt) == client_labels


@pytest.mark.parametrize('s', [1, 2, 3])
def test_shards_below_a_class_span_two_at_most(s):
  # A shard has at most 37 examples (397 / 11), and the smallest class has 40.
  clients = partitions.shards(UNEVEN, 11, seed=0, shards_per_client=s)
  assert max(num_classes(UNEVEN, clients)) <= 2 * s


def test_shards_are_dealt_at_random():
  clients = partitions.shards(SHUFFLED, 20, seed=0)
  pairs = {tuple(np.unique(SHUFFLED[client])) for client in clients}
  # If clients got neighbouring shards, all of their classes would be adjacent.
  assert any(len(pair) == 2 and pair[1] - pair[0] > 1 for pair in pairs)


@pytest.mark.parametrize('gamma', [0.0, 0.3, 1.0])
def test_gamma_is_the_share_without_regard_to_classes(gamma):
  """Without it a client has one class of SHUFFLED, of 60 examples each."""
  clients = partitions.gamma_similarity(SHUFFLED, 10, seed=0, gamma=gamma)
  sizes = [len(client) for client in clients]
  assert max(sizes) - min(sizes) <= 2
  own = [
    np.bincount(SHUFFLED[client], minlength=10)[i]
    for i, client in enumerate(clients)
  ]
  # A share gamma is uniform over ten classes; the cuts of the rest are about
  # where the classes end, which the random part moves by some examples.
  np.testing.assert_allclose(
    np.mean(own) / 60, 1 - gamma + gamma / 10, atol=0.06
  )
  with pytest.raises(ValueError, match=r'gamma must lie in \[0, 1\], got 1.5'):
    partitions.gamma_similarity(SHUFFLED, 10, seed=0, gamma=1.5)


def test_shards_need_an_example_each():
  with pytest.raises(ValueError, match=r'shards_per_client=40 need 400 .* 397'):
    partitions.shards(UNEVEN, 10, seed=0, shards_per_client=40)
  with pytest.raises(ValueError, match=r'shards_per_client must .* got 0'):
    partitions.shards(UNEVEN, 10, seed=0, shards_per_client=0)


# Natural.


def test_natural_makes_a_client_of_each_owner():
  owners = np.array([5, -2, 5, 9, -2, 5])
  clients = partitions.natural(owners)
  assert [list(client) for client in clients] == [[1, 4], [0, 2, 5], [3]]
  (alone,) = partitions.natural(np.array([4, 4]))
  np.testing.assert_array_equal(alone, [0, 1])


# By name.


def test_make_dispatches_by_name():
  made = partitions.make('iid', LABELS, 7, seed=3)
  assert all(map(np.array_equal, made, partitions.iid(LABELS, 7, seed=3)))
  with pytest.raises(
    ValueError,
    match=r"unknown partition 'idd'; did you mean 'iid'\? there are: diri",
  ):
    partitions.make('idd', LABELS, 7, seed=3)


def test_make_passes_the_options():
  made = partitions.make('shards', LABELS, 7, seed=3, shards_per_client=4)
  expected = partitions.shards(LABELS, 7, seed=3, shards_per_client=4)
  assert all(map(np.array_equal, made, expected))


def test_make_takes_owners_for_natural_alone():
  owners = np.arange(103) // 10
  made = partitions.make('natural', LABELS, None, seed=3, owners=owners)
  np.testing.assert_array_equal(made[3], range(30, 40))
  # Other partitions ignore the owners of a data set.
  made = partitions.make('iid', LABELS, 7, seed=3, owners=owners)
  assert all(map(np.array_equal, made, partitions.iid(LABELS, 7, seed=3)))


@pytest.mark.parametrize(
  ('name', 'num_clients', 'options', 'error', 'message'),
  [
    ('iid', 7, {'alpha': 1.0}, TypeError, "'iid' takes no alpha"),
    ('natural', None, {'alpha': 1.0}, TypeError, "'natural' takes no alpha"),
    ('dirichlet', 7, {}, TypeError, "'dirichlet' needs alpha"),
    ('dirichlet', 7, {'alpha': None}, TypeError, "'dirichlet' needs alpha"),
    ('shards', None, {}, TypeError, "'shards' needs num_clients"),
    ('natural', 7, {}, ValueError, 'must be None, got 7'),
    ('natural', None, {}, ValueError, "'natural' needs .* with owners"),
  ],
)
def test_make_refuses(name, num_clients, options, error, message):
  with pytest.raises(error, match=message):
    partitions.make(name, LABELS, num_clients, seed=3, **options)
