"""Runs many configs, each in a directory of its own.

    python -m lca.sweep --config=configs/digits.py --workdir=runs/grid \
--grid='krum,median x none,alie x aggregator.f=1,2' --seeds=0,1 --jobs=2
    python -m lca.sweep --config=configs/legato_figures.py --workdir=runs/legato
    python -m lca.sweep ... --only='fig5,krum|legato' --dry-run
    python -m lca.sweep ... --packed=legato.zip

With --grid the config is a setting, as of `main.py`, and the sweep's runs are
all combinations of the grid (see `lca.experiment.grid`). Without it the config
is a Python file whose `get_runs()` returns configs by name, such as
`'fig5/krum'`. If that file has several sizes, --scale=SCALE chooses one, and
`get_runs(SCALE)` is called.

The directory of a run is named by what its config computes (see
`lca.experiment.identity`), so that two names of the same run share a directory.
`WORKDIR/sweep.json` holds the directory of each name. Configs are checked
before any run starts. Finished runs are skipped, and stopped runs go on. Runs
that fail are tried once more at the end, unless they would fail again.

--packed starts from the finished runs in a file of `lca.report --pack`. The
runs that the workdir lacks are put there first, and are not run again.
"""

import copy
import functools
import inspect
import itertools
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

from absl import app, flags
from ml_collections import ConfigDict

from lca.experiment import (
  command_line,
  extensions,
  grid,
  host,
  index,
  jobs,
  outlook,
  packing,
  sections,
)

_MOST_LISTED = 20  # parts of names, in an error


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
    setting = '; it is a setting, which needs a --grid'
    raise ValueError(
      f'{path} is no sweep: it has no get_runs()'
      + (setting if hasattr(module, 'get_config') else '')
    )
  if scale is None:
    return extensions.call(module, 'get_runs')
  if not inspect.signature(module.get_runs).parameters:
    raise ValueError(f'{path} has one scale only, got {scale!r}')
  return extensions.call(module, 'get_runs', scale)


def load_grid(
  source: str, text: str
) -> tuple[dict[str, ConfigDict], list[str]]:
  """Returns the configs of a grid over a setting, by name.

  Args:
    source: `SETTING.py` or `SETTING.py:PRESET,PRESET`. The presets are those of
      all runs.
    text: the grid, see `grid.parse`.

  Returns:
    See `grid.expand`. The names begin with the setting and its presets, as in
    `'digits:dirichlet/krum/alie'`.

  Raises:
    ValueError: the file is no setting, or see `grid.expand`.
  """
  path, colon, presets = source.partition(':')
  module = extensions.load_file(path)
  if not hasattr(module, 'get_config'):
    raise ValueError(
      f'{path} is no setting: it has no get_config(), which --grid needs'
    )
  get_config = functools.partial(extensions.call, module, 'get_config')
  group = pathlib.Path(path).stem + colon + presets
  return grid.expand(text, get_config, presets if colon else None, group)


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
          try:
            command_line.set_key(seeded, key, value)
          except ValueError as error:
            raise ValueError(f'{name}: {error}') from None
        seeded.seed = seed
        chosen[f'{name}/{seed}'] = seeded.lock()
  if not chosen:
    parts = sorted({part for name in runs for part in name.split('/')})
    more = len(parts) - _MOST_LISTED
    raise ValueError(
      f'no run has parts like {list(only)}; the parts of names are '
      + ', '.join(parts[:_MOST_LISTED])
      + (f', and {more} more: --dry-run lists all runs' if more > 0 else '')
    )
  return chosen


