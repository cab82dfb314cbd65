"""Slow, obvious float64 versions of the rules, written from the papers.

Nothing here imports jax or lca. A tree is a nested dict, or a list, of arrays
`[n, ...]`. A rule is a function of rows `[n, d]` in float64: to scores `[n]`
or to weights `[n]`, of those that mix clients; to one row `[d]`, of those that
work on every coordinate; to a matrix `[k, n]` of weights, of those that give
clients back. What the papers leave open (zero rows, rejected rows, medians,
ties) follows the definitions stated in `lca`'s documentation, not its code.
"""

import itertools
import math

import numpy as np

FLOAT32 = np.finfo(np.float32)
LARGEST_SQUARED_NORM = float(FLOAT32.max) / 16
# Squares below this are zero on machines that flush subnormal numbers.
SMALLEST_SQUARED_NORM = float(FLOAT32.tiny)
COLLECTIONS = ('params', 'batch_stats')


# Trees ---------------------------------------------------------------------


def leaves(tree, path=()):
  """The leaves in order, as (path, array); dictionaries in sorted order."""
  if isinstance(tree, dict):
    return [x for k in sorted(tree) for x in leaves(tree[k], (*path, k))]
  if isinstance(tree, (list, tuple)):
    return [x for i, t in enumerate(tree) for x in leaves(t, (*path, str(i)))]
  return [(path, np.asarray(tree).astype(np.float64))]


def rebuild(tree, arrays):
  """`tree` with its leaves, in order, replaced by `arrays`."""
  if isinstance(tree, dict):
    return {k: rebuild(tree[k], arrays) for k in sorted(tree)}
  if isinstance(tree, (list, tuple)):
    return [rebuild(t, arrays) for t in tree]
  return arrays.pop(0)


def group_of(path, by):
  """The name of the group of one leaf."""
  inside = path[1:] if path and path[0] in COLLECTIONS else path
  if by == 'model':
    return 'model'
  if by == 'leaf':
    return path
  if by == 'module':
    return inside[:-1]
  if by == 'block':
    return inside[:1]
  return by(path)


def groups(tree, by):
  """Lists of leaf positions, one a group, in order of first appearance."""
  found = {}
  for position, (path, _) in enumerate(leaves(tree)):
    found.setdefault(group_of(path, by), []).append(position)
  return list(found.values())


def rows_of(arrays):
  """Arrays `[n, ...]` side by side as rows `[n, d]`."""
  n = len(arrays[0])
  return np.concatenate([a.reshape(n, -1) for a in arrays], axis=1)


# Rows ----------------------------------------------------------------------


def squared_norm(row):
  total = float(np.sum(row * row))
  return 0.0 if total < SMALLEST_SQUARED_NORM else total


def rejected(rows):
  """True where a row holds a NaN or an inf, or its norm is out of range."""
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
  """`[n, n]`; +inf wherever a rejected row takes part, 0 on the diagonal."""
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
  """The middle; of an even count the middle pair's mean, or one of the two."""
  values = sorted(values)
  low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
  return {'lower': low, 'upper': high, 'interpolated': (low + high) / 2}[kind]


def clip_factors(rows, kind='interpolated'):
  """What scales each row to at most the median of the norms; 0 if rejected."""
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
  """The norms; +inf for rejected rows."""
  plain = [math.sqrt(squared_norm(row)) for row in rows]
  return np.where(rejected(rows), math.inf, plain)


def equal_weights(n, chosen):
  """Equal weights on the chosen of n clients; NaN if there are none."""
  weights = np.zeros(n)
  weights[list(chosen)] = 1
  return weights / len(chosen) if len(chosen) else np.full(n, np.nan)


def in_few_coordinates(rows):
  """Rows as far apart as these, in the coordinates of the span of the good."""
  if rows.shape[1] <= len(rows):
    return rows
  good = ~rejected(rows)
  coordinates = np.full((len(rows), np.sum(good)), np.nan)
  coordinates[good] = np.linalg.qr(rows[good].T)[1].T
  return coordinates


def weighted_sum(rows, weights):
  """The sum of `weights[i] * rows[i]`, where a zero weight means absent."""
  total = np.zeros(rows.shape[1])
  for weight, row in zip(weights, rows, strict=True):
    if weight != 0:
      total = total + weight * row
  return total


