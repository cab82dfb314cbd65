"""Rows `[n, d]`: norms, distances, rejected rows, medians and sums."""

import math

import numpy as np

FLOAT32 = np.finfo(np.float32)
LARGEST_SQUARED_NORM = float(FLOAT32.max) / 16
# Squares below this are zero on machines that flush subnormal numbers.
SMALLEST_SQUARED_NORM = float(FLOAT32.tiny)


def squared_norm(row):
  total = float(np.sum(row * row))
  return 0.0 if total < SMALLEST_SQUARED_NORM else total


def rejected(rows):
  """Returns a mask of rows with a NaN or an inf, or with too large a norm."""
  answer = []
  for row in rows:
    bad = not np.all(np.isfinite(row))
    answer.append(bad or squared_norm(row) > LARGEST_SQUARED_NORM)
  return np.array(answer)


def distance(a, b, kind, power):
  if kind == 'euclidean':
    return float(np.linalg.norm(a - b)) ** power
  norm_a, norm_b = math.sqrt(squared_norm(a)), math.sqrt(squared_norm(b))
  if norm_a == 0 and norm_b == 0:
    return 0.0
  if norm_a == 0 or norm_b == 0:
    return 2.0
  return 1.0 - float(np.dot(a / norm_a, b / norm_b))


def distance_matrix(rows, kind='euclidean', power=2):
  """Returns `[n, n]` distances: +inf for rejected rows, 0 on the diagonal."""
  n = len(rows)
  bad = rejected(rows)
  matrix = np.zeros((n, n))
  for i in range(n):
    for j in range(i):
      if bad[i] or bad[j]:
        value = math.inf
      else:
        value = distance(rows[i], rows[j], kind, power)
      matrix[i, j] = matrix[j, i] = value
  return matrix


def median(values, kind='interpolated'):
  """Returns the median; `kind` decides for an even number of values."""
  values = sorted(values)
  low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
  return {'lower': low, 'upper': high, 'interpolated': (low + high) / 2}[kind]


def clip_factors(rows, kind='interpolated'):
  """Returns factors that clip each row to the median norm; 0 if rejected."""
  bad = rejected(rows)
  factors = np.zeros(len(rows))
  norms = {
    i: math.sqrt(squared_norm(rows[i])) for i in range(len(rows)) if not bad[i]
  }
  if norms:
    threshold = median(norms.values(), kind)
    for i, norm in norms.items():
      factors[i] = threshold / norm if norm > threshold else 1.0
  return factors


def lengths(rows):
  """Returns the norms; +inf for rejected rows."""
  plain = [math.sqrt(squared_norm(row)) for row in rows]
  return np.where(rejected(rows), math.inf, plain)


def equal_weights(n, chosen):
  """Returns equal weights on the chosen of n clients; NaN if there are none."""
  weights = np.zeros(n)
  weights[list(chosen)] = 1
  return weights / len(chosen) if len(chosen) else np.full(n, np.nan)


def in_few_coordinates(rows):
  """Returns rows with the same distances, in coordinates of the rows' span."""
  if rows.shape[1] <= len(rows):
    return rows
  good = ~rejected(rows)
  coordinates = np.full((len(rows), np.sum(good)), np.nan)
  coordinates[good] = np.linalg.qr(rows[good].T)[1].T
  return coordinates


def weighted_sum(rows, weights):
  """Returns the sum of `weights[i] * rows[i]` over nonzero weights."""
  total = np.zeros(rows.shape[1])
  for weight, row in zip(weights, rows, strict=True):
    if weight != 0:
      total = total + weight * row
  return total


def mix(rows, weights):
  """Returns the weighted sum; NaN if all weights are zero."""
  if not np.any(weights):
    return np.full(rows.shape[1], np.nan)
  return weighted_sum(rows, weights)


def select(scores, bad, m):
  """Returns the m rows of lowest score, without rejected ones.

  In a tie the lowest index comes first.
  """
  order = sorted(
    (i for i in range(len(scores)) if not bad[i]),
    key=lambda i: (scores[i], i),
  )
  return order[:m]


def cosine_similarity(a, b):
  """Returns the cosine of two rows; 0 if a row is zero."""
  size = math.sqrt(squared_norm(a)), math.sqrt(squared_norm(b))
  return float(np.dot(a / size[0], b / size[1])) if all(size) else 0.0
