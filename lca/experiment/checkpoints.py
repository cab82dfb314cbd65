"""A run's checkpoints: what is saved in the background, and found again.

A checkpoint holds the server's state, the metrics written so far, the config
and a table of the state's leaves: shape, type and checksum. So it is known
which checkpoint is damaged, and which is whole but of something else.
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
from lca.stacked.trees import layer_names
from lca.typing import PyTree


class CheckpointError(Exception):
  """A checkpoint that cannot be written, read or gone on from."""


class Checkpoints(contextlib.AbstractContextManager):
  """A run's checkpoints; none is under way any more when the context ends.

  Args:
    path: of their directory, which is made if need be. Of this process alone.
    config: of the run, as nested dicts that JSON reads back as they are.
    keep: how many; older ones are deleted.

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
      # Threads would wait for minutes for one that cannot be made.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    self._manager = ocp.CheckpointManager(path, options=options)

  def __exit__(self, kind, error, traceback) -> None:
    with self._writing() if error is None else contextlib.suppress(Exception):
      self._manager.close()

  def save(self, state: PyTree, rows: list[Row]) -> None:
    """Begins to save what there is after a round.

    Args:
      state: of the server.
      rows: the metrics of all rounds so far.

    Raises:
      CheckpointError: this one, or the one before, cannot be written.
    """
    about = {
      'config': self._config,
      'leaves': _table(state),
      'rows': list(rows),  # which grow before they are written
    }
    parts = ocp.args.Composite(
      about=ocp.args.JsonSave(about), state=ocp.args.StandardSave(state)
    )
    with self._writing():
      self._manager.save(rows[-1]['round'], args=parts)

  def restore(self, initial: PyTree) -> tuple[PyTree, list[Row]]:
    """Reads the newest checkpoint that is whole; deletes damaged newer ones.

    Args:
      initial: the state before the first round.

    Returns:
      The state and the rows that were saved; `initial` and none if nothing
      was.

    Raises:
      CheckpointError: a checkpoint is of another config or another tree, or
        cannot be read for a reason that may pass, or there are some and each
        is damaged. Then nothing is deleted.
    """
    damaged = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        found = self._read(step, initial)
      except _Damaged as error:
        damaged[step] = error
        continue
      for step, reason in damaged.items():
        host.say(f'deleting a damaged checkpoint, {reason}')
        self._manager.delete(step)
      return found
    if damaged:
      raise CheckpointError(
        f'no checkpoint can be read: {"; ".join(map(str, damaged.values()))}. '
        f'To start from the beginning, delete {self._path}'
      )
    return initial, []

  def _read(self, step: int, initial: PyTree) -> tuple[PyTree, list[Row]]:
    with self._reading(step):
      about = self._item(step, 'about', ocp.args.JsonRestore())
      config, leaves, rows = (about[k] for k in ('config', 'leaves', 'rows'))
    path = f'{self._path}/{step}'
    try:
      identity.check_same_run(path, config, self._config)
    except ValueError as error:
      raise CheckpointError(error) from None
    own_leaves = _named(initial)
    for name in [*own_leaves, *leaves]:
      then, now = leaves.get(name), own_leaves.get(name)
      was, own = then and then[:2], None if now is None else _kind(now)
      if was != own:
        raise CheckpointError(
          f'{path} holds the state of other code: {name} was {_array(was)} '
          f'there and is {_array(own)} now'
        )
    with self._reading(step):
      state = self._item(step, 'state', ocp.args.StandardRestore(initial))
      sums = [
        (leaf[2], leaves[name][2]) for name, leaf in _table(state).items()
      ]
      if any(None not in pair and pair[0] != pair[1] for pair in sums):
        raise ValueError('a checksum is wrong')
    return state, rows

  def _item(self, step: int, name: str, args: ocp.args.CheckpointArgs) -> Any:
    parts = self._manager.restore(step, args=ocp.args.Composite(**{name: args}))
    return parts[name]

  @contextlib.contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      # A library's error is often raised again by the libraries above it.
      cause: BaseException = error
      while cause.__cause__ is not None:
        cause = cause.__cause__
      checkpoint = f'{self._path}/{step} ({_first_line(cause)})'
      # Wrong bytes will fail once more; the system's errors, of a disk say,
      # may pass. TensorStore raises those as ValueErrors, too.
      of_the_system = 'os_error_code' in str(cause)
      if isinstance(cause, _OF_BYTES) and not of_the_system:
        raise _Damaged(checkpoint) from error
      raise CheckpointError(
        f'cannot read {checkpoint}. It may be whole, and nothing is deleted: '
        'try again later, or delete it to go on from the one before'
      ) from error

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # of several libraries below it
      raise CheckpointError(
        f'cannot write a checkpoint into {self._path}: {_first_line(error)}'
      ) from error


class _Damaged(Exception):
  pass


# What parsers, Orbax's too, make of bytes that are wrong or missing.
_OF_BYTES = (
  AttributeError,
  FileNotFoundError,
  LookupError,
  TypeError,
  ValueError,
)


Leaf = list[Any]
"""Shape, type and checksum; None where no process has all of the leaf."""


def _table(tree: PyTree) -> dict[str, Leaf]:
  def checksum(x):
    if not x.is_fully_addressable:
      return None
    return zlib.crc32(np.ascontiguousarray(x).view(np.uint8))

  return {name: [*_kind(x), checksum(x)] for name, x in _named(tree).items()}


def _named(tree: PyTree) -> dict[str, jax.Array]:
  return dict(zip(layer_names(tree), jax.tree.leaves(tree), strict=True))


def _kind(x: jax.Array) -> list[Any]:
  return [list(x.shape), str(x.dtype)]


def _array(kind: list[Any] | None) -> str:
  return 'absent' if kind is None else f'{kind[1]} {kind[0]}'


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]
