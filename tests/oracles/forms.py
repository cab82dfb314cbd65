"""Rules and pre-aggregators in every group of a tree, clipped if asked."""

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
  """A pre-aggregator in every group; under cosine, of clipped rows."""
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
      with np.errstate(invalid='ignore'):  # rejected rows: 0 * inf, unused
        own = rows_of([arrays[p]]) * factors[:, None]
      mixed = [
        np.full(own.shape[1], np.nan)
        if np.any(np.isnan(weights))
        else weighted_sum(own, weights)
        for weights in matrix
      ]
      answer[p] = np.reshape(mixed, (len(matrix), *arrays[p].shape[1:]))
  return rebuild(tree, answer)


def combine(
  arrays, weights, *, clip=None, clip_by='scope', median_kind='interpolated'
):
  """Arrays of one group mixed by weights, clipped to the median if asked."""
  rows = rows_of(arrays)
  answer = []
  for array in arrays:
    own = rows_of([array])
    scaled = np.array(weights, float)
    if clip is not None:
      scope = rows if clip_by == 'scope' else own
      bad = rejected(rows)
      keep = [i for i in range(len(rows)) if not bad[i]]
      factors = np.zeros(len(rows))
      factors[keep] = clip_factors(scope[keep], median_kind)
      scaled = scaled * factors
      # A row clipped to nothing still counts: the answer is 0, not NaN.
      if np.any(weights) and not np.any(scaled):
        answer.append(np.zeros(array.shape[1:]))
        continue
    answer.append(mix(own, scaled).reshape(array.shape[1:]))
  return answer


def aggregate(name, tree, hyper, *, kind='euclidean', by='model', **clip):
  """The rule in every group: the aggregate, float64."""
  arrays = [array for _, array in leaves(tree)]
  answer = [None] * len(arrays)
  for positions in groups(tree, by):
    own = [arrays[p] for p in positions]
    weights = weights_of(name, rows_of(own), hyper, kind)
    for p, out in zip(positions, combine(own, weights, **clip), strict=True):
      answer[p] = out
  return rebuild(tree, answer)
