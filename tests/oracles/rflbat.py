"""RFLBAT: the cluster of updates, in two components, that are least alike."""

import numpy as np

from oracles.rows import distance_matrix, equal_weights, rejected

LEAST = 1e-6  # of the squared longest side: smaller sums of squares are this


def two_components(rows):
  """Returns the rows' coordinates along the two directions of most variance."""
  if not rows.size:
    return np.zeros((len(rows), 2))
  centred = rows - np.mean(rows, axis=0)
  left, singular, _ = np.linalg.svd(centred, full_matrices=False)
  coordinates = np.zeros((len(rows), 2))
  rank = min(2, len(singular))
  coordinates[:, :rank] = left[:, :rank] * singular[:rank]
  return coordinates


def far_apart(points, count):
  """Returns the start of k-means: the most central point, then the farthest."""
  away = np.linalg.norm(points - np.mean(points, axis=0), axis=1)
  chosen = [int(np.argmin(away))]
  while len(chosen) < count:
    gaps = np.linalg.norm(points[:, None] - points[chosen], axis=2)
    chosen.append(int(np.argmax(np.min(gaps, axis=1))))
  return points[chosen]


def k_means(points, k, limit=100):
  """Returns the labels, and the sum of squared distances from the centres."""
  centres = far_apart(points, k)
  labels = None
  for _ in range(limit + 1):
    gaps = np.sum((points[:, None] - centres) ** 2, axis=2)
    before, labels = labels, np.argmin(gaps, axis=1)
    if before is not None and np.array_equal(before, labels):
      break
    for label in set(labels.tolist()):
      centres[label] = np.mean(points[labels == label], axis=0)
  return labels, float(np.sum(np.min(gaps, axis=1)))


def gap_clusters(points, most, n, sets=10):
  """Returns the labels for the least k that satisfies the gap criterion.

  Args:
    points: `[m, 2]`.
    most: largest k.
    n: number of clients, those that are left out included.
    sets: number of sets of uniform points to compare with.
  """
  low, high = np.min(points, axis=0), np.max(points, axis=0)
  least = LEAST * np.max(high - low) ** 2
  drawn = np.random.default_rng(0).random((sets, n, 2))[:, : len(points)]
  labels, gaps, errors = [], [], []
  for k in range(1, most + 1):
    own, within = k_means(points, k)
    logs = [
      np.log(max(k_means(low + u * (high - low), k)[1], least, 1e-300))
      for u in drawn
    ]
    labels.append(own)
    gaps.append(np.mean(logs) - np.log(max(within, least, 1e-300)))
    errors.append(np.std(logs) * np.sqrt(1 + 1 / sets))
    if k > 1 and gaps[k - 2] >= gaps[k - 1] - errors[k - 1]:
      return labels[k - 2]
  return labels[-1]


def sums_within(points, members, bound):
  """Returns the members whose sum of distances is at most some medians."""
  own = points[members]
  totals = np.sum(np.linalg.norm(own[:, None] - own, axis=2), axis=1)
  return members[totals <= bound * np.median(totals)]


def rflbat_members(rows, *, epsilon_1=10.0, epsilon_2=4.0, max_clusters=9):
  """Returns the indices of the clients that are averaged."""
  good = np.flatnonzero(~rejected(rows))
  if not len(good):
    return good
  points = np.full((len(rows), 2), np.nan)
  points[good] = two_components(rows[good])
  left = sums_within(points, good, epsilon_1)
  most = min(max_clusters, len(rows))
  labels = gap_clusters(points[left], most, len(rows))
  cosine = distance_matrix(rows, 'cosine')
  best = None
  for label in range(most):
    members = left[labels == label]
    if len(members):
      apart = np.median(np.mean(cosine[np.ix_(members, members)], axis=1))
      if best is None or apart > best[0]:
        best = apart, members
  assert best
  return sums_within(points, best[1], epsilon_2)


def rflbat_weights(rows, **hyper):
  return equal_weights(len(rows), rflbat_members(rows, **hyper))
