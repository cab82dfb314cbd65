"""The geometric median: rows -> weights `[n]`."""

import numpy as np

from oracles.coordinates import coordinate_median
from oracles.rows import in_few_coordinates, rejected


def geometric_median_weights(rows, *, nu=1e-6, steps=20_000, **unused):
  """Weiszfeld's iteration until it stands still.

  The weights at the point where the sum of the distances is least; those of
  rows nearer than nu are what nu gives them.
  """
  good = ~rejected(rows)
  weights = np.zeros(len(rows))
  if not np.any(good):
    return np.full(len(rows), np.nan)
  x = in_few_coordinates(rows)[good]
  z = coordinate_median(x)
  for _ in range(steps):
    closeness = 1 / np.maximum(np.linalg.norm(x - z, axis=1), nu)
    share = closeness / np.sum(closeness)
    z, before = share @ x, z
    if np.linalg.norm(z - before) <= 1e-14 * np.linalg.norm(z):
      break
  weights[good] = share
  return weights


def sum_of_distances(rows, point):
  """What the geometric median has least of, over the rows not rejected."""
  return float(np.sum(np.linalg.norm(rows[~rejected(rows)] - point, axis=1)))
