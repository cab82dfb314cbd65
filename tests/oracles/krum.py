"""Krum and the medoid: functions from rows to scores `[n]`, lower is better."""

import math

import numpy as np

from oracles.rows import distance_matrix, rejected


def krum_scores(rows, *, f, num_neighbors=None, kind='euclidean', power=2):
  """Returns s(i) of Krum: sums of the n - f - 2 smallest distances to others.

  Sections 2.4 and 4.3 of the layerwise cosine paper.
  """
  n = len(rows)
  matrix = distance_matrix(rows, kind, power)
  k = n - f - 2 if num_neighbors is None else num_neighbors
  scores = []
  for i in range(n):
    others = sorted(matrix[i, j] for j in range(n) if j != i)
    scores.append(sum(others[:k]))
  return np.array(scores)


def medoid_scores(rows, *, kind='euclidean', power=1):
  """Returns sums of distances to the others, without rejected rows.

  "GeoMed" of section 4.3 of the layerwise cosine paper, with `power=2` as in
  the paper's formula or `power=1` as in its code.
  """
  n = len(rows)
  bad = rejected(rows)
  matrix = distance_matrix(rows, kind, power)
  scores = []
  for i in range(n):
    if bad[i]:
      scores.append(math.inf)
    else:
      scores.append(sum(matrix[i, j] for j in range(n) if not bad[j]))
  return np.array(scores)
