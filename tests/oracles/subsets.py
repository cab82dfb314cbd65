"""Rules over subsets: the members that minimise an objective."""

import itertools

import numpy as np

from oracles.rows import distance_matrix, in_few_coordinates, rejected


def diameter(rows, kind='euclidean'):
  """Returns the objective of MDA: the largest distance between two members."""
  matrix = distance_matrix(rows, kind)

  def objective(members):
    return float(np.max(matrix[np.ix_(members, members)]))

  return objective


def largest_variance(rows, kind='euclidean'):
  """Returns the objective of SMEA: the top eigenvalue of the covariance."""
  assert kind == 'euclidean'
  rows = in_few_coordinates(rows)

  def objective(members):
    chosen = rows[list(members)]
    centred = chosen - np.mean(chosen, axis=0)
    largest = np.linalg.norm(centred, ord=2) if centred.size else 0.0
    return float(largest) ** 2 / len(chosen)

  return objective


OBJECTIVES = {'mda': diameter, 'smea': largest_variance}


def best_subset(name, rows, f, kind):
  """Returns the best n - f members, or all rows left if they are fewer."""
  left = np.flatnonzero(~rejected(rows))
  size = min(len(rows) - f, len(left))
  objective = OBJECTIVES[name](rows, kind)
  candidates = itertools.combinations(left.tolist(), size)
  return min(candidates, key=objective) if size else ()
