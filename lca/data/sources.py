"""The registry of data sets, and the built-in ones."""

import functools
import gzip
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lca.data import prepared
from lca.data.dataset import Dataset, Split
from lca.registry import Registry, check_options, options_of, unknown

_TFDS = 'tfds:'

# Scales pixels from [0, 255] to [-1, 1].
_TO_PLUS_MINUS_ONE = {'mean': (127.5,), 'std': (127.5,)}
# Networks pretrained on ImageNet expect inputs that are normalised by the mean
# (0.485, 0.456, 0.406) and the standard deviation (0.229, 0.224, 0.225) of its
# channels. Pixels go up to 255, so these numbers are multiplied by 255 here.
_IMAGENET = {
  'mean': (123.675, 116.28, 103.53),
  'std': (58.395, 57.12, 57.375),
}


SOURCES: Registry[Callable[..., Dataset]] = Registry('data set')
"""Functions that take options and return a `Dataset`, by name.

`SOURCES.register(function, name='mine')` adds your own data set. Inside of the
function, `lca.data.from_arrays` makes a `Dataset` of your arrays.
"""


def find_source(name: str) -> Callable[..., Dataset]:
  """Returns the function from options to the data set of a name.

  Args:
    name: a key of `SOURCES`, or `tfds:NAME`.

  Raises:
    ValueError: the name is unknown.
  """
  if name.startswith(_TFDS):
    return functools.partial(_tfds, name)
  if name not in SOURCES:
    known = {'data set': [*SOURCES, f'{_TFDS}NAME']}
    raise ValueError(unknown('data set', name, known))
  return SOURCES[name]


def load(name: str, **options: Any) -> Dataset:
  """Loads a data set, and prepares it first if needed.

  - `digits` comes with scikit-learn.
  - `celeba` (classes: smiling or not), `cifar10`, `emnist` (its digits),
    `fashion_mnist` and `mnist` are prepared once by TFDS from the published
    files, without TensorFlow. From then on they are mapped into memory. The
    training examples of `emnist` and `celeba` have owners: the writer of a
    digit, the person in a photograph.
  - `tfds:NAME` is any image classification data set of TFDS. Most of them need
    TensorFlow once, to be prepared.

  The inputs of `cifar10` and `celeba` are normalised as networks pretrained on
  ImageNet expect. All other inputs are scaled to [-1, 1].

  Args:
    name: a key of `SOURCES`, or `tfds:NAME`.
    **options: the options of the data set. An option that is None is ignored by
      data sets that do not have it. The data sets above, except for `digits`,
      have these options:

      - data_dir: the folder in which TFDS keeps prepared data. None takes the
        environment variable TFDS_DATA_DIR or, if it is not set,
        ~/tensorflow_datasets.
      - archive_dir: a folder of the published files, for machines without
        internet. None downloads them. It is ignored if the data set has been
        prepared already.
      - image_size: for `celeba` only. Images are resized until their shorter
        side has this many pixels, and the square in the centre is kept; at 64
        the arrays take 2.2 GB. None keeps the images at 218x178 pixels, which
        take 21.3 GB. The arrays of each size are made once, from the same
        prepared data.

  Returns:
    The data set.

  Raises:
    ValueError: the name is unknown, or files are damaged.
    TypeError: the data set does not take an option, or it needs an option that
      is missing; or its function does not return a `Dataset`.
    FileNotFoundError: a file is missing in `archive_dir`.
    ConnectionError: `archive_dir` is None, and a file cannot be downloaded.
    ModuleNotFoundError: TensorFlow is needed and is not installed.

  Examples:
    >>> load('digits').train
    Split(1437 examples of 8x8x1)
  """
  source = find_source(name)
  parameters = options_of(source)
  # A config holds the options of all data sets. Those that do not apply to this
  # one are None, and are left out here.
  options = {
    k: v for k, v in options.items() if k in parameters or v is not None
  }
  check_options(f'data set {name!r}', parameters, options)
  dataset = source(**options)
  if not isinstance(dataset, Dataset):
    raise TypeError(
      f'the function of data set {name!r} must return a lca.data.Dataset, '
      'such as lca.data.from_arrays makes, but returned a '
      f'{type(dataset).__name__}'
    )
  return dataset


def _digits() -> Dataset:
  """Splits scikit-learn's 1,797 digits into training and test examples.

  The two files are read without an import of scikit-learn, which would take
  longer than all other imports of the default run together.
  """
  sklearn = importlib.util.find_spec('sklearn')
  if sklearn is None:
    raise ImportError(
      'the data set digits comes with scikit-learn: pip install scikit-learn'
    )
  file = Path(sklearn.origin).parent / 'datasets' / 'data' / 'digits.csv.gz'
  with gzip.open(file, 'rt') as lines:
    digits = np.loadtxt(lines, delimiter=',', dtype=np.uint8)
  # All seeds of a run share one test set: 360 digits, stratified by class.
  rows = json.loads((Path(__file__).parent / 'digits_split.json').read_text())

  def split(name):
    pixels, labels = np.split(digits[rows[name]], [64], axis=1)
    return Split(pixels.reshape(-1, 8, 8, 1), labels[:, 0].astype(np.int32))

  return Dataset(
    name='digits',
    train=split('train'),
    test=split('test'),
    num_classes=10,
    mean=(8.0,),
    std=(8.0,),
    input_range=(0.0, 16.0),
  )


def _source(
  name: str,
  builder: str,
  builder_class: Callable[[], type],
  statistics: Mapping[str, tuple[float, ...]],
) -> Callable[..., Dataset]:
  """Returns the function that loads the data set of one of lca's builders.

  Args:
    name: the name of the data set in `SOURCES`.
    builder: the name of its builder, a key of `builders.VERSIONS`.
    builder_class: a function that imports and returns the builder.
    statistics: the `mean` and `std` of the data set.
  """

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


# Importing a builder imports TFDS, which takes a while and is needed only until
# the data set is prepared. These functions therefore import builders on demand.


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
  """Loads CelebA at a given size; every size has its own cache of arrays."""
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
  """Loads the data set `tfds:NAME` of TFDS."""
  splits = prepared.load_tfds(
    name.removeprefix(_TFDS), data_dir=data_dir, archive_dir=archive_dir
  )
  return Dataset(name, *splits, **_TO_PLUS_MINUS_ONE)


SOURCES.register(_celeba, name='celeba')
SOURCES.register(_digits, name='digits')
for _name, _builder, _builder_class, _statistics in (
  ('cifar10', 'lca_cifar10', _cifar10_builder, _IMAGENET),
  ('emnist', 'lca_emnist_digits', _emnist_builder, _TO_PLUS_MINUS_ONE),
  (
    'fashion_mnist',
    'lca_fashion_mnist',
    _fashion_mnist_builder,
    _TO_PLUS_MINUS_ONE,
  ),
  ('mnist', 'lca_mnist', _mnist_builder, _TO_PLUS_MINUS_ONE),
):
  SOURCES.register(
    _source(_name, _builder, _builder_class, _statistics), name=_name
  )
