"""Tests of data sets that are split over clients."""

import numpy as np
import pytest
from labelled import CLIENTS, HISTOGRAM, LABELS, make_labelled, make_split

from lca.data import Dataset, FederatedDataset, Split, federate, load

SIZES = (3, 5, 1, 4)


@pytest.fixture
def dataset():
  return Dataset('toy', make_split(13), make_split(2), 13, (1.0,), (1.0,))


@pytest.fixture
def federated(dataset):
  order = np.random.default_rng(0).permutation(13)
  return FederatedDataset(dataset, np.split(order, np.cumsum(SIZES)[:-1]))


def test_counts(federated):
  assert federated.num_clients == 4
  assert federated.max_examples == 5
  assert federated.num_examples.dtype == np.int32
  np.testing.assert_array_equal(federated.num_examples, SIZES)


@pytest.mark.quick
def test_gather_returns_each_clients_examples_in_its_order(federated):
  data = federated.gather([0, 1, 2, 3])
  for row, indices in enumerate(federated.client_indices):
    real = slice(len(indices))
    np.testing.assert_array_equal(data.labels[row, real], indices)
    np.testing.assert_array_equal(
      data.inputs[row, real], federated.dataset.train.inputs[indices]
    )


def test_gather_pads_with_zeros_to_the_whole_population(federated):
  data = federated.gather([2, 0])
  assert data.inputs.shape == (2, 5, 2, 3, 1)
  assert data.labels.shape == (2, 5)
  assert data.inputs.dtype == np.uint8
  assert data.labels.dtype == data.num_examples.dtype == np.int32
  np.testing.assert_array_equal(data.num_examples, [1, 3])
  for row, count in enumerate(data.num_examples):
    assert not data.inputs[row, count:].any()
    assert not data.labels[row, count:].any()
    assert data.inputs[row, :count].all()


def test_gather_does_not_depend_on_the_order_or_the_company(federated):
  forth = federated.gather([1, 3])
  back = federated.gather(np.array([3, 1, 3]))
  for a, b in zip(forth, back, strict=True):
    np.testing.assert_array_equal(a, b[[1, 0]])
    np.testing.assert_array_equal(b[0], b[2])


def test_gather_adds_clients_without_examples(federated):
  for ids in ([3, 0], [1], []):
    few = federated.gather(np.array(ids, int))
    more = federated.gather(np.array(ids, int), rows=2)
    for a, b in zip(few, more, strict=True):
      np.testing.assert_array_equal(b[: len(ids)], a)
      assert len(b) == 2 and not b[len(ids) :].any()


def test_gather_reads_a_memory_map(federated, dataset, tmp_path):
  np.save(tmp_path / 'images.npy', dataset.train.inputs)
  mapped = np.load(tmp_path / 'images.npy', mmap_mode='r')
  train = Split(mapped, dataset.train.labels)
  on_disk = FederatedDataset(
    Dataset('toy', train, dataset.test, 13, (1.0,), (1.0,)),
    federated.client_indices,
  )
  expected, got = federated.gather([3, 0]), on_disk.gather([3, 0])
  assert type(got.inputs) is np.ndarray
  np.testing.assert_array_equal(got.inputs, expected.inputs)


@pytest.mark.parametrize('client', [-1, 4])
def test_gather_refuses_unknown_clients(federated, client):
  with pytest.raises(ValueError, match=rf'client {client} is not in \[0, 4\)'):
    federated.gather([0, client])


def test_an_empty_client_is_an_error(dataset):
  with pytest.raises(ValueError, match='client 1 has no examples'):
    FederatedDataset(dataset, [np.array([0]), np.array([], int)])


@pytest.mark.parametrize('index', [-1, 13])
def test_an_index_outside_of_the_split_is_an_error(dataset, index):
  with pytest.raises(ValueError, match=r'client 0 has indices.*13 training'):
    FederatedDataset(dataset, [np.array([0, index])])


def test_no_clients_is_an_error(dataset):
  with pytest.raises(ValueError, match='at least one client'):
    FederatedDataset(dataset, [])


def make_federated(dataset, **changes):
  arguments = {
    'partition': 'iid',
    'num_clients': 4,
    'min_examples': 1,
    'seed': 0,
  }
  return federate(dataset, **(arguments | changes))


