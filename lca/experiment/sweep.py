"""Runs many configs, each in a directory of its own.

    python -m lca.sweep --config=configs/legato_figures.py --workdir=runs/legato
    python -m lca.sweep ... --only='fig5,krum|legato' --seeds=0,1 --jobs=2

A sweep is a Python file whose `get_runs()` returns configs by name, such as
`'fig5/krum'`; with --scale=SCALE it is `get_runs(SCALE)`, of a file that has
several. A run's directory is named by what its config computes (see
`lca.experiment.identity`), so that two names of the same run share it, and
`WORKDIR/sweep.json` says which name is where. What is finished is skipped, what
was stopped goes on, and what failed is tried once more at the end.
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
  """Returns the configs of a sweep's file by name.

  Args:
    path: of the file.
    scale: which of its sizes; None is the file's default.

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
  """Picks runs and gives them seeds.

  Args:
    runs: configs by name.
    only: regular expressions. A run is chosen if each of them matches the
      whole of one of the parts, between `/`, of its name.
    seeds: of every chosen run.
    values: of keys but the seed, as text, in every config.

  Returns:
    Configs by name; the seed is the name's last part.

  Raises:
    ValueError: nothing is chosen; a config has no such key, or a value is not
      of its key's type, or of the seed.
  """
  if 'seed' in (values or {}):
    raise ValueError('the seed is set with --seeds, which names the runs')
  chosen = {}
  for name, config in runs.items():
    parts = name.split('/')
    if all(any(re.fullmatch(o, part) for part in parts) for o in only):
      for seed in seeds:
        one = copy.deepcopy(config).unlock()
        for key, value in (values or {}).items():
          command_line.set_key(one, key, value)
        one.seed = seed
        chosen[f'{name}/{seed}'] = one.lock()
  if not chosen:
    raise ValueError(f'no run has parts like {list(only)}: {sorted(runs)}')
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
  """Runs what is not finished.

  Args:
    runs: configs by name.
    workdir: where their directories go. What a run says stands in a `.log`
      beside its directory, until it is finished.
    jobs: how many at the same time, each in a process of its own, on its share
      of the cores and of the memory.
    stopping: asked every second; once it returns True, the runs under way stop
      after their round, and no other starts.
    load: files that each process executes first, for what they register.
    grace: seconds that a run has to stop, see `host.Stopping`.
  Returns:
    The names of those that failed twice, or were stopped.

  Raises:
    ValueError: see `record`.
  """
  places = record(runs, workdir)
  todo = {place: name for name, place in places.items()}  # each place once
  free = queue.SimpleQueue()
  for job in range(jobs):
    free.put(job)

  def run(name):
    config, path, job = runs[name], places[name], free.get()
    try:
      before = rundir.RunDirectory(path, config.to_dict())
      done = before.finished(config.num_rounds) or _in_a_process(
        (config.to_dict(), path, (job, jobs), load, grace), stopping
      )
      # The last line that the run has said tells why it has failed.
      log = path.with_suffix('.log')
      failed = not done and log.exists()
      lines = log.read_text().splitlines() if failed else []
      why = f'{lines[-1]} (see {log})' if lines else ''
    except (OSError, ValueError) as error:
      done, why = False, error
    finally:
      free.put(job)
    end = 'finished' if done else 'stopped' if stopping() else 'FAILED'
    said = f': {why}' if end == 'FAILED' else ''
    print(f'{path.name} {end}: {name}{said}', flush=True)
    return done

  failed = list(todo.values())
  for _ in range(2):
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
      done = list(pool.map(run, failed))
    failed = [n for n, d in zip(failed, done, strict=True) if not d]
  return failed


def _in_a_process(
  arguments: tuple[Any, ...], stopping: Callable[[], bool]
) -> bool:
  """Returns True if a process has finished the run that `_train` is given."""
  if stopping():
    return False
  context = multiprocessing.get_context('spawn')
  receiver, sender = context.Pipe(duplex=False)
  with receiver, sender:
    process = context.Process(target=_train, args=(*arguments, receiver))
    process.start()
    receiver.close()  # or the sender would not notice that the process ended
    told = False
    while process.is_alive():
      process.join(1)
      if stopping() and not told:
        with contextlib.suppress(OSError):  # it has ended in the meantime
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
  """Runs a config in a process of its own, which ends with the sweep's."""
  stopping = host.Stopping(grace)
  threading.Thread(target=_listen, args=(sweep, stopping), daemon=True).start()
  logging.set_verbosity(logging.FATAL)  # Orbax narrates, errors too
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
  # Nothing will go on from a finished run.
  shutil.rmtree(path / 'checkpoints')
  log.unlink()


def _listen(sweep: Connection, stopping: host.Stopping) -> None:
  """Stops this process when the sweep says so, or is no more.

  A sweep that was killed could not say so, and its runs then stop after their
  round. One that ends after it said so ends at once, and its runs with it.
  """
  with contextlib.suppress(EOFError, OSError):
    while sweep.recv():
      stopping.stop()
  stopping.stop(again=stopping())


def main(argv: list[str]) -> None:
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
        raise ValueError(f'--seeds={text} is no integer of at least 0')
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


def run_command() -> None:
  """Parses the flags and runs the sweep that they name."""
  flags.DEFINE_string('config', None, 'The sweep, a Python file.')
  flags.DEFINE_string('scale', None, 'Of the sweep, if it has several.')
  flags.DEFINE_string('workdir', None, 'Where the runs go.')
  flags.DEFINE_string(
    'packed',
    None,
    'A file of `lca.report --pack`. Its finished runs are put into the workdir '
    'first, except those that are there already, and are not run again.',
  )
  command_line.define_list(
    'only', [], 'Regular expressions; each is the whole of a part of the name.'
  )
  command_line.define_list('seeds', ['0'], 'Every run is made with each.')
  flags.DEFINE_multi_string('set', [], 'KEY=VALUE, in every config.')
  command_line.define_load()
  flags.DEFINE_integer('jobs', 1, 'Runs at the same time.', 1)
  flags.DEFINE_float(
    'grace',
    host.GRACE,
    'Seconds that runs have to finish their round on SIGTERM and Ctrl-C.',
    0.0,
  )
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main)
