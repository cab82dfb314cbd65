"""Runs many configs, each in a directory of its own.

    python -m lca.sweep --config=configs/legato_figures.py --workdir=runs/legato
    python -m lca.sweep ... --only='fig5,krum|legato' --seeds=0,1 --jobs=2
    python -m lca.sweep ... --packed=legato.zip

A sweep is a Python file whose `get_runs()` returns configs by name, such as
`'fig5/krum'`. If the file has several sizes, --scale=SCALE chooses one, and
`get_runs(SCALE)` is called.

The directory of a run is named by what its config computes (see
`lca.experiment.identity`), so that two names of the same run share a directory.
`WORKDIR/sweep.json` holds the directory of each name. Finished runs are
skipped, stopped runs go on, and failed runs are tried once more at the end.

--packed starts from the finished runs in a file of `lca.report --pack`. The
runs that the workdir lacks are put there first, and are not run again.
"""

import concurrent.futures
import contextlib
import copy
import inspect
import itertools
import multiprocessing
import os
import pathlib
import queue
import re
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from lca.experiment import (
  command_line,
  extensions,
  host,
  packing,
  rundir,
  train,
)
from lca.experiment.index import record


def load(
  path: str | os.PathLike, scale: str | None = None
) -> dict[str, ConfigDict]:
  """Returns the configs in a sweep's file, by name.

  Args:
    path: path of the file.
    scale: one of the file's sizes; None takes the file's default.

  Raises:
    ValueError: there is no such file, no `get_runs` in it, or no such scale.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise ValueError(f'there is no sweep {path}')
  module = extensions.load_file(path)
  if not hasattr(module, 'get_runs'):
    raise ValueError(f'{path} is no sweep: it has no get_runs()')
  if scale is None:
    return extensions.call(module, 'get_runs')
  if not inspect.signature(module.get_runs).parameters:
    raise ValueError(f'{path} has one scale only, got {scale!r}')
  return extensions.call(module, 'get_runs', scale)


def choose(
  runs: Mapping[str, ConfigDict],
  only: Sequence[str] = (),
  seeds: Sequence[int] = (0,),
  values: Mapping[str, str] | None = None,
) -> dict[str, ConfigDict]:
  """Picks runs by their names, and makes one for each seed.

  Args:
    runs: configs by name.
    only: regular expressions. A run is chosen if each of them matches a whole
      part of its name; the parts stand between `/`.
    seeds: the seeds that every chosen run is made with.
    values: texts of the values to set in every config, by key. The key `seed`
      is not allowed.

  Returns:
    Configs by name. The seed is added to the name as its last part.

  Raises:
    ValueError: no run is chosen, a config has no such key, a value is not of
      its key's type, or `values` has the seed.
  """
  if 'seed' in (values or {}):
    raise ValueError('the seed is set with --seeds, which names the runs')
  chosen = {}
  for name, config in runs.items():
    parts = name.split('/')
    if all(any(re.fullmatch(o, part) for part in parts) for o in only):
      for seed in seeds:
        seeded = copy.deepcopy(config).unlock()
        for key, value in (values or {}).items():
          command_line.set_key(seeded, key, value)
        seeded.seed = seed
        chosen[f'{name}/{seed}'] = seeded.lock()
  if not chosen:
    raise ValueError(
      f'no run has parts like {list(only)}; the runs are {sorted(runs)}'
    )
  return chosen


def run_all(
  runs: Mapping[str, ConfigDict],
  workdir: str | os.PathLike,
  jobs: int = 1,
  stopping: Callable[[], bool] = lambda: False,
  *,
  load: Sequence[str | os.PathLike] = (),
  grace: float = host.GRACE,
) -> list[str]:
  """Runs the configs that have no finished run yet.

  Args:
    runs: configs by name.
    workdir: directory for the runs' directories. The output of a run is in a
      `.log` file beside its directory until the run is finished.
    jobs: number of runs at the same time. Each run has a process of its own,
      and its share of the cores and of the memory.
    stopping: called every second. Once it returns True, the runs under way stop
      after their round, and no other run starts.
    load: files that each process executes first, because they register
      functions that the runs use.
    grace: seconds that a run has to stop, see `host.Stopping`.

  Returns:
    The names of the runs that failed twice, or were stopped.

  Raises:
    ValueError: see `index.record`.
  """
  places = record(runs, workdir)
  # Several names may share a directory, which is run once.
  names = {place: name for name, place in places.items()}
  free = queue.SimpleQueue()
  for job in range(jobs):
    free.put(job)

  def run(name):
    config, path, job = runs[name], places[name], free.get()
    try:
      directory = rundir.RunDirectory(path, config.to_dict())
      done = directory.finished(config.num_rounds) or _in_a_process(
        (config.to_dict(), path, (job, jobs), load, grace), stopping
      )
      # If the run has failed, the last line of its output says why.
      log = path.with_suffix('.log')
      failed = not done and log.exists()
      lines = log.read_text().splitlines() if failed else []
      why = f'{lines[-1]} (see {log})' if lines else ''
    except (OSError, ValueError) as error:
      done, why = False, error
    finally:
      free.put(job)
    end = 'finished' if done else 'stopped' if stopping() else 'FAILED'
    reason = f': {why}' if end == 'FAILED' else ''
    print(f'{path.name} {end}: {name}{reason}', flush=True)
    return done

  failed = list(names.values())
  for _ in range(2):
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
      done = list(pool.map(run, failed))
    failed = [n for n, d in zip(failed, done, strict=True) if not d]
  return failed


def _in_a_process(
  arguments: tuple[Any, ...], stopping: Callable[[], bool]
) -> bool:
  """Calls `_train` in a new process; returns True if the run was finished.

  Args:
    arguments: the arguments of `_train`, without the last one.
    stopping: see `run_all`.
  """
  if stopping():
    return False
  context = multiprocessing.get_context('spawn')
  receiver, sender = context.Pipe(duplex=False)
  with receiver, sender:
    process = context.Process(target=_train, args=(*arguments, receiver))
    process.start()
    receiver.close()  # so that sending fails once the process has ended
    told = False
    while process.is_alive():
      process.join(1)
      if stopping() and not told:
        with contextlib.suppress(OSError):  # if it has ended meanwhile
          sender.send('stop')
        told = True
  return process.exitcode == 0


def _train(
  config: dict[str, Any],
  path: pathlib.Path,
  job: tuple[int, int],
  load: Sequence[str | os.PathLike],
  grace: float,
  sweep: Connection,
) -> None:
  """Runs a config. This is all that a run's process does.

  Args:
    config: the run's config, as nested dicts.
    path: directory of the run.
    job: index of this job, and the number of jobs that run at the same time.
    load: see `run_all`.
    grace: see `run_all`.
    sweep: end of a pipe on which the sweep's process asks the run to stop.
  """
  stopping = host.Stopping(grace)
  threading.Thread(target=_listen, args=(sweep, stopping), daemon=True).start()
  # Without this, Orbax logs its progress, and repeats errors in the log.
  logging.set_verbosity(logging.FATAL)
  host.use_all_cores(*job)
  log = path.with_suffix('.log')
  with open(log, 'a') as file:
    os.dup2(file.fileno(), sys.stdout.fileno())
    os.dup2(file.fileno(), sys.stderr.fileno())
  extensions.load_files(load)
  experiment = train.set_up(ConfigDict(config).lock(), path, jobs=job[1])
  stopping.take_signals()
  if stopping() or train.run(experiment, stopping) is None:
    sys.exit(host.STOPPED)
  # A finished run needs no checkpoints: it is never continued.
  shutil.rmtree(path / 'checkpoints')
  log.unlink()


def _listen(sweep: Connection, stopping: host.Stopping) -> None:
  """Stops this run when the sweep's process asks for it, or has ended.

  If the sweep's process was killed, and could not ask, the run stops after its
  round. If the sweep's process asked and has then ended, the run ends at once.
  """
  with contextlib.suppress(EOFError, OSError):
    while sweep.recv():
      stopping.stop()
  # The pipe is closed: the sweep's process has ended.
  stopping.stop(again=stopping())


def main(argv: list[str]) -> None:
  """Runs the sweep that the flags name, and exits with its outcome."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  args = flags.FLAGS
  only, seeds = ([*itertools.chain(*each)] for each in (args.only, args.seeds))
  stopping = host.Stopping(args.grace)
  try:
    extensions.load_files(args.load)
    runs = load(args.config, args.scale)
    for text in seeds:
      if not text.isdecimal():
        raise ValueError(f'--seeds={text} must be an integer of at least 0')
    for item in args.set:
      if '=' not in item:
        raise ValueError(f'--set={item} is no KEY=VALUE')
    values = dict(item.split('=', 1) for item in args.set)
    runs = choose(runs, only, [*map(int, seeds)], values)
    if args.packed:
      added = packing.add(args.packed, args.workdir)
      print(f'{added} runs of {args.packed} put into {args.workdir}')
    failed = run_all(
      runs,
      args.workdir,
      args.jobs,
      stopping.take_signals(),
      load=[*args.load, args.config],
      grace=args.grace,
    )
  except (ValueError, TypeError, OSError) as error:
    sys.exit(f'lca.sweep: error: {error}')
  if stopping():
    sys.exit(host.STOPPED)
  if failed:
    sys.exit(f'lca.sweep: error: {len(failed)} of {len(runs)} failed: {failed}')


def define_flags() -> None:
  """Defines the flags of the command."""
  flags.DEFINE_string('config', None, 'The sweep, a Python file.')
  flags.DEFINE_string('scale', None, 'Size of the sweep, if it has several.')
  flags.DEFINE_string('workdir', None, 'Directory for the runs.')
  flags.DEFINE_string(
    'packed',
    None,
    'A file of `lca.report --pack`. Its finished runs are put into the workdir '
    'first, except those that are there already, and are not run again.',
  )
  command_line.define_list(
    'only',
    [],
    'Regular expressions. A run is chosen if each of them matches a whole part '
    'of its name.',
  )
  command_line.define_list(
    'seeds', ['0'], 'Seeds; every run is made with each of them.'
  )
  flags.DEFINE_multi_string('set', [], 'KEY=VALUE to set in every config.')
  command_line.define_load()
  flags.DEFINE_integer('jobs', 1, 'Runs at the same time.', 1)
  flags.DEFINE_float(
    'grace',
    host.GRACE,
    'Seconds that runs have to finish their round on SIGTERM and Ctrl-C.',
    0.0,
  )
  flags.mark_flags_as_required(['config', 'workdir'])
