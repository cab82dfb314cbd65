"""Rules by name: functions from rows to scores or weights `[n]`."""

import numpy as np

from oracles.align_ins import align_ins_weights
from oracles.averages import norms, pivot_distances
from oracles.bulyan import trimmed_scores
from oracles.flame import flame_weights
from oracles.geometric import geometric_median_weights
from oracles.krum import krum_scores, medoid_scores
from oracles.multi_metrics import multi_metrics_scores
from oracles.rflbat import rflbat_weights
from oracles.rows import rejected, select
from oracles.spectral import caf_weights, outlyingness
from oracles.subsets import OBJECTIVES, best_subset
from oracles.trust import fltrust_weights, foolsgold_weights

SCORES = {
  'krum': krum_scores,
  'multi_krum': krum_scores,
  'bulyan_trimmed': trimmed_scores,
  'medoid': medoid_scores,
  'cge': norms,
  'monna': pivot_distances,
  'dnc': outlyingness,
  'multi_metrics': multi_metrics_scores,
}
TAKES_ALL_BUT_F = ('cge', 'monna')


WEIGHTS = {
  'align_ins': align_ins_weights,
  'geometric_median': geometric_median_weights,
  'caf': caf_weights,
  'foolsgold': foolsgold_weights,
  'flame': flame_weights,
  'fltrust': fltrust_weights,
  'rflbat': rflbat_weights,
}


def scores_of(name, rows, hyper, kind):
  """Returns the scores, and how many rows the rule selects."""
  hyper = dict(hyper)
  m = hyper.pop('m', 1)
  if name in TAKES_ALL_BUT_F:
    m = len(rows) - hyper['f']
  if name == 'dnc':
    m = len(rows) - int(hyper.get('filter_fraction', 1.0) * hyper['f'])
  if name == 'multi_metrics':
    m = max(1, int(hyper.get('fraction', 0.3) * len(rows)))
  return SCORES[name](rows, kind=kind, **hyper), m


def weights_of(name, rows, hyper, kind='euclidean'):
  """Returns the `[n]` weights before any clip, by the papers' definitions."""
  n = len(rows)
  if name == 'mean':
    return np.full(n, 1 / n)
  if name in WEIGHTS:
    return WEIGHTS[name](rows, **hyper)
  if name in OBJECTIVES:
    chosen = best_subset(name, rows, hyper['f'], kind)
  else:
    scores, m = scores_of(name, rows, hyper, kind)
    chosen = select(scores, rejected(rows), m)
  weights = np.zeros(n)
  for i in chosen:
    weights[i] = 1 / len(chosen)
  return weights
