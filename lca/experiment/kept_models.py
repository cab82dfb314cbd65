"""Finds the models that finished runs have kept, and reads them."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lca.experiment import model_files
from lca.experiment.rundir import read_config
from lca.experiment.summary import is_finished
from lca.typing import PyTree

Arrays = Mapping[str, np.ndarray]
"""The arrays of a model by name, such as `params/Conv_0/kernel`."""


def find(directory: str | os.PathLike) -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the path and the config of a finished run.

  Args:
    directory: of the run; `~` is the user's home.

  Raises:
    ValueError: the directory holds no run, or it is not finished.
  """
  path = pathlib.Path(directory).expanduser()
  if not (path / 'config.json').exists():
    raise ValueError(
      f'{path} holds no run (no config.json): give the --workdir of main.py, '
      'or WORKDIR/ID of a sweep, whose sweep.json has the id of each run'
    )
  config = read_config(path)
  if not is_finished(path):
    raise ValueError(
      f'{path} is not finished: run the same command with --workdir={path} to '
      'its end first'
    )
  return path, config


def read(
  path: pathlib.Path, checkpoint: Mapping[str, Any], best: bool
) -> tuple[Arrays, dict[str, Any]]:
  """Reads a run's model.

  Args:
    path: directory of the run.
    checkpoint: the section of its config.
    best: True reads the best model.

  Returns:
    The arrays by name, and the entry `lca` of the metadata.

  Raises:
    ValueError: there is no such file, or it is damaged.
  """
  file = path / (model_files.BEST if best else model_files.FINAL)
  # The best round is before the last checkpoint, so that only a new run finds
  # it again.
  again = (
    f'delete {path}, and the same command runs it anew'
    if best
    else f'delete {path}/summary.json, and the same command goes on from the '
    'last checkpoint, or starts anew if there is none, and writes the model'
  )
  if not file.exists():
    why = 'older versions of lca wrote none, and packed sweeps hold none'
    if best and not checkpoint.get('best'):
      again = "run it in another directory with checkpoint.best='test_accuracy'"
      why = 'checkpoint.best was not set'
    elif best:
      why = f'maybe {checkpoint["best"]} was NaN in all rounds'
    elif not checkpoint.get('model', True):
      why, again = 'checkpoint.model was False', f'set it to True, {again}'
    raise ValueError(f'{path} has no {file.name} ({why}): {again}')
  try:
    return model_files.read(file)
  except Exception as error:  # damaged bytes may raise anything in a parser
    raise ValueError(f'{file} is damaged ({error}): {again}') from None


def arrange(
  path: pathlib.Path, arrays: Arrays, shapes: PyTree, whose: str, remedy: str
) -> PyTree:
  """Arranges a file's arrays as the variables of a model.

  Args:
    path: directory of the run, for messages.
    arrays: from `read`.
    shapes: shapes and dtypes of the model's variables.
    whose: names the model.
    remedy: says what to do if it has other variables.

  Raises:
    ValueError: the model has other variables; the message names one.
  """
  leaves = model_files.named(shapes)
  for name in [*leaves, *arrays]:
    held, wanted = (
      f'{each[name].dtype} {list(each[name].shape)}'
      if name in each
      else 'absent'
      for each in (arrays, leaves)
    )
    if held != wanted:
      raise ValueError(
        f'the model of {path} does not fit {whose}: {name} is {held} in the '
        f'file and {wanted} there; {remedy}'
      )
  return jax.tree.unflatten(
    jax.tree.structure(shapes), [arrays[name] for name in leaves]
  )


def to_start_from(directory: str | os.PathLike, shapes: PyTree) -> PyTree:
  """Reads the final model of a finished run, for another run to start from.

  Args:
    directory: of the finished run.
    shapes: shapes and dtypes of the variables of the other run's model.

  Returns:
    The variables.

  Raises:
    ValueError: there is no such model, the file is damaged, or the other run's
      model has other variables.
  """
  path, config = find(directory)
  arrays, _ = read(path, config['checkpoint'], best=False)
  return arrange(
    path,
    arrays,
    shapes,
    'the model of this run',
    'init_from needs a run with the same model and number of classes',
  )
