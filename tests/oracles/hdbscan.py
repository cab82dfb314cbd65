"""HDBSCAN by its definition, from components at ever smaller thresholds."""

import numpy as np


def reachability(matrix, samples):
  """Returns mutual reachability distances of all points."""
  core = np.sort(matrix, axis=1)[:, min(samples, len(matrix)) - 1]
  return np.maximum(matrix, np.maximum(core, core[:, None]))


def pieces(matrix, points, threshold):
  """Returns the components of the points, joined below a threshold."""
  left, found = set(points), []
  while left:
    piece, border = set(), [min(left)]
    while border:
      i = border.pop()
      if i in left:
        left.remove(i)
        piece.add(i)
        border += [j for j in left if matrix[i, j] < threshold]
    found.append(sorted(piece))
  return found


def falls_apart_at(matrix, points):
  """Returns the largest threshold below which the points are not connected."""
  lengths = {matrix[i, j] for i in points for j in points if i != j}
  return max(t for t in lengths if len(pieces(matrix, points, t)) > 1)


def stable_clusters(matrix, points, begin, m):
  """Follows a cluster from the density at which it begins to its end.

  Returns:
    Its stability, the best choice of clusters inside it, their total stability,
    and the points that it has at its end.
  """
  stability = 0.0
  while True:
    threshold = falls_apart_at(matrix, points)
    density = 1 / threshold if threshold > 0 else np.inf
    parts = pieces(matrix, points, threshold)
    large = [part for part in parts if len(part) >= m]
    if len(large) != 1:
      stability += len(points) * (density - begin)
      break
    stability += (len(points) - len(large[0])) * (density - begin)
    points = large[0]
  chosen, total = [], 0.0
  for part in large:
    own, inside, of_inside, _ = stable_clusters(matrix, part, density, m)
    # Stabilities that agree up to rounding are equal.
    chosen += [part] if own >= (1 - 1e-9) * of_inside else inside
    total += max(own, of_inside)
  return stability, chosen, total, points


def hdbscan(matrix, *, min_cluster_size=5, min_samples=None, single=False):
  """Returns `[n]` labels, -1 for noise, in the order of the first members."""
  n, m = len(matrix), min_cluster_size
  labels = np.full(n, -1)
  if n < m:
    return labels
  matrix = reachability(np.asarray(matrix, float), min_samples or m)
  own, chosen, total, core = stable_clusters(matrix, range(n), 0.0, m)
  if single and own >= (1 - 1e-9) * total:
    chosen = [core]
  for label, members in enumerate(sorted(chosen)):
    labels[members] = label
  return labels
