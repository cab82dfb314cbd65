"""The builder of data sets in MNIST's format: four gzipped idx files."""

import numpy as np
import tensorflow_datasets as tfds

from lca.data import idx
from lca.data.builders.base import ArchiveBuilder

TRAIN = ('train-images-idx3-ubyte.gz', 'train-labels-idx1-ubyte.gz')
TEST = ('t10k-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz')


class IdxBuilder(ArchiveBuilder, skip_registration=True):
  """Grey 28x28 images in the order of the published files."""

  def _features(self):
    return {'image': tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8)}

  def _splits(self, paths):
    return {
      'train': self._read(paths, *TRAIN),
      'test': self._read(paths, *TEST),
    }

  def _read(self, paths, images_name, labels_name):
    """Returns the split in one file of images and one of labels."""
    arrays = []
    for name in (images_name, labels_name):
      content = self.ARCHIVES.read(name, paths[name])
      with self.ARCHIVES.reading(name):
        arrays.append(idx.parse(content))
    images, labels = arrays
    with self.ARCHIVES.reading(images_name, labels_name):
      return self._checked(images[..., None], labels)
