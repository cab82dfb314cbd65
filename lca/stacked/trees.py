"""How clients' trees are stacked, and how a tree is split into layers."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lca.typing import PyTree, Update, Updates

Path = tuple[str, ...]
Scope = Literal['model', 'leaf', 'module', 'block'] | Callable[[Path], Hashable]

_COLLECTIONS = ('params', 'batch_stats')  # Flax's, over the same modules


class Layers:
  """How trees of one structure are split into layers.

  Each layer is a list of leaves; an array that is no tree is its own layer.
  """

  def __init__(self, tree: PyTree, key: Callable[[Path], Hashable]):
    self._treedef = jax.tree.structure(tree)
    self._whole = jax.tree_util.treedef_is_leaf(self._treedef)
    self._groups = list(group_leaves(tree, key).values())

  def split(self, tree: PyTree) -> list[PyTree]:
    if self._whole:
      return [tree]
    leaves = self._treedef.flatten_up_to(tree)
    return [[leaves[i] for i in group] for group in self._groups]

  def join(self, parts: list[PyTree]) -> PyTree:
    if self._whole:
      return parts[0]
    leaves = [None] * self._treedef.num_leaves
    for group, part in zip(self._groups, parts, strict=True):
      for i, leaf in zip(group, part, strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(self._treedef, leaves)

  def split_arguments(self, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments for each layer: trees of this structure are split."""
    layers = [dict(arguments) for _ in self._groups]
    if not self._whole:
      for name, value in arguments.items():
        if jax.tree.structure(value) == self._treedef:
          for layer, part in zip(layers, self.split(value), strict=True):
            layer[name] = part
    return layers


def grouping(by: Scope) -> Callable[[Path], Hashable]:
  known = {
    'model': lambda path: (),
    'leaf': lambda path: path,
    'module': lambda path: _without_collection(path)[:-1],
    'block': lambda path: _without_collection(path)[:1],
  }
  if callable(by):
    return by
  if by not in known:
    raise ValueError(f'scope must be one of {sorted(known)}, got {by!r}')
  return known[by]


def _without_collection(path: Path) -> Path:
  return path[1:] if path[:1] and path[0] in _COLLECTIONS else path


def group_leaves(
  tree: PyTree, key: Callable[[Path], Hashable]
) -> dict[Hashable, list[int]]:
  """Positions of the tree's leaves by layer, layers in order of appearance."""
  groups: dict[Hashable, list[int]] = {}
  for i, (path, _) in enumerate(jax.tree.leaves_with_path(tree)):
    names = tuple(jax.tree_util.keystr((k,), simple=True) for k in path)
    groups.setdefault(key(names), []).append(i)
  return groups


def layer_names(tree: PyTree, by: Scope = 'leaf') -> list[str]:
  """The layers' names in the order of `layerwise`, such as `'Dense_0/bias'`."""
  return [
    '/'.join(key) if isinstance(key, tuple) else str(key)
    for key in group_leaves(tree, grouping(by))
  ]


def stack(clients: Iterable[Update]) -> Updates:
  """Stacks a list of the clients' updates, as all rules take them.

  A rule takes a list for a tree whose leaves have one row per client each. So
  a list with one vector per client has to be stacked before.

  Args:
    clients: one update per client: arrays, or trees of arrays that are alike.
      The arrays may be JAX's, NumPy's or another framework's that offers
      `__array__` or `__dlpack__`, as PyTorch does.

  Returns:
    One tree with JAX arrays `[n, ...]`. As everywhere in JAX, float64 becomes
    float32 unless `jax_enable_x64` is set.

  Raises:
    ValueError: there is no client, or one whose tree has another structure or
      other shapes than that of client 0.
    TypeError: `clients` is no list, or a leaf is no array.

  Examples:
    >>> import lca, numpy as np
    >>> vectors = [np.array([1., 2.]), np.array([3., 4.]), np.array([5., 9.])]
    >>> print(lca.median(lca.stack(vectors)))
    [3. 4.]
  """
  if isinstance(clients, (Mapping, str)) or not isinstance(clients, Iterable):
    raise TypeError(
      f"stack needs a list of the clients' updates, got a "
      f'{type(clients).__name__}'
    )
  flat = [jax.tree.flatten_with_path(client) for client in clients]
  if not flat:
    raise ValueError('stack needs the update of one client at least, got none')
  (_, structure), *_ = flat
  columns: list[list[jax.Array]] = [[] for _ in range(structure.num_leaves)]
  for i, (leaves, own) in enumerate(flat):
    if own != structure:
      raise ValueError(
        f'client {i} has another structure than client 0: {own}, {structure}'
      )
    for (path, leaf), column in zip(leaves, columns, strict=True):
      where = jax.tree_util.keystr(path, simple=True, separator='/')
      name = f'leaf {where!r}' if where else 'update'
      try:
        array = _array(leaf)
      except Exception as error:
        raise TypeError(
          f"client {i}'s {name} is no array: {type(leaf).__name__}: {error}"
        ) from error
      if column and array.shape != column[0].shape:
        raise ValueError(
          f"client {i}'s {name} has shape {array.shape}, client 0's "
          f'{column[0].shape}'
        )
      column.append(array)
  return jax.tree.unflatten(
    structure, [jnp.stack(column) for column in columns]
  )


def _array(leaf: Any) -> jax.Array:
  """Returns the JAX array of one of any framework."""
  try:
    return jnp.asarray(leaf)
  except TypeError:  # such as PyTorch's on a GPU, or in bfloat16
    if not hasattr(leaf, '__dlpack__'):
      raise
    return jnp.from_dlpack(leaf)
