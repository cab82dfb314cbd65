"""Reads the runs of a sweep as rows: one a run, or one a run and round.

    import lca.report
    lca.report.frame('runs/mine')                # a pandas DataFrame
    lca.report.frame('mine.zip', rounds=True)    # of a packed sweep

The columns of a row:

name, run          the run's names in the sweep, and its directory's name
aggregator         the name of the rule's preset with its form, such as
                   `layerwise_cosine_krum`, `nnm+trimmed_mean` or `fedavg`
attack             the attack's name; `none` without an attack
seed, data.alpha   and all other keys of the config
final_test_loss    and all other metrics of summary.json
test_accuracy      and all other columns of metrics.csv, in the last round after
                   which the model was evaluated
"""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lca.experiment import identity, index, packing, rundir, summary
from lca.experiment.summary import Metrics

if TYPE_CHECKING:
  import pandas

NAMES = ('aggregator', 'attack')
"""The sections of a config that have a readable name, a column of its own."""

PRESET_NAMES = {
  'bulyan': 'bulyan2018',
  'mean': 'fedavg',
  'medoid': 'geomed',
  'multi_krum': 'bulyan',
}
"""The rules whose presets have another name, as in `configs/presets.py`."""


REPLACEMENTS = {
  'badnets': 'badnets_replacement',
  'label_flipping': 'model_replacement',
}
"""The attacks whose presets with the boost `'replace'` have another name."""

TRAINING = {
  'alpha': 'constrain_and_scale',
  'keep': 'neurotoxin',
  'radius': 'pgd',
}
"""The options of an attack's training that have a name of their own."""


class Run(NamedTuple):
  """A run that has a config; it may be unfinished.

  Attributes:
    path: its directory.
    config: as nested dicts.
    about: the columns that are known before the run has finished.
    metrics: the columns of `metrics.csv`; None if the run is not finished.
    results: the columns with the metrics of the whole run; empty if the run is
      not finished.
  """

  path: pathlib.Path
  config: Mapping[str, Any]
  about: Mapping[str, Any]
  metrics: Metrics | None
  results: Mapping[str, float]


def rows(
  workdir: str | os.PathLike, *, rounds: bool = False
) -> list[dict[str, Any]]:
  """Returns the finished runs of a sweep as rows (see this file's docstring).

  Args:
    workdir: directory of runs, or a packed sweep.
    rounds: if True there is a row for each round of each run, with the column
      `round` and the metrics of that round in place of those of the whole run.

  Raises:
    ValueError: no run is finished, or a file of a run is damaged.
  """
  with packing.opened(workdir) as folder:
    runs, _ = read(folder)
    runs = [run for run in runs if run.metrics is not None]
    if not runs:
      raise ValueError(
        f'{folder} holds no finished run: give the directory of a sweep, whose '
        'runs have a summary.json'
      )
  if rounds:
    return [
      {**run.about, **measured} for run in runs for measured in _by_round(run)
    ]
  return [{**run.about, **run.results} for run in runs]


def _by_round(run: Run) -> Iterator[dict[str, Any]]:
  """Yields the metrics of each round of a finished run."""
  for values in zip(*run.metrics.values(), strict=True):
    measured = dict(zip(run.metrics, map(float, values), strict=True))
    yield measured | {'round': int(measured['round'])}


def frame(
  workdir: str | os.PathLike, *, rounds: bool = False
) -> 'pandas.DataFrame':
  """Returns the finished runs of a sweep as a pandas DataFrame.

  Args:
    workdir: see `rows`.
    rounds: see `rows`.

  Raises:
    ImportError: pandas is not installed.
    ValueError: see `rows`.
  """
  try:
    import pandas
  except ImportError:
    raise ImportError(
      'lca.report.frame needs pandas, which lca does not install: pip install '
      'pandas; lca.report.rows returns the same rows as dicts'
    ) from None
  return pandas.DataFrame(rows(workdir, rounds=rounds))


