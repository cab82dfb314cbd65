"""Tests of the checks of splits and data sets."""

import numpy as np
import pytest

from lca.data import Dataset, Split


def split(labels, channels=1, owners=None):
  images = np.zeros([len(labels), 4, 4, channels], np.uint8)
  return Split(images, np.array(labels, np.int32), owners)


def dataset(train=(0, 1, 2), test=(2, 0), channels=1, **changes):
  values = {'num_classes': 3, 'mean': (8.0,), 'std': (8.0,)} | changes
  return Dataset('toy', split(train, channels), split(test, channels), **values)


@pytest.mark.parametrize(
  ('images', 'labels', 'message'),
  [
    (np.zeros([2, 4, 4, 1]), np.zeros(2, int), 'uint8.*float64'),
    (np.full([2, 4, 4, 1], np.nan, np.float32), np.zeros(2, int), 'float32'),
    (np.zeros([2, 4, 4], bool), np.zeros(2, int), r'bool \[2, 4, 4\]'),
    (np.zeros(2, np.uint8), np.zeros(2, int), r'uint8 \[2\]'),
    (np.uint8(2), np.zeros(2, int), r'uint8 \[\]'),
    (np.zeros([2, 4, 4, 1], np.uint8), np.zeros(2), 'integers.*float64'),
    (np.zeros([2, 4, 4, 1], np.uint8), np.zeros([2, 1], int), r'\[2, 1\]'),
    (np.zeros([2, 4, 4, 1], np.uint8), np.zeros(3, int), '2 images but 3'),
    (np.zeros([0, 4, 4, 1], np.uint8), np.zeros(0, int), 'not be empty'),
  ],
)
def test_split_refuses(images, labels, message):
  with pytest.raises(ValueError, match=message):
    Split(images, labels)


@pytest.mark.parametrize(
  ('owners', 'message'),
  [
    (np.zeros(2), 'owners must be integers.*float64'),
    (np.zeros([2, 1], int), r'owners must be .*\[2, 1\]'),
    (np.zeros(3, int), '2 images but 3 owners'),
    (np.zeros(1, int), '2 images but 1 owners'),
  ],
)
def test_split_refuses_owners(owners, message):
  with pytest.raises(ValueError, match=message):
    split([0, 1], owners=owners)


def test_a_split_may_have_owners():
  assert split([0, 1]).owners is None
  owners = np.array([7, -1], np.int16)
  assert split([0, 1], owners=owners).owners is owners


@pytest.mark.parametrize('mode', ['r', 'r+', 'c'])
@pytest.mark.parametrize('resident', [0, 10**9])
def test_read_copies_rows(mode, resident, tmp_path, monkeypatch):
  monkeypatch.setattr('lca.data.dataset._RESIDENT_BYTES', resident)
  whole = np.random.default_rng(0).integers(0, 256, [50, 40, 40, 3], np.uint8)
  np.save(tmp_path / 'images.npy', whole)
  images = np.load(tmp_path / 'images.npy', mmap_mode=mode)
  if mode != 'r':
    images[7] = whole[7] = 1
  for mapped, start in ((images, 0), (images[5:], 5)):
    labels = np.zeros(50 - start, int)
    on_disk = Split(mapped, labels)
    for rows in (np.array([2, 7, 7, 44]), np.array([1])):
      copy = on_disk.read(rows)
      assert type(copy) is np.ndarray
      assert not np.shares_memory(copy, images)
      np.testing.assert_array_equal(copy, whole[start:][rows])
  np.testing.assert_array_equal(images, whole)


def test_a_dataset_keeps_what_it_was_given():
  toy = dataset()
  assert (len(toy.train), len(toy.test), toy.num_classes) == (3, 2, 3)
  assert (toy.mean, toy.std) == ((8.0,), (8.0,))


@pytest.mark.parametrize(
  ('labels', 'message'),
  [
    ({'train': (0, 3)}, r'label 3 in the train split.*\[0, 3\)'),
    ({'train': (0, -1)}, 'label -1 in the train split'),
    ({'test': (5,)}, 'label 5 in the test split'),
  ],
)
def test_labels_lie_in_range(labels, message):
  with pytest.raises(ValueError, match=message):
    dataset(**labels)


def test_splits_share_one_image_shape():
  with pytest.raises(ValueError, match=r'\(4, 4, 1\).*\(4, 4, 3\)'):
    Dataset('toy', split([0]), split([0], 3), 1, (8.0,), (8.0,))


def test_mean_and_std_fit_the_channels():
  dataset(channels=3, mean=(1.0, 2.0, 3.0))
  with pytest.raises(ValueError, match='mean needs 1 or 3 values'):
    dataset(channels=3, mean=(1.0, 2.0))
  with pytest.raises(ValueError, match='std must be positive'):
    dataset(std=(0.0,))
