"""Runs of one config with several seeds, whose rounds run together.

Each run has its own directory, metrics and checkpoints, as if it ran alone. One
run may fail, and the others go on.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from lca import progress
from lca.experiment import describe, host, train
from lca.experiment.parts import Parts
from lca.experiment.prepared import Experiment
from lca.experiment.recorder import Recorder
from lca.experiment.rundir import RunDirectory
from lca.experiment.settings import Settings, from_config
from lca.federated import plan
from lca.federated.seeds import SeedsSimulation
from lca.federated.server import ServerState

FAILURES = ValueError, TypeError, ImportError, FloatingPointError
"""Errors of one run that it would meet again, and that leave the others be."""


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
) -> dict[pathlib.Path, Exception]:
  """Runs configs that differ in their seed alone.

  As many runs as fit into the devices' memory run together, if they have come
  to the same round. A run whose programs cannot be stacked runs by itself, such
  as one that is streamed.

  Args:
    configs: configs by directory, at least one.
    jobs: number of processes that share the host's memory, this one included.
    stopping: called after every round; once it returns True, checkpoints are
      saved, and no more rounds run.
    on_start: called before the first round.

  Returns:
    The errors of the runs that failed, by directory.

  Raises:
    OSError, CheckpointError: see `train.run`.
  """
  failures: dict[pathlib.Path, Exception] = {}
  alone = []
  for group in _grouped(_members(configs, failures)):
    for simulation, batch in _batches(group, jobs):
      if simulation is None:
        alone += batch
        continue
      on_start()
      alone += _run_batch(simulation, batch, stopping, failures)
      if stopping():
        return failures
  for member in alone:
    with _kept(failures, member.path):
      experiment = train.prepare(member.settings, member.path, jobs)
      on_start()
      train.run(experiment, stopping)
    if stopping():
      break
  return failures


@contextlib.contextmanager
def _kept(failures: dict[pathlib.Path, Exception], path: pathlib.Path):
  """Keeps an error of a run, so that the others go on."""
  try:
    yield
  except FAILURES as error:
    failures[path] = error


def _members(
  configs: Mapping[pathlib.Path, Mapping[str, Any]],
  failures: dict[pathlib.Path, Exception],
) -> list[_Member]:
  """Checks the runs that are not finished, and reads their data once."""
  members, load = [], None
  for path, config in configs.items():
    with _kept(failures, path):
      settings = from_config(config)
      directory = RunDirectory(path, settings.config)
      if directory.finished(settings.run.num_rounds):
        continue
      load = load or functools.cache(settings.load)
      settings = dataclasses.replace(settings, load=load)
      stackable = settings.stream is None and not _without_jit()
      parts = settings.parts() if stackable else None
      steps = [
        int(each.name)
        for each in directory.checkpoints.glob('*')
        if each.name.isdigit()
      ]
      begun = max(steps, default=0)
      members.append(_Member(path, directory, settings, parts, begun))
  return members


def _without_jit() -> bool:
  return jax.config.jax_disable_jit  # pyright: ignore


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
    simulation = stacked([member.parts for member in batch])
    host.detail(f'compiling for {len(batch)} seeds ...')
    with progress.seconds('compiling'):
      needed = plan.of(simulation)
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
  simulation: SeedsSimulation,
  batch: Sequence[_Member],
  stopping: Callable[[], bool],
  failures: dict[pathlib.Path, Exception],
) -> list[_Member]:
  """Runs the rounds of several runs together.

  Args:
    simulation: of the runs.
    batch: the runs, in the order of the simulation.
    stopping: see `run`.
    failures: gets the errors of the runs that fail.

  Returns:
    The runs that did not begin: the last checkpoint was damaged, and the one
    before it is of an earlier round.
  """
  first = batch[0]
  for line in describe.lines(first.settings.config, first.parts):
    host.say(line)
  seeds = [str(member.settings.run.seed) for member in batch]
  host.say(f'{len(batch)} seeds run together: {", ".join(seeds)}')
  num_rounds = first.settings.run.num_rounds
  clients = first.parts.population.clients_per_round
  stops = False  # the answer of `stopping` after a round, the same for all runs
  with _Recorders([member.path for member in batch], failures) as recorders:
    starts = []
    for member, run in zip(batch, simulation.runs, strict=True):
      _, directory, settings, parts, _ = member
      experiment = Experiment(settings, directory, parts, run, None)
      starts.append(recorders.begin(Recorder(experiment, lambda: stops)))
    states = simulation.stack(starts)
    behind = recorders.end_those_behind(first.begun)

    def each_state(states):
      state_of = simulation.state_of
      return [functools.partial(state_of, states, k) for k in range(len(batch))]

    for round_idx in range(first.begun, num_rounds):
      begun, number = time.monotonic(), round_idx + 1
      with progress.bar(f'round {number}/{num_rounds}', clients) as shown:
        states, metrics = simulation.run_round(
          states,
          round_idx,
          number == num_rounds,
          lambda done: shown.update(done - shown.n),
        )
      seconds = [(time.monotonic() - begun) / len(batch)] * len(batch)
      stops = stopping()
      recorders.each(Recorder.add, each_state(states), metrics, seconds)
      if stops or not recorders.running:
        break
    recorders.each(Recorder.finish, each_state(states))
  return [batch[k] for k in behind]


class _Recorders(contextlib.AbstractContextManager):
  """The recorders of runs that run together, whose contexts end with this one.

  Attributes:
    running: the recorders of the runs that have not failed, by their position.

  Args:
    paths: directories of the runs.
    failures: gets the errors of the runs that fail.
  """

  def __init__(
    self,
    paths: Sequence[pathlib.Path],
    failures: dict[pathlib.Path, Exception],
  ):
    self._paths, self._failures = paths, failures
    self.running: dict[int, Recorder] = {}

  def begin(self, recorder: Recorder) -> ServerState:
    """Enters a recorder's context, and returns the state to start from."""
    self.running[len(self.running)] = recorder.__enter__()
    return recorder.state

  def end_those_behind(self, rounds: int) -> list[int]:
    """Ends recorders that have other rounds, and returns their positions."""
    behind = [k for k, r in self.running.items() if len(r.rows) != rounds]
    for k in behind:
      self.running.pop(k).__exit__(None, None, None)
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
      except FAILURES as error:
        self._failures[self._paths[k]] = error
        self.running.pop(k).__exit__(type(error), error, error.__traceback__)

  def __exit__(self, *error) -> None:
    while self.running:
      self.running.popitem()[1].__exit__(*error)
