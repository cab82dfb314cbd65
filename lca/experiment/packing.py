"""A sweep's finished runs in one file, which can be kept, sent and read.

    python -m lca.report --workdir=runs/attacks --pack=attacks.zip
    python -m lca.report --workdir=attacks.zip --figure=attacks --output=DIR
    python -m lca.sweep --config=... --workdir=runs/more --packed=attacks.zip

A packed sweep is a zip file. The id of a run in these files is
the name of the run's directory:

metrics.csv        one row for each round of each run: `run` (the id), `round`,
                   and then the columns of all runs. An entry is empty where the
                   run has no such number.
summaries.json     the summary of each run, by id; null stands for a NaN or inf
configs.json       the config of each run, by id
environments.json  `environments` lists the different environments (versions,
                   devices, commit). `runs` gives, by a run's id, the positions
                   in this list of the environments that the run had.
columns.json       the columns of each run's own metrics.csv, by id
sweep.json         the sweep's index: the id of each run, by the run's name
format.json        the name and the version of this format, and the names of all
                   other files
verbatim/ID/FILE   a file of a run that the files above do not give back byte
                   for byte, such as a config that a person has edited
files/ID/FILE      files that a run may have beside these, as they are:
                   clients.csv, times.csv, confusion.csv, forensics.*

pandas reads the last test accuracy of every run, by the run's name, like this:

    with zipfile.ZipFile('attacks.zip') as packed:
      metrics = pandas.read_csv(packed.open('metrics.csv'), dtype={'run': str})
      ids = json.load(packed.open('sweep.json'))
    last = metrics.groupby('run')['test_accuracy'].last()
    by_name = {name: last.get(run) for name, run in ids.items()}

Unpacking gives back each of these files byte for byte, and packing the same
runs twice gives the same bytes. Models, checkpoints and the events for
TensorBoard are not packed.
"""

import collections
import contextlib
import csv
import io
import json
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lca.experiment import files, index, rundir, summary

_FORMAT = 'packed sweep of lca'
_VERSION = 1
_RUN_FILES = ('config.json', 'metrics.csv', 'summary.json')
# Files that a run may have beside these. Older versions of lca skip them when
# they read a packed sweep.
_MORE_FILES = re.compile(r'(clients|times|confusion)\.csv|forensics\.\w+')


# From a workdir to a file.


def pack(
  workdir: str | os.PathLike, file: str | os.PathLike
) -> tuple[int, int]:
  """Writes the finished runs of a sweep into one file.

  Args:
    workdir: directory of the sweep.
    file: zip file to write. A file of this name is replaced.

  Returns:
    The number of runs that were packed, and the number of unfinished runs,
    begun or not, that were left out.

  Raises:
    ValueError: no run is finished, a file of a run is damaged, or a run of the
      index does not lie directly in the workdir.
    OSError: the file cannot be written, or a file of a run is missing.
  """
  workdir, file = (pathlib.Path(p).expanduser() for p in (workdir, file))
  places = index.names(workdir)
  for name, place in places.items():
    if not _is_name(place):
      raise ValueError(
        f'{workdir}/sweep.json has {name} at {place}, but only runs directly '
        f'in {workdir} can be packed: move the run there'
      )
  begun = {config.parent.name for config in workdir.glob('*/config.json')}
  runs = sorted(begun.union(places.values()))
  finished = [run for run in runs if summary.is_finished(workdir / run)]
  unfinished = len(runs) - len(finished)
  if not finished:
    raise ValueError(
      f'{workdir} holds no finished run to pack, and {unfinished} unfinished '
      'runs; --workdir must be the workdir of a sweep'
    )
  content = io.BytesIO()
  with zipfile.ZipFile(content, 'w') as packed:
    for name, text in sorted(_members(workdir, finished).items()):
      # zipfile would store the present time, the operating system and the
      # rights. They are fixed here, so that equal runs give equal bytes.
      entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
      entry.create_system, entry.external_attr = 3, 0o644 << 16
      packed.writestr(entry, text, zipfile.ZIP_DEFLATED, compresslevel=9)
  file.parent.mkdir(parents=True, exist_ok=True)
  files.write(file, content.getvalue())
  return len(finished), unfinished