def mix(rows, weights):
  """The weighted sum; NaN where nobody has any weight."""
  if not np.any(weights):
    return np.full(rows.shape[1], np.nan)
  return weighted_sum(rows, weights)


# Rules: rows -> scores [n], lower is better --------------------------------


def krum_scores(rows, *, f, num_neighbors=None, kind='euclidean', power=2):
  """The sum of the n - f - 2 smallest distances to the others."""
  n = len(rows)
  matrix = distance_matrix(rows, kind, power)
  k = n - f - 2 if num_neighbors is None else num_neighbors
  scores = []
  for i in range(n):
    others = sorted(matrix[i, j] for j in range(n) if j != i)
    scores.append(sum(others[:k]))
  return np.array(scores)


def medoid_scores(rows, *, kind='euclidean', power=1):
  """The sum of the distances to the others; rejected rows are nobody."""
  n = len(rows)
  bad = rejected(rows)
  matrix = distance_matrix(rows, kind, power)
  scores = []
  for i in range(n):
    if bad[i]:
      scores.append(math.inf)
    else:
      scores.append(sum(matrix[i, j] for j in range(n) if not bad[j]))
  return np.array(scores)


def norms(rows, *, f, kind='euclidean'):
  """Of each row, whatever f is; rejected ones last."""
  assert kind == 'euclidean'
  return lengths(rows)


def pivot_distances(rows, *, f, pivot=0, kind='euclidean', power=2):
  """Of each row to the trusted one, whatever f is."""
  return distance_matrix(rows, kind, power)[pivot]


def outlyingness(rows, *, f, filter_fraction=1.0, kind='euclidean'):
  """DnC: squared projections on the direction in which rows vary the most."""
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


def trimmed_scores(rows, *, trim=None, **hyper):
  """Those of Krum, whatever is trimmed afterwards."""
  return krum_scores(rows, **hyper)


SCORES = {
  'krum': krum_scores,
  'multi_krum': krum_scores,
  'bulyan_trimmed': trimmed_scores,
  'medoid': medoid_scores,
  'cge': norms,
  'monna': pivot_distances,
  'dnc': outlyingness,
}
TAKES_ALL_BUT_F = ('cge', 'monna')


# Rules over subsets: members -> what the best subset has least of -----------


def diameter(rows, kind='euclidean'):
  """The largest distance between two members."""
  matrix = distance_matrix(rows, kind)

  def objective(members):
    return float(np.max(matrix[np.ix_(members, members)]))

  return objective


def largest_variance(rows, kind='euclidean'):
  """The largest eigenvalue of the members' covariance matrix."""
  assert kind == 'euclidean'
  rows = in_few_coordinates(rows)

  def objective(members):
    own = rows[list(members)]
    centred = own - np.mean(own, axis=0)
    largest = np.linalg.norm(centred, ord=2) if centred.size else 0.0
    return float(largest) ** 2 / len(own)

  return objective


OBJECTIVES = {'mda': diameter, 'smea': largest_variance}


def best_subset(name, rows, f, kind):
  """Members of the best: all that is left where that is n - f or fewer."""
  left = np.flatnonzero(~rejected(rows))
  size = min(len(rows) - f, len(left))
  objective = OBJECTIVES[name](rows, kind)
  candidates = itertools.combinations(left.tolist(), size)
  return min(candidates, key=objective) if size else ()


def select(scores, bad, m):
  """The m best of the rows not rejected, the lowest index first in a tie."""
  order = sorted(
    (i for i in range(len(scores)) if not bad[i]),
    key=lambda i: (scores[i], i),
  )
  return order[:m]


# Rules: rows -> weights [n] -------------------------------------------------


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


