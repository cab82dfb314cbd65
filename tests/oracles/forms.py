"""Layerwise and cosine forms of rules and pre-aggregators."""

import numpy as np

from oracles.clipping import arc_matrix, static_clip_matrix
from oracles.mixing import bucketing_matrix, nnm_matrix
from oracles.rows import clip_factors, mix, rejected, weighted_sum
from oracles.rules import weights_of
from oracles.trees import groups, leaves, rebuild, rows_of

MATRICES = {
  'nnm': nnm_matrix,
  'bucketing': bucketing_matrix,
  'static_clip': static_clip_matrix,
  'arc': arc_matrix,
}


def pre_aggregate(name, tree, hyper, *, kind='euclidean', by='model'):
  """Applies a pre-aggregator to every group; under cosine, to clipped rows."""
  arrays = [array for _, array in leaves(tree)]
  answer = [None] * len(arrays)
  for positions in groups(tree, by):
    rows = rows_of([arrays[p] for p in positions])
    if name == 'nnm':
      matrix = nnm_matrix(rows, kind=kind, **hyper)
    else:
      matrix = MATRICES[name](rows, **hyper)
    factors = clip_factors(rows) if kind == 'cosine' else np.ones(len(rows))
    for p in positions:
      with np.errstate(invalid='ignore'):  # 0 * inf in rejected rows, unused
        leaf_rows = rows_of([arrays[p]]) * factors[:, None]
      mixed = [
        np.full(leaf_rows.shape[1], np.nan)
        if np.any(np.isnan(weights))
        else weighted_sum(leaf_rows, weights)
        for weights in matrix
      ]
      answer[p] = np.reshape(mixed, (len(matrix), *arrays[p].shape[1:]))
  return rebuild(tree, answer)


def combine(
  arrays, weights, *, clip=None, clip_by='scope', median_kind='interpolated'
):
  """Mixes the arrays of one group by weights, with or without a clip."""
  rows = rows_of(arrays)
  answer = []
  for array in arrays:
    leaf_rows = rows_of([array])
    scaled = np.array(weights, float)
    if clip is not None:
      scope = rows if clip_by == 'scope' else leaf_rows
      bad = rejected(rows)
      keep = [i for i in range(len(rows)) if not bad[i]]
      factors = np.zeros(len(rows))
      factors[keep] = clip_factors(scope[keep], median_kind)
      scaled = scaled * factors
      # A row clipped to zero still counts: the result is 0, not NaN.
      if np.any(weights) and not np.any(scaled):
        answer.append(np.zeros(array.shape[1:]))
        continue
    answer.append(mix(leaf_rows, scaled).reshape(array.shape[1:]))
  return answer


def aggregate(name, tree, hyper, *, kind='euclidean', by='model', **clip):
  """Applies a rule to every group; returns the aggregate in float64."""
  arrays = [array for _, array in leaves(tree)]
  answer = [None] * len(arrays)
  for positions in groups(tree, by):
    group = [arrays[p] for p in positions]
    weights = weights_of(name, rows_of(group), hyper, kind)
    for p, out in zip(positions, combine(group, weights, **clip), strict=True):
      answer[p] = out
  return rebuild(tree, answer)
