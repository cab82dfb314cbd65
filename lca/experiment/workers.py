"""The processes of a sweep's runs. Each runs one config after another.

A process that stays imports its packages once, and later runs find what earlier
ones have compiled (see `lca.experiment.compilation`).
"""

import contextlib
import gc
import multiprocessing
import os
import pathlib
import queue
import re
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import connection
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from lca.experiment import compilation, extensions, host, together, train
from lca.experiment.summary import is_finished

FAILS_AGAIN = os.EX_DATAERR
"""The exit code of a process after an error that a retry would repeat."""

_PERMANENT = ValueError, TypeError, ImportError, FloatingPointError
"""Errors that a retry would repeat."""

MOST_BYTES = 2**31
"""A process that holds more memory after a run ends, and frees it."""


Configs = Mapping[pathlib.Path, Mapping[str, Any]]
"""Configs as nested dicts, by the directory of their run."""

Codes = dict[pathlib.Path, int | None]
"""Exit codes by the directory of the run."""


class Worker:
  """A process for runs, one at a time.

  The process starts with the first run. It ends after a run that failed or was
  stopped, so that no run meets what such a run has left; then the next run
  starts a new process.

  Args:
    job: index of this worker, and the number of workers at the same time.
    load: files to execute before the first run, see `jobs.run_all`.
    grace: seconds that a run has to stop, see `host.Stopping`.
    keep_programs: False keeps no compiled programs on disk.
  """

  def __init__(
    self,
    job: tuple[int, int],
    *,
    load: Sequence[str | os.PathLike] = (),
    grace: float = host.GRACE,
    keep_programs: bool = True,
  ):
    self._arguments = job, load, grace, keep_programs
    self._process: Any = None
    self._pipe: Any = None

  def run(
    self,
    configs: Configs,
    stopping: Callable[[], bool] = lambda: False,
  ) -> Codes | None:
    """Runs configs in the process, together, and waits for their end.

    Args:
      configs: the configs as nested dicts, by the directory of their run. If
        there are several, they differ in their seed alone. The output of all is
        in a `.log` file beside the first directory until that run is finished.
        A run that fails beside others has a copy, and its error, in its own.
      stopping: called every second. Once it returns True, the runs stop after
        their round.

    Returns:
      For each directory 0 if its run is finished, and None if it never began;
      otherwise the exit code that the process has, or would have if that run
      were the only one: -N if the signal N has ended it. None in place of the
      dict if the sweep was stopping before the runs could begin.

    Raises:
      OSError: the process cannot be started.
    """
    if stopping():
      return None
    if self._process is not None and not self._process.is_alive():
      self._end()  # it was killed between two runs
    if self._process is None:
      self._start()
    with contextlib.suppress(OSError):  # if it has ended meanwhile
      self._pipe.send(configs)
    told = False
    while True:
      ready = connection.wait([self._pipe, self._process.sentinel], 1)
      if self._pipe in ready:
        try:
          codes, stays = self._pipe.recv()
          if not stays:
            self.close()
          return codes
        except (EOFError, OSError):  # it has ended
          return self._codes_at_the_end(configs)
      if ready:
        return self._codes_at_the_end(configs)
      if stopping() and not told:
        with contextlib.suppress(OSError):
          self._pipe.send(None)
        told = True

  def _codes_at_the_end(self, configs: Configs) -> Codes:
    """Returns the codes after the process has ended by itself."""
    code = self._end() or 1
    return {path: 0 if is_finished(path) else code for path in configs}

  def close(self) -> None:
    """Ends the process, if there is one, and waits for its end."""
    if self._process is not None:
      self._end()

  def _start(self) -> None:
    context = multiprocessing.get_context('spawn')
    self._pipe, end = context.Pipe()
    with end:  # closed here, so that the pipe tells when the process has ended
      process = context.Process(target=_work, args=(*self._arguments, end))
      try:
        process.start()
      except OSError:
        self._pipe.close()
        raise
    self._process = process

  def _end(self) -> int:
    """Lets the process end, waits for it, and returns its exit code."""
    self._pipe.close()
    self._process.join()
    code, self._process = self._process.exitcode, None
    return code


class Workers(contextlib.AbstractContextManager):
  """Several workers, which end with the context.

  Args:
    jobs: number of workers.
    **options: of each worker, see `Worker`.
  """

  def __init__(self, jobs: int, **options: Any):
    self._all = [Worker((job, jobs), **options) for job in range(jobs)]
    self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in self._all:
      self._free.put(worker)

  def run(self, *arguments: Any) -> Codes | None:
    """Calls `Worker.run` of a worker that is free, or waits for one."""
    worker = self._free.get()
    try:
      return worker.run(*arguments)
    finally:
      self._free.put(worker)

  def __exit__(self, kind, error, traceback) -> None:
    """Ends the processes of all workers; none of them may be running."""
    for worker in self._all:
      worker.close()


