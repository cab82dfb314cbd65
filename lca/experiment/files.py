"""Files that are never half-written, folders that one process has at a time."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


def write(file: pathlib.Path, text: str) -> None:
  """Replaces a file at once, so that it is never half-written."""
  with open(draft(file), 'w') as new:
    new.write(text)
    new.flush()
    os.fsync(new.fileno())  # before the name is there
  os.replace(new.name, file)


def draft(file: pathlib.Path) -> pathlib.Path:
  """Returns the file beside it that `write` fills first."""
  return file.with_name(file.name + '.tmp')


def read_json(file: pathlib.Path, remedy: str) -> dict[str, Any]:
  """Reads a file that holds a JSON object.

  Args:
    file: which exists.
    remedy: what a person can do about a damaged file.

  Raises:
    ValueError: the file holds something else; the message names it.
  """
  try:
    found = json.loads(file.read_text())
  except ValueError as error:
    raise ValueError(f'{file} is damaged ({error}): {remedy}') from None
  if not isinstance(found, dict):
    raise ValueError(f'{file} is damaged (no JSON object): {remedy}')
  return found


@contextlib.contextmanager
def locked(folder: pathlib.Path, wait: bool = True) -> Iterator[None]:
  """Keeps other processes out of a folder while the context lasts.

  The system frees the folder however the process ends.

  Args:
    folder: which exists; its file `lock` is locked, if the file system can.
    wait: whether to wait until another process has left the folder.

  Raises:
    BlockingIOError: another process has the folder, and `wait` is False.
  """
  with open(folder / 'lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      print(f'no locks here: run no second process in {folder}', flush=True)
    yield
