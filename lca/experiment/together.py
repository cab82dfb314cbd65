"""Runs of one config with several seeds, whose rounds run together.

Each run has its own directory, metrics and checkpoints, as if it ran alone. If
one run fails, the others go on. If what they share fails, such as a round of
all, they run one by one.
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import sys
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lca import progress
from lca.experiment import describe, host, train
from lca.experiment.parts import Parts
from lca.experiment.prepared import Experiment, with_start
from lca.experiment.recorder import FinishedElsewhere, Recorder
from lca.experiment.rundir import RunDirectory
from lca.experiment.settings import Settings, from_config
from lca.experiment.summary import is_finished
from lca.federated import plan
from lca.federated.seeds import SeedsSimulation
from lca.federated.server import ServerState
from lca.federated.simulation import Simulation


class _Member(NamedTuple):
  """A run that has not begun.

  Attributes:
    path: of its directory.
    directory: checked, but not opened.
    settings: of the run. All members have read the same data set.
    parts: of the run; None if it can only run alone.
    begun: the rounds of its last checkpoint.
  """

  path: pathlib.Path
  directory: RunDirectory
  settings: Settings
  parts: Parts | None
  begun: int


def run(
  configs: Mapping[pathlib.Path, Mapping[str, Any]],
  jobs: int,
  stopping: Callable[[], bool],
  on_start: Callable[[], None] = lambda: None,
  on_end: Callable[[pathlib.Path], None] = lambda path: None,
) -> dict[pathlib.Path, Exception]:
  """Runs configs that differ in their seed alone.

  As many runs as fit into the devices' memory run together, if they have come
  to the same round. A run whose programs cannot be stacked runs by itself, such
  as one that is streamed. So do the runs of a batch whose common part fails.

  Args:
    configs: configs by directory, at least one.
    jobs: number of processes that share the host's memory, this one included.
    stopping: called after every round; once it returns True, checkpoints are
      saved, and no more rounds run.
    on_start: called before rounds begin.
    on_end: called with the directory of a run that is finished.

  Returns:
    The errors of the runs that failed, by directory.
  """
  runs = _Runs(stopping, on_end)
  alone = []
  for group in _grouped(_members(configs, runs)):
    for simulation, batch in _batches(group, jobs):
      if simulation is not None:
        on_start()
        if stopping():
          return runs.failures
        batch = _run_batch(simulation, batch, runs)
      alone += batch
      if stopping():
        return runs.failures
  for member in alone:
    with runs.failing(member.path):
      experiment = train.prepare(member.settings, member.path, jobs)
      on_start()
      if stopping():
        break
      train.run(experiment, stopping)
      runs.end(member.path)
  return runs.failures


class _Runs:
  """The ends of runs.

  Attributes:
    failures: the errors of the runs that failed, by directory.

  Args:
    stopping, on_end: see `run`.
  """

  def __init__(
    self,
    stopping: Callable[[], bool],
    on_end: Callable[[pathlib.Path], None],
  ):
    self.failures: dict[pathlib.Path, Exception] = {}
    self.stopping, self._on_end = stopping, on_end

  @contextlib.contextmanager
  def failing(self, path: pathlib.Path) -> Iterator[None]:
    """Keeps an error of a run, so that the others go on."""
    try:
      yield
    except Exception as error:
      self.failures[path] = error

  def end(self, path: pathlib.Path) -> None:
    """Tells that a run has ended, if it is finished."""
    if is_finished(path):
      self._on_end(path)


def _members(
  configs: Mapping[pathlib.Path, Mapping[str, Any]], runs: '_Runs'
) -> list[_Member]:
  """Checks the runs that are not finished, and reads their data once."""
  members, load = [], None
  for path, config in configs.items():
    with runs.failing(path):
      settings = from_config(config)
      directory = RunDirectory(path, settings.config)
      if directory.finished(settings.run.num_rounds):
        continue
      load = load or functools.cache(settings.load)
      begun = directory.begun
      settings = with_start(settings, begun)
      settings = dataclasses.replace(settings, load=load)
      parts = settings.parts() if settings.stream is None else None
      members.append(_Member(path, directory, settings, parts, begun))
  return members


def _grouped(members: Sequence[_Member]) -> list[list[_Member]]:
  """Groups runs whose programs can be stacked: those at the same round.

  With worker momentum, which has a row for every client, partitions must also
  have left the same number of clients.
  """
  groups: dict[Hashable, list[_Member]] = {}
  for member in members:
    parts, rows = member.parts, None
    if parts is not None and parts.server.momentum:
      rows = parts.population.num_clients
    groups.setdefault((member.begun, parts is None, rows), []).append(member)
  return list(groups.values())


def _batches(
  group: Sequence[_Member], jobs: int
) -> Iterator[tuple[SeedsSimulation | None, Sequence[_Member]]]:
  """Yields simulations of as many runs as fit, and their runs.

  The number of runs is halved until they fit. The last pair has no simulation,
  but the runs that must run alone.
  """
  at_once = len(group) if group[0].parts is not None else 1
  while min(at_once, len(group)) > 1:
    batch = group[:at_once]
    host.detail(f'compiling for {len(batch)} seeds ...')
    try:
      with progress.seconds('compiling'):
        simulation = stacked([member.parts for member in batch])
        needed = plan.of(simulation)
    except Exception:
      _say_why_not()
      break
    if needed.total > plan.memory_limit(simulation.placement.mesh, jobs):
      host.say(f'{len(batch)} seeds do not fit into memory at once: {needed}')
      at_once = -(-len(batch) // 2)
      continue
    yield simulation, batch
    group = group[at_once:]
  yield None, group


def stacked(parts: Sequence[Parts]) -> SeedsSimulation:
  """Returns the simulation of several runs."""
  length = max(each.data.max_examples for each in parts)
  parts = [
    each._replace(data=dataclasses.replace(each.data, length=length))
    for each in parts
  ]
  first = parts[0]._asdict()
  del first['stream']
  return SeedsSimulation([each.simulation() for each in parts], **first)


def _run_batch(
  simulation: SeedsSimulation, batch: Sequence[_Member], runs: _Runs
) -> list[_Member]:
  """Runs the rounds of several runs together.

  Args:
    simulation: of the runs.
    batch: the runs, in the order of the simulation.
    runs: gets the ends of the runs.

  Returns:
    The runs that must go on alone: all that have not failed, if what they share
    has failed; otherwise those whose last checkpoint is damaged, so that they
    go on from an earlier round.
  """
  first = batch[0]
  described = (
    describe.lines(member.settings.config, member.parts) for member in batch
  )
  for line in dict.fromkeys(itertools.chain(*described)):
    host.say(line)
  seeds = [str(member.settings.run.seed) for member in batch]
  host.say(f'{len(batch)} seeds run together: {", ".join(seeds)}')
  stops = False  # the answer of `stopping` after a round, the same for all runs
  recorders = _Recorders(batch, runs)
  try:
    starts = [
      recorders.begin(k, run, lambda: stops)
      for k, run in enumerate(simulation.runs)
    ]
    behind = recorders.end_those_behind(first.begun)
    states = simulation.stack(starts)
    del starts

    def each_state(states):
      state_of = functools.partial(simulation.state_of, states)
      return [functools.partial(state_of, k) for k in range(len(batch))]

    num_rounds = first.settings.run.num_rounds
    for round_idx in range(first.begun, num_rounds):
      if stops or not recorders.running:
        break
      states, metrics, seconds = train.one_round(
        simulation, states, round_idx, num_rounds
      )
      stops = runs.stopping()
      shares = [seconds / len(recorders.running)] * len(batch)
      recorders.each(Recorder.add, each_state(states), metrics, shares)
    recorders.each(Recorder.finish, each_state(states))
  except Exception:
    _say_why_not()
    behind = [*recorders.running]
  finally:
    recorders.end_all()
  return [batch[k] for k in behind]


def _say_why_not() -> None:
  """Prints the error that is being handled, and how the runs go on."""
  traceback.print_exc()
  host.say('the seeds cannot run together: they run one by one')


class _Recorders:
  """The recorders of runs that run together.

  Attributes:
    running: the recorders of the runs that go on, by their position.

  Args:
    batch: the runs.
    runs: gets the ends of the runs.
  """

  def __init__(self, batch: Sequence[_Member], runs: _Runs):
    self._batch, self._runs = batch, runs
    self.running: dict[int, Recorder] = {}

  def begin(
    self, k: int, run: Simulation, stopping: Callable[[], bool]
  ) -> ServerState:
    """Begins a run, unless it fails, or another process has finished it.

    Args:
      k: position of the run.
      run: simulation of the run.
      stopping: see `Recorder`.

    Returns:
      The state to start from.
    """
    path, directory, settings, parts, _ = self._batch[k]
    experiment = Experiment(settings, directory, parts, run, None)
    recorder = Recorder(experiment, stopping)
    with self._runs.failing(path), contextlib.suppress(FinishedElsewhere):
      self.running[k] = recorder.__enter__()
      return recorder.take_state()
    return run.init()  # takes the place of the run in the stack

  def end_those_behind(self, rounds: int) -> list[int]:
    """Ends recorders that have other rounds, and returns their positions."""
    behind = [k for k, r in self.running.items() if len(r.rows) != rounds]
    for k in behind:
      self._end(k)
    return behind

  def each(self, call: Callable[..., object], *arguments: Sequence) -> None:
    """Calls a method of each recorder. A run that fails has ended.

    Args:
      call: a method of `Recorder`.
      *arguments: for each argument, its values for all runs of the batch.
    """
    for k, recorder in [*self.running.items()]:
      try:
        call(recorder, *(values[k] for values in arguments))
      except Exception as error:
        self._runs.failures[self._batch[k].path] = error
        self._end(k, error)

  def end_all(self) -> None:
    """Ends all recorders, with the exception that is being handled, if any."""
    for k in [*self.running]:
      self._end(k, sys.exception())

  def _end(self, k: int, error: BaseException | None = None) -> None:
    path = self._batch[k].path
    with self._runs.failing(path):
      self.running.pop(k).__exit__(
        error and type(error), error, error and error.__traceback__
      )
    self._runs.end(path)
