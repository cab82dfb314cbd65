"""Loads data sets that TFDS (tensorflow_datasets) has prepared.

The first call needs TFDS and takes some time: TFDS prepares its records, and
their content is copied into arrays in a cache beside the records. Later calls
map these arrays into memory within milliseconds. For lca's own builders they do
not even import TFDS.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lca import progress
from lca.data import cache
from lca.data.builders import VERSIONS
from lca.data.dataset import Split

_BATCH = 1000  # records that are copied at a time

Decode = Callable[[bytes], np.ndarray]
"""Maps an encoded image, as stored in a record, to uint8 pixels `[H, W, C]`."""


class Prepared(NamedTuple):
  """A data set whose splits are memory maps of cached arrays."""

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
  """Loads a data set of one of lca's builders.

  Args:
    name: the name of the builder, a key of `builders.VERSIONS`.
    builder_class: a function that imports and returns the builder; it is called
      only if nothing is cached.
    data_dir: the folder in which TFDS keeps prepared data; None for its default
      folder.
    archive_dir: the folder of the published files; None downloads them. It is
      ignored if the data set has been prepared already.
    arrays: the name of the folder of cached arrays; every way to decode images
      needs its own folder.
    decode: a function from an image as it is stored in the records to its
      pixels; None leaves the decoding to TFDS.

  Returns:
    The splits and the number of classes.

  Raises:
    FileNotFoundError: a file is missing in `archive_dir`.
    ConnectionError: `archive_dir` is None, and a file cannot be downloaded.
    ValueError: an archive or the cache is damaged.
  """
  root = _tfds_folder(data_dir)
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
    name: the argument of `tfds.builder`: name, name/config or name:version.
    data_dir: the folder in which TFDS keeps prepared data; None for its default
      folder.
    archive_dir: the folder of files that were downloaded by hand; None
      downloads them.

  Returns:
    The splits and the number of classes.

  Raises:
    FileNotFoundError: `archive_dir` does not exist.
    ConnectionError: a server of the data set's files cannot be reached.
    ValueError: TFDS has no data set of this name; its examples are not an image
      and a label; or it has no split `train` or `test`.
    ModuleNotFoundError: TensorFlow is needed to prepare the data set, and is
      not installed.
  """
  with _explaining_tensorflow(name):
    import tensorflow_datasets as tfds

    make_builder = functools.partial(
      tfds.builder, name, data_dir=_tfds_folder(data_dir)
    )
    try:
      builder = make_builder()
    except tfds.core.DatasetNotFoundError as error:
      raise ValueError(
        f'TFDS finds no data set {name!r}: its catalogue is '
        'https://www.tensorflow.org/datasets/catalog/overview; some data sets '
        'need TensorFlow (pip install tensorflow-cpu)'
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
        f'{builder.name} is not an image classification data set: its examples '
        'must have a uint8 "image" [H, W, C] and a class "label", but they '
        f'have {features}'
      )
    arrays = Path(builder.data_dir) / 'arrays'
    if not arrays.exists():
      # If the folder is missing, TFDS ignores `archive_dir` and tries to
      # download the files, which takes minutes to fail without internet.
      if (
        archive_dir is not None and not Path(archive_dir).expanduser().is_dir()
      ):
        raise FileNotFoundError(f'no such folder: archive_dir={archive_dir}')
      _cache(_prepare(make_builder, archive_dir), arrays)
  return _read(arrays)


def _tfds_folder(data_dir: str | Path | None) -> Path:
  """Returns `data_dir`, or the default folder of TFDS if it is None."""
  if data_dir is None:
    data_dir = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  return Path(data_dir).expanduser()


