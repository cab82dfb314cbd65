"""Pre-aggregators that mix: functions from rows to weights `[k, n]`."""

import numpy as np

from oracles.rows import distance_matrix, equal_weights, rejected, select


def nnm_matrix(rows, *, f, kind='euclidean'):
  """Returns a matrix: row i has equal weights on the n - f nearest to i."""
  n = len(rows)
  bad = rejected(rows)
  matrix = distance_matrix(rows, kind)
  answer = np.full((n, n), np.nan)
  for i in np.flatnonzero(~bad):
    distances = np.where(np.arange(n) == i, -1, matrix[i])  # itself first
    answer[i] = equal_weights(n, select(distances, bad, n - f))
  return answer


def bucketing_matrix(rows, *, order, bucket_size=2):
  """Returns equal weights on consecutive groups of the clients in `order`."""
  bad = rejected(rows)
  answer = []
  for start in range(0, len(rows), bucket_size):
    bucket = order[start : start + bucket_size]
    answer.append(equal_weights(len(rows), [i for i in bucket if not bad[i]]))
  return np.array(answer)
