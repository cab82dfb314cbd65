"""The mean, and the scores `[n]` of CGE and MoNNA."""

import numpy as np

from oracles.rows import distance_matrix, lengths
from oracles.trees import leaves, rebuild


def norms(rows, *, f, kind='euclidean'):
  """Returns the scores of CGE: the norms, whatever f is; +inf if rejected."""
  assert kind == 'euclidean'
  return lengths(rows)


def pivot_distances(rows, *, f, pivot=0, kind='euclidean', power=2):
  """Returns the scores of MoNNA: distances to the pivot, whatever f is."""
  return distance_matrix(rows, kind, power)[pivot]


def mean(tree, weights=None):
  """Returns the plain or weighted mean (Eq. 2 of the layerwise cosine paper).

  A NaN in a row makes the mean NaN.
  """
  answer = []
  for _, array in leaves(tree):
    n = len(array)
    share = np.full(n, 1.0) if weights is None else np.asarray(weights, float)
    share = share / share.sum()
    total = np.zeros(array.shape[1:])
    for i in range(n):
      total = total + share[i] * array[i]
    answer.append(total)
  return rebuild(tree, answer)