@contextlib.contextmanager
def _explaining_tensorflow(name: str) -> Iterator[None]:
  """Tells how to install TensorFlow if its absence has caused an error.

  Raises:
    ModuleNotFoundError: TensorFlow is missing. This error replaces the one that
      the wrapped code raised for this reason.
  """
  try:
    yield
  except Exception as error:
    # TFDS may raise an error of its own, with the missing module as its cause.
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
  """Prepares the data of a builder, if needed, and returns the builder."""
  import requests
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import downloader

  # With its own setting of 10 retries, TFDS 4.9 takes 204 seconds to give up on
  # a server that cannot be reached.
  downloader.MAX_RETRIES = 4
  # TFDS draws its own bars, which make a log unreadable.
  tfds.display_progress_bar(progress.on_terminal())
  builder = make_builder()
  config = tfds.download.DownloadConfig(
    manual_dir=archive_dir, try_download_gcs=False
  )
  try:
    with (
      contextlib.nullcontext()
      if progress.on_terminal()
      else progress.seconds(f'preparing {builder.name}')
    ):
      builder.download_and_prepare(
        download_config=config, file_format='array_record'
      )
  except FileExistsError:
    # Another process has prepared the same data in the meantime, and its files
    # are used.
    builder = make_builder()
    if not builder.is_prepared():
      raise
  except requests.ConnectionError as error:
    raise ConnectionError(
      f'cannot download {builder.name}: {error}. If this machine has no '
      'internet, prepare the data set on another one and copy its data_dir'
    ) from error
  return builder


def _cache(builder, directory: Path, decode: Decode | None = None) -> None:
  """Copies the records of a prepared builder into arrays in `directory`."""
  missing = {'train', 'test'} - set(builder.info.splits)
  if missing:
    raise ValueError(
      f'{builder.name} has no split {", ".join(sorted(missing))}, only '
      f'{", ".join(sorted(builder.info.splits))}'
    )
  num_classes = builder.info.features['label'].num_classes
  with cache.writing(directory, num_classes=num_classes) as draft:
    for split in ('train', 'test'):
      _write_split(draft, builder, split, decode)


def _write_split(
  draft: cache.Draft, builder, split: str, decode: Decode | None
) -> None:
  """Copies the records of one split into arrays, a batch at a time."""
  import tensorflow_datasets as tfds

  # TFDS hands over the encoded images if `decode` is to decode them.
  skip = {'image': tfds.decode.SkipDecoding()}
  source = builder.as_data_source(split, decoders=skip if decode else None)
  decode = decode or np.asarray
  size = len(source)
  with _naming_examples(builder, split, range(1)):
    shape = decode(source[0]['image']).shape
  images = draft.array(f'{split}_images', (size, *shape), np.uint8)
  integers = {'label': draft.array(f'{split}_labels', (size,), np.int32)}
  features = builder.info.features
  if (
    'owner' in features
    and features['owner'].shape == ()
    and np.issubdtype(features['owner'].np_dtype, np.integer)
  ):
    integers['owner'] = draft.array(f'{split}_owners', (size,), np.int64)
  # Reading records one by one takes three times as long as in batches.
  with progress.bar(f'{builder.name}, {split} split', size, 'images') as shown:
    for start in range(0, size, _BATCH):
      rows = range(start, min(start + _BATCH, size))
      records = source.__getitems__(rows)
      pixels = np.empty((len(records), *shape), np.uint8)
      with _naming_examples(builder, split, rows):
        for i, record in enumerate(records):
          image = decode(record['image'])
          if image.shape != shape:
            raise ValueError(
              f'images have different shapes: {shape} and {image.shape}'
            )
          pixels[i] = image
        images.append(pixels)
      for key, array in integers.items():
        array.append(np.array([r[key] for r in records], array.dtype))
      shown.update(len(rows))


@contextlib.contextmanager
def _naming_examples(builder, split: str, rows: range) -> Iterator[None]:
  """Adds the data set, the split and the examples' numbers to a ValueError."""
  try:
    yield
  except ValueError as error:
    raise ValueError(
      f'{builder.name}, examples {rows.start} to {rows.stop - 1} of its '
      f'{split} split: {error}'
    ) from error


def _read(directory: Path) -> Prepared:
  """Maps the arrays that `_cache` wrote."""
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
