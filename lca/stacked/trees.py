"""Stacking the clients' trees, and splitting a tree into layers."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lca.typing import PyTree, Update, Updates

Path = tuple[str, ...]
Scope = Literal['model', 'leaf', 'module', 'block'] | Callable[[Path], Hashable]

# Flax's collections, which hold the same modules.
_COLLECTIONS = ('params', 'batch_stats')


class Layers:
  """A split of trees of one structure into layers, and its inverse.

  Each layer is a list of leaves. A bare array is one layer, the array itself.

  Args:
    tree: any tree of this structure.
    key: function from a leaf's path to a hashable. Leaves for which it returns
      the same value form one layer.
  """

  def __init__(self, tree: PyTree, key: Callable[[Path], Hashable]):
    self._treedef = jax.tree.structure(tree)
    self._whole = jax.tree_util.treedef_is_leaf(self._treedef)
    self._groups = list(group_leaves(tree, key).values())

  def split(self, tree: PyTree) -> list[PyTree]:
    """Returns the layers of a tree, each a list of its leaves."""
    if self._whole:
      return [tree]
    leaves = self._treedef.flatten_up_to(tree)
    return [[leaves[i] for i in group] for group in self._groups]

  def join(self, parts: list[PyTree]) -> PyTree:
    """Returns the tree of these layers: the inverse of `split`."""
    if self._whole:
      return parts[0]
    leaves = [None] * self._treedef.num_leaves
    for group, part in zip(self._groups, parts, strict=True):
      for i, leaf in zip(group, part, strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(self._treedef, leaves)

  def split_arguments(self, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the keyword arguments for each layer.

    Trees of this structure are split into their layers. Every layer gets all
    other arguments whole.
    """
    layers = [dict(arguments) for _ in self._groups]
    if not self._whole:
      for name, value in arguments.items():
        if jax.tree.structure(value) == self._treedef:
          for layer, part in zip(layers, self.split(value), strict=True):
            layer[name] = part
    return layers


def grouping(by: Scope) -> Callable[[Path], Hashable]:
  """Returns the function from a leaf's path to the key of its layer.

  Args:
    by: `'model'` makes all leaves one layer, `'leaf'` each leaf a layer.
      `'module'` groups leaves by their path without its last key, `'block'` by
      its first key; for both, Flax's collections `params` and `batch_stats` of
      a module are one layer. A function is returned as it is.

  Raises:
    ValueError: the scope is unknown.
  """
  if callable(by):
    return by
  if by not in _GROUPINGS:
    raise ValueError(
      f'scope must be one of {sorted(_GROUPINGS)} or a function of the path, '
      f'got {by!r}'
    )
  return _GROUPINGS[by]


def _without_collection(path: Path) -> Path:
  return path[1:] if path[:1] and path[0] in _COLLECTIONS else path


_GROUPINGS: dict[str, Callable[[Path], Hashable]] = {
  'model': lambda path: (),
  'leaf': lambda path: path,
  'module': lambda path: _without_collection(path)[:-1],
  'block': lambda path: _without_collection(path)[:1],
}


def group_leaves(
  tree: PyTree, key: Callable[[Path], Hashable]
) -> dict[Hashable, list[int]]:
  """Returns the positions of a tree's leaves, by the key of their layer.

  The layers are in the order of their first leaves.
  """
  groups: dict[Hashable, list[int]] = {}
  for i, (path, _) in enumerate(jax.tree.leaves_with_path(tree)):
    names = tuple(jax.tree_util.keystr((k,), simple=True) for k in path)
    groups.setdefault(key(names), []).append(i)
  return groups


def layer_names(tree: PyTree, by: Scope = 'leaf') -> list[str]:
  """Returns the names of a tree's layers, such as `'Dense_0/bias'`.

  The names are in the order of the layers in `lca.layerwise`.

  Args:
    tree: an update, or the stacked updates.
    by: the scope of a layer, as in `lca.layerwise`.
  """
  return [
    ('/'.join(key) or 'model') if isinstance(key, tuple) else str(key)
    for key in group_leaves(tree, grouping(by))
  ]


def check_one_update(name: str, update: Update, updates: Updates) -> None:
  """Checks that a tree, such as the model, is shaped like one update.

  Args:
    name: what the message calls the tree.
    update: the tree.
    updates: stacked pytree, leaves `[n, ...]`.

  Raises:
    ValueError: the structures or shapes differ.
  """
  shapes = jax.tree.map(lambda x: jnp.shape(x)[1:], updates)
  if (got := jax.tree.map(jnp.shape, update)) != shapes:
    raise ValueError(
      f'{name} must be shaped like one update, {shapes}, got {got}'
    )


def stack(clients: Iterable[Update]) -> Updates:
  """Stacks a list of the clients' updates into the tree that rules take.

  A rule takes a list for a tree: it reads every entry as a leaf with one row
  per client. A list with one vector per client therefore has to be stacked.

  Args:
    clients: one update per client: an array, or a tree of arrays. All trees
      have the same structure and shapes. The arrays may be those of JAX, NumPy
      or a framework that offers `__array__` or `__dlpack__`, such as PyTorch.

  Returns:
    One tree with JAX arrays `[n, ...]`. As everywhere in JAX, float64 becomes
    float32 unless `jax_enable_x64` is set.

  Raises:
    ValueError: there is no client, or a client's tree differs from client 0's
      in structure or shapes.
    TypeError: `clients` is a mapping, a string or not iterable, or a leaf is
      not an array.

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
  # For each leaf of the tree the arrays of all clients so far.
  stacks: list[list[jax.Array]] = [[] for _ in range(structure.num_leaves)]
  for i, (leaves, client_structure) in enumerate(flat):
    if client_structure != structure:
      raise ValueError(
        f'client {i} has another structure than client 0: {client_structure}, '
        f'not {structure}'
      )
    for (path, leaf), arrays in zip(leaves, stacks, strict=True):
      where = jax.tree_util.keystr(path, simple=True, separator='/')
      name = f'leaf {where!r}' if where else 'update'
      try:
        array = _array(leaf)
      except Exception as error:
        raise TypeError(
          f"client {i}'s {name} is no array: {type(leaf).__name__}: {error}"
        ) from error
      if arrays and array.shape != arrays[0].shape:
        raise ValueError(
          f"client {i}'s {name} has shape {array.shape}, client 0's "
          f'{arrays[0].shape}'
        )
      arrays.append(array)
  return jax.tree.unflatten(structure, [jnp.stack(arrays) for arrays in stacks])


def _array(leaf: Any) -> jax.Array:
  """Returns an array of any framework as a JAX array."""
  try:
    return jnp.asarray(leaf)
  except TypeError:  # NumPy refuses PyTorch's tensors on a GPU or in bfloat16
    if not hasattr(leaf, '__dlpack__'):
      raise
    return jnp.from_dlpack(leaf)
