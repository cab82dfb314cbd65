"""Tests of data sets from users' arrays: accepted and refused inputs."""

import jax
import numpy as np
import pytest

from lca import data
from lca.data import Dataset, Split, federate, from_arrays
from lca.registry import Registry

LABELS = np.array([0, 2, 1, 2, 0, 1])


def features(*shape, dtype=np.float32):
  return np.random.default_rng(0).normal(size=shape).astype(dtype)


def make(inputs, labels=LABELS, **options):
  return from_arrays((inputs, labels), (inputs[:2], labels[:2]), **options)


def spec(*shape, dtype):
  return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
  ('inputs', 'expected'),
  [
    (features(6, 5), spec(5, dtype='float32')),
    (features(6, 5, dtype=np.float64), spec(5, dtype='float32')),
    (features(6, 4, 3, dtype=np.float16), spec(4, 3, dtype='float16')),
    (np.arange(48).reshape(6, 8), spec(8, dtype='int32')),
    (np.ones((6, 2, 2, 2, 3), np.uint8), spec(2, 2, 2, 3, dtype='uint8')),
    ([[0.5, 1.0]] * 6, spec(2, dtype='float32')),
    ([[3, 1, 4]] * 6, spec(3, dtype='int32')),
    (jax.numpy.ones((6, 3), 'bfloat16'), spec(3, dtype=jax.numpy.bfloat16)),
  ],
)
def test_inputs_of_any_shape_and_type(inputs, expected):
  made = make(inputs)
  assert made.train.input_spec == made.test.input_spec == expected
  np.testing.assert_array_equal(
    made.train.inputs, np.asarray(inputs).astype(expected.dtype)
  )


def test_arrays_that_need_no_conversion_are_not_copied():
  inputs = features(6, 5)
  assert make(inputs).train.inputs is inputs
  np.testing.assert_array_equal(make(inputs).train.labels, LABELS)


def test_with_x64_jax_holds_them_all():
  with jax.enable_x64(True):
    made = make(features(6, 5, dtype=np.float64))
  assert made.train.inputs.dtype == np.float64


def test_labels_and_owners_may_be_lists():
  made = from_arrays(([[1.0]] * 3, [0, 1, 1]), ([[2.0]], [1]), owners=[4, 4, 7])
  np.testing.assert_array_equal(made.train.labels, [0, 1, 1])
  assert made.test.owners is None
  clients = federate(
    made, partition='natural', num_clients=None, min_examples=1, seed=0
  )
  assert [list(rows) for rows in clients.client_indices] == [[0, 1], [2]]


def test_the_number_of_classes_is_found_or_given():
  assert make(features(6, 5)).num_classes == 3
  assert make(features(6, 5), num_classes=10).num_classes == 10
  only_in_test = from_arrays((features(2, 5), [0, 1]), (features(1, 5), [4]))
  assert only_in_test.num_classes == 5
  with pytest.raises(ValueError, match='num_classes must be an integer'):
    make(features(6, 5), num_classes=2.5)
  with pytest.raises(ValueError, match=r'label -1 .* numbered from 0'):
    make(features(6, 5), labels=LABELS - 1)


def test_what_is_normalised():
  images = np.zeros((6, 4, 4, 1), np.uint8)
  assert (make(images).mean, make(images).std) == ((127.5,), (127.5,))
  own = make(images, mean=33.0, std=[78.0])
  assert (own.mean, own.std) == ((33.0,), (78.0,))
  for inputs in (features(6, 5), np.ones((6, 5), np.int32)):
    assert make(inputs).mean is make(inputs).std is None
  table = make(features(6, 5), mean=np.arange(5.0), std=2)
  assert (table.mean, table.std) == ((0.0, 1.0, 2.0, 3.0, 4.0), (2.0,))


def with_a(value, dtype=np.float32):
  inputs = features(6, 5, dtype=dtype)
  inputs[4, 2] = value
  return inputs


