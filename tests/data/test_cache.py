"""Tests of the cache: complete arrays, or an error that names the file."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lca.data import cache

ARRAYS = {
  'images': np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
  'labels': np.array([3, -1], np.int32),
}


def write(path, arrays, **metadata):
  with cache.writing(path, **metadata) as draft:
    for name, array in arrays.items():
      draft.array(name, array.shape, array.dtype).append(array)


@pytest.fixture
def directory(tmp_path):
  path = tmp_path / 'arrays'
  write(path, ARRAYS, num_classes=5)
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
  with pytest.raises(ValueError, match='would hold objects'):
    write(tmp_path / 'arrays', ARRAYS | {'x': np.array([object()])})
  assert list(tmp_path.iterdir()) == []


def test_the_first_writer_wins(directory):
  write(directory, {'images': np.zeros(1)}, num_classes=7)
  assert cache.read(directory)[1] == {'num_classes': 5}
  assert list(directory.parent.iterdir()) == [directory]


@pytest.mark.parametrize('size', [0, 9, 151, 153])
def test_an_array_of_another_size(directory, size):
  path = directory / 'images.npy'
  whole = path.read_bytes()
  assert len(whole) == 152
  path.write_bytes((whole + b'x')[:size])
  check_damaged(directory, 'images.npy')


class Calls:
  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def test_a_pickle_in_place_of_an_array_is_not_read(directory):
  path, target = directory / 'labels.npy', directory / 'made'
  evil = np.array([Calls(os.mkdir, str(target))], object)
  np.save(path, evil, allow_pickle=True)
  index = json.loads((directory / 'index.json').read_text())
  index['arrays']['labels'] |= {'bytes': path.stat().st_size, 'shape': [1]}
  index['arrays']['labels']['dtype'] = 'object'
  (directory / 'index.json').write_text(json.dumps(index))
  check_damaged(directory, 'labels.npy')
  assert not target.exists()
  # NumPy would have run the code in the same file if told to trust it.
  np.load(path, allow_pickle=True)
  assert target.exists()


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


@pytest.mark.parametrize('sizes', [(1, 4, 2), (7,), (0, 7, 0), (1,) * 7])
def test_rows_arrive_in_batches(sizes, tmp_path):
  rows = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
  with cache.writing(tmp_path / 'arrays') as draft:
    images = draft.array('images', rows.shape, np.uint8)
    labels = draft.array('labels', [7], np.int32)
    for batch in np.split(rows, np.cumsum(sizes)[:-1]):
      # Fortran order: the rows are not contiguous in memory.
      images.append(np.asfortranarray(batch))
      labels.append(batch[:, 0, 0].astype(np.int32))
  arrays, _ = cache.read(tmp_path / 'arrays')
  np.testing.assert_array_equal(arrays['images'], rows)
  np.testing.assert_array_equal(arrays['labels'], rows[:, 0, 0])


@pytest.mark.parametrize('count', [0, 1, 3])
def test_missing_and_surplus_rows(count, tmp_path):
  message = rf'{count} rows were appended to an array of \[2, 4\]'
  with pytest.raises(ValueError, match=message):
    with cache.writing(tmp_path / 'arrays') as draft:
      draft.array('x', [2, 4], np.uint8).append(np.zeros([count, 4], np.uint8))
  assert list(tmp_path.iterdir()) == []


def test_rows_of_another_type_or_shape(tmp_path):
  for rows in (np.zeros([1, 4]), np.zeros([1, 3], np.uint8)):
    with pytest.raises(ValueError, match='rows of'):
      with cache.writing(tmp_path / 'arrays') as draft:
        draft.array('x', [1, 4], np.uint8).append(rows)
  assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    with cache.writing(tmp_path / 'arrays') as draft:
      draft.array('x', [1], np.uint8).append(np.zeros(1, np.uint8))
      raise KeyboardInterrupt
  assert list(tmp_path.iterdir()) == []


# Drafts of killed processes.


@pytest.fixture
def writer(tmp_path):
  """Starts a process that waits while it writes `tmp_path / 'other'`."""
  program = f"""
import pathlib
import sys
import numpy as np
from lca.data import cache
with cache.writing(pathlib.Path({str(tmp_path)!r}, 'other')) as draft:
  rows = draft.array('x', [1], np.uint8)
  print('writing', flush=True)
  sys.stdin.readline()
  rows.append(np.ones(1, np.uint8))
"""
  with subprocess.Popen(
    [sys.executable, '-c', program],
    cwd=Path(__file__).parents[2],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == 'writing\n'
    yield process
    process.kill()


def test_a_killed_processs_draft_is_deleted_by_the_next(writer, tmp_path):
  writer.send_signal(signal.SIGKILL)
  writer.wait()
  (left,) = tmp_path.iterdir()
  assert left.name.startswith('other.incomplete.')
  write(tmp_path / 'arrays', ARRAYS)
  assert list(tmp_path.iterdir()) == [tmp_path / 'arrays']


def test_the_draft_of_a_process_at_work_stays(writer, tmp_path):
  (draft,) = tmp_path.iterdir()
  for name in ('arrays', 'again'):
    write(tmp_path / name, ARRAYS)
  assert draft.is_dir()
  writer.communicate('\n')
  assert writer.returncode == 0
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'again',
    'arrays',
    'other',
  ]
  assert cache.read(tmp_path / 'other')[0]['x'] == [1]


def test_without_locks_nothing_is_deleted(tmp_path, monkeypatch):
  def refuse(*args):
    raise OSError('no locks here')

  monkeypatch.setattr('fcntl.flock', refuse)
  draft = tmp_path / 'arrays.incomplete.0123'
  draft.mkdir()
  write(tmp_path / 'arrays', ARRAYS)
  assert draft.is_dir()
  assert cache.read(tmp_path / 'arrays')[0].keys() == ARRAYS.keys()
