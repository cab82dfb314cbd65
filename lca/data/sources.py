"""Data sets by name."""

from pathlib import Path

import numpy as np

from lca.data import prepared
from lca.data.dataset import Dataset, Split

_TFDS = 'tfds:'


def load(
  name: str,
  *,
  data_dir: str | Path | None = None,
  archive_dir: str | Path | None = None,
) -> Dataset:
  """Loads a data set, preparing it first where that is needed.

  `digits` comes with scikit-learn. `fashion_mnist` is prepared once by TFDS,
  without TensorFlow, and mapped into memory from then on. `tfds:NAME` is any
  image classification set of TFDS; most of them need TensorFlow, once, to be
  prepared.

  Args:
    name: A key of `SOURCES`, or `tfds:NAME`.
    data_dir: Where TFDS keeps prepared data. None is TFDS's default: the
      environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets.
    archive_dir: A folder of the published files, for machines without
      internet. None downloads them. Not looked at once the data is prepared.

  Returns:
    The data set.

  Raises:
    ValueError: An unknown name, an option that the source doesn't have, or
      damaged files.
    FileNotFoundError: A file missing in `archive_dir`.
    ConnectionError: No `archive_dir`, and the files cannot be downloaded.
    ModuleNotFoundError: TensorFlow is needed and missing.

  Examples:
    >>> load('digits').train
    Split(1437 examples of 8x8x1)
  """
  if name.startswith(_TFDS):
    return _tfds(name, data_dir=data_dir, archive_dir=archive_dir)
  if name not in SOURCES:
    raise ValueError(
      f'unknown data set {name!r}; known: {", ".join(sorted(SOURCES))}, '
      f'{_TFDS}NAME'
    )
  return SOURCES[name](data_dir=data_dir, archive_dir=archive_dir)


def _digits(
  *, data_dir: str | Path | None, archive_dir: str | Path | None
) -> Dataset:
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

  options = {'data_dir': data_dir, 'archive_dir': archive_dir}
  for option, value in options.items():
    if value is not None:
      raise ValueError(
        f'digits comes with scikit-learn and takes no {option}, got {value!r}'
      )
  digits = load_digits()
  images = digits.images[..., None].astype(np.uint8)
  labels = digits.target.astype(np.int32)
  # A fixed split: the test set is the same whatever the run's seed.
  train, test = train_test_split(
    np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
  )
  return Dataset(
    name='digits',
    train=Split(images[train], labels[train]),
    test=Split(images[test], labels[test]),
    num_classes=10,
    # Pixels are 0 to 16.
    mean=(8.0,),
    std=(8.0,),
  )


def _fashion_mnist(
  *, data_dir: str | Path | None, archive_dir: str | Path | None
) -> Dataset:
  splits = prepared.load_own(
    'lca_fashion_mnist',
    _fashion_mnist_builder,
    data_dir=data_dir,
    archive_dir=archive_dir,
  )
  return _scaled_to_one('fashion_mnist', splits)


def _fashion_mnist_builder() -> type:
  from lca.data.builders.fashion_mnist import FashionMnist

  return FashionMnist


def _tfds(
  name: str, *, data_dir: str | Path | None, archive_dir: str | Path | None
) -> Dataset:
  splits = prepared.load_tfds(
    name.removeprefix(_TFDS), data_dir=data_dir, archive_dir=archive_dir
  )
  return _scaled_to_one(name, splits)


def _scaled_to_one(name: str, splits: prepared.Prepared) -> Dataset:
  """A data set whose pixels, 0 to 255, become inputs from -1 to 1."""
  return Dataset(name, *splits, mean=(127.5,), std=(127.5,))


SOURCES = {'digits': _digits, 'fashion_mnist': _fashion_mnist}
