"""Arrays on disk: whole, or an error that names the file."""

import json
import re

import numpy as np
import pytest

from lca.data import cache

ARRAYS = {
  'images': np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
  'labels': np.array([3, -1], np.int32),
}


@pytest.fixture
def directory(tmp_path):
  path = tmp_path / 'arrays'
  cache.write(path, ARRAYS, num_classes=5)
  return path


def check_damaged(directory, name):
  path = re.escape(str(directory / name))
  with pytest.raises(ValueError, match=f'{path} is damaged.*delete'):
    cache.read(directory)


def test_round_trip_on_memory_maps(directory):
  arrays, metadata = cache.read(directory)
  assert metadata == {'num_classes': 5}
  assert arrays.keys() == ARRAYS.keys()
  for name, array in arrays.items():
    assert isinstance(array, np.memmap) and not array.flags.writeable
    assert array.dtype == ARRAYS[name].dtype
    np.testing.assert_array_equal(array, ARRAYS[name])


def test_nothing_but_the_cache_is_left(directory):
  assert list(directory.parent.iterdir()) == [directory]


def test_a_failed_write_leaves_nothing(tmp_path):
  with pytest.raises(ValueError, match='allow_pickle'):
    cache.write(tmp_path / 'arrays', ARRAYS | {'x': np.array([object()])})
  assert list(tmp_path.iterdir()) == []


def test_the_first_writer_wins(directory):
  cache.write(directory, {'images': np.zeros(1)}, num_classes=7)
  assert cache.read(directory)[1] == {'num_classes': 5}
  assert list(directory.parent.iterdir()) == [directory]


@pytest.mark.parametrize('size', [0, 9, 151, 153])
def test_an_array_of_another_size(directory, size):
  path = directory / 'images.npy'
  whole = path.read_bytes()
  assert len(whole) == 152
  path.write_bytes((whole + b'x')[:size])
  check_damaged(directory, 'images.npy')


def test_a_missing_array(directory):
  (directory / 'labels.npy').unlink()
  check_damaged(directory, 'labels.npy')


def test_an_array_of_another_shape_or_type(directory):
  np.save(directory / 'images.npy', ARRAYS['images'].reshape(3, 2, 4))
  check_damaged(directory, 'images.npy')
  np.save(directory / 'images.npy', ARRAYS['images'].view(np.int8))
  check_damaged(directory, 'images.npy')


@pytest.mark.parametrize('text', ['', '{"arrays": ', '[]', '{"metadata": {}}'])
def test_a_damaged_index(directory, text):
  (directory / 'index.json').write_text(text)
  check_damaged(directory, 'index.json')


def test_a_missing_index(directory):
  (directory / 'index.json').unlink()
  check_damaged(directory, 'index.json')


def test_the_index_is_plain_json(directory):
  index = json.loads((directory / 'index.json').read_text())
  assert index['arrays']['images']['shape'] == [2, 3, 4]
