"""Tests of archives: preparing, downloading and refusing damaged files.

They use four small archives in Fashion-MNIST's format. The builder under test
is Fashion-MNIST's, with the checksums and the address of the small archives.
"""

import dataclasses
import functools
import gzip
import hashlib
import struct
import time

import numpy as np
import pytest

from lca.data import prepared
from lca.data.builders.fashion_mnist import FashionMnist

NAMES = tuple(FashionMnist.ARCHIVES.sha256)
CLOSED_PORT = 'http://127.0.0.1:9/'


def encode(array):
  header = bytes([0, 0, 8, array.ndim])
  return header + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()


@functools.cache
def contents():
  """Returns the uncompressed content of each small archive, by name."""
  rng = np.random.default_rng(0)
  sizes = {'train': 23, 't10k': 7}
  files = {}
  for name in NAMES:
    size = sizes[name.partition('-')[0]]
    shape, bound = ((size, 28, 28), 256) if 'images' in name else (size, 10)
    files[name] = encode(rng.integers(0, bound, shape, np.uint8))
  return files


@pytest.fixture
def archive_dir(tmp_path):
  directory = tmp_path / 'archives'
  directory.mkdir()
  for name, content in contents().items():
    (directory / name).write_bytes(gzip.compress(content))
  return directory


@pytest.fixture
def data_dir(tmp_path):
  return tmp_path / 'data'


def small_builder(url=CLOSED_PORT):
  """Returns Fashion-MNIST's builder, changed for the small archives."""

  class Small(FashionMnist, skip_registration=True):
    name = FashionMnist.name
    ARCHIVES = dataclasses.replace(
      FashionMnist.ARCHIVES,
      url=url,
      sha256={k: hashlib.sha256(v).hexdigest() for k, v in contents().items()},
    )

  return Small


def load(data_dir, archive_dir, builder=None):
  """Loads the small archives through the builder and the cache."""
  return prepared.load_own(
    FashionMnist.name,
    lambda: builder or small_builder(),
    data_dir=data_dir,
    archive_dir=archive_dir,
  )


def check_loaded(loaded):
  assert loaded.num_classes == 10
  for split, prefix in ((loaded.train, 'train'), (loaded.test, 't10k')):
    for array, kind in (
      (split.inputs, 'images-idx3'),
      (split.labels, 'labels-idx1'),
    ):
      content = contents()[f'{prefix}-{kind}-ubyte.gz']
      assert array.astype(np.uint8).tobytes() == content[-array.size :]


def check_refused(error, message, data_dir, archive_dir):
  with pytest.raises(error, match=message) as info:
    load(data_dir, archive_dir)
  assert 'dataset-fashion-mnist' in str(info.value)
  assert '--config.data.archive_dir=' in str(info.value)
  assert not data_dir.exists()


def test_prepares_from_a_folder(data_dir, archive_dir):
  check_loaded(load(data_dir, archive_dir))


def test_prepared_data_need_no_archives(data_dir, archive_dir, tmp_path):
  load(data_dir, archive_dir)
  check_loaded(load(data_dir, tmp_path / 'absent'))
  (arrays,) = data_dir.glob('*/*/arrays')
  arrays.rename(tmp_path / 'elsewhere')
  check_loaded(load(data_dir, None))
  assert arrays.is_dir()


def test_another_process_that_prepares_the_same(data_dir, archive_dir):
  class Overtaken(small_builder(), skip_registration=True):
    name = FashionMnist.name

    def _splits(self, paths):
      if not list(data_dir.glob('*/*/dataset_info.json')):
        load(data_dir, archive_dir)
      return super()._splits(paths)

  check_loaded(load(data_dir, archive_dir, Overtaken))


@pytest.mark.parametrize('name', NAMES)
def test_a_missing_file(name, data_dir, archive_dir):
  (archive_dir / name).unlink()
  path = str(archive_dir / name)
  check_refused(
    FileNotFoundError, f'no such file: {path}\n', data_dir, archive_dir
  )


def test_a_missing_folder(data_dir, tmp_path):
  path = tmp_path / 'absent' / NAMES[0]
  check_refused(FileNotFoundError, str(path), data_dir, tmp_path / 'absent')


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kept', [0, 5, 20, -9])
def test_a_truncated_file(name, kept, data_dir, archive_dir):
  path = archive_dir / name
  path.write_bytes(path.read_bytes()[:kept])
  message = f'{path} is not' if kept == 0 else f'{path} is not a complete gzip'
  check_refused(ValueError, message, data_dir, archive_dir)


def test_a_file_that_is_not_gzip(data_dir, archive_dir):
  path = archive_dir / NAMES[1]
  path.write_bytes(contents()[NAMES[1]])
  check_refused(ValueError, f'{path} is not a complete', data_dir, archive_dir)


@pytest.mark.parametrize('position', [2, -1])
def test_a_file_with_other_content(position, data_dir, archive_dir):
  content = bytearray(contents()[NAMES[3]])
  content[position] ^= 1
  path = archive_dir / NAMES[3]
  path.write_bytes(gzip.compress(content))
  check_refused(
    ValueError, f'{path} is not the published.*SHA-256', data_dir, archive_dir
  )


def test_no_internet_is_said_at_once(data_dir, monkeypatch):
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  start = time.monotonic()
  check_refused(
    ConnectionError, f'cannot download {CLOSED_PORT}', data_dir, None
  )
  assert time.monotonic() - start < 10


def test_downloads(server, data_dir):
  check_loaded(load(data_dir, None, small_builder(server)))


def test_a_download_with_other_content(server, data_dir, archive_dir):
  (archive_dir / NAMES[0]).write_bytes(gzip.compress(b'other'))
  with pytest.raises(ValueError, match=f'is not the published {NAMES[0]}'):
    load(data_dir, None, small_builder(server))
  assert not list(data_dir.glob('*/*/dataset_info.json'))


def test_a_preparation_that_breaks_off_leaves_nothing_prepared(
  data_dir, archive_dir
):
  class Broken(small_builder(), skip_registration=True):
    name = FashionMnist.name

    def _generate_examples(self, *args):
      yield from list(super()._generate_examples(*args))[:5]
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    load(data_dir, archive_dir, Broken)
  check_loaded(load(data_dir, archive_dir))


def test_an_address_without_the_file(server, data_dir, archive_dir):
  (archive_dir / NAMES[0]).unlink()
  with pytest.raises(ConnectionError, match=r'cannot download .*404'):
    load(data_dir, None, small_builder(server))
  assert not data_dir.exists()
