"""The runs of a sweep: `check` finds the impossible ones, `run_all` runs the
others, several at a time.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from lca.experiment import extensions, host, outlook, rundir, settings
from lca.experiment.index import line_of, record
from lca.experiment.summary import read_summary
from lca.experiment.workers import FAILS_AGAIN, Workers, log_of, reason


class Checked(NamedTuple):
  """Facts about the runs of a sweep that only a process like theirs can find.

  Attributes:
    wrong: the problem of each config that is impossible, by name.
    backend: the kind of the devices, such as `'cpu'`.
  """

  wrong: dict[str, str]
  backend: str


def check(
  runs: Mapping[str, ConfigDict],
  load: Sequence[str | os.PathLike] = (),
  jobs: int = 1,
) -> Checked:
  """Checks configs without their data, as a run does when it starts.

  A process of its own checks them: it sees the devices that a run sees, and
  releases them when it ends. Runs of one line have the same problem, so that
  one of them is checked.

  Args:
    runs: configs by name.
    load: see `run_all`.
    jobs: number of runs at the same time.

  Returns:
    What the process has found.

  Raises:
    OSError: the process could not start, or ended before it had an answer.
  """
  lines = {line_of(name): config.to_dict() for name, config in runs.items()}
  context = multiprocessing.get_context('spawn')
  receiver, sender = context.Pipe(duplex=False)
  process = context.Process(
    target=_check, args=(lines, load, jobs, sender), daemon=True
  )
  with receiver:
    with sender:  # closed here, so that receiving fails if the process ends
      process.start()
    try:
      checked = receiver.recv()
    except EOFError:
      process.join()
      raise OSError(
        'the process that checks the configs ended with exit code '
        f'{process.exitcode}'
      ) from None
  process.join()
  wrong = checked.wrong
  return checked._replace(
    wrong={n: wrong[line_of(n)] for n in runs if line_of(n) in wrong}
  )


def _check(
  configs: Mapping[str, dict[str, Any]],
  load: Sequence[str | os.PathLike],
  jobs: int,
  sweep: Connection,
) -> None:
  """Checks configs. This is all that the process of `check` does.

  Args:
    configs: configs by name, as nested dicts.
    load: see `run_all`.
    jobs: number of runs at the same time.
    sweep: end of a pipe that takes a `Checked`.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the sweep
  logging.set_verbosity(logging.FATAL)
  host.use_all_cores(0, jobs)
  extensions.load_files(load)
  wrong = {}
  for name, config in configs.items():
    # A file that cannot be read now may be there when the run starts.
    with contextlib.suppress(OSError, ImportError):
      try:
        settings.from_config(config)
      except (ValueError, TypeError) as error:
        wrong[name] = str(error)
  sweep.send(Checked(wrong, jax.default_backend()))


class Outcome(NamedTuple):
  """The end of a run.

  Attributes:
    code: 0 if the run was finished, otherwise the exit code of its process;
      None if it never began.
    seconds: that the run took.
    why: the reason if it failed.
  """

  code: int | None
  seconds: float
  why: str


