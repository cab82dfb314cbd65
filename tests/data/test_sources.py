"""Tests of `load` on real data: digits, Fashion-MNIST and TFDS's builders."""

import gzip
import hashlib
import importlib.util
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lca.data import federate, load
from lca.data.builders.fashion_mnist import FashionMnist

DEBIAN = Path('/usr/share/datasets/fashion-mnist')
SHA256 = FashionMnist.ARCHIVES.sha256

needs_debian = pytest.mark.skipif(
  not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)


def test_unknown_name():
  known = 'celeba, cifar10, digits, emnist, fashion_mnist, mnist, tfds:NAME'
  with pytest.raises(ValueError, match=f"unknown data set 'mnits'.*{known}"):
    load('mnits')


def test_digits_holds_every_example_of_scikit_learn():
  digits = load('digits')
  assert digits.train.inputs.shape == (1437, 8, 8, 1)
  assert digits.test.inputs.shape == (360, 8, 8, 1)
  assert (digits.mean, digits.std, digits.num_classes) == ((8,), (8,), 10)
  rows = np.concatenate(
    [
      np.c_[split.inputs.reshape(-1, 64), split.labels]
      for split in (digits.train, digits.test)
    ]
  )
  whole = load_digits()
  expected = np.c_[whole.data, whole.target]
  np.testing.assert_array_equal(
    rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)]
  )


def test_digits_split_is_the_stratified_one_of_scikit_learn():
  digits, whole = load('digits'), load_digits()
  images, labels = whole.images[..., None], whole.target
  train_images, test_images, train_labels, test_labels = train_test_split(
    images, labels, test_size=360, stratify=labels, random_state=0
  )
  np.testing.assert_array_equal(digits.train.inputs, train_images)
  np.testing.assert_array_equal(digits.train.labels, train_labels)
  np.testing.assert_array_equal(digits.test.inputs, test_images)
  np.testing.assert_array_equal(digits.test.labels, test_labels)
  assert digits.train.inputs.dtype == np.uint8
  assert digits.train.labels.dtype == np.int32


