"""SignGuard and clipped clustering: the larger of two clusters."""

import itertools

import numpy as np

from oracles.rows import distance_matrix, lengths, median, rejected


def two_clusters(matrix, slack=0.0, limit=3000):
  """Returns all pairs of clusters in which average linkage may end.

  Average linkage merges the two clusters of the least mean distance between
  their members, as long as there are more than two. Distances within `slack` of
  the least count as tied, and every way to break a tie is followed. The result
  is None if there are more than `limit` ways.
  """
  ends = {frozenset(frozenset([i]) for i in range(len(matrix)))}
  for _ in range(len(matrix) - 2):
    following = set()
    for clusters in ends:
      pairs = {
        (a, b): float(np.mean(matrix[np.ix_(sorted(a), sorted(b))]))
        for a, b in itertools.combinations(sorted(clusters, key=min), 2)
      }
      least = min(pairs.values())
      ties = [pair for pair, d in pairs.items() if d <= least + slack]
      # Copies of one point end in one cluster, whatever the order of merges.
      for a, b in ties[:1] if least == 0 else ties:
        following.add(clusters - {a, b} | {a | b})
    ends = following
    if len(ends) > limit:
      return None
  return ends


def larger(clusters):
  """Returns the larger cluster; in a tie, the one with the lowest index."""
  return min(clusters, key=lambda members: (-len(members), min(members)))


def larger_clusters(matrix, members, slack=0.0):
  """Returns `[n]` masks of the possible larger clusters, or None if many."""
  if len(members) == 0:
    return [np.zeros(len(matrix), bool)]
  ends = two_clusters(matrix[np.ix_(members, members)], slack)
  if ends is None:
    return None
  answer = []
  for clusters in ends:
    mask = np.zeros(len(matrix), bool)
    mask[np.asarray(members)[list(larger(clusters))]] = True
    answer.append(mask)
  return answer


def sign_shares(rows):
  """Returns `[n, 3]` shares of positive, negative and zero entries."""
  count = max(1, rows.shape[1])
  tests = (rows > 0, rows < 0, rows == 0)
  return np.stack([np.sum(test, axis=1) / count for test in tests], axis=1)


def sign_guard_choices(rows, *, lower=0.1, upper=3.0, slack=0.0):
  """Returns the norm filter `[n]` and all possible sign filters, or None.

  The signs are counted over all coordinates.
  """
  good = np.flatnonzero(~rejected(rows))
  size = lengths(rows)
  passed = np.zeros(len(rows), bool)
  if len(good):
    middle = median(size[good])
    passed = (lower * middle <= size) & (size <= upper * middle)
    passed &= ~rejected(rows)
  features = np.where(rejected(rows)[:, None], 0, sign_shares(rows))
  gaps = np.linalg.norm(features[:, None] - features, axis=2)
  return passed, larger_clusters(gaps, good, slack)


def clipped_clustering_choices(
  rows, state, *, window=1000, threshold=None, slack=0.0
):
  """Returns all possible larger clusters, the clip factors `[n]` and the state.

  The state lists the norms of the last rounds, newest round first.
  """
  good = np.flatnonzero(~rejected(rows))
  size = lengths(rows)
  rounds = [size[good], *(state or [])][: window // len(rows)]
  factors = np.zeros(len(rows))
  if norms := [norm for past in rounds for norm in past]:
    limit = median(norms)
    limit = limit if threshold is None else min(limit, threshold)
    for i in good:
      factors[i] = limit / size[i] if size[i] > limit else 1.0
  matrix = distance_matrix(rows, 'cosine')
  return larger_clusters(matrix, good, slack), factors, rounds
