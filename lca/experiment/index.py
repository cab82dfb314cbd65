"""The index of a sweep, `sweep.json`: the directory of each run by name.

The directory of a run is named by the run's id, so that two names of the same
run share a directory. The name of a run is `GROUP/LINE/SEED`. The text before
the seed is the name of the line, which the runs of all seeds share.

TensorBoard names runs by their paths. So the folder `tensorboard` beside the
index holds a symbolic link to each run's directory, with the path of its name.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lca.experiment import files, identity, rundir


def names(workdir: str | os.PathLike) -> dict[str, str]:
  """Reads the index.

  Args:
    workdir: directory of the sweep.

  Returns:
    The name of each run's directory within the workdir, by the run's name. The
    result is empty before the sweep has started.

  Raises:
    ValueError: the index is damaged.
  """
  file = pathlib.Path(workdir).expanduser() / 'sweep.json'
  if not file.exists():
    return {}
  remedy = 'delete it, and the same sweep writes it again'
  places = files.read_json(file, remedy)
  for name, place in places.items():
    if not isinstance(place, str):
      raise ValueError(f'{file} is damaged ({name} is {place!r}): {remedy}')
  return places


def line_of(name: str) -> str:
  """Returns the name of a run's line: the run's name without the seed."""
  return name.rpartition('/')[0]


def by_line(workdir: str | os.PathLike) -> dict[str, list[pathlib.Path]]:
  """Reads the index by lines.

  Args:
    workdir: directory of the sweep.

  Returns:
    The directories of the runs of all seeds of a line, finished or not, by the
    line's name.

  Raises:
    ValueError: the index is damaged.
  """
  lines: dict[str, list[pathlib.Path]] = {}
  workdir = pathlib.Path(workdir).expanduser()
  for name, place in names(workdir).items():
    lines.setdefault(line_of(name), []).append(workdir / place)
  return lines


def places_of(
  runs: Mapping[str, ConfigDict], workdir: str | os.PathLike
) -> dict[str, pathlib.Path]:
  """Returns the directory of each run by name, whether it exists or not.

  Args:
    runs: configs by name. Names of the same run share a directory.
    workdir: directory of the sweep.
  """
  workdir = pathlib.Path(workdir).expanduser()
  return {
    name: workdir / identity.run_id(config.to_dict())
    for name, config in runs.items()
  }


def record(
  runs: Mapping[str, ConfigDict], workdir: str | os.PathLike
) -> dict[str, pathlib.Path]:
  """Adds runs to the index of a directory, beside those of earlier sweeps.

  Args:
    runs: configs by name.
    workdir: directory of the sweep, which is made if there is none.

  Returns:
    The directory of each run by name. Only the index is written.

  Raises:
    ValueError: a run of the same line has begun there, and its config differs
      in more than the seed. Nothing is added.
  """
  places = places_of(runs, workdir)
  workdir = pathlib.Path(workdir).expanduser()
  workdir.mkdir(parents=True, exist_ok=True)
  configs = {name: config.to_dict() for name, config in runs.items()}
  ids = {name: place.name for name, place in places.items()}
  with files.locked(workdir):
    # JSON turns tuples into lists, as in the configs that these are compared
    # with.
    _add(workdir, ids, json.loads(json.dumps(configs)))
  return places


def adopt(source: str | os.PathLike, workdir: str | os.PathLike) -> int:
  """Moves the runs of one sweep's directory into the directory of another.

  A run that the other directory already has stays as it is.

  Args:
    source: directory of a sweep, on the same file system.
    workdir: directory of the other sweep.

  Returns:
    The number of runs that were moved.

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
    workdir: the sweep's directory, which the caller has locked.
    ids: the runs' ids, by name.
    configs: the runs' configs, by name, as nested dicts read from JSON.
  """
  known = names(workdir)
  # Runs that an earlier sweep has recorded but not begun are not compared: they
  # have no config yet.
  begun: dict[str, list[pathlib.Path]] = {}
  for name, run in known.items():
    if (workdir / run / 'config.json').exists():
      begun.setdefault(line_of(name), []).append(workdir / run)
  lines: dict[str, dict[pathlib.Path, Mapping[str, Any]]] = {}
  for name, config in configs.items():
    lines.setdefault(line_of(name), {})[workdir / ids[name]] = config
  for line, new in lines.items():
    others = {path: rundir.read_config(path) for path in begun.get(line, ())}
    identity.check_same_line(line, others | new)
  files.write(
    workdir / 'sweep.json',
    json.dumps({**known, **ids}, indent=1, sort_keys=True) + '\n',
  )
  for name, run in ids.items():
    _link(workdir.resolve(), run, name)


def _link(workdir: pathlib.Path, run: str, name: str) -> None:
  """Makes a relative symbolic link to a run, in the place of an older one.

  Args:
    workdir: the sweep's directory, without symbolic links in its path.
    run: the run's id.
    name: the run's name.
  """
  # The links are a convenience: file systems without symbolic links, and names
  # of which one is a part of the path of another, go without.
  with contextlib.suppress(OSError):
    link = pathlib.Path(f'{workdir}/tensorboard/{name}')
    # The path leads elsewhere if the name has `..` in it, as that of a packed
    # sweep from others may have, or if it goes through the link of another run.
    if link.parent.resolve() != link.parent:
      return
    target = os.path.relpath(workdir / run, link.parent)
    if link.is_symlink():
      if os.readlink(link) == target:
        return
      link.unlink()
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)  # an error if a file of this name is there
