"""The pool of trees that tests aggregate, and functions that spoil rows."""

import numpy as np

# The pool of trees ---------------------------------------------------------


def shapes(name):
  """Returns a tree of the shapes of one client's update."""
  dense = lambda a, b: {'kernel': (a, b), 'bias': (b,)}  # noqa: E731
  conv = lambda a, b: {'kernel': (3, 3, a, b), 'bias': (b,)}  # noqa: E731
  if name == 'leaf':
    return (50,)
  if name == 'pair':
    return dense(5, 7)
  if name == 'wide':  # longer than a chunk of columns, and not a multiple of it
    return (100_003,)
  if name == 'edge':  # leaves of size 0 and 1, and one scalar per client
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
  """Returns random float32 updates `[n, ...]`: a common direction plus noise.

  The noise differs in size from client to client, so that their scores differ.
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
  """Returns a copy of `tree` with `change(leaf)` in the listed rows."""
  if isinstance(tree, dict):
    return {k: replace_rows(t, rows, change) for k, t in tree.items()}
  if isinstance(tree, list):
    return [replace_rows(t, rows, change) for t in tree]
  answer = tree.copy()
  answer[rows] = change(tree)
  return answer


# Bad rows ------------------------------------------------------------------


REJECTED = {
  'nan': np.nan,
  'inf': np.inf,
  '-inf': -np.inf,
  '1e30': 1e30,
  '1.5e19': 1.5e19,
}
ACCEPTED = {'1e10': 1e10, '1e4': 1e4, 'zeros': 0.0, '1e-40': 1e-40}


def with_rows(tree, rows, kind):
  """Returns `tree` with `rows` replaced by one kind of bad rows."""
  if kind == 'copies':
    honest = next(i for i in range(100) if i not in rows)
    return replace_rows(tree, rows, lambda leaf: leaf[honest])
  value = (REJECTED | ACCEPTED)[kind]
  return replace_rows(tree, rows, lambda leaf: np.float32(value))


def worst_case(tree, rows, scale):
  """Replaces `rows` by random directions of `scale` times the usual norm."""
  rng = np.random.default_rng(7)

  def change(leaf):
    return scale * rng.normal(size=leaf[rows].shape)

  return replace_rows(tree, rows, change)


def at_random(n, count, seed=0):
  return np.random.default_rng([seed, n, count]).permutation(n)[:count]


# Rows of a state -----------------------------------------------------------


def tree_of(rows):
  """Returns rows `[..., D]` as a tree of two leaves."""
  return {
    'a': rows[..., :30].reshape(*rows.shape[:-1], 5, 6),
    'b': rows[..., 30:],
  }


def flat(tree):
  """Returns the rows of such a tree."""
  lead = tree['b'].shape[:-1]
  return np.concatenate([tree['a'].reshape(*lead, 30), tree['b']], axis=-1)
