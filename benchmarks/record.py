"""Keeps what `benchmarks.aggregators` measured, and writes its tables."""

import json
import os
import pathlib
import platform
import re
from importlib import metadata

from benchmarks import figures, others, trees
from lca.experiment.environment import describe

Row = figures.Row


class Record:
  """The rows that were measured, and the files that hold them.

  Attributes:
    about: the settings and the environment.
    groups: rows by tree and then by group, which is a rule or the kernels.
    columns: number of parameters and number of leaves, by tree.

  Args:
    folder: folder of the files; the record in it is continued. None writes
      nothing.
    settings: flags that the numbers depend on beside the environment.

  Raises:
    ValueError: the folder holds a record with other settings or of another
      environment.
  """

  def __init__(self, folder: str | None, settings: Row):
    self.about = {
      'settings': settings,
      'environment': environment(with_others=settings['others']),
    }
    self.groups: dict[str, dict[str, list[Row]]] = {}
    self.columns: dict[str, tuple[int, int]] = {}
    self._folder = folder and pathlib.Path(folder)
    if self._folder and (self._folder / 'aggregators.json').exists():
      self._resume(json.loads((self._folder / 'aggregators.json').read_text()))

  def _resume(self, old):
    """Continues an old record, if its settings and environment are equal."""
    for key, value in self.about.items():
      if old[key] != json.loads(json.dumps(value)):
        raise ValueError(
          f'{self._folder} holds a record with other {key}: choose another '
          '--output'
        )
    self.groups = old['groups']
    self.columns = old['columns']

  def write(self) -> None:
    """Writes the numbers as JSON and the tables as Markdown."""
    if not self._folder:
      return
    self._folder.mkdir(parents=True, exist_ok=True)
    raw = {**self.about, 'columns': self.columns, 'groups': self.groups}
    for name, text in (
      ('aggregators.json', json.dumps(raw, indent=1) + '\n'),
      ('aggregators.md', self.markdown()),
    ):
      temporary = self._folder / f'{name}.tmp'
      temporary.write_text(text)
      os.replace(temporary, self._folder / name)

  def results(self) -> dict[str, figures.Results]:
    """Returns the rows of each tree, for tables and goals."""
    n = self.about['settings']['n']
    return {
      tree: figures.Results(
        n,
        self.columns[tree][0],
        [row for rows in groups.values() for row in rows],
      )
      for tree, groups in self.groups.items()
    }

  def markdown(self) -> str:
    """Returns the page with all tables and goals."""
    parts = ['# The rules in milliseconds', _described(self.about)]
    for tree, results in self.results().items():
      columns, leaves = self.columns[tree]
      title = f'## ({tree}) {trees.TREES[tree][0]}'
      size = f'{columns:,} parameters in {leaves} leaves, n = {results.n}.'
      parts += [
        title,
        size,
        figures.kernel_table(results),
        figures.rule_table(results),
      ]
    header = ('goal', 'bound', 'measured', '')
    lines = [goal.line() for goal in figures.goals(self.results())]
    goal_note = 'The bounds are meant for n = 100 on a quiet machine.'
    parts += ['## Goals', goal_note, figures.table(header, lines)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def environment(with_others: bool) -> Row:
  """Returns versions, devices, commit, processor and number of cores.

  Args:
    with_others: also the versions of the other systems, and PyTorch's threads.
  """
  about = describe()
  about['cpu'] = _cpu()
  about['cores'] = len(os.sched_getaffinity(0))
  if with_others:
    names = [name for name in others.SYSTEMS if others.installed(name)]
    about['packages'] |= {name: metadata.version(name) for name in names}
  if with_others and others.installed('torch'):
    import torch

    about['torch_threads'] = torch.get_num_threads()
  return about


def _cpu() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  text = info.read_text() if info.exists() else ''
  match = re.search(r'model name\s*:\s*(.*)', text)
  return match[1] if match else platform.processor()


def _described(about: Row) -> str:
  """Returns the paragraphs on the environment and the settings."""
  machine, settings = about['environment'], about['settings']
  shown = ('jax', 'numpy', *others.SYSTEMS)
  packages = machine['packages']
  versions = ', '.join(f'{p} {packages[p]}' for p in shown if p in packages)
  threads = machine.get('torch_threads')
  devices = len(machine['devices'])
  on = f'{devices} device{"s" * (devices > 1)}'
  beside = f', PyTorch {threads} threads' if threads else ''
  return (
    f'{machine["cpu"]}: {machine["cores"]} cores, JAX {on} on all of '
    f'them{beside}. {versions}. Commit {machine["commit"]}.\n\n'
    f'{settings["repeats"]} calls a row, {settings["budget"]:g} s at most. '
    'Times are medians, * marks a first call alone, and limits are the best of '
    "their calls. In brackets: how many times lca's time. Extra memory: "
    "results and temporaries, in units of the updates' size."
  )