def test_federate_shares_out_every_example_once(dataset):
  clients = make_federated(dataset).client_indices
  np.testing.assert_array_equal(np.sort(np.concatenate(clients)), range(13))


def test_federate_is_determined_by_the_seed(dataset):
  first, again, other = (
    make_federated(dataset, seed=seed).client_indices for seed in (0, 0, 1)
  )
  assert all(map(np.array_equal, first, again))
  assert not all(map(np.array_equal, first, other))


def test_min_examples_is_inclusive(dataset):
  # 13 examples are shared out among 4 clients: 4, 3, 3, 3.
  assert make_federated(dataset, min_examples=3).num_clients == 4
  kept = make_federated(dataset, min_examples=4)
  np.testing.assert_array_equal(kept.num_examples, [4])
  with pytest.raises(ValueError, match=r'none of 4.*=5 .*largest has 4'):
    make_federated(dataset, min_examples=5)


def test_min_examples_rules_out_empty_clients(dataset):
  with pytest.raises(ValueError, match='at least 1, got 0: an empty client'):
    make_federated(dataset, min_examples=0)


def test_root_examples_belong_to_no_client(dataset):
  clients = make_federated(dataset, root_examples=4)
  assert len(clients.root_indices) == 4
  everything = np.concatenate([clients.root_indices, *clients.client_indices])
  np.testing.assert_array_equal(np.sort(everything), range(13))


@pytest.mark.parametrize('root_examples', [-1, 13])
def test_root_examples_leave_an_example(dataset, root_examples):
  with pytest.raises(ValueError, match=rf'in \[0, 13\), got {root_examples}'):
    make_federated(dataset, root_examples=root_examples)


def test_examples_for_validation_belong_to_nobody(dataset):
  clients = make_federated(dataset, root_examples=4, validation=0.3)
  held_out = clients.validation_indices
  assert clients.num_validation == len(held_out) == 4  # 3.9 of 13
  assert held_out.tolist() == sorted(held_out)
  everything = [held_out, clients.root_indices, *clients.client_indices]
  np.testing.assert_array_equal(np.sort(np.concatenate(everything)), range(13))
  assert clients.dataset is dataset  # nothing is copied
  assert '9 of 13' not in clients.describe()
  assert '5 of 13 examples, the server 4, 4 are held out' in clients.describe()


def test_the_seed_alone_draws_the_examples_for_validation():
  digits = load('digits')

  def held_out(share=0.1, **changes):
    return make_federated(
      digits, validation=share, **changes
    ).validation_indices.tolist()

  assert held_out() == held_out(partition='one_class', root_examples=50)
  assert held_out() != held_out(seed=1)
  assert len(held_out()) == 144  # 143.7
  assert set(held_out()) < set(held_out(0.2))
  # They are not what the server would be given.
  root = make_federated(digits, root_examples=144).root_indices
  assert len({*held_out()} & {*root.tolist()}) < 72


def test_nothing_is_held_out_by_default(dataset):
  clients = make_federated(dataset)
  assert clients.validation_indices is None and clients.num_validation == 0
  assert 'held out' not in clients.describe()


@pytest.mark.parametrize('share', [-0.1, 1.0, float('nan')])
def test_a_share_for_validation_is_a_share(dataset, share):
  with pytest.raises(ValueError, match=r'validation must lie in \[0, 1\), got'):
    make_federated(dataset, validation=share)


@pytest.mark.parametrize(('share', 'number'), [(0.03, 0), (0.99, 13)])
def test_validation_and_clients_need_an_example(dataset, share, number):
  message = f'validation={share} of 13 training examples is {number}: at least'
  with pytest.raises(ValueError, match=message):
    make_federated(dataset, validation=share)


def test_root_examples_are_drawn_from_what_validation_leaves(dataset):
  with pytest.raises(ValueError, match=r'root_examples .* \[0, 9\), got 9'):
    make_federated(dataset, root_examples=9, validation=0.3)


@pytest.fixture
def owned():
  """Returns a data set in which owner 10 i has the examples i, i + 4, ..."""
  train, test = make_split(13), make_split(2)
  train = Split(train.inputs, train.labels, 10 * (np.arange(13) % 4))
  return Dataset('toy', train, test, 13, (1.0,), (1.0,))


