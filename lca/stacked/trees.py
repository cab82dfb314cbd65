"""How a tree is split into layers: by leaf, by module, by block, or as one."""

from collections.abc import Callable, Hashable
from typing import Any, Literal

import jax

from lca.typing import PyTree

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
