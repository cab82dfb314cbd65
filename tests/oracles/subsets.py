"""Rules over subsets: the members who have least of an objective."""

import itertools

import numpy as np

from oracles.rows import distance_matrix, in_few_coordinates, rejected


def diameter(rows, kind='euclidean'):
  """The largest distance between two members."""
  matrix = distance_matrix(rows, kind)

  def objective(members):
    return float(np.max(matrix[np.ix_(members, members)]))

  return objective


def largest_variance(rows, kind='euclidean'):
  """The largest eigenvalue of the members' covariance matrix."""
  assert kind == 'euclidean'
  rows = in_few_coordinates(rows)

  def objective(members):
    own = rows[list(members)]
    centred = own - np.mean(own, axis=0)
    largest = np.linalg.norm(centred, ord=2) if centred.size else 0.0
    return float(largest) ** 2 / len(own)

  return objective


OBJECTIVES = {'mda': diameter, 'smea': largest_variance}


def best_subset(name, rows, f, kind):
  """Members of the best: all that is left where that is n - f or fewer."""
  left = np.flatnonzero(~rejected(rows))
  size = min(len(rows) - f, len(left))
  objective = OBJECTIVES[name](rows, kind)
  candidates = itertools.combinations(left.tolist(), size)
  return min(candidates, key=objective) if size else ()