def _work(
  job: tuple[int, int],
  load: Sequence[str | os.PathLike],
  grace: float,
  keep_programs: bool,
  sweep: connection.Connection,
) -> None:
  """Runs the configs that the sweep's process sends. A process does this alone.

  Args:
    job, load, grace, keep_programs: see `Worker`.
    sweep: end of a pipe. Configs by path ask for runs, and None asks to stop.
      After the runs their exit codes by path go back, and True if this process
      stays for the next runs, or False if it ends. If all of them have failed,
      nothing goes back, and the process ends with the exit code.
  """
  stopping = host.Stopping(grace, in_rounds=False)
  runs: queue.SimpleQueue = queue.SimpleQueue()
  listening = threading.Thread(
    target=_listen, args=(sweep, runs, stopping), daemon=True
  )
  listening.start()
  # Without this, Orbax logs its progress, and repeats errors in the log.
  logging.set_verbosity(logging.FATAL)
  host.use_all_cores(*job)
  if keep_programs:
    compilation.keep_programs()
  else:
    compilation.keep_none()
  try:
    stopping.take_signals()
    gc.freeze()  # what was imported stays, so that the collection below is fast
    for configs in iter(runs.get, None):
      codes = _train(configs, job[1], load, stopping)
      load = ()  # a file that is saved meanwhile must not be executed again
      gc.collect()
      stays = not stopping() and host.resident_bytes() < MOST_BYTES
      stays = stays and not any(codes.values())
      sweep.send((codes, stays))
      if not stays:
        return
      stopping.in_rounds = False
  except KeyboardInterrupt:
    sys.exit(host.STOPPED)
  except _PERMANENT:
    traceback.print_exc()
    sys.exit(FAILS_AGAIN)


def _train(
  configs: Configs,
  jobs: int,
  load: Sequence[str | os.PathLike],
  stopping: host.Stopping,
) -> Codes:
  """Runs configs to their end, or until they are stopped.

  Args:
    configs: see `Worker.run`.
    jobs: number of processes at the same time.
    load: see `jobs.run_all`.
    stopping: tells when to stop.

  Returns:
    The exit code of each run, by path.
  """
  shared, *others = [path.with_suffix('.log') for path in configs]
  for log in others:
    log.unlink(missing_ok=True)  # of an earlier failure
  with open(shared, 'a') as file:
    os.dup2(file.fileno(), sys.stdout.fileno())
    os.dup2(file.fileno(), sys.stderr.fileno())
  extensions.load_files(load)

  def start():
    stopping.in_rounds = True  # from now on a round is finished and saved first

  def end(path):
    # A finished run needs no checkpoints: it is never continued.
    if (path / 'checkpoints').exists():
      shutil.rmtree(path / 'checkpoints')

  failures = {}
  if len(configs) > 1:
    failures = together.run(configs, jobs, stopping, start, end)
  else:
    ((path, config),) = configs.items()
    experiment = train.set_up(ConfigDict(config).lock(), path, jobs=jobs)
    start()
    if not stopping():
      train.run(experiment, stopping)
  codes, output = {}, shared.read_text(errors='replace')
  for path in configs:
    if error := failures.get(path):
      codes[path] = FAILS_AGAIN if isinstance(error, _PERMANENT) else 1
      text = ''.join(traceback.format_exception(error))
      path.with_suffix('.log').write_text(output + text)
    elif is_finished(path):
      codes[path] = 0
      end(path)
      path.with_suffix('.log').unlink(missing_ok=True)
    elif (path / 'config.json').exists():
      codes[path] = host.STOPPED
    else:
      codes[path] = None  # it never began
  return codes


def _listen(
  sweep: connection.Connection,
  runs: queue.SimpleQueue,
  stopping: host.Stopping,
) -> None:
  """Takes what the sweep's process sends, until it closes the pipe or ends.

  If the sweep's process was killed, and could not ask, a run under way stops
  after its round. If the sweep's process asked and has then ended, the run ends
  at once.
  """
  try:
    while True:
      message = sweep.recv()
      if message is None:
        stopping.stop()
      else:
        runs.put(message)
  except (EOFError, OSError):
    pass  # the pipe is closed
  finally:
    runs.put(None)
    stopping.stop(again=stopping())


def log_of(paths: Iterable[pathlib.Path]) -> pathlib.Path:
  """Returns the file with the output of runs that run together."""
  return next(iter(paths)).with_suffix('.log')


def reason(code: int, log: pathlib.Path) -> str:
  """Returns a line that says why a run failed.

  Args:
    code: the exit code of its process; -N if the signal N has ended it.
    log: the output of the process, which need not exist.
  """
  if code < 0:
    name = signal.Signals(-code).name
    memory = ', as when memory runs out' if name == 'SIGKILL' else ''
    return f'{name} ended its process{memory} (see {log})'
  lines = log.read_text(errors='replace').splitlines() if log.exists() else []
  # A traceback ends with the error's name and message, of one or more lines.
  errors = [
    line for line in lines if re.match(r'[\w.]+(Error|Exception)\b', line)
  ]
  return f'{(errors or lines or [f"exit code {code}"])[-1]} (see {log})'
