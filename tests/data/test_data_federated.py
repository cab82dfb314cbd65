"""What each client holds and what a round draws."""

import sys

import numpy as np
import pytest

from lca.data import (
  Dataset,
  FederatedDataset,
  Split,
  federate,
  load,
  plot_partition,
)

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
  # 13 examples among 4 clients: 4, 3, 3, 3.
  assert make_federated(dataset, min_examples=3).num_clients == 4
  kept = make_federated(dataset, min_examples=4)
  np.testing.assert_array_equal(kept.num_examples, [4])
  with pytest.raises(ValueError, match=r'none of 4.*=5 .*largest has 4'):
    make_federated(dataset, min_examples=5)


def test_min_examples_rules_out_empty_clients(dataset):
  with pytest.raises(ValueError, match='at least 1, got 0: an empty client'):
    make_federated(dataset, min_examples=0)


def test_root_examples_are_nobodys(dataset):
  held = make_federated(dataset, root_examples=4)
  assert len(held.root_indices) == 4
  everything = np.concatenate([held.root_indices, *held.client_indices])
  np.testing.assert_array_equal(np.sort(everything), range(13))


@pytest.mark.parametrize('root_examples', [-1, 13])
def test_root_examples_leave_an_example(dataset, root_examples):
  with pytest.raises(ValueError, match=rf'in \[0, 13\), got {root_examples}'):
    make_federated(dataset, root_examples=root_examples)


@pytest.fixture
def owned():
  """Owner 10 i has the examples whose index is i modulo 4."""
  train, test = make_split(13), make_split(2)
  train = Split(train.inputs, train.labels, 10 * (np.arange(13) % 4))
  return Dataset('toy', train, test, 13, (1.0,), (1.0,))


def test_natural_clients_are_the_owners(owned):
  clients = make_federated(owned, partition='natural', num_clients=None)
  for i, indices in enumerate(clients.client_indices):
    np.testing.assert_array_equal(indices, range(i, 13, 4))


def test_natural_clients_have_what_the_server_leaves(owned):
  held = make_federated(
    owned, partition='natural', num_clients=None, root_examples=5
  )
  everything = np.concatenate([held.root_indices, *held.client_indices])
  np.testing.assert_array_equal(np.sort(everything), range(13))
  for indices in held.client_indices:
    assert len(set(owned.train.owners[indices])) == 1


def test_natural_clients_without_enough_examples_are_dropped(owned):
  # Owner 0 has 4 examples, the others 3.
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
  held = make_federated(dataset, examples_per_client=2)
  np.testing.assert_array_equal(held.num_examples, [2] * 4)
  with pytest.raises(TypeError, match="'iid' takes no alpha"):
    make_federated(dataset, alpha=1.0)
  with pytest.raises(TypeError, match="'dirichlet' needs alpha"):
    make_federated(dataset, partition='dirichlet')


def test_a_partition_sees_the_labels_of_the_rest():
  digits = load('digits')
  held = make_federated(digits, partition='one_class', root_examples=500)
  assert np.count_nonzero(held.label_histogram(), axis=1).tolist() == [1] * 4


def test_federate_drops_the_empty_clients_of_a_partition():
  digits = load('digits')
  held = make_federated(
    digits, partition='dirichlet', num_clients=200, alpha=1e-3
  )
  assert held.num_clients < 100
  assert held.num_examples.sum() == len(digits.train)


def make_labelled(labels, client_indices, root_indices=None):
  """Three classes, of which class 1 may have no example."""
  images = np.zeros([len(labels), 2, 2, 1], np.uint8)
  split = Split(images, np.array(labels))
  toy = Dataset('toy', split, split, 3, (1.0,), (1.0,))
  root = None if root_indices is None else np.array(root_indices)
  return FederatedDataset(toy, list(map(np.array, client_indices)), root)


LABELS = [0, 0, 0, 2, 2, 2, 0, 2]
CLIENTS = [[0, 3, 4], [1], [5, 2, 6, 7], [3, 5]]
HISTOGRAM = [[1, 0, 2], [1, 0, 0], [2, 0, 2], [0, 0, 2]]


@pytest.mark.parametrize('dtype', [np.uint8, np.int64, np.uint64])
def test_label_histogram(dtype):
  held = make_labelled(np.array(LABELS, dtype), CLIENTS)
  assert np.issubdtype(held.label_histogram().dtype, np.integer)
  np.testing.assert_array_equal(held.label_histogram(), HISTOGRAM)


def test_the_servers_examples_are_not_in_the_histogram():
  held = make_labelled(LABELS, [[0, 3]], [1, 4])
  np.testing.assert_array_equal(held.label_histogram(), [[1, 0, 1]])


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
  # A default float format would round the median to 1.23457e+06.
  size = 1_234_567
  held = make_labelled(np.zeros(size, np.uint8), [range(size)])
  assert '(median 1234567)' in held.describe()


@pytest.fixture
def no_pyplot(monkeypatch):
  """Importing pyplot is an error."""
  monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)


@pytest.mark.usefixtures('no_pyplot')
@pytest.mark.parametrize(
  ('suffix', 'start'), [('.png', b'\x89PNG\r\n'), ('.svg', b'<?xml')]
)
@pytest.mark.parametrize('repeats', [1, 26], ids=['4 clients', '104 clients'])
def test_plot_writes_a_file(tmp_path, suffix, start, repeats):
  path = tmp_path / f'clients{suffix}'
  plot_partition(make_labelled(LABELS, CLIENTS * repeats), path)
  assert path.read_bytes().startswith(start)
  assert path.stat().st_size > 1000


def test_plot_stacks_each_clients_classes():
  held = make_labelled(LABELS, CLIENTS)
  figure = plot_partition(held)
  (axes,) = figure.axes
  heights = np.zeros([4, 3])
  tops = np.zeros(4)
  assert len(axes.containers) == 3
  for label, bars in enumerate(axes.containers):
    for bar in bars:
      client = round(bar.get_x() + bar.get_width() / 2)
      assert bar.get_y() == tops[client]
      heights[client, label] = bar.get_height()
      tops[client] += bar.get_height()
  np.testing.assert_array_equal(heights, HISTOGRAM)
  assert axes.get_title(loc='left') == held.describe()
  (legend,) = figure.legends
  names = {text.get_text() for text in legend.get_texts()}
  assert names == {'0', '1', '2'}


def test_plot_draws_many_clients_as_a_heat_map():
  figure = plot_partition(make_labelled(LABELS, CLIENTS * 26))
  image = figure.axes[0].images[0]
  np.testing.assert_array_equal(
    image.get_array(), np.tile(HISTOGRAM, [26, 1]).T
  )
  assert figure.axes[0].get_ylabel() == 'class'


def test_plot_draws_many_classes_as_a_heat_map():
  train = make_split(21)
  many = Dataset('toy', train, make_split(2), 21, (1.0,), (1.0,))
  figure = plot_partition(FederatedDataset(many, [np.arange(21)]))
  np.testing.assert_array_equal(
    figure.axes[0].images[0].get_array(), np.ones([21, 1])
  )


def test_plot_names_the_formats_that_it_knows(tmp_path):
  with pytest.raises(ValueError, match=r'abc.*png'):
    plot_partition(make_labelled(LABELS, CLIENTS), tmp_path / 'clients.abc')