def _members(workdir: pathlib.Path, runs: Sequence[str]) -> dict[str, bytes]:
  """Returns the texts that the zip file holds, by their names in the file."""
  originals, configs, summaries, columns, positions = {}, {}, {}, {}, {}
  environments, rows, more = [], [], {}
  for run in runs:
    # Both calls raise an error with a remedy if a file is damaged.
    rundir.read_config(workdir / run)
    summary.read_metrics(workdir / run)
    texts = {name: (workdir / run / name).read_bytes() for name in _RUN_FILES}
    originals |= {f'{run}/{name}': text for name, text in texts.items()}
    more |= {
      f'files/{run}/{file.name}': file.read_bytes()
      for file in (workdir / run).iterdir()
      if _MORE_FILES.fullmatch(file.name)
    }
    about = json.loads(texts['config.json'])
    configs[run] = about['config']
    for environment in about['environments']:
      if environment not in environments:
        environments.append(environment)
    positions[run] = [environments.index(e) for e in about['environments']]
    summaries[run] = json.loads(texts['summary.json'])
    columns[run], *lines = csv.reader(_lines(texts['metrics.csv']))
    rows += [dict(zip(columns[run], x, strict=True), run=run) for x in lines]
  # The columns of all runs, each once.
  header = dict.fromkeys(('run', 'round'))
  for names in columns.values():
    header |= dict.fromkeys(names)
  environments = {'environments': environments, 'runs': positions}
  members = {
    'metrics.csv': _csv(header, rows),
    'summaries.json': _json(summaries),
    'configs.json': _json(configs),
    'environments.json': _json(environments),
    'columns.json': _json(columns),
  }
  if (workdir / 'sweep.json').exists():
    members['sweep.json'] = (workdir / 'sweep.json').read_bytes()
  rebuilt = _rebuild(members)
  members |= {
    f'verbatim/{path}': text
    for path, text in originals.items()
    if rebuilt[path] != text
  }
  members |= more
  about = {'format': _FORMAT, 'version': _VERSION, 'files': sorted(members)}
  return members | {'format.json': _json(about)}


# From a file to a workdir.


def unpack(file: str | os.PathLike, folder: str | os.PathLike) -> None:
  """Writes the runs of a packed sweep, and the sweep's index, into a folder.

  Args:
    file: a packed sweep.
    folder: empty folder, which is made if there is none.

  Raises:
    ValueError: the file is damaged, is no packed sweep or one of a newer
      format, or has a path that leads out of the folder. Nothing is written.
    OSError: the file cannot be read, or the folder cannot be written to.
  """
  texts = _read(pathlib.Path(file).expanduser())
  _write(texts, pathlib.Path(folder).expanduser())


def add(file: str | os.PathLike, workdir: str | os.PathLike) -> int:
  """Puts the runs of a packed sweep into the directory of a sweep.

  A run that the directory already has, finished or not, stays as it is.

  Args:
    file: a packed sweep.
    workdir: directory of a sweep, which is made if there is none.

  Returns:
    The number of runs that were put there.

  Raises:
    ValueError: see `unpack` and `index.adopt`. Nothing is added.
    OSError: see `unpack`.
  """
  workdir = pathlib.Path(workdir).expanduser()
  texts = _read(pathlib.Path(file).expanduser())
  workdir.mkdir(parents=True, exist_ok=True)
  # A directory is moved at once within the workdir's file system, so that a
  # process that is killed leaves no half of a run.
  with tempfile.TemporaryDirectory(dir=workdir, prefix='.packed-') as folder:
    _write(texts, pathlib.Path(folder))
    return index.adopt(folder, workdir)


def is_packed(workdir: str | os.PathLike) -> bool:
  """Returns True if a workdir is a file, or is missing and ends with .zip."""
  workdir = pathlib.Path(workdir).expanduser()
  return not workdir.is_dir() and (
    workdir.is_file() or workdir.suffix == '.zip'
  )


