"""Bulyan: a selection, then a statistic of every coordinate of the selected."""

import numpy as np

from oracles.coordinates import mean_of_nearest, trimmed_mean
from oracles.krum import krum_scores
from oracles.rows import distance_matrix, equal_weights, mix, rejected


def trimmed_scores(rows, *, trim=None, **hyper):
  """Returns the scores of Krum, which do not depend on the trimming."""
  return krum_scores(rows, **hyper)


def bulyan_members(
  rows, *, f, kind='euclidean', power=2, prefer=None, slack=0.0
):
  """Returns the n - 2f winners of Krum, each among the rows still left.

  With `prefer`, a client of that set is selected if its score is within `slack`
  of the lowest.
  """
  n = len(rows)
  bad = rejected(rows)
  if np.sum(~bad) < n - 2 * f:
    return np.flatnonzero(~bad).tolist()
  matrix = distance_matrix(rows, kind, power)
  remaining, chosen = list(range(n)), []
  for k in range(n - 2 * f):
    count = max(1, n - k - f - 2)
    scores = {
      i: sum(sorted(matrix[i, j] for j in remaining if j != i)[:count])
      for i in remaining
      if not bad[i]
    }
    best = min(scores.values())
    preferred = [
      i for i in scores if prefer and i in prefer and scores[i] <= best + slack
    ]
    winner = min(preferred or scores, key=lambda i: (scores[i], i))
    remaining.remove(winner)
    chosen.append(winner)
  return chosen


def bulyan(rows, members, *, f, **unused):
  """Returns the second stage of El Mhamdi et al. on the members' rows."""
  theta = len(rows) - 2 * f
  if len(members) < theta:
    return mix(rows, equal_weights(len(rows), members))
  return mean_of_nearest(rows[list(members)], theta - 2 * f)


def bulyan_trimmed(rows, members, *, f, m, trim=None, **unused):
  """Returns the trimmed mean of the m best, or the mean of fewer rows."""
  if len(members) < m:
    return mix(rows, equal_weights(len(rows), members))
  return trimmed_mean(rows[list(members)], f=f if trim is None else trim)
