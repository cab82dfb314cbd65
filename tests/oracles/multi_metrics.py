"""Multi-metrics: three sums of distances, and their Mahalanobis norm."""

import math

import numpy as np

from oracles.rows import distance_matrix, lengths, rejected


def distance_sums(rows):
  """Returns `[m, 3]` sums of distances, of the m rows that are not rejected."""
  good = rows[~rejected(rows)]
  norms, cosine = lengths(good), distance_matrix(good, 'cosine')
  sums = [
    (
      np.sum(cosine[i] ** 2),
      np.sum(np.abs(row - good)),
      np.sum(np.abs(norms[i] - norms)),
    )
    for i, row in enumerate(good)
  ]
  return np.array(sums).reshape(-1, 3)


def multi_metrics_scores(rows, *, kind='euclidean', fraction=0.3):
  """Returns the scores `[n]`; +inf for rejected rows.

  The inverse covariance is a pseudo-inverse in standardised features, without
  the directions of less than 1e-5 of the largest variance.
  """
  assert kind == 'euclidean' and fraction
  scores = np.full(len(rows), math.inf)
  features = distance_sums(rows)
  if len(features):
    deviation = np.std(features, axis=0, ddof=min(1, len(features) - 1))
    standard = features / np.where(deviation > 0, deviation, 1)
    centred = standard - np.mean(standard, axis=0)
    covariance = centred.T @ centred / max(1, len(features) - 1)
    inverse = np.linalg.pinv(covariance, rcond=1e-5, hermitian=True)
    scores[~rejected(rows)] = np.einsum(
      'ij,jk,ik->i', standard, inverse, standard
    )
  return scores
