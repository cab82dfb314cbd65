"""A sweep's index, `sweep.json`: which of its runs lies in which directory.

The directory of a run is named by the run's id, so that two names of the same
run share it. A name is `GROUP/LINE/SEED`; all before the seed is the line's
name, which the runs of all seeds share.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lca.experiment import files, identity, rundir


def names(workdir: str | os.PathLike) -> dict[str, str]:
  """Returns the directories of a sweep's runs, within its own, by name.

  Before the sweep's start there are none.

  Raises:
    ValueError: the file is damaged.
  """
  file = pathlib.Path(workdir).expanduser() / 'sweep.json'
  if not file.exists():
    return {}
  remedy = 'delete it, and the same sweep writes it again'
  found = files.read_json(file, remedy)
  for name, place in found.items():
    if not isinstance(place, str):
      raise ValueError(f'{file} is damaged ({name} is {place!r}): {remedy}')
  return found


def line_of(name: str) -> str:
  """Returns the name that the runs of all seeds share."""
  return name.rpartition('/')[0]


def by_line(workdir: str | os.PathLike) -> dict[str, list[pathlib.Path]]:
  """Returns the runs of all seeds, finished or not, by the line's name."""
  found: dict[str, list[pathlib.Path]] = {}
  workdir = pathlib.Path(workdir).expanduser()
  for name, place in names(workdir).items():
    found.setdefault(line_of(name), []).append(workdir / place)
  return found


def record(
  runs: Mapping[str, ConfigDict], workdir: str | os.PathLike
) -> dict[str, pathlib.Path]:
  """Adds runs to those of earlier sweeps in a directory.

  Args:
    runs: configs by name.
    workdir: of the sweep.

  Returns:
    Each run's own directory by name.

  Raises:
    ValueError: a run there is of the same name but for the seed, and of a
      config that differs in more than that. Then nothing is added.
  """
  workdir = pathlib.Path(workdir).expanduser()
  workdir.mkdir(parents=True, exist_ok=True)
  configs = {name: config.to_dict() for name, config in runs.items()}
  ids = {name: identity.run_id(config) for name, config in configs.items()}
  with files.locked(workdir):
    # JSON has no tuples: configs that are compared have gone through it.
    _add(workdir, ids, json.loads(json.dumps(configs)))
  return {name: workdir / run for name, run in ids.items()}


def adopt(source: str | os.PathLike, workdir: str | os.PathLike) -> int:
  """Moves the runs of one sweep's directory into the directory of another.

  A run that the other directory has already stays as it is there.

  Args:
    source: directory of a sweep, on the same file system.
    workdir: directory of the other sweep.

  Returns:
    How many runs were moved.

  Raises:
    ValueError: see `record`; nothing is moved.
  """
  source, workdir = (pathlib.Path(p).expanduser() for p in (source, workdir))
  runs = {config.parent.name for config in source.glob('*/config.json')}
  ids = {name: run for name, run in names(source).items() if run in runs}
  configs = {name: rundir.read_config(source / ids[name]) for name in ids}
  with files.locked(workdir):
    _add(workdir, ids, configs)
    new = [run for run in runs if not (workdir / run).exists()]
    for run in new:
      (source / run).rename(workdir / run)
  return len(new)


def _add(
  workdir: pathlib.Path,
  ids: Mapping[str, str],
  configs: Mapping[str, Mapping[str, Any]],
) -> None:
  """Adds runs to the index, if their configs agree with those of their line.

  Args:
    workdir: of the sweep, locked.
    ids: of the runs, by name.
    configs: of the runs, by name, as nested dicts that were read from JSON.
  """
  known = names(workdir)
  # Runs of an earlier sweep that have not begun may be of any config.
  begun: dict[str, list[pathlib.Path]] = {}
  for name, run in known.items():
    if (workdir / run / 'config.json').exists():
      begun.setdefault(line_of(name), []).append(workdir / run)
  for name, config in configs.items():
    line = line_of(name)
    others = {path: rundir.read_config(path) for path in begun.get(line, ())}
    identity.check_same_line(line, others | {workdir / ids[name]: config})
  files.write(
    workdir / 'sweep.json',
    json.dumps({**known, **ids}, indent=1, sort_keys=True) + '\n',
  )
