"""The geometric median: a function from rows to weights `[n]`."""

import numpy as np

from oracles.coordinates import coordinate_median
from oracles.rows import in_few_coordinates, rejected


def geometric_median_weights(rows, *, nu=1e-6, steps=20_000, **unused):
  """Iterates Weiszfeld's algorithm until convergence.

  Returns the weights at the point with the least sum of distances. Rows nearer
  than nu have the weight of a row at distance nu.
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
  """Returns the objective of the geometric median, over rows not rejected."""
  return float(np.sum(np.linalg.norm(rows[~rejected(rows)] - point, axis=1)))
