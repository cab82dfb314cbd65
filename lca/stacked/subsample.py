"""Some coordinates of stacked updates, spread over all leaves."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lca.stacked import sums
from lca.typing import Updates


class Subsample:
  """A draw of about `dim` coordinates, no one twice.

  Each leaf is cut into as many stretches as it contributes coordinates, in
  proportion to its size, and one coordinate is drawn from each stretch: so no
  coordinate is drawn twice, without a sort. One draw serves all leaves, as XLA
  compiles every call anew.

  Attributes:
    everything: True if all coordinates are drawn, so that nothing is random.

  Args:
    sizes: numbers of coordinates of the leaves.
    dim: number of coordinates; if there are fewer, all of them are drawn.
  """

  def __init__(self, sizes: Sequence[int], dim: int):
    ends = np.cumsum(sizes)
    self.everything = bool(dim >= ends[-1])
    stops = np.rint(ends * min(1, dim / max(ends[-1], 1))).astype(int)
    bounds = [
      np.arange(share + 1) * size // max(share, 1)
      for size, share in zip(sizes, np.diff(stops, prepend=0), strict=True)
    ]
    self._lowest = np.concatenate([b[:-1] for b in bounds])
    self._above = np.concatenate([b[1:] for b in bounds])
    self._splits = stops[:-1]

  def __len__(self) -> int:
    return len(self._lowest)

  def draw(self, key: jax.Array | None, lead: Sequence[int] = ()) -> jax.Array:
    """Returns the drawn columns, `[*lead, len(self)]`, leaf by leaf.

    Args:
      key: PRNG key; None only if `everything` is drawn.
      lead: leading axes, for several draws.
    """
    shape = *lead, len(self)
    if key is None:
      return jnp.broadcast_to(jnp.asarray(self._lowest, jnp.int32), shape)
    return jax.random.randint(
      key, shape, self._lowest, self._above, dtype=jnp.int32
    )

  def take(self, updates: Updates, columns: jax.Array) -> list[jax.Array]:
    """Returns the drawn columns of each leaf, `[n, share]`."""
    leaves = [sums.flat(jnp.asarray(leaf)) for leaf in jax.tree.leaves(updates)]
    parts = jnp.split(columns, self._splits)
    return [leaf[:, part] for leaf, part in zip(leaves, parts, strict=True)]
