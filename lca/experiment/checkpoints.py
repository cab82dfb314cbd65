"""A run's checkpoints: saved in the background, checked when they are read.

A checkpoint holds the server's state, the metrics written so far, the config,
and shape, dtype and checksum of each leaf of the state. Config, shapes and
checksums tell a damaged checkpoint, which is skipped, from an intact checkpoint
of another run, which is an error.
"""

import contextlib
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lca.experiment import host, identity
from lca.experiment.summary import Row
from lca.federated.server import ServerState
from lca.stacked.trees import layer_names
from lca.typing import PyTree


class CheckpointError(Exception):
  """A checkpoint cannot be written or read, or belongs to another run."""


class Checkpoints(contextlib.AbstractContextManager):
  """A run's checkpoints: a context whose end waits for what is being saved.

  Args:
    path: of their directory, which is made if it does not exist. No other
      process may use it.
    config: of the run, as nested dicts that JSON reads back unchanged.
    keep: how many checkpoints are kept; older ones are deleted.

  Raises:
    OSError: the directory cannot be made.
  """

  def __init__(
    self, path: str | os.PathLike, config: Mapping[str, Any], keep: int
  ):
    self._path, self._config = path, config
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      cleanup_tmp_directories=True,
      # Otherwise Orbax's threads wait for minutes for a directory that cannot
      # be made, before they raise.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    self._manager = ocp.CheckpointManager(path, options=options)

  def __exit__(self, kind, error, traceback) -> None:
    # An error of closing must not hide an error that is already under way.
    with self._writing() if error is None else contextlib.suppress(Exception):
      self._manager.close()

  def save(self, state: ServerState, rows: list[Row]) -> None:
    """Starts to save a checkpoint after a round, in the background.

    Args:
      state: of the server.
      rows: the metrics of all rounds so far.

    Raises:
      CheckpointError: this checkpoint, or the one before, cannot be written.
    """
    about = {
      'config': self._config,
      'leaves': _described_leaves(state),
      'rows': list(rows),  # a copy: the caller appends to its own meanwhile
    }
    parts = ocp.args.Composite(
      about=ocp.args.JsonSave(about),
      state=ocp.args.StandardSave(_as_saved(state)),
    )
    with self._writing():
      self._manager.save(rows[-1]['round'], args=parts)

  def restore(self, initial: ServerState) -> tuple[ServerState, list[Row]]:
    """Reads the newest intact checkpoint, and deletes damaged newer ones.

    Args:
      initial: the state before the first round.

    Returns:
      The state and the rows that were saved. Without any checkpoint these are
      `initial` and no rows.

    Raises:
      CheckpointError: a checkpoint belongs to another config or another tree;
        or it cannot be read for a reason that may pass, such as a failing disk;
        or all checkpoints are damaged. In these cases none is deleted.
    """
    damaged = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        saved = self._read(step, initial)
      except _Damaged as error:
        damaged[step] = error
        continue
      for step, reason in damaged.items():
        host.say(f'deleting a damaged checkpoint, {reason}')
        self._manager.delete(step)
      return saved
    if damaged:
      raise CheckpointError(
        f'no checkpoint can be read: {"; ".join(map(str, damaged.values()))}. '
        f'To start from the beginning, delete {self._path}'
      )
    return initial, []

  def _read(
    self, step: int, initial: ServerState
  ) -> tuple[ServerState, list[Row]]:
    """Reads one checkpoint.

    Raises:
      _Damaged: the checkpoint is damaged.
      CheckpointError: it is of another run, or cannot be read now.
    """
    with self._reading(step):
      about = self._item(step, 'about', ocp.args.JsonRestore())
      config, leaves, rows = (about[k] for k in ('config', 'leaves', 'rows'))
    path = f'{self._path}/{step}'
    try:
      identity.check_same_run(path, config, self._config)
    except ValueError as error:
      raise CheckpointError(error) from None
    # Orbax restores into the tree of `initial`, which must be the saved one.
    current = _named_leaves(initial)
    for name in [*current, *leaves]:
      then, now = leaves.get(name), current.get(name)
      was = then and then[:2]  # without the checksum
      is_now = None if now is None else _shape_and_dtype(now)
      if was != is_now:
        raise CheckpointError(
          f'{path} holds the state of other code: {name} was {_text(was)} '
          f'there and is {_text(is_now)} now; go on with the code that wrote '
          'it, or choose another --workdir'
        )
    with self._reading(step):
      state = self._item(
        step, 'state', ocp.args.StandardRestore(_as_saved(initial))
      )
      sums = [
        (leaf[2], leaves[name][2])
        for name, leaf in _described_leaves(state).items()
      ]
      if any(None not in pair and pair[0] != pair[1] for pair in sums):
        raise ValueError('a checksum is wrong')
    return initial._replace(**state), rows

  def _item(self, step: int, name: str, args: ocp.args.CheckpointArgs) -> Any:
    """Reads one part of a checkpoint, 'about' or 'state'."""
    parts = self._manager.restore(step, args=ocp.args.Composite(**{name: args}))
    return parts[name]

  @contextlib.contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    """Turns errors of Orbax and below into `_Damaged` or a CheckpointError."""
    try:
      yield
    except Exception as error:
      # Each library raises the errors of the one below as its own: the first
      # cause tells what happened.
      cause: BaseException = error
      while cause.__cause__ is not None:
        cause = cause.__cause__
      checkpoint = f'{self._path}/{step} ({_first_line(cause)})'
      # Wrong bytes stay wrong, whereas errors of the system, such as of a disk,
      # may pass. TensorStore raises both as ValueErrors.
      of_the_system = 'os_error_code' in str(cause)
      if isinstance(cause, _ERRORS_OF_WRONG_BYTES) and not of_the_system:
        raise _Damaged(checkpoint) from error
      raise CheckpointError(
        f'cannot read {checkpoint}. It may be intact, so nothing was deleted: '
        'try again later, or delete it to go on from the checkpoint before'
      ) from error

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns errors of Orbax and below into a CheckpointError."""
    try:
      yield
    except Exception as error:  # libraries below Orbax raise many types
      raise CheckpointError(
        f'cannot write a checkpoint into {self._path}: {_first_line(error)}'
      ) from error


def _as_saved(state: ServerState) -> dict[str, PyTree]:
  """Returns the fields of a state as a checkpoint holds them.

  Checkpoints from before the field `attack` lack it.
  """
  fields = state._asdict()
  if not state.attack:
    del fields['attack']
  return fields


class _Damaged(Exception):
  """A checkpoint has wrong or missing bytes."""


# Parsers, Orbax's included, raise these for bytes that are wrong or missing.
_ERRORS_OF_WRONG_BYTES = (
  AttributeError,
  FileNotFoundError,
  LookupError,
  TypeError,
  ValueError,
)


Leaf = list[Any]
"""Shape, dtype and checksum of an array, as JSON holds them.

The checksum is None if the array is spread over several processes, so that none
of them has all of it.
"""


def _described_leaves(tree: PyTree) -> dict[str, Leaf]:
  """Returns shape, dtype and checksum of each leaf by name."""

  def checksum(x):
    if not x.is_fully_addressable:
      return None
    return zlib.crc32(np.ascontiguousarray(x).view(np.uint8))

  return {
    name: [*_shape_and_dtype(x), checksum(x)]
    for name, x in _named_leaves(tree).items()
  }


def _named_leaves(tree: PyTree) -> dict[str, jax.Array]:
  return dict(zip(layer_names(tree), jax.tree.leaves(tree), strict=True))


def _shape_and_dtype(x: jax.Array) -> list[Any]:
  return [list(x.shape), str(x.dtype)]


def _text(shape_and_dtype: list[Any] | None) -> str:
  """Returns a leaf's dtype and shape for messages, or 'absent' for None."""
  if shape_and_dtype is None:
    return 'absent'
  shape, dtype = shape_and_dtype
  return f'{dtype} {shape}'


def _first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, or the error's name."""
  return (str(error).splitlines() or [type(error).__name__])[0]