def read(workdir: pathlib.Path) -> tuple[list[Run], list[str]]:
  """Reads all runs of a directory, finished or not.

  Args:
    workdir: directory of runs, with the index of a sweep or without.

  Returns:
    The runs that have a config, in the order of the index, and then those that
    the index does not name; and the names of the runs without a config, which
    have not begun.

  Raises:
    ValueError: a file of a run, or the index, is damaged.
  """
  names: dict[pathlib.Path, list[str]] = {}
  for name, place in index.names(workdir).items():
    names.setdefault(workdir / place, []).append(name)
  for file in sorted(workdir.glob('*/config.json')):
    names.setdefault(file.parent, [file.parent.name])
  begun = {path: (path / 'config.json').exists() for path in names}
  runs = [_read(p, ' | '.join(each)) for p, each in names.items() if begun[p]]
  absent = [name for p, each in names.items() if not begun[p] for name in each]
  return runs, absent


def _read(path: pathlib.Path, name: str) -> Run:
  """Reads one run, which has a config."""
  config = rundir.read_config(path)
  about = {
    'name': name,
    'run': path.name,
    'aggregator': rule_name(config.get('aggregator', {})),
    'attack': attack_name(config.get('attack', {})),
    **identity.all_values(config),
  }
  if not summary.is_finished(path):
    return Run(path, config, about, None, {})
  metrics = summary.read_metrics(path)
  results = summary.read_summary(path)
  results.pop('num_rounds', None)  # the config has it
  tested = np.flatnonzero(np.isfinite(metrics.get('test_accuracy', [])))
  last = tested[-1] if len(tested) else -1
  results |= {
    column: float(values[last])
    for column, values in metrics.items()
    if column != 'round' and len(values)
  }
  return Run(path, config, about, metrics, results)


def rule_name(section: Mapping[str, Any]) -> str | None:
  """Returns the readable name of a rule in its form.

  Args:
    section: the section `aggregator` of a config.

  Examples:
    >>> rule_name({'name': 'krum', 'distance': 'cosine', 'clip': 'median',
    ...            'scope': 'leaf'})
    'layerwise_cosine_krum'
    >>> rule_name({'name': 'trimmed_mean', 'pre': ['nnm']})
    'nnm+trimmed_mean'
  """
  name, scope = section.get('name'), section.get('scope', 'model')
  if name is None:
    return None
  rule, steps = PRESET_NAMES.get(name, name), [*(section.get('pre') or ())]
  # Two presets are rules with certain options.
  if name == 'adaptive_clip' and section.get('rate') == 0:
    rule = 'dp_fedavg'
  if (name, steps) == ('mean', ['static_clip']) and section.get('sigma'):
    rule, steps = 'norm_clipping', []
  distance = section.get('distance', 'euclidean')
  if distance != 'euclidean':
    unclipped = 'clip' in section and section['clip'] is None
    rule = f'{distance}_{rule}{"_noclip" if unclipped else ""}'
  forms = {'model': '', 'leaf': 'layerwise_'}
  # LEGATO works by layer itself.
  if (name, scope) != ('legato', 'leaf'):
    rule = forms.get(scope, f'{scope}wise_') + rule
  return '+'.join([*steps, rule])


def attack_name(section: Mapping[str, Any]) -> str:
  """Returns the name of an attack; `'none'` if there is none.

  An attack whose updates are boosted by `'replace'` has the name of its preset,
  such as `'model_replacement'` for label flipping. The name of an attack with a
  training of its own begins with that of the training.

  Args:
    section: the section `attack` of a config.

  Examples:
    >>> attack_name({'name': 'badnets', 'training': {'keep': 0.95}})
    'neurotoxin+badnets'
  """
  name = section.get('name', 'none')
  if section.get('boost') == 'replace':
    name = REPLACEMENTS.get(name, name)
  training = section.get('training', {})
  own = [form for key, form in TRAINING.items() if training.get(key)]
  return '+'.join([*own, name])
