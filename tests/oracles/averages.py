"""The mean, and the scores `[n]` of CGE and MoNNA."""

import numpy as np

from oracles.rows import distance_matrix, lengths
from oracles.trees import leaves, rebuild


def norms(rows, *, f, kind='euclidean'):
  """Of each row, whatever f is; rejected ones last."""
  assert kind == 'euclidean'
  return lengths(rows)


def pivot_distances(rows, *, f, pivot=0, kind='euclidean', power=2):
  """Of each row to the trusted one, whatever f is."""
  return distance_matrix(rows, kind, power)[pivot]


def mean(tree, weights=None):
  """Eq. 2 of the paper: the plain or weighted mean; a NaN stays a NaN."""
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
