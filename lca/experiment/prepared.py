"""Experiments: runs that are checked, and ready to start or to go on."""

import contextlib
import dataclasses
import os
import pathlib
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from lca import progress
from lca.experiment import describe, host, kept_models
from lca.experiment.checkpoints import Checkpoints
from lca.experiment.rundir import (
  ReadOnlyRunDirectory,
  RunDirectory,
  WritesNothing,
)
from lca.experiment.settings import Parts, Settings, from_config
from lca.experiment.summary import Row
from lca.federated import plan
from lca.federated.simulation import Simulation
from lca.typing import PyTree


class Nowhere(WritesNothing, contextlib.AbstractContextManager):
  """Takes the place of directory and checkpoints in a run without a workdir.

  It has the methods of `RunDirectory` and of `Checkpoints` that the loop calls,
  and they keep nothing.
  """

  path = None
  begun = 0

  def __exit__(self, kind, error, traceback) -> None:
    """Does nothing: there is nothing to close."""

  def summary(self) -> None:
    """Returns None: there is no finished run."""

  def finished(self, num_rounds: int) -> bool:
    """Returns False: there is no finished run."""
    return False

  def save(self, state: PyTree, rows: list[Row]) -> None:
    """Does nothing."""

  def restore(self, initial: PyTree) -> tuple[PyTree, list[Row]]:
    """Returns the state before the first round, and no rows."""
    return initial, []


class Experiment(NamedTuple):
  """A run that is ready to start or to go on, or that is finished already.

  Attributes:
    settings: the checked config and what was made of it.
    directory: of the run.
    parts: data, clients, attack, rule and server; None if the run is finished.
    simulation: runs the rounds; None if the run is finished.
    plan: memory that a round needs on each device; None if the run is finished.
  """

  settings: Settings
  directory: RunDirectory | Nowhere
  parts: Parts | None
  simulation: Simulation | None
  plan: plan.Plan | None


def set_up(
  config: Mapping[str, Any], workdir: str | os.PathLike, jobs: int = 1
) -> Experiment:
  """Checks a config, reads its data and compiles its rounds.

  Everything that needs no data is checked first. The directory is made last,
  after all checks have passed.

  Args:
    config: nested dicts or a ConfigDict; see `lca.experiment.sections` for the
      keys.
    workdir: directory of the run.
    jobs: number of processes that share the host's memory, this one included.

  Returns:
    The experiment, for `run`.

  Raises:
    ValueError, TypeError: an impossible value, an unknown key, or an option
      that does not apply; a workdir that holds the run of another config; a
      round that does not fit into the devices' memory.
    OSError, ImportError: data that cannot be read; a directory that cannot be
      written to, or that another process has locked.
  """
  return prepare(from_config(config), workdir, jobs)


def prepare(
  settings: Settings, workdir: str | os.PathLike | None, jobs: int = 1
) -> Experiment:
  """Prepares a run from settings, as `set_up` does from a config.

  Args:
    settings: of the run.
    workdir: directory of the run; None writes nothing.
    jobs: number of processes that share the host's memory, this one included.

  Returns:
    The experiment, for `run` or `run_rounds`.

  Raises:
    ValueError, TypeError, OSError, ImportError: see `set_up`.
  """
  if workdir is None:
    if settings.eval.forensics:
      raise ValueError(
        'eval.forensics keeps its evidence in the directory of the run: give a '
        'workdir, or leave it out'
      )
    if best := settings.checkpoint.best:
      raise ValueError(
        f'checkpoint.best={best!r} keeps a model in the directory of the run: '
        'give a workdir, or leave it out'
      )
    directory = Nowhere()
  else:
    # Of several processes only the first one writes.
    kind = RunDirectory if jax.process_index() == 0 else ReadOnlyRunDirectory
    with _explain_own_lock(pathlib.Path(workdir).expanduser().resolve()):
      directory = kind(workdir, settings.config)
  if directory.finished(settings.run.num_rounds):
    return Experiment(settings, directory, None, None, None)
  settings = with_start(settings, directory.begun)
  parts = settings.parts()
  simulation = parts.simulation()
  for line in describe.lines(settings.config, parts):
    host.say(line)
  host.detail('compiling ...')
  limit = plan.memory_limit(parts.placement.mesh, jobs)
  with progress.seconds('compiling'):
    needed = plan.check(simulation, limit)
  claim(directory)
  return Experiment(settings, directory, parts, simulation, needed)


def with_start(settings: Settings, begun: int) -> Settings:
  """Checks the run whose model a run starts from, if it still needs that.

  Args:
    settings: of the run.
    begun: the round of its last checkpoint. From then on nothing is read of the
      other run, which may be gone.

  Raises:
    ValueError: there is no such run.
  """
  if settings.initial is None:
    return settings
  if begun:
    return dataclasses.replace(settings, initial=None)
  kept_models.find(settings.run.init_from)
  return settings


_locked_here: weakref.WeakValueDictionary[pathlib.Path | None, Any] = (
  weakref.WeakValueDictionary()
)
"""The directories that experiments of this process have locked, by path.

An experiment that is garbage-collected releases its directory.
"""


@contextlib.contextmanager
def _explain_own_lock(path: pathlib.Path | None) -> Iterator[None]:
  """Changes an OSError's message if this process itself has locked the path."""
  try:
    yield
  except OSError as error:
    if path not in _locked_here:
      raise
    raise OSError(
      f'this process has set up a run in {path} before, and keeps it locked: '
      'run that experiment, or delete the experiment object, or choose another '
      '--workdir'
    ) from error


def claim(directory: RunDirectory | Nowhere) -> None:
  """Makes and locks the directory, unless this experiment has done so."""
  if _locked_here.get(directory.path) is not directory:
    with _explain_own_lock(directory.path):
      directory.open()
    _locked_here[directory.path] = directory


def release(directory: RunDirectory | Nowhere) -> None:
  """Forgets that this process has locked a directory, as it no longer does."""
  _locked_here.pop(directory.path, None)


def checkpoints_of(experiment: Experiment) -> Checkpoints | Nowhere:
  """Returns the run's checkpoints as a context."""
  directory = experiment.directory
  if isinstance(directory, Nowhere):
    return directory
  return Checkpoints(
    directory.checkpoints,
    directory.config,
    experiment.settings.checkpoint.keep,
  )
