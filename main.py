"""Runs a federated experiment.

    python main.py
    python main.py --config=configs/fashion_mnist.py:layerwise_cosine_krum,\
label_flipping --workdir=runs/x --config.server.clients_per_round=50
"""

import contextlib
import datetime
import itertools
import pathlib
import re
import sys

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from lca.experiment import checkpoints, host, summary, train


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    _fail(f'unexpected arguments {argv[1:]}')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.FATAL)  # Orbax narrates, errors too
  host.use_all_cores()
  args = flags.FLAGS
  try:
    host.join_processes(args.coordinator, args.num_processes, args.process_id)
    experiment = _set_up(args.config, args.workdir)
  except (ValueError, TypeError, OSError, ImportError) as error:
    _fail(error)
  host.say(f'{experiment.directory.path} on {jax.devices()}')
  if experiment.simulation:
    host.say(experiment.simulation.data.describe())
    host.say(experiment.plan)
  try:
    result = train.run(experiment, host.stopped_by_sigterm())
  except (OSError, FloatingPointError, checkpoints.CheckpointError) as error:
    _fail(error)
  if result is None:
    host.say('stopped; the same command on this --workdir goes on')
    sys.exit(host.STOPPED)
  host.say(summary.table(result))


def _set_up(config: ConfigDict, workdir: str | None) -> train.Experiment:
  if workdir:
    return train.set_up(config, workdir)
  workdir = _new_workdir()
  try:
    return train.set_up(config, workdir)
  except BaseException:
    with contextlib.suppress(OSError):  # unless it holds something
      workdir.rmdir()
    raise


def _new_workdir() -> pathlib.Path:
  """Makes one; commands of the same second get different ones."""
  if jax.process_count() > 1:
    raise ValueError('several processes need the same --workdir')
  name = re.sub(r'^.*/|\.py', '', flags.FLAGS['config'].config_filename)
  now = datetime.datetime.now(datetime.UTC).strftime('%Y%m%dT%H%M%SZ')
  name = f'{re.sub(r"[:,]", "-", name)}-{now}'
  for number in itertools.count(1):
    path = pathlib.Path('runs', name if number == 1 else f'{name}-{number}')
    with contextlib.suppress(FileExistsError):
      path.mkdir(parents=True)
      return path


def _define_flags() -> None:
  config_flags.DEFINE_config_file(
    'config',
    'configs/digits.py',
    'SETTING.py:PRESET,PRESET; see configs/common.py for keys and presets.',
    lock_config=True,
  )
  flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run: a new one under runs/ by default. The same command '
    'on the same directory goes on where it stopped.',
  )
  flags.DEFINE_string(
    'coordinator',
    None,
    'HOST:PORT of the first of several processes, with --num_processes and '
    '--process_id; "auto" lets JAX find out. TPU pods and srun need none.',
  )
  flags.DEFINE_integer('num_processes', None, 'Of the run.')
  flags.DEFINE_integer('process_id', None, 'Of this process, from 0.')


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    _define_flags()  # ml_collections reads the config's overrides here
    return flags.FLAGS(argv)
  except flags.Error as error:
    # A config file's own exception ends the traceback that this quotes.
    _fail(str(error).strip().splitlines()[-1])
  except AttributeError as error:
    (cause,) = error.args  # ml_collections wraps a KeyError, a module does not
    message = ' '.join(str(getattr(cause, 'args', [cause])[0]).split())
    _fail(f'no such config key or function: {message}')


def _fail(message: object) -> None:
  sys.exit(f'main.py: error: {message}')


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
