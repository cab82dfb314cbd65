"""Clips: functions from rows to weights `[n, n]`, from trees, or to one row."""

import math

import numpy as np

from oracles.rows import clip_factors, lengths, rejected
from oracles.trees import leaves, rebuild, rows_of


def static_clip_matrix(rows, *, threshold):
  """Clips every row to the threshold; a rejected row becomes zero."""
  size = lengths(rows)
  return np.diag([min(1, threshold / max(s, 1e-300)) for s in size])


def arc_matrix(rows, *, f):
  """Clips to the (k + 1)-th largest norm, k = floor(2 (f / n) (n - f))."""
  n = len(rows)
  k = 2 * f * (n - f) // n
  size = lengths(rows)
  threshold = np.sort(size)[::-1][k]
  factors = [
    np.nan if s == math.inf else 1.0 if s <= threshold else threshold / s
    for s in size
  ]
  return np.where(np.eye(n) > 0, factors, 0.0)


def centered_clip(rows, state, *, threshold, num_iters=1, init='last'):
  """Returns the update of Karimireddy et al. and the state, which are equal.

  The state is the last aggregate, None before the first round.
  """
  good = ~rejected(rows)
  v = np.zeros(rows.shape[1])
  if init == 'last' and state is not None:
    v = state
  elif init == 'mean':
    v = np.mean(rows[good], axis=0)
  for _ in range(num_iters):
    total = np.zeros(rows.shape[1])
    for row in rows[good]:
      gap = float(np.linalg.norm(row - v))
      total += (row - v) * (min(1, threshold / gap) if gap else 1)
    v = v + total / len(rows)
  return v, v


def adaptive_clip(rows, state, *, threshold, quantile=0.5, rate=0.2):
  """Returns the update of Andrew et al. without noise, and the next clip.

  The state is the clip C, None before the first round.
  """
  clip = threshold if state is None else state
  size = lengths(rows)
  total, unclipped = np.zeros(rows.shape[1]), 0
  for row, length in zip(rows, size, strict=True):
    if length < math.inf:
      total += row * (1 if length <= clip else clip / length)
      unclipped += length <= clip
  share = unclipped / len(rows)
  return total / len(rows), clip * math.exp(-rate * (share - quantile))


def crfl(rows, state, *, params, sigma, rho, growth, rho_max):
  """Returns the update of Xie et al. without noise, and the next round.

  The state is the number of the round, None before the first round.
  """
  assert sigma == 0
  t = 1 if state is None else state
  good = rows[~rejected(rows)]
  if not len(good):
    return np.full(rows.shape[1], np.nan), t + 1
  model = params + np.sum(good, axis=0) / len(good)
  limit, size = min(rho_max, rho + growth * t), float(np.linalg.norm(model))
  new = model if size <= limit else model * (limit / size)
  return new - params, t + 1


def clip_to_median_norm(tree, kind='interpolated'):
  """Clips every row to the median norm; rejected rows become NaN."""
  arrays = [array for _, array in leaves(tree)]
  rows = rows_of(arrays)
  bad, factors = rejected(rows), clip_factors(rows, kind)
  answer = []
  for array in arrays:
    out = np.full(array.shape, np.nan)
    for i in range(len(array)):
      if not bad[i]:
        out[i] = factors[i] * array[i]
    answer.append(out)
  return rebuild(tree, answer)