def test_natural_clients_are_the_owners(owned):
  clients = make_federated(owned, partition='natural', num_clients=None)
  for i, indices in enumerate(clients.client_indices):
    np.testing.assert_array_equal(indices, range(i, 13, 4))


def test_natural_clients_have_what_the_server_leaves(owned):
  clients = make_federated(
    owned, partition='natural', num_clients=None, root_examples=5
  )
  everything = np.concatenate([clients.root_indices, *clients.client_indices])
  np.testing.assert_array_equal(np.sort(everything), range(13))
  for indices in clients.client_indices:
    assert len(set(owned.train.owners[indices])) == 1


def test_natural_clients_have_what_validation_leaves(owned):
  clients = make_federated(
    owned, partition='natural', num_clients=None, validation=0.4
  )
  everything = [clients.validation_indices, *clients.client_indices]
  np.testing.assert_array_equal(np.sort(np.concatenate(everything)), range(13))
  for indices in clients.client_indices:
    assert len(set(owned.train.owners[indices])) == 1


def test_natural_clients_without_enough_examples_are_dropped(owned):
  # Owner 0 has 4 examples, and every other owner has 3.
  kept = make_federated(
    owned, partition='natural', num_clients=None, min_examples=4
  )
  np.testing.assert_array_equal(kept.client_indices, [[0, 4, 8, 12]])
  with pytest.raises(ValueError, match='none of 4 clients'):
    make_federated(owned, partition='natural', num_clients=None, min_examples=5)


def test_natural_refuses_a_number_of_clients_and_needs_owners(owned, dataset):
  with pytest.raises(ValueError, match='num_clients must be None, got 4'):
    make_federated(owned, partition='natural')
  with pytest.raises(ValueError, match='training split with owners'):
    make_federated(dataset, partition='natural', num_clients=None)
  with pytest.raises(TypeError, match='needs num_clients'):
    make_federated(owned, num_clients=None)


def test_federate_passes_the_options(dataset):
  clients = make_federated(dataset, examples_per_client=2)
  np.testing.assert_array_equal(clients.num_examples, [2] * 4)
  with pytest.raises(TypeError, match="'iid' takes no alpha"):
    make_federated(dataset, alpha=1.0)
  with pytest.raises(TypeError, match="'dirichlet' needs alpha"):
    make_federated(dataset, partition='dirichlet')


def test_a_partition_sees_the_labels_of_the_rest():
  digits = load('digits')
  clients = make_federated(digits, partition='one_class', root_examples=500)
  assert np.count_nonzero(clients.label_histogram(), axis=1).tolist() == [1] * 4


def test_federate_drops_the_empty_clients_of_a_partition():
  digits = load('digits')
  clients = make_federated(
    digits, partition='dirichlet', num_clients=200, alpha=1e-3
  )
  assert clients.num_clients < 100
  assert clients.num_examples.sum() == len(digits.train)


@pytest.mark.parametrize('dtype', [np.uint8, np.int64, np.uint64])
def test_label_histogram(dtype):
  clients = make_labelled(np.array(LABELS, dtype), CLIENTS)
  assert np.issubdtype(clients.label_histogram().dtype, np.integer)
  np.testing.assert_array_equal(clients.label_histogram(), HISTOGRAM)


def test_the_servers_examples_are_not_in_the_histogram():
  clients = make_labelled(LABELS, [[0, 3]], [1, 4])
  np.testing.assert_array_equal(clients.label_histogram(), [[1, 0, 1]])


def test_describe():
  assert make_labelled(LABELS, CLIENTS[:3]).describe() == (
    '3 clients hold 8 of 8 examples\n'
    'per client 1 to 4 examples (median 3) of 1 to 2 classes (median 2)'
  )
  assert make_labelled(LABELS, CLIENTS[:2], [6, 7]).describe() == (
    '2 clients hold 4 of 8 examples, the server 2\n'
    'per client 1 to 3 examples (median 2) of 1 to 2 classes (median 1.5)'
  )


def test_describe_counts_a_clients_examples_in_full():
  # Python's format 'g' would round the median to 1.23457e+06.
  size = 1_234_567
  clients = make_labelled(np.zeros(size, np.uint8), [range(size)])
  assert '(median 1234567)' in clients.describe()
