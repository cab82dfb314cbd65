"""Data sets by name."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lca.data import prepared
from lca.data.dataset import Dataset, Split
from lca.registry import Registry, check_options, options_of, unknown

_TFDS = 'tfds:'

# Pixels, 0 to 255, become inputs from -1 to 1.
_TO_ONE = {'mean': (127.5,), 'std': (127.5,)}
# What networks pretrained on ImageNet expect, per channel: its mean (0.485,
# 0.456, 0.406) and deviation (0.229, 0.224, 0.225), times 255.
_IMAGENET = {
  'mean': (123.675, 116.28, 103.53),
  'std': (58.395, 57.12, 57.375),
}


SOURCES: Registry[Callable[..., Dataset]] = Registry('data set')
"""Functions of options to a `Dataset`, by name.

A data set of one's own is added by `SOURCES.register(function, name='mine')`;
`lca.data.from_arrays` makes one of arrays.
"""


def load(name: str, **options: Any) -> Dataset:
  """Loads a data set, preparing it first where that is needed.

  `digits` comes with scikit-learn. `celeba` (its attribute Smiling),
  `cifar10`, `emnist` (its digits), `fashion_mnist` and `mnist` are prepared
  once by TFDS from the published files, without TensorFlow, and mapped into
  memory from then on. The training examples of `emnist` and `celeba` have
  owners: the writer, the person. `tfds:NAME` is any image classification set of
  TFDS; most of them need TensorFlow, once, to be prepared.

  Inputs of `cifar10` and `celeba` are scaled as networks pretrained on ImageNet
  expect it, those of `digits` and the rest to [-1, 1].

  Args:
    name: A key of `SOURCES`, or `tfds:NAME`.
    **options: The source's own. One that is None may be given to every source.
      Those of the data sets above are:

      - data_dir: Where TFDS keeps prepared data. None is TFDS's default: the
        environment variable TFDS_DATA_DIR, else ~/tensorflow_datasets.
      - archive_dir: A folder of the published files, for machines without
        internet. None downloads them. Not looked at once the data is prepared.
      - image_size: Of `celeba` alone. The shorter side is resized to it and the
        middle square kept: at 64 the arrays take 2.2 GB. None keeps the images
        as they are, 218x178, and takes 21.3 GB. Each size is made once, from
        the same prepared data.

      `digits` takes none of them.

  Returns:
    The data set.

  Raises:
    ValueError: An unknown name, or damaged files.
    TypeError: An option that the source doesn't have, or one that it lacks; a
      source that returns something else than a data set.
    FileNotFoundError: A file missing in `archive_dir`.
    ConnectionError: No `archive_dir`, and the files cannot be downloaded.
    ModuleNotFoundError: TensorFlow is needed and missing.

  Examples:
    >>> load('digits').train
    Split(1437 examples of 8x8x1)
  """
  if name.startswith(_TFDS):
    source = functools.partial(_tfds, name)
  elif name in SOURCES:
    source = SOURCES[name]
  else:
    known = {'data set': [*SOURCES, f'{_TFDS}NAME']}
    raise ValueError(unknown('data set', name, known))
  takes = options_of(source)
  # A config has the options of all sources, None where they do not apply.
  given = {k: v for k, v in options.items() if k in takes or v is not None}
  check_options(f'data set {name!r}', takes, given)
  dataset = source(**given)
  if not isinstance(dataset, Dataset):
    raise TypeError(
      f'data set {name!r} must be a lca.data.Dataset, as lca.data.from_arrays '
      f'returns, but its function returned a {type(dataset).__name__}'
    )
  return dataset


def _digits() -> Dataset:
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

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


def _published(
  name: str,
  builder: str,
  builder_class: Callable[[], type],
  statistics: Mapping[str, tuple[float, ...]],
) -> Callable[..., Dataset]:
  """A source that one of our builders prepares."""

  def source(
    *,
    data_dir: str | Path | None = None,
    archive_dir: str | Path | None = None,
  ) -> Dataset:
    splits = prepared.load_own(
      builder, builder_class, data_dir=data_dir, archive_dir=archive_dir
    )
    return Dataset(name, *splits, **statistics)

  return source


def _cifar10_builder() -> type:
  from lca.data.builders.cifar10 import Cifar10

  return Cifar10


def _emnist_builder() -> type:
  from lca.data.builders.emnist import EmnistDigits

  return EmnistDigits


def _fashion_mnist_builder() -> type:
  from lca.data.builders.fashion_mnist import FashionMnist

  return FashionMnist


def _mnist_builder() -> type:
  from lca.data.builders.mnist import Mnist

  return Mnist


def _celeba_builder() -> type:
  from lca.data.builders.celeba import Celeba

  return Celeba


def _celeba(
  *,
  data_dir: str | Path | None = None,
  archive_dir: str | Path | None = None,
  image_size: int | None = None,
) -> Dataset:
  if image_size is not None and image_size < 1:
    raise ValueError(f'image_size must be at least 1, got {image_size}')

  def decode(content: bytes) -> np.ndarray:
    from lca.data import jpeg

    return jpeg.decode(content, size=image_size)

  splits = prepared.load_own(
    'lca_celeba',
    _celeba_builder,
    data_dir=data_dir,
    archive_dir=archive_dir,
    arrays='arrays' if image_size is None else f'arrays_{image_size}',
    decode=decode,
  )
  return Dataset('celeba', *splits, **_IMAGENET)


def _tfds(
  name: str,
  /,
  *,
  data_dir: str | Path | None = None,
  archive_dir: str | Path | None = None,
) -> Dataset:
  splits = prepared.load_tfds(
    name.removeprefix(_TFDS), data_dir=data_dir, archive_dir=archive_dir
  )
  return Dataset(name, *splits, **_TO_ONE)


SOURCES.register(_celeba, name='celeba')
SOURCES.register(_digits, name='digits')
for _name, _builder, _builder_class, _statistics in (
  ('cifar10', 'lca_cifar10', _cifar10_builder, _IMAGENET),
  ('emnist', 'lca_emnist_digits', _emnist_builder, _TO_ONE),
  ('fashion_mnist', 'lca_fashion_mnist', _fashion_mnist_builder, _TO_ONE),
  ('mnist', 'lca_mnist', _mnist_builder, _TO_ONE),
):
  SOURCES.register(
    _published(_name, _builder, _builder_class, _statistics), name=_name
  )
