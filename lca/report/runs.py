"""Reads the finished runs of a sweep as arrays of numbers."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from lca.experiment import identity, index, packing, rundir
from lca.experiment.summary import Metrics, is_finished, read_metrics

Lines = Mapping[str, Sequence[Metrics]]
"""The metrics of a line's runs, one for each seed, by the line's name."""


def evaluated(run: Metrics) -> Metrics:
  """Returns the metrics of the rounds after which the model was evaluated."""
  tested = np.isfinite(run['test_accuracy'])
  return {name: column[tested] for name, column in run.items()}


def check_line(line: str, runs: Sequence[pathlib.Path]) -> None:
  """Checks that a mean over the seeds of a line's runs makes sense.

  Args:
    line: name of the line.
    runs: directories of its runs, at least one.

  Raises:
    ValueError: the runs' configs differ in more than the seed.
  """
  identity.check_same_line(line, {run: rundir.read_config(run) for run in runs})


def read_lines(
  workdir: pathlib.Path, group: str, *, partial: bool = False
) -> Lines:
  """Reads the runs of a group.

  Args:
    workdir: directory of a sweep, or a packed sweep.
    group: the part of the runs' names before the line, as `fig5` in
      `fig5/krum/0`.
    partial: if True, runs that are not finished are left out, even if none is
      left. If False, all runs must be finished.

  Returns:
    The lines, in the order of the sweep's index.

  Raises:
    ValueError: the configs of a line differ in more than the seed; or, unless
      `partial`, the group has no runs, or one that is not finished.
  """
  lines = {}
  with packing.opened(workdir) as folder:
    for name, runs in index.by_line(folder).items():
      group_of_line, _, line = name.rpartition('/')
      finished = [run for run in runs if is_finished(run)]
      if group_of_line != group or (partial and not finished):
        continue
      if len(finished) < len(runs) and not partial:
        raise ValueError(
          f'{name}: {len(runs) - len(finished)} of {len(runs)} runs in '
          f'{workdir} are not finished; the same python -m lca.sweep goes on '
          'with them'
        )
      lines[line] = [read_metrics(run) for run in finished]
      check_line(name, finished)
  if not lines and not partial:
    raise ValueError(f'{workdir} holds no runs {group}/...')
  return lines