def caf_steps(rows, *, f, farthest='remaining'):
  """The filter's (largest variance, weights), one a step.

  With f = 0, or 2 f rows rejected, nothing is to be filtered: one step.
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
    seen = c > 0 if farthest == 'remaining' else good
    tau = np.where(seen, (centred @ directions[0]) ** 2, 0)
    if np.max(tau) == 0:  # all that is left agrees
      break
    c = c * (1 - tau / np.max(tau))
  return steps


def caf_weights(rows, **hyper):
  """Those of the step in which the largest variance is least."""
  return min(caf_steps(rows, **hyper), key=lambda step: step[0])[1]


def cosine_similarity(a, b):
  """0 where a row is zero."""
  size = math.sqrt(squared_norm(a)), math.sqrt(squared_norm(b))
  return float(np.dot(a / size[0], b / size[1])) if all(size) else 0.0


def foolsgold_dissimilarities(rows):
  """`[n]`: 1 less the largest similarity to another, in [0, 1]."""
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
  """Algorithm 1 of Fung et al. on this round's updates alone."""
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
  """Cao et al.: the clients' trust, and lengths made to be the server's."""
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


WEIGHTS = {
  'geometric_median': geometric_median_weights,
  'caf': caf_weights,
  'foolsgold': foolsgold_weights,
  'fltrust': fltrust_weights,
}


# Clusters ------------------------------------------------------------------


def two_clusters(matrix, slack=0.0, limit=3000):
  """Average linkage: all the ways in which it may end in two clusters.

  The two clusters of the least mean distance between their members merge, as
  long as there are more than two. Pairs within `slack` of the nearest count as
  tied, and every way to break a tie is followed. None if there are too many.
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
      # Copies of one point end in one cluster, in whatever order they merge.
      for a, b in ties[:1] if least == 0 else ties:
        following.add(clusters - {a, b} | {a | b})
    ends = following
    if len(ends) > limit:
      return None
  return ends


def larger(clusters):
  """The larger cluster; of two as large, the one with the lowest index."""
  return min(clusters, key=lambda members: (-len(members), min(members)))


def larger_clusters(matrix, members, slack=0.0):
  """Masks [n] of what the larger cluster of the members may be; or None."""
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
  """`[n, 3]`: the shares of positive, negative and zero entries."""
  count = max(1, rows.shape[1])
  tests = (rows > 0, rows < 0, rows == 0)
  return np.stack([np.sum(test, axis=1) / count for test in tests], axis=1)


def sign_guard_choices(rows, *, lower=0.1, upper=3.0, slack=0.0):
  """(norm filter [n], what the sign filter may be: masks, or None).

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


# Rules on every coordinate: rows -> one row [d] ----------------------------


def in_order(rows):
  """Every column sorted, NaN with +inf."""
  return np.sort(np.where(np.isnan(rows), np.inf, rows), axis=0)