def test_digits_needs_no_import_of_scikit_learn():
  code = (
    'import sys; from lca.data import load; load("digits"); '
    'print([name for name in ("sklearn", "scipy") if name in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'


@pytest.mark.parametrize('option', ['data_dir', 'archive_dir'])
def test_digits_refuses_options_that_do_not_apply(option):
  with pytest.raises(TypeError, match=f'takes no {option}'):
    load('digits', **{option: 'x'})


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Prepares Fashion-MNIST once, from Debian's files; returns the folder."""
  directory = tmp_path_factory.mktemp('tensorflow_datasets')
  start = time.perf_counter()
  load('fashion_mnist', data_dir=directory, archive_dir=DEBIAN)
  print(f'prepared in {time.perf_counter() - start:.1f} s')
  return directory


@pytest.fixture(scope='module')
def fashion_mnist(data_dir):
  return load('fashion_mnist', data_dir=data_dir)


def read_debian(name, header):
  content = gzip.decompress((DEBIAN / name).read_bytes())
  return np.frombuffer(content, np.uint8, offset=header)


@needs_debian
def test_fashion_mnist_is_whole(fashion_mnist):
  assert fashion_mnist.train.inputs.shape == (60000, 28, 28, 1)
  assert fashion_mnist.test.inputs.shape == (10000, 28, 28, 1)
  assert (fashion_mnist.mean, fashion_mnist.std) == ((127.5,), (127.5,))
  np.testing.assert_array_equal(
    np.bincount(fashion_mnist.train.labels), [6000] * 10
  )
  np.testing.assert_array_equal(
    np.bincount(fashion_mnist.test.labels), [1000] * 10
  )
  first = [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
  np.testing.assert_array_equal(fashion_mnist.train.labels[:10], first)


@needs_debian
@pytest.mark.parametrize(
  ('split', 'prefix'), [('train', 'train'), ('test', 't10k')]
)
def test_fashion_mnist_equals_the_published_files(fashion_mnist, split, prefix):
  got = getattr(fashion_mnist, split)
  images = read_debian(f'{prefix}-images-idx3-ubyte.gz', 16)
  labels = read_debian(f'{prefix}-labels-idx1-ubyte.gz', 8)
  np.testing.assert_array_equal(got.inputs.reshape(-1), images)
  np.testing.assert_array_equal(got.labels, labels)


@needs_debian
def test_fashion_mnist_loads_again_without_tfds(data_dir):
  program = f"""
import sys, time
from lca.data import load
start = time.perf_counter()
data = load('fashion_mnist', data_dir={str(data_dir)!r})
print(f'loaded in {{time.perf_counter() - start:.4f}} s')
print(type(data.train.inputs).__name__)
roots = {{name.partition('.')[0] for name in sys.modules}}
print(sorted(roots & {{'tensorflow', 'tensorflow_datasets', 'sklearn'}}))
"""
  result = subprocess.run(
    [sys.executable, '-c', program],
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  print(result.stdout)
  assert result.stdout.splitlines()[1:] == ['memmap', '[]']


@needs_debian
def test_the_default_data_dir_is_that_of_tfds(data_dir, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))
  assert len(load('fashion_mnist').train) == 60000


@needs_debian
def test_a_round_of_fashion_mnist(fashion_mnist):
  clients = federate(
    fashion_mnist, partition='iid', num_clients=200, min_examples=300, seed=0
  )
  start = time.perf_counter()
  data = clients.gather(range(100, 200))
  print(f'gathered in {(time.perf_counter() - start) * 1e3:.0f} ms')
  assert data.inputs.shape == (100, 300, 28, 28, 1)
  np.testing.assert_array_equal(
    data.inputs[7], fashion_mnist.train.inputs[clients.client_indices[107]]
  )


def with_published_header(name):
  """Returns Debian's file with the published gzip header (name and time)."""
  packed = (DEBIAN / name).read_bytes()
  time_stamp = 1504176606 if name.startswith('train') else 1504176627
  return b''.join(
    [
      bytes([0x1F, 0x8B, 8, 8]),
      struct.pack('<I', time_stamp),
      packed[8:10],
      name.removesuffix('.gz').encode() + b'\0',
      packed[10:],
    ]
  )


def tfds_checksums():
  """Returns the SHA-256 that TFDS registers for each .gz, by file name."""
  (package,) = importlib.util.find_spec(
    'tensorflow_datasets'
  ).submodule_search_locations
  path = Path(package) / 'url_checksums' / 'fashion_mnist.txt'
  if not path.is_file():
    pytest.skip(f'this TFDS has no {path}')
  rows = (line.split('\t') for line in path.read_text().splitlines())
  return {name: sha256 for _, _, sha256, name in rows}


@needs_debian
@pytest.mark.parametrize('name', SHA256)
def test_our_checksums_are_those_of_the_published_files(name):
  packed = with_published_header(name)
  assert hashlib.sha256(packed).hexdigest() == tfds_checksums()[name]
  assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == SHA256[name]


@needs_debian
def test_a_builder_of_tfds_by_name(data_dir):
  loaded = load(f'tfds:{FashionMnist.name}', data_dir=data_dir)
  assert loaded.name == 'tfds:lca_fashion_mnist'
  assert (len(loaded.train), len(loaded.test)) == (60000, 10000)


def test_a_name_that_tfds_does_not_know(tmp_path):
  with pytest.raises(ValueError, match="TFDS finds no data set 'mnits'"):
    load('tfds:mnits', data_dir=tmp_path)


def test_an_archive_dir_that_does_not_exist(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'archive_dir=.*absent'):
    load('tfds:mnist', data_dir=tmp_path, archive_dir=tmp_path / 'absent')


@needs_debian
@pytest.mark.skipif(
  importlib.util.find_spec('tensorflow') is not None,
  reason='tests what happens without TensorFlow',
)
def test_preparing_without_tensorflow_says_so(tmp_path):
  for name in SHA256:
    (tmp_path / name).write_bytes(with_published_header(name))
  message = 'prepare fashion_mnist, once: pip install tensorflow-cpu'
  with pytest.raises(ModuleNotFoundError, match=message):
    load('tfds:fashion_mnist', data_dir=tmp_path, archive_dir=tmp_path)


class Ragged(tfds.core.GeneratorBasedBuilder):
  """A builder whose splits have images of two shapes."""

  name = 'lca_test_ragged'
  VERSION = tfds.core.Version('1.0.0')
  SPLITS = ('train', 'test')

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Tensor(shape=(None, 4, 1), dtype=np.uint8),
          'label': tfds.features.ClassLabel(num_classes=2),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples() for split in self.SPLITS}

  def _generate_examples(self):
    for i, height in enumerate((4, 4, 5)):
      yield i, {'image': np.zeros([height, 4, 1], np.uint8), 'label': 0}


class TrainOnly(Ragged):
  """A builder without a test split."""

  name = 'lca_test_train_only'
  SPLITS = ('train',)


class Unlabelled(Ragged):
  """A builder whose labels are numbers but not classes."""

  name = 'lca_test_unlabelled'

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Tensor(shape=(4, 4, 1), dtype=np.uint8),
          'label': np.int64,
        }
      ),
    )


def test_images_of_different_shapes(tmp_path):
  message = (
    r'lca_test_ragged.*have different shapes: \(4, 4, 1\) and \(5, 4, 1\)'
  )
  with pytest.raises(ValueError, match=message):
    load('tfds:lca_test_ragged', data_dir=tmp_path)


def test_a_missing_split(tmp_path):
  with pytest.raises(ValueError, match='train_only has no split test, '):
    load('tfds:lca_test_train_only', data_dir=tmp_path)


def test_labels_that_are_no_classes(tmp_path):
  message = 'lca_test_unlabelled is not an image classification data set'
  with pytest.raises(ValueError, match=message):
    load('tfds:lca_test_unlabelled', data_dir=tmp_path)
