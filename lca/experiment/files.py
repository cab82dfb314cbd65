"""Writes files as a whole, and locks folders for one process at a time."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


def write(file: pathlib.Path, content: str | bytes) -> None:
  """Writes a file, or replaces it, so that no reader sees half of it.

  The content goes to a draft beside the file, which is then renamed.
  """
  with open(draft(file), 'w' if isinstance(content, str) else 'wb') as new:
    new.write(content)
    new.flush()
    os.fsync(new.fileno())  # the contents must be on disk before the name is
  os.replace(new.name, file)


def draft(file: pathlib.Path) -> pathlib.Path:
  """Returns the path of the draft that `write` renames to `file`."""
  return file.with_name(file.name + '.tmp')


def read_json(file: pathlib.Path, remedy: str) -> dict[str, Any]:
  """Reads a file that holds a JSON object.

  Args:
    file: must exist.
    remedy: for the message: what a person can do about a damaged file.

  Raises:
    ValueError: the file holds no JSON object; the message names the file.
  """
  try:
    content = json.loads(file.read_text())
  except ValueError as error:
    raise ValueError(f'{file} is damaged ({error}): {remedy}') from None
  if not isinstance(content, dict):
    raise ValueError(f'{file} is damaged (no JSON object): {remedy}')
  return content


@contextlib.contextmanager
def locked(folder: pathlib.Path, wait: bool = True) -> Iterator[None]:
  """Keeps other processes out of a folder while the context lasts.

  The lock is `flock` on a file `lock` in the folder. The system releases it
  however the process ends. On a file system without locks a warning is printed,
  and nobody is kept out.

  Args:
    folder: must exist.
    wait: True waits until another process has left the folder.

  Raises:
    BlockingIOError: another process has locked the folder, and `wait` is False.
  """
  with open(folder / 'lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      print(
        'this file system has no locks: make sure that you run no second '
        f'process in {folder}',
        flush=True,
      )
    yield
