"""Makes federated data sets with given labels."""

import numpy as np

from lca.data import Dataset, FederatedDataset, Split


def make_split(size):
  """Returns a split in which pixels and label of an example tell its index."""
  index = np.arange(size)
  images = np.empty([size, 2, 3, 1], np.uint8)
  images[:] = (index + 1)[:, None, None, None]
  return Split(images, index.astype(np.int32))


def make_labelled(labels, client_indices, root_indices=None):
  """Returns a data set of three classes with given labels and clients."""
  images = np.zeros([len(labels), 2, 2, 1], np.uint8)
  split = Split(images, np.array(labels))
  toy = Dataset('toy', split, split, 3, (1.0,), (1.0,))
  root = None if root_indices is None else np.array(root_indices)
  return FederatedDataset(toy, list(map(np.array, client_indices)), root)


LABELS = [0, 0, 0, 2, 2, 2, 0, 2]
CLIENTS = [[0, 3, 4], [1], [5, 2, 6, 7], [3, 5]]
HISTOGRAM = [[1, 0, 2], [1, 0, 0], [2, 0, 2], [0, 0, 2]]
