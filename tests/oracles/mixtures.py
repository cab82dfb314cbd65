"""Mixtures of the Euclidean and the cosine distance, from their definitions."""

import math

import numpy as np

from oracles.rows import distance_matrix, rejected


def mixed(rows, share=0.5, f=None):
  """Returns share d_E / u_E + (1 - share) d_C / u_C, +inf if rejected."""
  n, good = len(rows), np.flatnonzero(~rejected(rows))
  parts = []
  for kind in ('euclidean', 'cosine'):
    between = distance_matrix(rows, kind, 2)
    size = majority(n, len(good), f)
    radii = sorted(sorted(between[i])[size - 1] for i in good)
    unit = radii[(len(radii) - 1) // 2]
    if unit == 0:
      unit = max(between[i, j] for i in good for j in good) or 1.0
    parts.append(np.minimum(between / unit, 1e4))
  mixture = share * parts[0] + (1 - share) * parts[1]
  bad = rejected(rows)
  mixture[bad] = mixture[:, bad] = math.inf
  return mixture


def majority(n, left, f):
  return min(left, n - ((n - 1) // 2 if f is None else f))


def separation(between, size):
  """Returns the mean distance out of the central set by that within it."""
  good = [i for i in range(len(between)) if math.isfinite(between[i, i])]
  central = min(good, key=lambda i: sum(sorted(between[i])[:size]))
  chosen = sorted(good, key=lambda j: between[central, j])[:size]
  rest = [j for j in good if j not in chosen]
  if not rest:
    return 0.0
  across = np.mean([between[a, b] for a in chosen for b in rest])
  return across / np.mean(
    [between[a, b] for a in chosen for b in chosen if a != b]
  )


def separating(rows, f=None):
  """Returns the separations of all shares, and the mixtures."""
  size = majority(len(rows), int(np.sum(~rejected(rows))), f)
  mixtures = [mixed(rows, share, f) for share in (0, 0.25, 0.5, 0.75, 1)]
  return [separation(m, size) for m in mixtures], mixtures


def rank_weighted(rows, f=None):
  """Returns the mixture whose share falls with the effective rank."""
  used = rows[~rejected(rows)]
  lengths = np.linalg.norm(used, axis=1)
  units = used[lengths > 0] / lengths[lengths > 0, None]
  m = len(units)
  # The eigenvalues of the directions' covariance.
  values = np.linalg.svd(units, compute_uv=False) ** 2
  rank = np.sum(values) ** 2 / np.sum(values**2)
  return mixed(rows, 1 - (rank - 1) / (m - 1), f)
