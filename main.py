"""Runs a federated experiment.

    python main.py
    python main.py --config=configs/fashion_mnist.py:layerwise_cosine_krum,\
label_flipping --workdir=runs/x --config.server.clients_per_round=50
    python main.py --load=my_rules.py --config=configs/digits.py:my_rule
"""

import contextlib
import datetime
import itertools
import pathlib
import re
import sys

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from lca.experiment import (
  checkpoints,
  command_line,
  extensions,
  host,
  summary,
  train,
)

_CONFIGS = pathlib.Path(__file__).resolve().parent / 'configs'


def main(argv: list[str]) -> None:
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.FATAL)  # Orbax narrates, errors too
  host.use_all_cores()
  args = flags.FLAGS
  try:
    extensions.load_files(args.load)
    config = _config(args.config, argv[1:])
    host.join_processes(args.coordinator, args.num_processes, args.process_id)
    with _hint_at_presets(argv):
      experiment = _set_up(config, args.workdir)
  except (ValueError, TypeError, OSError, ImportError) as error:
    _fail(error)
  except KeyboardInterrupt:
    host.say('stopped before a round')
    sys.exit(host.STOPPED)
  host.say(f'{experiment.directory.path} on {jax.devices()}')
  if experiment.simulation:
    host.say(experiment.simulation.data.describe())
    host.say(experiment.plan)
  try:
    result = train.run(experiment, host.Stopping(args.grace).take_signals())
  except (OSError, FloatingPointError, checkpoints.CheckpointError) as error:
    _fail(error)
  if result is None:
    host.say('stopped; the same command on this --workdir goes on')
    sys.exit(host.STOPPED)
  host.say(summary.table(result))


def _config(source: str, arguments: list[str]) -> ConfigDict:
  """Returns the config of `SETTING.py:PRESETS` with the arguments' values.

  Raises:
    ValueError: there is no such setting, preset or key, or a value that it
      cannot have, or an argument that is no `--config.KEY=VALUE`.
  """
  path, colon, presets = source.partition(':')
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    settings = sorted(
      each.stem
      for each in _CONFIGS.glob('*.py')
      if 'def get_config' in each.read_text()
    )
    raise ValueError(
      f'there is no setting {path}; in {_CONFIGS} there are: '
      f'{", ".join(settings)}'
    )
  module = extensions.load_file(path)
  if not hasattr(module, 'get_config'):
    sweep = '; it is a sweep, for python -m lca.sweep'
    raise ValueError(
      f'{path} is no setting: it has no get_config()'
      + (sweep if hasattr(module, 'get_runs') else '')
    )
  config = extensions.call(module, 'get_config', *([presets] if colon else []))
  _check_others(command_line.override(config, arguments), config)
  return config.lock()


def _check_others(arguments: list[str], config: ConfigDict) -> None:
  """Refuses arguments that are neither a flag nor a config's key."""
  for argument in arguments:
    if argument.startswith('-'):
      name = argument.lstrip('-').partition('=')[0]
      meant = [
        f'--config.{key}'
        for key in command_line.flat_keys(config)
        if key == name or key.endswith(f'.{name}')
      ]
      hint = f'; did you mean {" or ".join(meant)}?' if meant else ''
      raise ValueError(f'unknown flag --{name}{hint}')
  if arguments:
    raise ValueError(f'unexpected arguments {arguments}')


# Each value of these brings keys of its own, which a preset sets.
_CHOSEN_BY_PRESET = (
  'aggregator.name',
  'attack.name',
  'data.partition',
  'model.name',
  'server.optimizer',
)


@contextlib.contextmanager
def _hint_at_presets(arguments: list[str]):
  """Adds to an error that a key was set which a preset had better choose."""
  try:
    yield
  except (ValueError, TypeError) as error:
    chosen = {*command_line.keys_of(arguments)}.intersection(_CHOSEN_BY_PRESET)
    if chosen and 'compose the preset' not in str(error):
      raise ValueError(
        f'{error}. {", ".join(sorted(chosen))} is best chosen by a preset, '
        'which sets the other keys, too: --config=SETTING.py:PRESET,PRESET'
      ) from error
    raise


def _set_up(config: ConfigDict, workdir: str | None) -> train.Experiment:
  if workdir:
    return train.set_up(config, workdir)
  workdir = _new_workdir()
  try:
    return train.set_up(config, workdir)
  except BaseException:
    with contextlib.suppress(OSError):  # unless they hold something
      workdir.rmdir()
      workdir.parent.rmdir()
    raise


def _new_workdir() -> pathlib.Path:
  """Makes one; commands of the same second get different ones."""
  if jax.process_count() > 1:
    raise ValueError('several processes need the same --workdir')
  name = re.sub(r'^.*/|\.py', '', flags.FLAGS.config)
  now = datetime.datetime.now(datetime.UTC).strftime('%Y%m%dT%H%M%SZ')
  name = f'{re.sub(r"[:,]", "-", name)}-{now}'
  for number in itertools.count(1):
    path = pathlib.Path('runs', name if number == 1 else f'{name}-{number}')
    with contextlib.suppress(FileExistsError):
      path.mkdir(parents=True)
      return path


def _define_flags() -> None:
  flags.DEFINE_string(
    'config',
    str(_CONFIGS / 'digits.py'),
    'SETTING.py:PRESET,PRESET; see configs/common.py for the presets. '
    '--config.KEY=VALUE sets a key.',
  )
  command_line.define_load()
  flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run: a new one under runs/ by default. The same command '
    'on the same directory goes on where it stopped.',
  )
  flags.DEFINE_float(
    'grace',
    host.GRACE,
    'Seconds that the run has to finish its round on SIGTERM and Ctrl-C.',
    0.0,
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
  """Parses all flags but those that set a config's keys, and returns those."""
  _define_flags()
  flags.FLAGS.set_gnu_getopt(True)
  try:
    return flags.FLAGS(argv, known_only=True)
  except flags.Error as error:
    _fail(str(error).strip().splitlines()[-1])


def _fail(message: object) -> None:
  sys.exit(f'main.py: error: {message}')


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
