"""Slow, obvious float64 versions of the rules, written from the papers.

Nothing here imports jax or lca. A tree is a nested dict, or a list, of arrays
`[n, ...]`; a rule is a function from rows `[n, d]` in float64 to scores
`[n]`, how many rows it takes, and how far apart two clients are. What the
papers leave open (zero rows, rejected rows, medians, ties) follows the
definitions stated in `lca`'s documentation, not its code.
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
  """The middle; of an even count the middle pair's mean, or the lower one."""
  values = sorted(values)
  middle = len(values) // 2
  if len(values) % 2:
    return values[middle]
  if kind == 'lower':
    return values[middle - 1]
  return (values[middle - 1] + values[middle]) / 2


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


def mix(rows, weights):
  """The sum of `weights[i] * rows[i]`, where a zero weight means absent."""
  total = np.zeros(rows.shape[1])
  if not np.any(weights):
    return np.full(rows.shape[1], np.nan)
  for weight, row in zip(weights, rows, strict=True):
    if weight != 0:
      total = total + weight * row
  return total


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
  lengths = [math.sqrt(squared_norm(row)) for row in rows]
  return np.where(rejected(rows), math.inf, lengths)


def pivot_distances(rows, *, f, pivot=0, kind='euclidean', power=2):
  """Of each row to the trusted one, whatever f is."""
  return distance_matrix(rows, kind, power)[pivot]


SCORES = {
  'krum': krum_scores,
  'multi_krum': krum_scores,
  'medoid': medoid_scores,
  'cge': norms,
  'monna': pivot_distances,
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
  if rows.shape[1] > len(rows):
    # In the coordinates of the space that the rows span: as far apart, fewer.
    good = ~rejected(rows)
    coordinates = np.full((len(rows), np.sum(good)), np.nan)
    coordinates[good] = np.linalg.qr(rows[good].T)[1].T
    rows = coordinates

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


# Whole rules ---------------------------------------------------------------


def scores_of(name, rows, hyper, kind):
  """(scores, how many rows the rule takes)."""
  hyper = dict(hyper)
  m = hyper.pop('m', 1)
  if name in TAKES_ALL_BUT_F:
    m = len(rows) - hyper['f']
  return SCORES[name](rows, kind=kind, **hyper), m


def weights_of(name, rows, hyper, kind='euclidean'):
  """The weights [n] before any clip, by the papers' definitions."""
  n = len(rows)
  if name == 'mean':
    return np.full(n, 1 / n)
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
