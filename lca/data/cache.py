"""NumPy arrays on disk, mapped into memory when they are read.

A cache is a folder of .npy files and an index of what they must look like. It
appears in one rename, whole or not at all.
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
  """A .npy file that is written from its first row to its last."""

  def __init__(self, path: Path, shape: Sequence[int], dtype: np.dtype):
    self._shape, self.dtype = tuple(shape), np.dtype(dtype)
    self._rows = 0
    if self.dtype.hasobject:
      raise ValueError(f'{path.name} would hold objects, not numbers')
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
      rows: `[k, ...]`, of the array's type and shape but for k.

    Raises:
      ValueError: Another type or shape.
    """
    if (rows.dtype, rows.shape[1:]) != (self.dtype, self._shape[1:]):
      raise ValueError(
        f'rows of {rows.dtype} {list(rows.shape)} in an array of '
        f'{self.dtype} {list(self._shape)}'
      )
    self._file.write(np.ascontiguousarray(rows).data)
    self._rows += len(rows)

  def finish(self) -> dict:
    """Brings the file to disk; returns what the index tells of it."""
    if self._rows != self._shape[0]:
      raise ValueError(f'{self._rows} rows in an array of {list(self._shape)}')
    _sync(self._file)
    return {
      'dtype': str(self.dtype),
      'shape': self._shape,
      'bytes': self._file.tell(),
    }

  def close(self) -> None:
    self._file.close()


class Draft:
  """A cache in the making."""

  def __init__(self, directory: Path):
    self._directory = directory
    self._arrays: dict[str, Array] = {}

  def array(
    self, name: str, shape: Sequence[int], dtype: np.dtype | type
  ) -> Array:
    """Begins an array, to which rows are then appended.

    Args:
      name: What `read` returns it by.
      shape: `[N, ...]`; N rows must follow.
      dtype: Of numbers.

    Returns:
      The array, without any rows.

    Raises:
      ValueError: A type that is not of numbers.
    """
    array = Array(self._directory / f'{name}.npy', shape, np.dtype(dtype))
    self._arrays[name] = array
    return array

  def finish(self, metadata: Mapping[str, int]) -> None:
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
  """Makes a cache, array by array and row by row.

  It appears when the context ends without an error. If another process was
  faster, its cache stays. What killed processes left beside it is deleted.

  Args:
    directory: Where the cache is to appear; its parent exists.
    **metadata: Numbers to keep beside the arrays.

  Yields:
    The cache in the making.

  Raises:
    ValueError: An array has fewer or more rows than it must.
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
        # A folder in the way is a whole cache, renamed by another process.
        if not directory.is_dir():
          raise
    finally:
      shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def clearing(directory: Path, drafts: str) -> Iterator[None]:
  """Deletes the unfinished folders of killed processes, and no one else's.

  Who writes in a folder shares a lock on it, which ends with the process. Who
  gets it alone is the only one there, and every draft is a killed process's.
  Otherwise, and where the file system has no locks, nothing is deleted.

  Args:
    directory: Where drafts are written, inside this context alone; it exists.
    drafts: Pattern of their names.
  """
  import fcntl  # here, for Windows has none and reads data sets as well

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
  """Maps a cache into memory.

  Args:
    directory: A folder that `writing` made.

  Returns:
    The arrays by name, read-only memory maps, and the metadata.

  Raises:
    ValueError: A file is missing, or not of the size, type and shape that the
      index tells.
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
      f'{path} is damaged ({error}); delete the folder {directory}, and the '
      'next run makes it anew'
    ) from error


def _map_array(
  path: Path, *, dtype: str, shape: list[int], bytes: int
) -> np.ndarray:
  size = path.stat().st_size
  if size != bytes:
    raise ValueError(f'{size} bytes instead of {bytes}')
  array = np.load(path, mmap_mode='r', allow_pickle=False)
  if (str(array.dtype), list(array.shape)) != (dtype, shape):
    raise ValueError(
      f'{array.dtype} {list(array.shape)} instead of {dtype} {shape}'
    )
  return array
