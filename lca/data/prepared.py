"""Data sets that TFDS prepares, and the arrays cached beside them.

Preparing takes TFDS and a while. The arrays are then mapped from the cache in
milliseconds and, for our own builders, without importing TFDS.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lca.data import cache
from lca.data.builders import VERSIONS
from lca.data.dataset import Split

_BATCH = 1000

# From what the records hold to pixels [H, W, C], uint8.
Decode = Callable[[bytes], np.ndarray]


class Prepared(NamedTuple):
  """A cached data set, on memory maps."""

  train: Split
  test: Split
  num_classes: int


def load_own(
  name: str,
  builder_class: Callable[[], type],
  *,
  data_dir: str | Path | None,
  archive_dir: str | Path | None,
  arrays: str = 'arrays',
  decode: Decode | None = None,
) -> Prepared:
  """Loads a data set of one of our builders.

  Args:
    name: The builder's, a key of `builders.VERSIONS`.
    builder_class: Imports the builder; called when nothing is cached.
    data_dir: Where TFDS keeps prepared data; None for its default.
    archive_dir: The folder of the archives; None to download them. Not looked
      at when the data set is prepared already.
    arrays: What the folder of the cached arrays is called; another one for each
      way to decode.
    decode: From an image as it is in the records to its pixels; None leaves
      that to TFDS.

  Returns:
    The splits and the number of classes.

  Raises:
    FileNotFoundError: `archive_dir` lacks an archive.
    ConnectionError: No `archive_dir`, and no download either.
    ValueError: An archive or the cache is damaged.
  """
  root = _root(data_dir)
  directory = root / name / VERSIONS[name] / arrays
  if not directory.exists():
    make_builder = functools.partial(builder_class(), data_dir=root)
    _cache(_prepare(make_builder, archive_dir), directory, decode)
  return _read(directory)


def load_tfds(
  name: str, *, data_dir: str | Path | None, archive_dir: str | Path | None
) -> Prepared:
  """Loads an image classification data set of TFDS.

  Args:
    name: As `tfds.builder` takes it: name, name/config, name:version.
    data_dir: Where TFDS keeps prepared data; None for its default.
    archive_dir: The folder of files downloaded by hand; None to download them.

  Returns:
    The splits and the number of classes.

  Raises:
    FileNotFoundError: `archive_dir` does not exist.
    ConnectionError: A host of its files cannot be reached.
    ValueError: TFDS has no such data set, or it is not an image and a label,
      split into train and test.
    ModuleNotFoundError: Preparing it takes TensorFlow, which is missing.
  """
  with _asking_for_tensorflow(name):
    import tensorflow_datasets as tfds

    make_builder = functools.partial(
      tfds.builder, name, data_dir=_root(data_dir)
    )
    try:
      builder = make_builder()
    except tfds.core.DatasetNotFoundError as error:
      raise ValueError(
        f'TFDS finds no data set {name!r}. Its catalogue is '
        'https://www.tensorflow.org/datasets/catalog/overview; some of it '
        'needs TensorFlow: pip install tensorflow-cpu'
      ) from error
    features = builder.info.features
    if not (
      isinstance(features, tfds.features.FeaturesDict)
      and {'image', 'label'} <= set(features)
      and features['image'].np_dtype == np.uint8
      and len(features['image'].shape) == 3
      and isinstance(features['label'], tfds.features.ClassLabel)
    ):
      raise ValueError(
        f'{builder.name} is not an image classification data set: it needs a '
        f'uint8 "image" [H, W, C] and a class "label", and has {features}'
      )
    arrays = Path(builder.data_dir) / 'arrays'
    if not arrays.exists():
      # In place of a missing folder TFDS would try the internet, for minutes.
      if (
        archive_dir is not None and not Path(archive_dir).expanduser().is_dir()
      ):
        raise FileNotFoundError(f'no such folder: archive_dir={archive_dir}')
      _cache(_prepare(make_builder, archive_dir), arrays)
  return _read(arrays)


def _root(data_dir: str | Path | None) -> Path:
  """Returns the folder itself, or what TFDS takes when none is named."""
  if data_dir is None:
    data_dir = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  return Path(data_dir).expanduser()


@contextlib.contextmanager
def _asking_for_tensorflow(name: str) -> Iterator[None]:
  """Tells how to install TensorFlow where its absence is behind an error."""
  try:
    yield
  except Exception as error:
    cause = error
    while not (
      isinstance(cause, ModuleNotFoundError) and cause.name == 'tensorflow'
    ):
      cause = cause.__cause__ or cause.__context__
      if cause is None:
        raise
    raise ModuleNotFoundError(
      f'TFDS needs TensorFlow to prepare {name}, once: '
      'pip install tensorflow-cpu'
    ) from error


def _prepare(make_builder: Callable, archive_dir: str | Path | None):
  """Returns a builder whose data are prepared."""
  import requests
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import downloader

  # TFDS 4.9 tries a host that cannot be reached 10 times, in 204 seconds.
  downloader.MAX_RETRIES = 4
  builder = make_builder()
  config = tfds.download.DownloadConfig(
    manual_dir=archive_dir, try_download_gcs=False
  )
  try:
    builder.download_and_prepare(
      download_config=config, file_format='array_record'
    )
  except FileExistsError:
    # Another process prepared the same data meanwhile: its files serve.
    builder = make_builder()
    if not builder.is_prepared():
      raise
  except requests.ConnectionError as error:
    raise ConnectionError(
      f'cannot download {builder.name}: {error}. For a machine without '
      'internet, prepare it on another one and copy the data_dir'
    ) from error
  return builder


def _cache(builder, directory: Path, decode: Decode | None = None) -> None:
  missing = {'train', 'test'} - set(builder.info.splits)
  if missing:
    raise ValueError(
      f'{builder.name} has no split {missing}, only {set(builder.info.splits)}'
    )
  num_classes = builder.info.features['label'].num_classes
  with cache.writing(directory, num_classes=num_classes) as draft:
    for split in ('train', 'test'):
      _write_split(draft, builder, split, decode)


def _write_split(
  draft: cache.Draft, builder, split: str, decode: Decode | None
) -> None:
  """Copies a split's records into arrays, a batch at a time."""
  import tensorflow_datasets as tfds

  # Images that we decode ourselves are read as they are encoded.
  skip = {'image': tfds.decode.SkipDecoding()}
  source = builder.as_data_source(split, decoders=skip if decode else None)
  decode = decode or np.asarray
  size = len(source)
  with _naming(builder, split, range(1)):
    shape = decode(source[0]['image']).shape
  images = draft.array(f'{split}_images', (size, *shape), np.uint8)
  numbers = {'label': draft.array(f'{split}_labels', (size,), np.int32)}
  features = builder.info.features
  if (
    'owner' in features
    and features['owner'].shape == ()
    and np.issubdtype(features['owner'].np_dtype, np.integer)
  ):
    numbers['owner'] = draft.array(f'{split}_owners', (size,), np.int64)
  # One by one takes three times as long.
  for start in range(0, size, _BATCH):
    rows = range(start, min(start + _BATCH, size))
    records = source.__getitems__(rows)
    pixels = np.empty((len(records), *shape), np.uint8)
    with _naming(builder, split, rows):
      for i, record in enumerate(records):
        image = decode(record['image'])
        if image.shape != shape:
          raise ValueError(
            f'images of different shapes: {shape} and {image.shape}'
          )
        pixels[i] = image
      images.append(pixels)
    for key, array in numbers.items():
      array.append(np.array([r[key] for r in records], array.dtype))


@contextlib.contextmanager
def _naming(builder, split: str, rows: range) -> Iterator[None]:
  try:
    yield
  except ValueError as error:
    raise ValueError(
      f'{builder.name}, examples {rows.start} to {rows.stop - 1} of its '
      f'{split} split: {error}'
    ) from error


def _read(directory: Path) -> Prepared:
  arrays, metadata = cache.read(directory)
  train, test = (
    Split(
      arrays[f'{split}_images'],
      arrays[f'{split}_labels'],
      arrays.get(f'{split}_owners'),
    )
    for split in ('train', 'test')
  )
  return Prepared(train, test, metadata['num_classes'])