def main(argv: list[str]) -> None:
  """Runs the sweep that the flags name, and exits with its outcome."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  args = flags.FLAGS
  stopping = host.Stopping(args.grace)
  try:
    extensions.load_files(args.load)
    runs, files = runs_of(args)
    places = index.places_of(runs, args.workdir)
    # A run that has begun has passed the checks.
    new = {
      name: config
      for name, config in runs.items()
      if not (places[name] / 'config.json').exists()
    }
    dry_run, wrong = args['dry-run'].value, {}
    seeds_at_once = args['seeds-at-once'].value
    if seeds_at_once is None and len({*map(index.line_of, runs)}) == len(runs):
      seeds_at_once = 1
    if new or (seeds_at_once is None and not dry_run):
      wrong, backend = jobs.check(new, files, args.jobs)
      if seeds_at_once is None and backend == 'cpu':
        seeds_at_once = 1
    if wrong:
      listed = f'{len(wrong)} of {len(runs)} runs are impossible'
      runs = {name: runs[name] for name in runs if name not in wrong}
      if not runs or not args['skip-infeasible'].value:
        remedy = 'correct them'
        if runs:
          remedy = f'leave them out with --skip-infeasible, or {remedy}'
        raise ValueError(f'{listed}; {remedy}:\n{grid.listing(wrong)}')
      print(f'{listed} and left out:\n{grid.listing(wrong)}')
    if dry_run:
      print(*outlook.lines(runs, places, args.jobs), sep='\n')
      return
    if args.packed:
      added = packing.add(args.packed, args.workdir)
      print(f'{added} runs of {args.packed} put into {args.workdir}')
    failed = jobs.run_all(
      runs,
      args.workdir,
      args.jobs,
      stopping.take_signals(),
      load=files,
      grace=args.grace,
      keep_programs=not args['no-compilation-cache'].value,
      seeds_at_once=seeds_at_once,
    )
  except (ValueError, TypeError, OSError) as error:
    sys.exit(f'lca.sweep: error: {error}')
  except KeyboardInterrupt:
    print('stopped before the first run of this command')
    sys.exit(host.STOPPED)
  if stopping():
    sys.exit(host.STOPPED)
  if failed:
    sys.exit(f'lca.sweep: error: {len(failed)} of {len(runs)} runs failed')


def runs_of(args: flags.FlagValues) -> tuple[dict[str, ConfigDict], list[str]]:
  """Returns the runs that the flags choose, and the files that they load.

  Args:
    args: the flags of the command.

  Returns:
    The configs by name, and the paths of the files.

  Raises:
    ValueError: flags that do not go together, or a wrong value of a flag.
  """
  only, seeds = ([*itertools.chain(*each)] for each in (args.only, args.seeds))
  for text in seeds:
    if not text.isdecimal():
      raise ValueError(f'--seeds={text} must be an integer of at least 0')
    sections.Run(seed=int(text))  # checks the range
  for item in args.set:
    if '=' not in item:
      raise ValueError(f'--set={item} is no KEY=VALUE')
  values = dict(item.split('=', 1) for item in args.set)
  if args.packed and args['dry-run'].value:
    raise ValueError(
      '--dry-run writes nothing, so that it does not know of the runs that '
      '--packed would add: leave out one of them'
    )
  if args.grid is None:
    runs = load(args.config, args.scale)
    file = args.config
  else:
    if args.scale is not None:
      raise ValueError(f'--scale={args.scale} does not go with --grid')
    for axis in grid.parse(args.grid):
      if axis.key in values:
        raise ValueError(
          f'--set={axis.key}={values[axis.key]} does not go with the axis '
          f'{axis.key} of the grid: leave out one of them'
        )
    runs, notes = load_grid(args.config, args.grid)
    print('\n'.join([f'{len(runs)} combinations', *notes]))
    file = args.config.partition(':')[0]
  return choose(runs, only, [*map(int, seeds)], values), [*args.load, file]


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flags of the command.

  Args:
    values: the flags to which the new flags are added.
  """
  flags.DEFINE_string(
    'config',
    None,
    'The sweep, a Python file. With --grid: SETTING.py or '
    'SETTING.py:PRESET,PRESET, as of main.py.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'grid',
    None,
    'Runs all combinations, as in "krum,median x none,alie x aggregator.f=1,2".'
    ' An axis lists presets, or values of one key. In an entry, + joins several'
    ' presets, and "none" is no preset.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'dry-run',
    False,
    'Only lists the runs, with id, state and the time left.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'skip-infeasible',
    False,
    'Leaves out the runs whose config is impossible, such as f=3 of n=8 '
    'clients, and lists them. Otherwise they are an error.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'scale', None, 'Size of the sweep, if it has several.', flag_values=values
  )
  flags.DEFINE_string(
    'workdir', None, 'Directory for the runs.', flag_values=values
  )
  flags.DEFINE_string(
    'packed',
    None,
    'A file of `lca.report --pack`. Its finished runs are put into the workdir '
    'first, except those that are there already, and are not run again.',
    flag_values=values,
  )
  command_line.define_list(
    'only',
    [],
    'Regular expressions. A run is chosen if each of them matches a whole part '
    'of its name.',
    values,
  )
  command_line.define_list(
    'seeds', ['0'], 'Seeds; every run is made with each of them.', values
  )
  flags.DEFINE_multi_string(
    'set', [], 'KEY=VALUE to set in every config.', flag_values=values
  )
  command_line.define_load(values)
  command_line.define_cache(values)
  flags.DEFINE_integer(
    'jobs', 1, 'Runs at the same time.', 1, flag_values=values
  )
  flags.DEFINE_integer(
    'seeds-at-once',
    None,
    'Seeds of one config that run as one program, whose results differ by '
    'rounding. By default as many as fit on GPUs and TPUs, and 1 on CPUs.',
    1,
    flag_values=values,
  )
  flags.DEFINE_float(
    'grace',
    host.GRACE,
    'Seconds that runs have to finish their round on SIGTERM and Ctrl-C.',
    0.0,
    flag_values=values,
  )
  flags.mark_flags_as_required(['config', 'workdir'], values)
