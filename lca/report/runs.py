"""Finished runs of a sweep, as numbers."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from lca.experiment import identity, index, packing, rundir
from lca.experiment.summary import Metrics, is_finished, read_metrics

Lines = Mapping[str, Sequence[Metrics]]
"""By the line's name, the runs of its seeds."""


def evaluated(run: Metrics) -> Metrics:
  """Returns the rounds that were evaluated."""
  tested = np.isfinite(run['test_accuracy'])
  return {name: column[tested] for name, column in run.items()}


def check_line(line: str, runs: Sequence[pathlib.Path]) -> None:
  """Refuses runs, at least one, of which no mean over the seeds can be taken.

  Raises:
    ValueError: their configs differ in more than the seed.
  """
  identity.check_same_line(line, {run: rundir.read_config(run) for run in runs})


def read_lines(
  workdir: pathlib.Path, group: str, *, partial: bool = False
) -> Lines:
  """Reads a group's runs, lines in the order of the sweep's names.

  Args:
    workdir: of a sweep, or a packed sweep.
    group: what stands before the line in the runs' names.
    partial: leaves out what is not finished; perhaps nothing is left.

  Raises:
    ValueError: there are none, or one is not finished; not if `partial`. The
      configs of a line differ in more than the seed.
  """
  lines = {}
  with packing.opened(workdir) as folder:
    for name, runs in index.by_line(folder).items():
      group_of_line, _, line = name.rpartition('/')
      if partial:
        runs = [run for run in runs if is_finished(run)]
      if group_of_line == group and runs:
        lines[line] = [read_metrics(run) for run in runs]
        check_line(name, runs)
  if not lines and not partial:
    raise ValueError(f'{workdir} holds no runs {group}/...')
  return lines
