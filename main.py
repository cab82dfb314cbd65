"""Runs a federated experiment from the command line.

    python main.py
    python main.py --config=configs/fashion_mnist.py:layerwise_cosine_krum,\
label_flipping --workdir=runs/x --config.server.clients_per_round=50
    python main.py --load=my_rules.py --config=configs/digits.py:my_rule

`--config=SETTING.py:PRESET,PRESET` chooses a setting and presets (see
`configs/common.py`), `--config.KEY=VALUE` sets a key (see
`lca/experiment/sections.py`). Without arguments it runs `configs/digits.py`.
The same command with the same `--workdir` continues a run that was stopped.
"""

import contextlib
import datetime
import itertools
import pathlib
import re
import signal
import sys

if __name__ == '__main__':
  # The imports below take seconds. Until `main` handles signals, Ctrl-C ends
  # the process without a traceback.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  _SILENT = {'-h', '--help', '--helpshort', '--helpfull', '--quiet'}
  if not _SILENT.intersection(sys.argv):
    print('starting ...', flush=True)

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

# The trainer is imported by its first use, which --help does not make.
from lca import experiment, progress
from lca.experiment import (
  command_line,
  compilation,
  extensions,
  host,
  summary,
)

_CONFIGS = pathlib.Path(__file__).resolve().parent / 'configs'


def main(argv: list[str]) -> None:
  if not flags.FLAGS['verbosity'].present:
    # Orbax logs every step that it takes, and errors that are raised anyway.
    logging.set_verbosity(logging.FATAL)
  args = flags.FLAGS
  if args.quiet:
    progress.hide()
  host.use_all_cores()  # before JAX makes its devices
  if args['no-compilation-cache'].value:
    compilation.keep_none()
  else:
    compilation.keep_programs()
  stopping = host.Stopping(args.grace, in_rounds=False).take_signals()
  try:
    extensions.load_files(args.load)
    config = _config(args.config, argv[1:])
    # Waits for the other processes, if the run has several.
    host.join_processes(args.coordinator, args.num_processes, args.process_id)
    with _hint_at_presets(argv):
      prepared = _set_up(config, args.workdir)
    stopping.in_rounds = True  # from now on a round is finished and saved first
  except (ValueError, TypeError, OSError, ImportError) as error:
    _fail(error)
  except KeyboardInterrupt:
    then = (
      f'with --workdir={args.workdir} goes on'
      if args.workdir
      else 'starts anew'
    )
    host.say(
      f'stopped before the first round of this command; the same command {then}'
    )
    sys.exit(host.STOPPED)
  host.say(f'{prepared.directory.path} on {jax.devices()}')
  if prepared.simulation:  # None if the run is finished already
    host.detail(prepared.simulation.data.describe())
    host.detail(prepared.plan)
  else:
    host.say('the run is finished; these are its results')
  try:
    result = experiment.run(prepared, stopping)
  except (OSError, FloatingPointError, experiment.CheckpointError) as error:
    _fail(error)
  if result is None:
    host.say(
      'stopped; the same command with '
      f'--workdir={prepared.directory.path} goes on'
    )
    sys.exit(host.STOPPED)
  host.say(summary.as_text(result))


