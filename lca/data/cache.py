"""NumPy arrays on disk, mapped into memory when they are read.

A cache is a folder of .npy files and an index of what they must look like. It
appears in one rename, whole or not at all.
"""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_INDEX = 'index.json'


def write(
  directory: Path, arrays: Mapping[str, np.ndarray], **metadata: int
) -> None:
  """Writes a cache; if another process was faster, its cache stays.

  Args:
    directory: Where the cache is to appear; its parent exists.
    arrays: What to keep, by name.
    **metadata: Numbers to keep beside them.
  """
  draft = directory.with_name(f'{directory.name}.incomplete.{uuid.uuid4().hex}')
  draft.mkdir()
  try:
    index = {
      'arrays': {k: _write_array(draft, k, v) for k, v in arrays.items()},
      'metadata': metadata,
    }
    with open(draft / _INDEX, 'w') as file:
      json.dump(index, file, indent=2)
      _sync(file)
    _publish(draft, directory)
  finally:
    shutil.rmtree(draft, ignore_errors=True)


def _write_array(directory: Path, name: str, array: np.ndarray) -> dict:
  with open(directory / f'{name}.npy', 'wb') as file:
    np.save(file, array, allow_pickle=False)
    _sync(file)
    size = file.tell()
  return {'dtype': str(array.dtype), 'shape': array.shape, 'bytes': size}


def _sync(file) -> None:
  file.flush()
  os.fsync(file.fileno())


def _publish(draft: Path, directory: Path) -> None:
  try:
    draft.rename(directory)
  except OSError:
    # A folder in the way is a whole cache, renamed by another process.
    if not directory.is_dir():
      raise


def read(directory: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """Maps a cache into memory.

  Args:
    directory: A folder that `write` made.

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
