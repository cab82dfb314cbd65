"""Gaussian noise on trees of arrays."""

import jax
from jax.typing import ArrayLike

from lca.stacked import sums
from lca.typing import PyTree


def with_noise(tree: PyTree, deviation: ArrayLike, key: jax.Array) -> PyTree:
  """Adds normal noise to every entry of a tree, each independent of the others.

  Args:
    tree: one update, or stacked ones.
    deviation: standard deviation of the noise.
    key: PRNG key.

  Returns:
    The tree, in the leaves' dtypes. Sums run in float32 or wider.
  """
  leaves, treedef = jax.tree.flatten(tree)
  noisy = []
  for leaf, one in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
    dtype = sums.wide(leaf.dtype)
    drawn = deviation * jax.random.normal(one, leaf.shape, dtype)
    noisy.append((leaf.astype(dtype) + drawn).astype(leaf.dtype))
  return jax.tree.unflatten(treedef, noisy)