@pytest.mark.parametrize(
  ('inputs', 'labels', 'message'),
  [
    (with_a(np.nan), LABELS, 'train: .* finite, but example 4 .*NaN'),
    (with_a(np.inf), LABELS, 'train: .* finite, but example 4 '),
    (with_a(-np.inf, np.float16), LABELS, 'example 4 .*float16'),
    (with_a(1e200, np.float64), LABELS, 'finite, but example 4 '),
    (np.full((6, 2), 2**40), LABELS, '1099511627776 do not fit into int32'),
    (features(6, 5), LABELS * 1.0, r'labels must be integers .*float64'),
    (features(6, 5), LABELS == 1, r'labels .*bool .*labels\.astype\(int\)'),
    (features(6, 5), np.eye(6), r'labels .*\[6, 6\].*labels\.argmax\(1\)'),
    (features(6, 5), list('abcabc'), 'labels must be integers'),
    (features(6, 5), LABELS[:5], '6 inputs but 5 labels'),
    (features(6), LABELS, r'\[6\]; if each example .*inputs\[:, None\]'),
    (np.float32(1), LABELS, 'an array for each example, got float32 '),
    (
      features(0, 5),
      LABELS[:0],
      r'must not be empty, got float32 \[0, 5\]',
    ),
    (features(6, 0), LABELS, r'must not be empty, got float32 \[6, 0\]'),
    (features(6, 5) > 0, LABELS, r'numbers.*bool \[6, 5\].*astype'),
    (features(6, 5) * 1j, LABELS, 'numbers.*complex64'),
    ([['a']] * 6, LABELS, 'numbers'),
    ([[1.0], [1.0, 2.0]] * 3, LABELS, 'train: inputs cannot be converted'),
  ],
)
def test_what_cannot_work(inputs, labels, message):
  with pytest.raises(ValueError, match=message):
    from_arrays((inputs, labels), (features(2, 5), [0, 1]))


def test_the_split_that_is_wrong_is_named():
  good = features(6, 5), LABELS
  with pytest.raises(ValueError, match=r'^test: .* example 4'):
    from_arrays(good, (with_a(np.nan), LABELS))
  with pytest.raises(ValueError, match='label 2 in the train split'):
    from_arrays(good, good, num_classes=2)
  with pytest.raises(ValueError, match=r'train must be a pair .*, got ndarray'):
    from_arrays(features(6, 5), good)


@pytest.mark.parametrize(
  'test', [features(6, 4), features(6, 5, 1), np.ones((6, 5), np.int32)]
)
def test_both_splits_have_the_same_inputs(test):
  with pytest.raises(ValueError, match=r'train inputs are float32 \(5,\), te'):
    from_arrays((features(6, 5), LABELS), (test, LABELS))


def test_mean_and_std_go_together():
  with pytest.raises(ValueError, match='give both or neither, got mean=None'):
    make(features(6, 5), std=2.0)
  with pytest.raises(ValueError, match='std needs 1 or 5 values'):
    make(features(6, 5), mean=1.0, std=[2.0] * 4)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32, np.int32])
def test_a_memory_map_stays_one(dtype, tmp_path, monkeypatch):
  monkeypatch.setattr('lca.data.dataset._RESIDENT_BYTES', 0)
  monkeypatch.setattr('lca.data.dataset._BLOCK_BYTES', 64)
  whole = np.arange(120).reshape(6, 5, 4).astype(dtype)
  np.save(tmp_path / 'inputs.npy', whole)
  mapped = np.load(tmp_path / 'inputs.npy', mmap_mode='r')
  made = make(mapped)
  assert made.train.inputs is mapped
  clients = federate(
    made, partition='iid', num_clients=2, min_examples=1, seed=0
  )
  gathered = clients.gather([1, 0])
  assert type(gathered.inputs) is np.ndarray
  for row, client in enumerate([1, 0]):
    np.testing.assert_array_equal(
      gathered.inputs[row], whole[clients.client_indices[client]]
    )


