"""FoolsGold and FLTrust: functions from rows to weights `[n]`."""

import math

import numpy as np

from oracles.rows import (
  cosine_similarity,
  equal_weights,
  rejected,
  squared_norm,
)


def foolsgold_dissimilarities(rows):
  """Returns `[n]`: 1 minus the largest pardoned cosine, in [0, 1]."""
  n = len(rows)
  good = np.flatnonzero(~rejected(rows))
  cs = np.zeros((n, n))
  for i in good:
    for j in good:
      if i != j:
        cs[i, j] = cosine_similarity(rows[i], rows[j])
  v = np.max(cs, axis=1)
  pardoned = cs.copy()
  for i in good:
    for j in good:
      if v[i] < v[j]:
        pardoned[i, j] = cs[i, j] * v[i] / v[j]
  alpha = np.zeros(n)
  alpha[good] = np.clip(1 - np.max(pardoned, axis=1)[good], 0, 1)
  return alpha


def foolsgold_weights(rows):
  """Returns the weights of Algorithm 1 of Fung et al. for this round alone."""
  n = len(rows)
  good = np.flatnonzero(~rejected(rows))
  alpha = foolsgold_dissimilarities(rows)
  if not np.any(alpha):
    return equal_weights(n, good)
  alpha = alpha / np.max(alpha)
  alpha[alpha == 1] = 0.99
  with np.errstate(divide='ignore'):
    alpha[good] = np.clip(np.log(alpha / (1 - alpha))[good] + 0.5, 0, 1)
  return alpha / np.sum(alpha)


def fltrust_weights(rows, *, server):
  """Returns the weights of Cao et al.: trust times the rescaling of lengths."""
  n = len(rows)
  bad = rejected(rows)
  trust, size = np.zeros(n), np.ones(n)
  if rejected(server[None])[0]:
    return np.full(n, np.nan)
  for i in np.flatnonzero(~bad):
    trust[i] = max(0.0, cosine_similarity(rows[i], server))
    size[i] = math.sqrt(squared_norm(rows[i])) or 1.0
  if not np.any(trust):
    return np.full(n, np.nan)
  length = math.sqrt(squared_norm(server))
  return trust * length / size / np.sum(trust)
