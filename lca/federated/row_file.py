"""Stacked updates in a file: written row by row, read coordinate by coordinate.

The file holds block after block. A block has some coordinates of one leaf, for
all rows, so that it is read at once, and a few rows are written to it at once.
"""

import errno
import math
import os
import shutil
import tempfile
from typing import NamedTuple

import jax
import numpy as np

from lca.typing import PyTree


class Block(NamedTuple):
  """Some coordinates of a leaf, of all rows.

  Attributes:
    leaf: index of the leaf.
    start: first of the coordinates, counted in the flat leaf.
    stop: end of the coordinates.
    width: number of columns in memory, at least `stop - start`. Widths are
      powers of two, so that few programs serve all blocks.
    dtype: of the numbers.
    offset: of the block in the file, in bytes.
  """

  leaf: int
  start: int
  stop: int
  width: int
  dtype: np.dtype
  offset: int

  @property
  def columns(self) -> int:
    """The number of coordinates."""
    return self.stop - self.start


def blocks_of(update: PyTree, rows: int, num_bytes: int) -> list[Block]:
  """Divides the coordinates of stacked updates into blocks.

  Args:
    update: one update, or its shapes.
    rows: number of rows.
    num_bytes: largest number of bytes of a block, unless fewer than 128 columns
      have as many.

  Examples:
    >>> for block in blocks_of(np.zeros((3, 100), np.float32), 8, 4096):
    ...   print(block.start, block.stop, block.width, block.offset)
    0 128 128 0
    128 256 128 4096
    256 300 128 8192
  """
  blocks, offset = [], 0
  for k, leaf in enumerate(jax.tree.leaves(update)):
    size, dtype = math.prod(leaf.shape), np.dtype(leaf.dtype)
    columns = max(128, num_bytes // (rows * dtype.itemsize))
    columns = 2 ** int(math.log2(columns))
    for start in range(0, size, columns):
      stop = min(start + columns, size)
      width = min(columns, max(128, 2 ** math.ceil(math.log2(stop - start))))
      blocks.append(Block(k, start, stop, width, dtype, offset))
      offset += rows * (stop - start) * dtype.itemsize
  return blocks


class RowFile:
  """A file for the stacked updates of a round, which is gone once it is closed.

  Args:
    folder: of the file. The system removes the file even if the process is
      killed.
    blocks: from `blocks_of`.
    rows: number of rows.
  """

  def __init__(self, folder: str | os.PathLike, blocks: list[Block], rows: int):
    self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
    self._folder, self._blocks, self._rows = folder, blocks, rows

  def __enter__(self) -> 'RowFile':
    return self

  def __exit__(self, *_: object) -> None:
    self._file.close()

  def write(self, first: int, rows: PyTree) -> None:
    """Writes some rows, one after the other.

    Args:
      first: index of the first of these rows.
      rows: leaves `[k, ...]`; rows beyond the file's last row are left out.

    Raises:
      OSError: the disk is full.
    """
    count = self._rows - first
    leaves = [np.asarray(x)[:count] for x in jax.tree.leaves(rows)]
    leaves = [x.reshape(len(x), -1) for x in leaves]
    for block in self._blocks:
      part = leaves[block.leaf][:, block.start : block.stop]
      bytes_before = first * block.columns * block.dtype.itemsize
      data = _bytes(np.ascontiguousarray(part))
      self._move(self._file.write, block.offset + bytes_before, data)

  def read(self, block: Block) -> np.ndarray:
    """Returns a block, `[rows, width]`; columns beyond its stop are zero."""
    numbers = np.empty((self._rows, block.columns), block.dtype)
    self._move(self._file.readinto, block.offset, _bytes(numbers))
    missing = block.width - block.columns
    return np.pad(numbers, ((0, 0), (0, missing))) if missing else numbers

  def _move(self, move, offset, data):
    """Moves data to or from the file; a single call may move less than all."""
    try:
      self._file.seek(offset)
      while data:
        moved = move(data)
        if not moved:
          raise OSError(errno.EIO, 'the file of the updates is too short')
        data = data[moved:]
    except OSError as error:
      error.filename = os.fspath(self._folder)
      raise


def _bytes(x: np.ndarray) -> memoryview:
  """Returns the memory of a contiguous array."""
  return x.reshape(-1).view(np.uint8).data


def check_folder(folder: str | os.PathLike, num_bytes: int = 0) -> None:
  """Checks that a folder takes a file of so many bytes.

  Raises:
    ValueError: it does not; the message says why.
  """
  change = 'set parallel.stream_dir to a folder that has room'
  try:
    tempfile.TemporaryFile(dir=folder).close()
    free = shutil.disk_usage(folder).free
  except OSError as error:
    raise ValueError(
      f'the updates of a streamed round cannot be written to {folder}: '
      f'{error.strerror}; {change}'
    ) from error
  if free < num_bytes:
    raise ValueError(
      f'{folder} has {free / 1e9:.3g} GB free, but the updates of a round are '
      f'{num_bytes / 1e9:.3g} GB; {change}'
    )
