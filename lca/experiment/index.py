"""A sweep's index, `sweep.json`: which of its runs lies in which directory.

The directory of a run is named by the run's id, so that two names of the same
run share it. A name is `GROUP/LINE/SEED`; all before the seed is the line's
name, which the runs of all seeds share.
"""

import json
import os
import pathlib
from collections.abc import Mapping

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
  places = {k: identity.run_id(config.to_dict()) for k, config in runs.items()}
  with files.locked(workdir):
    known = names(workdir)
    # Runs of an earlier sweep that have not begun may be of any config.
    begun: dict[str, list[pathlib.Path]] = {}
    for name, place in known.items():
      if (workdir / place / 'config.json').exists():
        begun.setdefault(line_of(name), []).append(workdir / place)
    for name, config in runs.items():
      line = line_of(name)
      configs = {path: rundir.read_config(path) for path in begun.get(line, ())}
      new = json.loads(json.dumps(config.to_dict()))
      identity.check_same_line(line, configs | {workdir / places[name]: new})
    files.write(
      workdir / 'sweep.json',
      json.dumps(known | places, indent=1, sort_keys=True) + '\n',
    )
  return {name: workdir / place for name, place in places.items()}
