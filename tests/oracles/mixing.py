"""Pre-aggregators that mix: rows -> a matrix `[k, n]` of weights."""

import numpy as np

from oracles.rows import distance_matrix, equal_weights, rejected, select


def nnm_matrix(rows, *, f, kind='euclidean'):
  """Row i: equal weights on the n - f nearest to client i."""
  n = len(rows)
  bad = rejected(rows)
  matrix = distance_matrix(rows, kind)
  answer = np.full((n, n), np.nan)
  for i in np.flatnonzero(~bad):
    own = np.where(np.arange(n) == i, -1, matrix[i])  # itself before all others
    answer[i] = equal_weights(n, select(own, bad, n - f))
  return answer


def bucketing_matrix(rows, *, order, bucket_size=2):
  """Consecutive groups of the clients in the given order."""
  bad = rejected(rows)
  answer = []
  for start in range(0, len(rows), bucket_size):
    bucket = order[start : start + bucket_size]
    answer.append(equal_weights(len(rows), [i for i in bucket if not bad[i]]))
  return np.array(answer)
