"""NumPy arrays on disk that are memory-mapped when they are read.

A cache is a folder of .npy files with an index of their dtypes, shapes and
sizes. It is written to a draft folder, which is renamed at the end, so that no
reader ever sees an incomplete cache.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

_INDEX = 'index.json'


class Array:
  """A .npy file to which rows are appended until it is complete."""

  def __init__(self, path: Path, shape: Sequence[int], dtype: np.dtype):
    self._shape, self.dtype = tuple(shape), np.dtype(dtype)
    self._rows = 0
    if self.dtype.hasobject:
      raise ValueError(f'{path.name} would hold objects, not numbers')
    # The header is written by hand because np.save needs the whole array.
    self._file = open(path, 'wb')
    header = {
      'descr': np.lib.format.dtype_to_descr(self.dtype),
      'fortran_order': False,
      'shape': self._shape,
    }
    np.lib.format.write_array_header_1_0(self._file, header)

  def append(self, rows: np.ndarray) -> None:
    """Writes the next rows.

    Args:
      rows: `[k, ...]` rows of the array's dtype and row shape.

    Raises:
      ValueError: the rows have another dtype or shape.
    """
    if (rows.dtype, rows.shape[1:]) != (self.dtype, self._shape[1:]):
      raise ValueError(
        f'rows of {rows.dtype} {list(rows.shape)} do not fit into an array of '
        f'{self.dtype} {list(self._shape)}'
      )
    self._file.write(np.ascontiguousarray(rows).data)
    self._rows += len(rows)

  def finish(self) -> dict:
    """Flushes the file to disk and returns its entry in the index.

    Raises:
      ValueError: the number of appended rows differs from the first axis of the
        array's shape.
    """
    if self._rows != self._shape[0]:
      raise ValueError(
        f'{self._rows} rows were appended to an array of {list(self._shape)}'
      )
    _sync(self._file)
    return {
      'dtype': str(self.dtype),
      'shape': self._shape,
      'bytes': self._file.tell(),
    }

  def close(self) -> None:
    self._file.close()


class Draft:
  """A cache that is still being written."""

  def __init__(self, directory: Path):
    self._directory = directory
    self._arrays: dict[str, Array] = {}

  def array(
    self, name: str, shape: Sequence[int], dtype: np.dtype | type
  ) -> Array:
    """Creates an array without rows, ready for `append`.

    Args:
      name: the key of the array in the result of `read`.
      shape: `[N, ...]` shape of the complete array; exactly N rows must be
        appended.
      dtype: a NumPy dtype, except for objects.

    Returns:
      The array.

    Raises:
      ValueError: `dtype` holds Python objects.
    """
    array = Array(self._directory / f'{name}.npy', shape, np.dtype(dtype))
    self._arrays[name] = array
    return array

  def finish(self, metadata: Mapping[str, int]) -> None:
    """Flushes all arrays to disk and writes the index."""
    index = {
      'arrays': {k: array.finish() for k, array in self._arrays.items()},
      'metadata': metadata,
    }
    with open(self._directory / _INDEX, 'w') as file:
      json.dump(index, file, indent=2)
      _sync(file)

  def close(self) -> None:
    for array in self._arrays.values():
      array.close()


@contextlib.contextmanager
def writing(directory: Path, **metadata: int) -> Iterator[Draft]:
  """Writes a cache, array by array and row by row.

  The cache appears under its name when the context ends without an error. If
  another process has finished the same cache in the meantime, its cache is kept
  and this one is discarded. Drafts of killed processes beside it are deleted.

  Args:
    directory: the path of the new cache; its parent folder must exist.
    **metadata: numbers to store beside the arrays.

  Yields:
    The draft, to which arrays are added.

  Raises:
    ValueError: an array has fewer or more rows than its shape says.
  """
  path = directory.with_name(f'{directory.name}.incomplete.{uuid.uuid4().hex}')
  with clearing(directory.parent, '*.incomplete.*'):
    path.mkdir()
    try:
      with contextlib.closing(Draft(path)) as draft:
        yield draft
        draft.finish(metadata)
      try:
        path.rename(directory)
      except OSError:
        # If the folder exists already, another process has finished the same
        # cache first. Folders get this name only when they are complete.
        if not directory.is_dir():
          raise
    finally:
      shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def clearing(directory: Path, drafts: str) -> Iterator[None]:
  """Deletes drafts that killed processes left behind, then runs the context.

  Every process that writes drafts in a folder holds a shared lock on this
  folder, which the operating system releases when the process ends. If this
  process gets the lock exclusively, no other process is writing, and all drafts
  belong to killed processes: they are deleted. If it does not get the lock, or
  if the file system has no locks, nothing is deleted.

  Args:
    directory: an existing folder. Drafts are written in it only inside of this
      context.
    drafts: glob pattern of the drafts' names.
  """
  # Imported here because Windows has no fcntl, and data sets that are prepared
  # already can be read there without it.
  import fcntl

  lock = os.open(directory, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      for draft in directory.glob(drafts):
        shutil.rmtree(draft, ignore_errors=True)
    with contextlib.suppress(OSError):
      fcntl.flock(lock, fcntl.LOCK_SH)
    yield
  finally:
    os.close(lock)


def _sync(file) -> None:
  file.flush()
  os.fsync(file.fileno())


def read(directory: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """Maps the arrays of a cache into memory.

  Args:
    directory: a folder that `writing` made.

  Returns:
    The arrays by name, as read-only memory maps, and the metadata.

  Raises:
    ValueError: a file is missing, or does not have the size, dtype and shape
      that the index says.
  """
  path = directory / _INDEX
  try:
    index = json.loads(path.read_text())
    arrays = {}
    for name, expected in index['arrays'].items():
      path = directory / f'{name}.npy'
      arrays[name] = _map_array(path, **expected)
    return arrays, index['metadata']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{path} is damaged ({error}): delete the folder {directory}, and the '
      'next run makes it again'
    ) from error


def _map_array(
  path: Path, *, dtype: str, shape: list[int], bytes: int
) -> np.ndarray:
  """Maps one array; the keywords are its entry in the index."""
  size = path.stat().st_size
  if size != bytes:
    raise ValueError(f'{size} bytes instead of {bytes}')
  array = np.load(path, mmap_mode='r', allow_pickle=False)
  if (str(array.dtype), list(array.shape)) != (dtype, shape):
    raise ValueError(
      f'{array.dtype} {list(array.shape)} instead of {dtype} {shape}'
    )
  return array
