"""Runs and sweeps made by hand, for the tests of pages."""

import json

import numpy as np

from configs import digits
from lca.experiment import forensics, index
from lca.experiment.rundir import RunDirectory
from lca.experiment.summary import summarize

NAME = '<script>alert("$x$")</script>'
"""A name that a page must show and not execute, nor take for mathematics."""

LAYERS = ['params/Conv_0/kernel', 'params/Dense_0/bias']


def write_run(path, presets, accuracies, finish=True, **changes):
  """Leaves behind the files of a run with these accuracies, as `lca` does."""
  config = digits.get_config(presets)
  config.update_from_flattened_dict({'num_rounds': len(accuracies), **changes})
  rows = [
    {
      'round': r,
      'test_loss': 1 / r,
      'test_accuracy': accuracy,
      'train_loss': 2 / r,
      'byzantine': 1,
      'rejected': 0,
      'nonfinite': 0,
    }
    for r, accuracy in enumerate(accuracies, start=1)
  ]
  with RunDirectory(path, config.to_dict()) as directory:
    directory.open()
    directory.start(rows[:-1] if not finish else rows)
    if finish:
      directory.finish({'num_rounds': len(rows), **summarize(rows)})
  return config


def write_all_files(path):
  """Leaves behind a run with every file that a page can show.

  In each of three rounds the clients 7, 5, 3 and 1 take part, and client 7
  attacks. Krum takes client 5's row of both layers, except that in round 1 it
  takes the attacker's row of the first layer.
  """
  write_run(path, 'layerwise_krum,label_flipping', [0.25, 0.5, 0.75])
  (path / 'clients.csv').write_text(
    'client,byzantine,examples,class_0,class_1\n'
    '1,0,30,10,20\n3,0,40,40,0\n5,0,10,5,5\n7,1,20,0,20\n'
  )
  (path / 'times.csv').write_text(
    'round,finished,seconds\n'
    '1,2026-01-01T00:00:05Z,4.5\n'
    '2,2026-01-01T00:00:06Z,0.5\n'
    '3,2026-01-01T00:00:07Z,0.5\n'
  )
  (path / 'confusion.csv').write_text('6,2\n3,9\n')
  writer = forensics.Writer(path, LAYERS, 0)
  for r in range(3):
    chosen = np.array([[0, 1, 0, 0]] * 2, bool)
    if r == 0:
      chosen[0] = [1, 0, 0, 0]
    ones = np.ones((2, 4), np.float32)
    writer.add(
      {
        'ids': np.array([7, 5, 3, 1]),
        'byzantine': np.array([True, False, False, False]),
        'answered': np.array([True, True, True, False]),
        'weights': chosen.astype(np.float32),
        'selected': chosen,
        'rejected': np.zeros((2, 4), bool),
        'norms': ones,
        'distances': ones,
        'cos_aggregate': ones,
        'cos_honest': ones,
        'aggregate_norm': ones[:, 0],
        'honest_norm': ones[:, 0],
        'gap': ones[:, 0],
      }
    )


def write_sweep(workdir):
  """Leaves behind a sweep of 9 runs, of which one is unfinished.

  Krum and the layerwise cosine Krum meet no attack and ALIE, with two seeds
  each. The ninth run has a name with HTML in it. A tenth has not begun.
  """
  names = {}
  for rule in ('krum', 'layerwise_cosine_krum'):
    for attack in ('', ',alie'):
      for seed in (0, 1):
        # Krum: 0.1 and 0.2 under attack, 0.5 and 0.6 without one.
        last = 0.1 * (1 + seed) + (0 if attack else 0.4)
        last += 0.3 if rule != 'krum' else 0
        place = f'{rule}{attack.replace(",", "-")}-{seed}'
        names[f'all/{attack[1:] or "none"} x {rule}/{seed}'] = place
        write_run(workdir / place, f'{rule}{attack}', [0.05, last], seed=seed)
  write_run(workdir / 'late', 'krum', [0.5, 0.5, 0.5], False, seed=10)
  names |= {f'{NAME}/10': 'late', 'all/none x krum/2': 'not-begun'}
  (workdir / 'sweep.json').write_text(json.dumps(names))
  assert len(index.names(workdir)) == 10
