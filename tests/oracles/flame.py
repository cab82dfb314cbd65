"""FLAME: a majority of models whose directions are near each other."""

import numpy as np

from oracles.rows import clip_factors, distance_matrix, equal_weights, rejected


def model_distances(rows, *, params):
  """Returns `[n, n]` cosine distances of the models `params + row`."""
  models = np.where(rejected(rows)[:, None], np.nan, params + rows)
  return distance_matrix(models, 'cosine')


def connected(matrix, members, threshold):
  """Returns the components of the members joined up to a threshold, as sets."""
  parent = {i: i for i in members}

  def root(i):
    while parent[i] != i:
      i = parent[i]
    return i

  for i in members:
    for j in members:
      if i < j and matrix[i, j] <= threshold:
        parent[root(j)] = root(i)
  return [{i for i in members if root(i) == r} for r in {*map(root, members)}]


def flame_cluster(rows, *, params):
  """Returns the first cluster of a majority, and the threshold that joins it.

  The thresholds are all distances, in order. If fewer rows than a majority are
  left, they are the cluster.
  """
  matrix = model_distances(rows, params=params)
  good = np.flatnonzero(~rejected(rows)).tolist()
  size = min(len(rows) // 2 + 1, len(good))
  thresholds = {0.0, *(float(matrix[i, j]) for i in good for j in good)}
  for threshold in sorted(thresholds):
    for component in connected(matrix, good, threshold):
      if len(component) >= size:
        return sorted(component), threshold
  return [], 0.0


def flame_weights(rows, *, params):
  """Returns the weights of the mean over the cluster, of clipped rows."""
  members, _ = flame_cluster(rows, params=params)
  return equal_weights(len(rows), members) * clip_factors(rows)
