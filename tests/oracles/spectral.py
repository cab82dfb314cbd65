"""DnC and CAF: the directions in which rows vary the most."""

import math

import numpy as np

from oracles.rows import in_few_coordinates, rejected


def outlyingness(rows, *, f, filter_fraction=1.0, kind='euclidean'):
  """Returns the scores of DnC: squared projections on the top direction."""
  assert kind == 'euclidean'
  good = ~rejected(rows)
  scores = np.full(len(rows), math.inf)
  if np.any(good):
    centred = rows[good] - np.mean(rows[good], axis=0)
    scores[good] = 0
    if centred.size:
      top = np.linalg.svd(centred, full_matrices=False)[2][0]
      scores[good] = (centred @ top) ** 2
  return scores


def caf_steps(rows, *, f, farthest='remaining'):
  """Returns one pair (largest variance, weights) for each step of the filter.

  If f = 0, or 2 f rows are rejected, nothing is filtered and there is one step.
  """
  n, good = len(rows), ~rejected(rows)
  rows = in_few_coordinates(rows)
  c = good.astype(float)
  if not np.any(c):
    return [(math.inf, np.full(n, np.nan))]
  if np.sum(c) <= n - 2 * f:
    return [(math.inf, c / np.sum(c))]
  rows = np.where(good[:, None], rows, 0)
  steps = []
  while np.sum(c) > n - 2 * f:
    weights = c / np.sum(c)
    centred = rows - weights @ rows
    if not centred.size:
      return [(0.0, weights)]
    scaled = np.sqrt(weights)[:, None] * centred
    _, singular, directions = np.linalg.svd(scaled, full_matrices=False)
    steps.append((float(singular[0]) ** 2, weights))
    included = c > 0 if farthest == 'remaining' else good
    tau = np.where(included, (centred @ directions[0]) ** 2, 0)
    if np.max(tau) == 0:  # all remaining rows are equal
      break
    c = c * (1 - tau / np.max(tau))
  return steps


def caf_weights(rows, **hyper):
  """Returns the weights of the step with the least largest variance."""
  return min(caf_steps(rows, **hyper), key=lambda step: step[0])[1]