def test_a_memory_map_of_another_type_is_not_read_whole(tmp_path):
  np.save(tmp_path / 'inputs.npy', features(6, 5, dtype=np.float64))
  mapped = np.load(tmp_path / 'inputs.npy', mmap_mode='r')
  with pytest.raises(ValueError, match=r'float64 .*astype\(np\.float32\)'):
    make(mapped)


def test_a_memory_map_is_checked_to_its_end(tmp_path, monkeypatch):
  monkeypatch.setattr('lca.data.dataset._BLOCK_BYTES', 40)
  np.save(tmp_path / 'inputs.npy', with_a(np.nan))
  mapped = np.load(tmp_path / 'inputs.npy', mmap_mode='r')
  with pytest.raises(ValueError, match='example 4'):
    make(mapped)


@pytest.mark.parametrize(
  'inputs', [features(6, 5), np.arange(60).reshape(6, 10) + 1]
)
def test_clients_of_any_inputs_are_padded_with_zeros(inputs):
  made = make(inputs)
  clients = federate(
    made, partition='one_class', num_clients=3, min_examples=1, seed=0
  )
  uneven = data.FederatedDataset(
    made, [clients.client_indices[0], clients.client_indices[1][:1]]
  )
  gathered = uneven.gather([1, 0], rows=3)
  dtype = made.train.inputs.dtype
  assert gathered.inputs.shape == (3, 2, *inputs.shape[1:])
  assert gathered.inputs.dtype == dtype
  (row,) = clients.client_indices[1][:1]
  np.testing.assert_array_equal(
    gathered.inputs[0, 0], inputs[row].astype(dtype)
  )
  assert not gathered.inputs[0, 1].any() and not gathered.inputs[2].any()
  assert uneven.label_histogram().sum() == 3
  assert uneven.describe().startswith('2 clients hold 3 of 6 examples')


def test_how_a_split_reads():
  images = Split(np.zeros((3, 8, 8, 1), np.uint8), [0, 1, 2])
  assert repr(images) == 'Split(3 examples of 8x8x1)'
  assert repr(make(features(6, 5)).train) == 'Split(6 examples of 5, float32)'


def test_a_source_of_ones_own(monkeypatch):
  def mine(*, width: int = 5, path: str | None = None) -> Dataset:
    return make(features(6, width), name='mine')

  registry = Registry('data set')
  registry.update(data.SOURCES)
  monkeypatch.setattr(data.sources, 'SOURCES', registry)
  registry.register(mine)
  # Configs also hold the options of all other data sets, as None.
  made = data.load('mine', width=3, archive_dir=None, image_size=None)
  assert (made.name, made.train.inputs.shape) == ('mine', (6, 3))
  with pytest.raises(TypeError, match=r"'mine' takes no wdth; did you .*width"):
    data.load('mine', wdth=3)
  with pytest.raises(ValueError, match="'mien'; did you mean 'mine'"):
    data.load('mien')
  registry.register(lambda: (1, 2), name='pair')
  with pytest.raises(TypeError, match=r"'pair' .*from_arrays.* a tuple"):
    data.load('pair')


def test_a_partition_of_ones_own(monkeypatch):
  def halves(labels, num_clients, *, seed, first: int):
    return [list(range(first)), list(range(first, len(labels)))]

  registry = Registry('partition', brought=data.PARTITIONS.brought)
  monkeypatch.setattr(data.partitions, 'PARTITIONS', registry)
  registry.register(halves)
  made = make(features(6, 5))
  options = {'num_clients': 2, 'min_examples': 1, 'seed': 0}
  clients = federate(made, partition='halves', first=2, **options)
  assert [list(i) for i in clients.client_indices] == [[0, 1], [2, 3, 4, 5]]
  with pytest.raises(TypeError, match="partition 'halves' needs first"):
    federate(made, partition='halves', **options)