def run_all(
  runs: Mapping[str, ConfigDict],
  workdir: str | os.PathLike,
  jobs: int = 1,
  stopping: Callable[[], bool] = lambda: False,
  *,
  load: Sequence[str | os.PathLike] = (),
  grace: float = host.GRACE,
  keep_programs: bool = True,
  seeds_at_once: int | None = 1,
) -> list[str]:
  """Runs the configs that have no finished run yet, and prints how far it is.

  A run that fails for a reason that may pass, such as lack of memory, is tried
  once more at the end.

  Args:
    runs: configs by name.
    workdir: directory for the runs' directories. The output of a run is in a
      `.log` file beside its directory until the run is finished.
    jobs: number of processes at the same time. Each has its share of the cores
      and of the memory (see `workers.Worker`).
    stopping: called every second. Once it returns True, the runs under way stop
      after their round, and no other run starts.
    load: files that each process executes first, because they register
      functions that the runs use.
    grace: seconds that a run has to stop, see `host.Stopping`.
    keep_programs: False keeps no compiled programs on disk.
    seeds_at_once: the largest number of runs of one line that run together (see
      `lca.experiment.together`); None for all of a line.

  Returns:
    The names of the runs that failed.

  Raises:
    ValueError: see `index.record` and `outlook.pace`.
  """
  places = record(runs, workdir)
  # Several names may share a directory, which is run once.
  names_of = {place: name for name, place in places.items()}
  states = {
    name: outlook.state(place, runs[name].num_rounds)
    for place, name in names_of.items()
  }
  todo = [name for name, state in states.items() if not state.finished]
  pace = outlook.pace(places[name] for name in states if name not in todo)
  tally = outlook.Tally(states, pace, jobs)
  print(tally.opening(), flush=True)
  if not todo:
    return []

  def run(names):
    start, outcomes, configs = time.monotonic(), {}, {}

    def end(name, code, why=''):
      seconds = (time.monotonic() - start) / len(names)
      outcomes[name] = Outcome(code, seconds, why)

    for name in names:
      config, path = runs[name].to_dict(), places[name]
      try:
        directory = rundir.RunDirectory(path, config)
        if directory.finished(config['num_rounds']):
          end(name, 0)
        else:
          configs[path] = config
      except (OSError, ValueError) as error:
        end(name, _code(error), str(error))
    if configs:
      log = log_of(configs)
      try:
        codes = workers.run(configs, stopping) or {}
        for path in configs:
          code, own = codes.get(path), path.with_suffix('.log')
          why = reason(code, own if own.exists() else log) if code else ''
          end(names_of[path], code, why)
      except OSError as error:
        for path in configs:
          end(names_of[path], _code(error), str(error))
    return outcomes

  options = {'load': load, 'grace': grace, 'keep_programs': keep_programs}
  with Workers(jobs, **options) as workers:
    for last in (False, True):
      again = []
      streamed = {n for n in todo if runs[n].get('parallel', {}).get('stream')}
      groups = _groups(todo, 1 if last else seeds_at_once, streamed)
      for name, (code, seconds, why) in _outcomes(run, groups, jobs, stopping):
        if code == 0:
          tally.finish(name, seconds)
          accuracy = read_summary(places[name])['average_test_accuracy']
          end = f'finished in {outlook.span(seconds)}'
          more = f' average test accuracy {accuracy:.3f}; {tally.time_left()}'
        elif code == FAILS_AGAIN or (last and not stopping()):
          tally.failed[name] = why
          end, more = 'FAILED', f': {why}'
        elif code is None:  # the sweep was stopped before this run
          continue
        elif stopping():
          tally.stopped += 1
          state = outlook.state(places[name], states[name].num_rounds)
          end, more = 'stopped', f': {state}'
        else:
          again.append(name)
          end, more = 'FAILED, to be tried again', f': {why}'
        title = f'{name} ({places[name].name})'
        print(f'{tally.count()} {end}: {title}{more}', flush=True)
      todo = again
      if stopping():
        break
  print(tally.closing(), flush=True)
  return [*tally.failed]


def _code(error: Exception) -> int:
  """Returns the exit code that stands for an error."""
  return 1 if isinstance(error, OSError) else FAILS_AGAIN


def _groups(
  names: Sequence[str], at_once: int | None, alone: Container[str] = ()
) -> list[tuple[str, ...]]:
  """Groups names of the same line.

  Args:
    names: of runs.
    at_once: the largest size of a group; None groups all of a line.
    alone: names that are not grouped.

  Examples:
    >>> _groups(['a/0', 'a/1', 'b/0', 'a/2'], at_once=2)
    [('a/0', 'a/1'), ('a/2',), ('b/0',)]
  """
  lines: dict[str, list[str]] = {}
  for name in names:
    line = name if name in alone else line_of(name)
    lines.setdefault(line, []).append(name)
  return [
    tuple(line[start : start + (at_once or len(line))])
    for line in lines.values()
    for start in range(0, len(line), at_once or len(line))
  ]


def _outcomes(
  run: Callable[[Sequence[str]], Mapping[str, Outcome]],
  groups: Sequence[Sequence[str]],
  jobs: int,
  stopping: Callable[[], bool],
) -> Iterator[tuple[str, Outcome]]:
  """Runs each group in a thread, and yields the outcomes as the runs end.

  Once `stopping` returns True, one line says how many runs are under way and
  how many did not start. The latter have no outcome.

  Args:
    run: runs a group of names.
    groups: names of the runs, in the order in which they start.
    jobs: number of groups at the same time.
    stopping: see `run_all`.
  """
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    futures = {pool.submit(run, group): group for group in groups}
    told, never = False, 0
    while futures:
      ended, _ = concurrent.futures.wait(
        futures, 1, concurrent.futures.FIRST_COMPLETED
      )
      for future in [future for future in futures if future in ended]:
        del futures[future]
        for name, outcome in future.result().items():
          never += outcome.code is None
          yield name, outcome
      if stopping() and not told:
        told = True
        for future in [future for future in futures if future.cancel()]:
          never += len(futures.pop(future))
        under_way = sum(map(len, futures.values()))
        print(
          f'runs under way, which end after their round: {under_way}; not '
          f'started: {never}; the same command goes on with all of them',
          flush=True,
        )
