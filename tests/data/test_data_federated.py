"""What each client holds and what a round draws."""

import numpy as np
import pytest

from lca.data import Dataset, FederatedDataset, Split, federate

SIZES = (3, 5, 1, 4)


def make_split(size):
  """Every example has pixels and a label that tell its index."""
  index = np.arange(size)
  images = np.empty([size, 2, 3, 1], np.uint8)
  images[:] = (index + 1)[:, None, None, None]
  return Split(images, index.astype(np.int32))


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


def test_gather_returns_each_clients_examples_in_its_order(federated):
  data = federated.gather([0, 1, 2, 3])
  for row, indices in enumerate(federated.client_indices):
    real = slice(len(indices))
    np.testing.assert_array_equal(data.labels[row, real], indices)
    np.testing.assert_array_equal(
      data.images[row, real], federated.dataset.train.images[indices]
    )


def test_gather_pads_with_zeros_to_the_whole_population(federated):
  data = federated.gather([2, 0])
  assert data.images.shape == (2, 5, 2, 3, 1)
  assert data.labels.shape == (2, 5)
  assert data.images.dtype == np.uint8
  assert data.labels.dtype == data.num_examples.dtype == np.int32
  np.testing.assert_array_equal(data.num_examples, [1, 3])
  for row, count in enumerate(data.num_examples):
    assert not data.images[row, count:].any()
    assert not data.labels[row, count:].any()
    assert data.images[row, :count].all()


def test_gather_does_not_depend_on_the_order_or_the_company(federated):
  forth = federated.gather([1, 3])
  back = federated.gather(np.array([3, 1, 3]))
  for a, b in zip(forth, back, strict=True):
    np.testing.assert_array_equal(a, b[[1, 0]])
    np.testing.assert_array_equal(b[0], b[2])


def test_gather_reads_a_memory_map(federated, dataset, tmp_path):
  np.save(tmp_path / 'images.npy', dataset.train.images)
  mapped = np.load(tmp_path / 'images.npy', mmap_mode='r')
  train = Split(mapped, dataset.train.labels)
  on_disk = FederatedDataset(
    Dataset('toy', train, dataset.test, 13, (1.0,), (1.0,)),
    federated.client_indices,
  )
  expected, got = federated.gather([3, 0]), on_disk.gather([3, 0])
  assert type(got.images) is np.ndarray
  np.testing.assert_array_equal(got.images, expected.images)


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
  # 13 examples among 4 clients: 4, 3, 3, 3.
  assert make_federated(dataset, min_examples=3).num_clients == 4
  kept = make_federated(dataset, min_examples=4)
  np.testing.assert_array_equal(kept.num_examples, [4])
  with pytest.raises(ValueError, match=r'none of 4.*=5 .*largest has 4'):
    make_federated(dataset, min_examples=5)


def test_min_examples_rules_out_empty_clients(dataset):
  with pytest.raises(ValueError, match='at least 1, got 0: an empty client'):
    make_federated(dataset, min_examples=0)
