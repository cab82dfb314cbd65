"""Trees: nested dicts, or lists, of arrays `[n, ...]`."""

import numpy as np

COLLECTIONS = ('params', 'batch_stats')


def leaves(tree, path=()):
  """Returns the leaves in order, as (path, array); dicts in sorted order."""
  if isinstance(tree, dict):
    return [x for k in sorted(tree) for x in leaves(tree[k], (*path, k))]
  if isinstance(tree, (list, tuple)):
    return [x for i, t in enumerate(tree) for x in leaves(t, (*path, str(i)))]
  return [(path, np.asarray(tree).astype(np.float64))]


def rebuild(tree, arrays):
  """Returns `tree` with its leaves, in order, replaced by `arrays`."""
  if isinstance(tree, dict):
    return {k: rebuild(tree[k], arrays) for k in sorted(tree)}
  if isinstance(tree, (list, tuple)):
    return [rebuild(t, arrays) for t in tree]
  return arrays.pop(0)


def group_of(path, by):
  """Returns the group of one leaf in the scope `by`."""
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
  """Returns lists of leaf positions, one per group, by first appearance."""
  positions_of = {}
  for position, (path, _) in enumerate(leaves(tree)):
    positions_of.setdefault(group_of(path, by), []).append(position)
  return list(positions_of.values())


def rows_of(arrays):
  """Returns arrays `[n, ...]`, flattened and concatenated to rows `[n, d]`."""
  n = len(arrays[0])
  return np.concatenate([a.reshape(n, -1) for a in arrays], axis=1)
