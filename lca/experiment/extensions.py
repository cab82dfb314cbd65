"""Loads a user's Python files: settings, sweeps, and files that register names.

A file that registers a rule, an attack, a model or anything else that has a
registry is executed once in every process that makes or reads runs. After that
its names work like the names that come with `lca`.
"""

import contextlib
import importlib.util
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Iterable, Iterator
from typing import Any


def load_files(paths: Iterable[str | os.PathLike]) -> None:
  """Executes Python files in the given order, for what they register.

  Args:
    paths: of the files.

  Raises:
    ValueError: see `load_file`.
  """
  for path in paths:
    load_file(path)


def load_file(path: str | os.PathLike) -> types.ModuleType:
  """Executes a Python file and returns it as a module.

  A second call returns the same module without executing the file again, unless
  the file was changed in between.

  Args:
    path: of the file; a `~` at its start is the user's home.

  Returns:
    The file as a module.

  Raises:
    ValueError: there is no such file, or its code raises an exception; the
      message names the line.
  """
  path = pathlib.Path(path).expanduser().resolve()
  if not path.is_file():
    raise ValueError(f'there is no file {path}')
  name = f'{path}:{path.stat().st_mtime_ns}'
  if name not in sys.modules:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    try:
      with _located(path):
        spec.loader.exec_module(module)
    except BaseException:
      del sys.modules[name]
      raise
  return sys.modules[name]


def call(module: types.ModuleType, name: str, *arguments: Any) -> Any:
  """Calls a function of a loaded file, such as `get_config`.

  Args:
    module: the file, from `load_file`.
    name: of the function.
    *arguments: of the call.

  Returns:
    The function's result.

  Raises:
    ValueError: the function raised it, such as for an unknown preset, or raised
      any other exception; the message then names the line.
  """
  with _located(pathlib.Path(module.__file__), but=ValueError):
    return getattr(module, name)(*arguments)


@contextlib.contextmanager
def _located(
  path: pathlib.Path, but: type[Exception] | tuple[()] = ()
) -> Iterator[None]:
  """Turns exceptions of a file's code into a ValueError that names the line.

  Args:
    path: of the file.
    but: exceptions that are raised as they are.
  """
  try:
    yield
  except but:
    raise
  except Exception as error:
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(path):
      lines.append(error.lineno)
    where = f'{path}, line {lines[-1]}' if lines else path
    message = ' '.join(str(error).split())
    raise ValueError(f'{where}: {type(error).__name__}: {message}') from error