def coordinate_median(rows, *, median='interpolated'):
  ordered = in_order(rows)
  low, high = ordered[(len(rows) - 1) // 2], ordered[len(rows) // 2]
  with np.errstate(invalid='ignore'):
    middle = (low + high) / 2
  return {'lower': low, 'upper': high, 'interpolated': middle}[median]


def trimmed_mean(rows, *, f, f_above=None):
  """Without the f lowest and the f_above highest entries of every column."""
  f_above = f if f_above is None else f_above
  return np.mean(in_order(rows)[f : len(rows) - f_above], axis=0)


def nearest_to_the_median(rows, count):
  """`[n, d]` weights: `count` entries a column, the last ones sharing a tie."""
  with np.errstate(invalid='ignore'):
    gaps = np.abs(rows - coordinate_median(rows))
  gaps = np.where(np.isfinite(rows), gaps, np.inf)
  last = np.sort(gaps, axis=0)[count - 1]
  before = gaps < last
  places = count - np.sum(before, axis=0)
  tied = gaps == last
  return before + tied * (places / np.sum(tied, axis=0))


def mean_of_nearest(rows, count):
  """The mean of the `count` entries that are nearest to the column's median."""
  weights = nearest_to_the_median(rows, count)
  used = np.where(weights > 0, rows, 0)
  return np.sum(weights * used, axis=0) / count


def doubtful_columns(rows, count):
  """Where rounding may change who is among the `count` nearest.

  The last one in and the first one out are equally far, within float32's
  error, and differ in value.
  """
  if count == len(rows):
    return np.zeros(rows.shape[1], bool)
  with np.errstate(invalid='ignore'):
    gaps = np.abs(rows - coordinate_median(rows))
  gaps = np.where(np.isfinite(rows), gaps, np.inf)
  order = np.argsort(gaps, axis=0)
  near = np.take_along_axis(rows, order, 0)
  gaps = np.take_along_axis(gaps, order, 0)
  size = np.max(np.abs(near[: count + 1]), axis=0)
  with np.errstate(invalid='ignore'):
    close = gaps[count] - gaps[count - 1] <= 1e-6 * size
  return close & (near[count] != near[count - 1])


def meamed(rows, *, f):
  return mean_of_nearest(rows, len(rows) - f)


def sign_majority(rows, *, theta):
  """RLR: the mean, turned around where fewer than theta clients agree."""
  agree = np.abs(np.sum(np.sign(rows), axis=0)) >= theta
  return np.where(agree, 1, -1) * np.mean(rows, axis=0)


COLUMNS = {
  'median': coordinate_median,
  'trimmed_mean': trimmed_mean,
  'meamed': meamed,
  'sign_majority': sign_majority,
}


# Selection, then a rule on every coordinate --------------------------------


def bulyan_members(
  rows, *, f, kind='euclidean', power=2, prefer=None, slack=0.0
):
  """Krum again and again on what is left, n - 2f times: in that order.

  With `prefer`, a client of that set is taken where its score is within
  `slack` of the lowest.
  """
  n = len(rows)
  bad = rejected(rows)
  if np.sum(~bad) < n - 2 * f:
    return np.flatnonzero(~bad).tolist()
  matrix = distance_matrix(rows, kind, power)
  remaining, chosen = list(range(n)), []
  for k in range(n - 2 * f):
    count = max(1, n - k - f - 2)
    scores = {
      i: sum(sorted(matrix[i, j] for j in remaining if j != i)[:count])
      for i in remaining
      if not bad[i]
    }
    best = min(scores.values())
    liked = [
      i for i in scores if prefer and i in prefer and scores[i] <= best + slack
    ]
    winner = min(liked or scores, key=lambda i: (scores[i], i))
    remaining.remove(winner)
    chosen.append(winner)
  return chosen


def bulyan(rows, members, *, f, **unused):
  """The second stage of El Mhamdi et al., on the members' (clipped) rows."""
  own, theta = rows[list(members)], len(rows) - 2 * f
  if len(members) < theta:
    return mix(rows, equal_weights(len(rows), members))
  return mean_of_nearest(own, theta - 2 * f)


def bulyan_trimmed(rows, members, *, f, m, trim=None, **unused):
  """The trimmed mean of the m best, or the mean of fewer."""
  if len(members) < m:
    return mix(rows, equal_weights(len(rows), members))
  return trimmed_mean(rows[list(members)], f=f if trim is None else trim)


# LASA, on the arrays of a scope --------------------------------------------


def sparsified(arrays, sparsity):
  """Per client, the kernels' entries above the k-th largest magnitude."""
  kernels = [i for i, array in enumerate(arrays) if array.ndim >= 3]
  if not kernels or sparsity == 0:
    return arrays
  answer = [array.copy() for array in arrays]
  for client in range(len(arrays[0])):
    sizes = np.concatenate([np.abs(arrays[i][client]).ravel() for i in kernels])
    k = int(len(sizes) * (1 - sparsity))
    kth_largest = np.sort(sizes)[::-1][k - 1] if k else np.inf
    for i in kernels:
      own = answer[i][client]
      answer[i][client] = np.where(np.abs(own) > kth_largest, own, 0)
  return answer


def lasa(arrays, *, sparsity=0.3, norm_bound=2.0, sign_bound=1.0):
  """Clip, sparsify; then per leaf, average those of usual norm and signs."""
  rows = rows_of(arrays)
  good = np.flatnonzero(~rejected(rows))
  if not len(good):
    return [np.full(array.shape[1:], np.nan) for array in arrays]
  factors = clip_factors(rows, 'lower')
  clipped = []
  for array in arrays:
    column = factors.reshape((-1,) + (1,) * (array.ndim - 1))
    clipped.append(array[good] * column[good])
  answer = []
  for array in sparsified(clipped, sparsity):
    own = rows_of([array])
    size = np.sqrt([squared_norm(row) for row in own])
    signs = np.sign(own)
    nonzero = np.sum(np.abs(signs), axis=1)
    purity = np.sum(signs, axis=1) / np.maximum(nonzero, 1)
    usual = np.ones(len(own), bool)
    for value, bound in ((size, norm_bound), (purity, sign_bound)):
      usual &= np.abs(value - median(value)) <= bound * np.std(value)
    answer.append(np.mean(array[usual] if np.any(usual) else array, axis=0))
  return answer


# Pre-aggregators: rows -> matrix [k, n] ------------------------------------


def nnm_matrix(rows, *, f, kind='euclidean'):
  """Row i: equal weights on the n - f nearest to client i."""
  n = len(rows)
  bad = rejected(rows)
  matrix = distance_matrix(rows, kind)
  answer = np.full((n, n), np.nan)
  for i in np.flatnonzero(~bad):
    own = np.where(np.arange(n) == i, -1, matrix[i])  # itself before all others
    answer[i] = equal_weights(n, select(own, bad, n - f))
  return answer


def bucketing_matrix(rows, *, order, bucket_size=2):
  """Consecutive groups of the clients in the given order."""
  bad = rejected(rows)
  answer = []
  for start in range(0, len(rows), bucket_size):
    bucket = order[start : start + bucket_size]
    answer.append(equal_weights(len(rows), [i for i in bucket if not bad[i]]))
  return np.array(answer)


def static_clip_matrix(rows, *, threshold):
  """Every row at most as long as the threshold; a rejected one is nothing."""
  size = lengths(rows)
  return np.diag([min(1, threshold / max(s, 1e-300)) for s in size])


def arc_matrix(rows, *, f):
  """Clipped to the (k + 1)-th largest norm, k = floor(2 (f / n) (n - f))."""
  n = len(rows)
  k = 2 * f * (n - f) // n
  size = lengths(rows)
  threshold = np.sort(size)[::-1][k]
  factors = [
    np.nan if s == math.inf else 1.0 if s <= threshold else threshold / s
    for s in size
  ]
  return np.where(np.eye(n) > 0, factors, 0.0)


MATRICES = {
  'nnm': nnm_matrix,
  'bucketing': bucketing_matrix,
  'static_clip': static_clip_matrix,
  'arc': arc_matrix,
}


def pre_aggregate(name, tree, hyper, *, kind='euclidean', by='model'):
  """A pre-aggregator in every group; under cosine, of clipped rows."""
  arrays = [array for _, array in leaves(tree)]
  answer = [None] * len(arrays)
  for positions in groups(tree, by):
    rows = rows_of([arrays[p] for p in positions])
    if name == 'nnm':
      matrix = nnm_matrix(rows, kind=kind, **hyper)
    else:
      matrix = MATRICES[name](rows, **hyper)
    factors = clip_factors(rows) if kind == 'cosine' else np.ones(len(rows))
    for p in positions:
      with np.errstate(invalid='ignore'):  # rejected rows: 0 * inf, unused
        own = rows_of([arrays[p]]) * factors[:, None]
      mixed = [
        np.full(own.shape[1], np.nan)
        if np.any(np.isnan(weights))
        else weighted_sum(own, weights)
        for weights in matrix
      ]
      answer[p] = np.reshape(mixed, (len(matrix), *arrays[p].shape[1:]))
  return rebuild(tree, answer)


# Aggregators with a memory: (rows, state) -> (one row [d], state) ----------


def centered_clip(rows, state, *, threshold, num_iters=1, init='last'):
  """Karimireddy et al.; the state is the last aggregate, None at first."""
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


def clipped_clustering_choices(
  rows, state, *, window=1000, threshold=None, slack=0.0
):
  """(what the larger cluster may be, clip factors [n], state).

  The state is the list of the last rounds' norms, those of the last one first.
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


# Whole rules ---------------------------------------------------------------


def scores_of(name, rows, hyper, kind):
  """(scores, how many rows the rule takes)."""
  hyper = dict(hyper)
  m = hyper.pop('m', 1)
  if name in TAKES_ALL_BUT_F:
    m = len(rows) - hyper['f']
  if name == 'dnc':
    m = len(rows) - int(hyper.get('filter_fraction', 1.0) * hyper['f'])
  return SCORES[name](rows, kind=kind, **hyper), m


def weights_of(name, rows, hyper, kind='euclidean'):
  """The weights [n] before any clip, by the papers' definitions."""
  n = len(rows)
  if name == 'mean':
    return np.full(n, 1 / n)
  if name in WEIGHTS:
    return WEIGHTS[name](rows, **hyper)
  if name in OBJECTIVES:
    chosen = best_subset(name, rows, hyper['f'], kind)
  else:
    scores, m = scores_of(name, rows, hyper, kind)
    chosen = select(scores, rejected(rows), m)
  weights = np.zeros(n)
  for i in chosen:
    weights[i] = 1 / len(chosen)
  return weights


def mean(tree, weights=None):
  """Eq. 2 of the paper: the plain or weighted mean; a NaN stays a NaN."""
  answer = []
  for _, array in leaves(tree):
    n = len(array)
    share = np.full(n, 1.0) if weights is None else np.asarray(weights, float)
    share = share / share.sum()
    total = np.zeros(array.shape[1:])
    for i in range(n):
      total = total + share[i] * array[i]
    answer.append(total)
  return rebuild(tree, answer)


def clip_to_median_norm(tree, kind='interpolated'):
  """Every row scaled down to the median norm; rejected rows are NaN."""
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


def combine(
  arrays, weights, *, clip=None, clip_by='scope', median_kind='interpolated'
):
  """Arrays of one group mixed by weights, clipped to the median if asked."""
  rows = rows_of(arrays)
  answer = []
  for array in arrays:
    own = rows_of([array])
    scaled = np.array(weights, float)
    if clip is not None:
      scope = rows if clip_by == 'scope' else own
      bad = rejected(rows)
      keep = [i for i in range(len(rows)) if not bad[i]]
      factors = np.zeros(len(rows))
      factors[keep] = clip_factors(scope[keep], median_kind)
      scaled = scaled * factors
      # A row clipped to nothing still counts: the answer is 0, not NaN.
      if np.any(weights) and not np.any(scaled):
        answer.append(np.zeros(array.shape[1:]))
        continue
    answer.append(mix(own, scaled).reshape(array.shape[1:]))
  return answer


def aggregate(name, tree, hyper, *, kind='euclidean', by='model', **clip):
  """The rule in every group: the aggregate, float64."""
  arrays = [array for _, array in leaves(tree)]
  answer = [None] * len(arrays)
  for positions in groups(tree, by):
    own = [arrays[p] for p in positions]
    weights = weights_of(name, rows_of(own), hyper, kind)
    for p, out in zip(positions, combine(own, weights, **clip), strict=True):
      answer[p] = out
  return rebuild(tree, answer)


# The pool of trees ---------------------------------------------------------


def shapes(name):
  """A tree of the shapes of one client's update."""
  dense = lambda a, b: {'kernel': (a, b), 'bias': (b,)}  # noqa: E731
  conv = lambda a, b: {'kernel': (3, 3, a, b), 'bias': (b,)}  # noqa: E731
  if name == 'leaf':
    return (50,)
  if name == 'pair':
    return dense(5, 7)
  if name == 'wide':  # longer than any chunk of columns, and no multiple of it
    return (100_003,)
  if name == 'edge':  # leaves of size 0 and 1, a scalar per client
    return {'none': (0,), 'one': (1,), 'scalar': (), 'some': (7,)}
  if name == 'cnn':
    layers = [conv(1, 4), conv(4, 8), dense(32, 16), dense(16, 10)]
    return {'params': {f'layer_{i}': x for i, x in enumerate(layers)}}
  if name == 'stats':
    norm = {'scale': (6,), 'bias': (6,)}
    running = {'mean': (6,), 'var': (6,)}
    return {
      'params': {
        'block': {'conv': conv(1, 6), 'norm': norm},
        'head': dense(6, 5),
      },
      'batch_stats': {'block': {'norm': running}},
    }
  assert name == 'deep'
  return [(2 + i % 5,) for i in range(60)]


def stack(name, n, seed=0):
  """Random float32 updates `[n, ...]`: one direction, and each his own noise.

  The clients' noise differs in size, so that the clients' scores do.
  """
  rng = np.random.default_rng([seed, n])
  noise = rng.permutation(np.linspace(0.5, 1.5, n))

  def one(shape):
    size = noise.reshape((n,) + (1,) * len(shape))
    common = 0.5 * rng.normal(size=shape)
    return (common + size * rng.normal(size=(n, *shape))).astype(np.float32)

  def walk(tree):
    if isinstance(tree, dict):
      return {k: walk(tree[k]) for k in sorted(tree)}
    if isinstance(tree, list):
      return [walk(t) for t in tree]
    return one(tree)

  return walk(shapes(name))


def replace_rows(tree, rows, change):
  """A copy of `tree` where `change(leaf)` gives the leaf's listed rows."""
  if isinstance(tree, dict):
    return {k: replace_rows(t, rows, change) for k, t in tree.items()}
  if isinstance(tree, list):
    return [replace_rows(t, rows, change) for t in tree]
  answer = tree.copy()
  answer[rows] = change(tree)
  return answer


# LEGATO: Algorithm 2 of the paper, with the log of everybody's gradients ----


def legato(
  tree,
  log,
  *,
  window,
  by='leaf',
  norm='frobenius',
  normalize='sum',
  divisor='past',
):
  """One round: (the update, the log, the factors [layers]).

  The log lists the last rounds, this one included and the oldest first: each
  as (the gradients of all workers, a list of arrays `[n, ...]`; who is not
  rejected, [n]). It is empty at first, and a round in which everybody is
  rejected leaves it as it was.
  """
  arrays = [array for _, array in leaves(tree)]
  layers = groups(tree, by)
  now = arrays, ~rejected(rows_of(arrays))
  if np.any(now[1]):
    log = [*log, now]  # lines 25 to 27
    log = log[-window:]
  factors = legato_factors(legato_norms(log, layers, norm), normalize)
  if not np.any(now[1]):
    nothing = [np.full(array.shape[1:], np.nan) for array in arrays]
    return rebuild(tree, nothing), log, factors
  past = {'past': len(log) - 1, 'window': window - 1}[divisor]
  total = [np.zeros(array.shape[1:]) for array in arrays]
  for worker in range(len(now[1])):  # lines 18 to 22
    for w, positions in zip(factors, layers, strict=True):
      for p in positions:
        total[p] += w * legato_gradient(now, worker, p)
        for before in log[:-1]:
          gradient = legato_gradient(before, worker, p)
          total[p] += (1 - w) / past * gradient
  update = [t / len(now[1]) for t in total]  # line 23
  return rebuild(tree, update), log, factors


def legato_gradient(entry, worker, position):
  """One worker's gradient of one leaf in one round of the log.

  Of a rejected worker nothing is there, and the others count for more: the
  mean of a round is that of the workers it has.
  """
  arrays, accepted = entry
  if not accepted[worker]:
    return np.zeros(arrays[position].shape[1:])
  return arrays[position][worker] * len(accepted) / np.sum(accepted)


def legato_norms(log, layers, norm='frobenius'):
  """Lines 7 to 14, Eq. 2: `[rounds, layers]` of the log."""
  order = {'frobenius': 'fro', 'spectral': 2}[norm]
  table = np.zeros((len(log), len(layers)))
  for i, (arrays, accepted) in enumerate(log):
    x = [math.sqrt(squared_norm(row)) for row in rows_of(arrays)[accepted]]
    for layer, positions in enumerate(layers):
      matrix = rows_of([arrays[p] for p in positions])[accepted]
      if matrix.size and sum(x) > 0:
        table[i, layer] = np.linalg.norm(matrix, order) / sum(x)
  return table


def legato_factors(table, normalize='sum', floor=1e-6):
  """Lines 15 to 17: `[layers]` of the norms `[rounds, layers]`.

  The floor keeps a layer without variance from being divided by zero: it is a
  share of the largest of the layers' mean norms.
  """
  if len(table) < 2:
    return np.ones(table.shape[1])
  deviation = np.sqrt(np.var(table, axis=0))
  deviation = deviation + floor * np.max(np.mean(table, axis=0))
  if not np.any(deviation):  # nobody sent anything
    deviation = np.ones(table.shape[1])
  factors = 1 / deviation
  return factors / {'sum': np.sum, 'max': np.max}[normalize](factors)