@contextlib.contextmanager
def opened(workdir: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Returns a context with a directory for a workdir or a packed sweep.

  The context of a directory is the directory itself. A packed sweep is unpacked
  into a temporary directory, which is removed at the context's end. Errors that
  are raised in the context name the packed file in place of that directory.

  Args:
    workdir: a directory or a packed sweep.

  Raises:
    ValueError, OSError: see `unpack`.
  """
  workdir = pathlib.Path(workdir).expanduser()
  if not is_packed(workdir):
    yield workdir
    return
  with tempfile.TemporaryDirectory() as folder:
    unpack(workdir, folder)
    try:
      yield pathlib.Path(folder)
    except (ValueError, OSError) as error:
      if folder not in str(error):
        raise
      message = str(error).replace(folder, str(workdir))
      raise ValueError(message) from error


def _read(file: pathlib.Path) -> dict[str, bytes]:
  """Returns the files of a packed sweep's workdir, by their paths in it."""
  remedy = (
    'copy it once more, or write it anew from the workdir of the sweep with '
    f'python -m lca.report --workdir=WORKDIR --pack={file}'
  )
  content = file.read_bytes()
  # zipfile, zlib, json and csv have many kinds of errors for damaged files.
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
      members = {
        name: packed.read(name)
        for name in packed.namelist()
        if not name.endswith('/')
      }
  except Exception as error:
    raise ValueError(
      f'{file} is damaged or no zip file ({error}): {remedy}'
    ) from None
  _check_inside(file, (part for name in members for part in name.split('/')))
  _check_format(file, members, remedy)
  try:
    texts = _rebuild(members)
    runs = {path.rpartition('/')[0] for path in texts if path != 'sweep.json'}
    runs.update(json.loads(members.get('sweep.json', b'{}')).values())
  except Exception as error:
    raise ValueError(f'{file} is damaged ({error!r}): {remedy}') from None
  _check_inside(file, runs)
  return texts


def _write(texts: Mapping[str, bytes], folder: pathlib.Path) -> None:
  """Writes texts by their paths in a folder."""
  for path, text in texts.items():
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(text)


def _check_inside(file: pathlib.Path, names: Iterable[Any]) -> None:
  """Refuses parts of paths that could lead out of a folder, such as `..`."""
  for name in names:
    if not _is_name(name):
      raise ValueError(
        f'{file} has a path with {name!r} in it, which could lead out of the '
        'folder that it is unpacked into: pack the sweep again, and use no '
        'file that others have changed'
      )


def _is_name(name: Any) -> bool:
  """Returns True if a name stands for something directly in a folder."""
  return (
    isinstance(name, str) and name not in ('', '.', '..') and '/' not in name
  )


def _check_format(
  file: pathlib.Path, members: Mapping[str, bytes], remedy: str
) -> None:
  """Refuses a zip file that is no packed sweep, or one of a newer format."""
  try:
    about = json.loads(members['format.json'])
    version = int(about['version']) if about['format'] == _FORMAT else 0
  except (KeyError, TypeError, ValueError):
    version = 0
  if not version:
    raise ValueError(f'{file} is a zip file but no packed sweep: {remedy}')
  if version > _VERSION:
    raise ValueError(
      f'{file} has format {version} of packed sweeps, and this lca reads '
      f'formats up to {_VERSION}: update lca'
    )
  # A damaged directory of a zip file may hide some of its files.
  if lacking := sorted({*about.get('files', ())} - members.keys()):
    raise ValueError(
      f'{file} is damaged ({", ".join(lacking)} is missing): {remedy}'
    )


def _rebuild(members: Mapping[str, bytes]) -> dict[str, bytes]:
  """Returns the files of a workdir by their paths in it.

  Args:
    members: texts of the zip file, by their names in the file.
  """
  configs, environments, summaries, columns = (
    json.loads(members[f'{name}.json'])
    for name in ('configs', 'environments', 'summaries', 'columns')
  )
  rows = collections.defaultdict(list)
  for row in csv.DictReader(_lines(members['metrics.csv'])):
    rows[row['run']].append(row)
  texts = {}
  for run, config in configs.items():
    where = [
      environments['environments'][position]
      for position in environments['runs'][run]
    ]
    about = {'config': config, 'environments': where}
    texts[f'{run}/config.json'] = _json(about)
    texts[f'{run}/metrics.csv'] = _csv(columns[run], rows[run])
    texts[f'{run}/summary.json'] = _json(summaries[run])
  for path in texts:
    texts[path] = members.get(f'verbatim/{path}', texts[path])
  for name, text in members.items():
    kind, _, path = name.partition('/')
    run, _, file = path.partition('/')
    if kind == 'files' and run in configs and _MORE_FILES.fullmatch(file):
      texts[path] = text
  if 'sweep.json' in members:
    texts['sweep.json'] = members['sweep.json']
  return texts


def _json(value: Any) -> bytes:
  """Returns a JSON text, laid out as in the directories of runs."""
  return (json.dumps(value, indent=2) + '\n').encode()


def _csv(columns: Iterable[str], rows: Iterable[Mapping[str, str]]) -> bytes:
  """Returns a CSV text of these columns, laid out as in a run's directory."""
  text = io.StringIO()
  writer = csv.DictWriter(
    text, [*columns], extrasaction='ignore', lineterminator='\n'
  )
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue().encode()


def _lines(text: bytes) -> io.StringIO:
  """Returns a text as `csv` reads it, with its line ends as they are."""
  return io.StringIO(text.decode(), newline='')
