"""Chooses hyper-parameters by the validation accuracy under the worst attack.

A rule that was tuned under one attack looks better than it is under another. So
one value is chosen for each rule and setting, before the test set is looked at:
the value with which the rule's worst attack leaves the highest validation
accuracy. The benchmark of ByzFL (Gonzalez et al. 2025) chooses likewise.
"""

from collections.abc import Sequence

import numpy as np

from lca.report.frames import Run
from lca.report.groups import Group, check_seeds, group, order, show
from lca.report.requests import Request

COLUMN = 'validation_accuracy'


def choose(
  runs: Sequence[Run], request: Request
) -> tuple[list[Run], list[str]]:
  """Leaves out the runs with other values of the keys `request.choose`.

  The choice is made for each combination of the axes and of `request.best`. It
  never knows the attack: the validation accuracy of a value is that under the
  worst attack, even where attacks are an axis. The validation accuracy under an
  attack is the highest of any round, of the mean over the seeds. Only values
  whose runs are all finished can be chosen.

  Args:
    runs: finished or not.
    request: what the runs are chosen for.

  Returns:
    The runs with the chosen values, and notes that name these.

  Raises:
    ValueError: a finished run has no validation accuracy, or runs differ in
      keys that the request does not name.
  """
  finished = [run for run in runs if run.metrics is not None]
  lacking = [run for run in finished if COLUMN not in run.metrics]
  if lacking:
    raise ValueError(
      f'--choose needs {COLUMN} in metrics.csv, which {len(lacking)} of '
      f'{len(finished)} runs lack, such as {lacking[0].about["name"]}: set '
      'data.validation in the configs and run the sweep again'
    )
  attacks = [*dict.fromkeys(('attack', *request.worst_over))]
  setting = [
    key
    for key in (*request.axes, *request.best)
    if key not in (*attacks, 'attack.name')
  ]
  kept, left_out = [], []
  chosen: dict[Group, list[str]] = {}
  for values, of_setting in group(runs, setting).items():
    candidates = group(of_setting, request.choose)
    scores = _scores(candidates, request, setting, attacks)
    left_out += [
      f'{_named(request.choose, candidate)} where {_named(setting, values)}'
      for candidate in candidates
      if candidate not in scores
    ]
    if scores:
      best = max(scores, key=lambda candidate: scores[candidate])
      kept += candidates[best]
      where = f'{", ".join(values)} ({scores[best]:.3f})'
      chosen.setdefault(best, []).append(where)
  notes = [
    f'Chosen by the validation accuracy under the worst {" and ".join(attacks)}'
    ', the highest of any round of the mean over the seeds, which is in '
    f'brackets, for each {", ".join(setting)}:'
  ]
  for values in sorted(chosen, key=lambda values: [*map(order, values)]):
    where = '; '.join(chosen[values])
    notes.append(f'{_named(request.choose, values)} for {where}.')
  if left_out:
    notes.append(
      'Not chosen from, because runs of them are missing or not finished: '
      f'{"; ".join(left_out)}.'
    )
  return kept, notes


def _scores(
  candidates: dict[Group, list[Run]],
  request: Request,
  setting: Sequence[str],
  attacks: Sequence[str],
) -> dict[Group, float]:
  """Returns the validation accuracy of each candidate that is finished."""
  keys = (*setting, *request.choose, *attacks)
  curves: dict[Group, list[list[np.ndarray]]] = {}
  done: dict[Group, set[tuple[Group, str]]] = {}
  wanted = set()
  for candidate, runs in candidates.items():
    curves[candidate], done[candidate] = [], set()
    for attack, same in group(runs, attacks).items():
      check_seeds(
        same, keys, 'add the key to --choose, or filter with --where=KEY=VALUE'
      )
      seeds = {(attack, show(run.about.get('seed'))): run for run in same}
      wanted |= seeds.keys()
      done[candidate] |= {
        each for each, run in seeds.items() if run.metrics is not None
      }
      curves[candidate].append(
        [run.metrics[COLUMN] for run in same if run.metrics is not None]
      )
  return {
    candidate: min(
      float(np.nanmax(np.mean(of_attack, axis=0)))
      for of_attack in curves[candidate]
    )
    for candidate in candidates
    if done[candidate] == wanted
  }


def _named(keys: Sequence[str], values: Group) -> str:
  """Returns keys with their values as text."""
  return ', '.join(map('{}={}'.format, keys, values))
