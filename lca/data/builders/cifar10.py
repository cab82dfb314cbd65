"""CIFAR-10: 60,000 colour 32x32 photographs of ten kinds of things."""

import tarfile

import numpy as np
import tensorflow_datasets as tfds

from lca.data.archives import Archives
from lca.data.builders import VERSIONS
from lca.data.builders.base import ArchiveBuilder

_URL = 'https://www.cs.toronto.edu/~kriz/'
_NAME = 'cifar-10-binary.tar.gz'

_FOLDER = 'cifar-10-batches-bin'
_TRAIN = tuple(f'{_FOLDER}/data_batch_{i}.bin' for i in range(1, 6))
_TEST = (f'{_FOLDER}/test_batch.bin',)

_PLANES = (3, 32, 32)  # red, green, blue
_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the planes

_ARCHIVES = Archives(
  url=_URL,
  sha256={
    _NAME: 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'
  },
  sizes={_NAME: 170_052_171},
  instructions=(
    f'CIFAR-10 is read from a folder that holds {_NAME}, its binary version: '
    'pass --config.data.archive_dir=FOLDER. Without archive_dir it is '
    f'downloaded from {_URL}.'
  ),
)


class Cifar10(ArchiveBuilder):
  """CIFAR-10 in the order of the published batches."""

  name = 'lca_cifar10'
  VERSION = tfds.core.Version(VERSIONS[name])
  RELEASE_NOTES = {  # noqa: RUF012 (TFDS reads a plain dict)
    '1.0.0': 'All 60,000 examples, in the order of the published batches.'
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = _ARCHIVES.instructions
  ARCHIVES = _ARCHIVES
  CLASSES = (
    'airplane',
    'automobile',
    'bird',
    'cat',
    'deer',
    'dog',
    'frog',
    'horse',
    'ship',
    'truck',
  )
  DESCRIPTION = __doc__
  HOMEPAGE = 'https://www.cs.toronto.edu/~kriz/cifar.html'
  CITATION = """\
@techreport{krizhevsky2009learning,
  title = {Learning Multiple Layers of Features from Tiny Images},
  author = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year = {2009},
}
"""

  def _features(self):
    return {
      'image': tfds.features.Tensor(
        shape=(32, 32, 3),
        dtype=np.uint8,
        encoding=tfds.features.Encoding.BYTES,
      )
    }

  def _splits(self, paths):
    with self.ARCHIVES.reading(_NAME):
      batches = {}
      with tarfile.open(paths[_NAME], 'r:gz') as tar:
        for member in tar:
          if member.isfile() and member.name in _TRAIN + _TEST:
            batches[member.name] = tar.extractfile(member).read()
      missing = [name for name in _TRAIN + _TEST if name not in batches]
      if missing:
        raise ValueError(f'no {", ".join(missing)} in it')
      return {
        'train': self._parse(batches, _TRAIN),
        'test': self._parse(batches, _TEST),
      }

  def _parse(self, batches, names):
    """Returns the split in the batches with these names."""
    for name in names:
      size = len(batches[name])
      if not size or size % _RECORD:
        raise ValueError(
          f'{name} has {size} bytes, which is not a multiple of the '
          f'{_RECORD} bytes of a record'
        )
    content = b''.join(batches[name] for name in names)
    rows = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    # Each record holds its planes one after the other: [N, 3, 32, 32]. Models
    # take the channels last: [N, 32, 32, 3].
    images = rows[:, 1:].reshape(-1, *_PLANES).transpose(0, 2, 3, 1)
    return self._checked(images, rows[:, 0])