def _config(source: str, arguments: list[str]) -> ConfigDict:
  """Returns the config of `SETTING.py:PRESETS`, with keys set by arguments.

  Args:
    source: the value of --config.
    arguments: those that absl's flags do not know, such as
      `--config.num_rounds=5`.

  Raises:
    ValueError: an unknown setting, preset or key; a value of the wrong type; or
      an argument that is not of the form `--config.KEY=VALUE`.
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
      f'there is no setting {path}. The settings in {_CONFIGS} are: '
      f'{", ".join(settings)}. --config takes the path of such a file, and '
      'maybe presets: SETTING.py or SETTING.py:PRESET,PRESET'
    )
  module = extensions.load_file(path)
  if not hasattr(module, 'get_config'):
    sweep = f'; it is a sweep: python -m lca.sweep --config={path} runs it'
    raise ValueError(
      f'{path} is not a setting: it defines no get_config()'
      + (sweep if hasattr(module, 'get_runs') else '')
    )
  config = extensions.call(module, 'get_config', *([presets] if colon else []))
  _check_others(command_line.override(config, arguments), config)
  return config.lock()


def _check_others(arguments: list[str], config: ConfigDict) -> None:
  """Refuses arguments that are neither a flag nor a key of the config.

  Args:
    arguments: what is left of the command line.
    config: its keys serve as hints: --num_rounds means --config.num_rounds.

  Raises:
    ValueError: there are any.
  """
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
    raise ValueError(
      f'unexpected arguments {arguments}: flags start with --, such as '
      '--config.num_rounds=5'
    )


# Each value of these keys requires other keys in its section. A preset sets the
# section as a whole.
_CHOSEN_BY_PRESET = (
  'aggregator.name',
  'attack.name',
  'data.partition',
  'model.name',
  'server.optimizer',
)


@contextlib.contextmanager
def _hint_at_presets(arguments: list[str]):
  """Adds a hint to errors after a key was set without its preset."""
  try:
    yield
  except (ValueError, TypeError) as error:
    chosen = {*command_line.keys_of(arguments)}.intersection(_CHOSEN_BY_PRESET)
    if chosen and 'compose the preset' not in str(error):
      raise ValueError(
        f'{error}. Set {", ".join(sorted(chosen))} by a preset, which also '
        'sets the keys that go with it: --config=SETTING.py:PRESET,PRESET'
      ) from error
    raise


def _set_up(config: ConfigDict, workdir: str | None) -> 'experiment.Experiment':
  """Prepares the run, in a new directory if no workdir is given."""
  if workdir:
    return experiment.set_up(config, workdir)
  workdir = _new_workdir()
  try:
    return experiment.set_up(config, workdir)
  except BaseException:
    with contextlib.suppress(OSError):  # a directory with files in it stays
      workdir.rmdir()
      workdir.parent.rmdir()
    raise


def _new_workdir() -> pathlib.Path:
  """Makes a directory runs/SETTING-PRESETS-TIME and returns its path.

  Several commands in the same second get different directories.
  """
  if jax.process_count() > 1:
    raise ValueError(
      'a run of several processes needs --workdir, the same for all of them'
    )
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
    'SETTING.py or SETTING.py:PRESET,PRESET; see configs/common.py for the '
    'presets. --config.KEY=VALUE sets a key; see lca/experiment/sections.py '
    'for the keys.',
  )
  command_line.define_load()
  command_line.define_cache()
  flags.adopt_module_key_flags(command_line)  # so that --help lists these two
  flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run; by default a new one under runs/. The same command '
    'with the same directory continues a run that was stopped.',
  )
  flags.DEFINE_float(
    'grace',
    host.GRACE,
    'Seconds from SIGTERM or Ctrl-C until the process is ended, if it has not '
    'finished its round before.',
    0.0,
  )
  flags.DEFINE_bool(
    'quiet',
    False,
    'Prints what runs, warnings and results, but no rounds and no progress.',
  )
  flags.DEFINE_string(
    'coordinator',
    None,
    'For a run of several processes: HOST:PORT of the first one. Needs '
    '--num_processes and --process_id. "auto" lets JAX detect the cluster. TPU '
    'pods and srun need none of these flags.',
  )
  flags.DEFINE_integer(
    'num_processes', None, 'How many processes make the run.'
  )
  flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.')


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses the flags of this command.

  Returns:
    The program's name, and the arguments that set keys of the config.
  """
  _define_flags()
  flags.FLAGS.set_gnu_getopt(True)
  try:
    return flags.FLAGS(argv, known_only=True)
  except flags.Error as error:
    _fail(str(error).strip().splitlines()[-1])


def _fail(message: object) -> None:
  """Ends the process with an error message and the exit code 1."""
  sys.exit(f'main.py: error: {message}')


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
