"""A weighted sum of rows, to which groups of rows are added."""

import jax
import jax.numpy as jnp
import numpy as np

from lca.federated.placement import Placement
from lca.stacked import geometry, sums
from lca.typing import Update, Updates


class RowSum:
  """A weighted sum of rows, to which groups of rows are added.

  The sum runs in float32 or wider.

  Args:
    placement: the devices, over which the sum is spread by coordinate.
    update: the shapes of one row.
  """

  def __init__(self, placement: Placement, update: Update):
    def zeros():
      return jax.tree.map(
        lambda x: jnp.zeros(x.shape, sums.wide(x.dtype)), update
      )

    def add(total, rows, weights):
      rows = jax.tree.map(lambda x, t: x.astype(t.dtype), rows, total)
      return jax.tree.map(jnp.add, total, geometry.mix(rows, weights))

    spread = placement.by_coordinate(update)
    self._zeros = jax.jit(zeros, out_shardings=spread)
    self._add = jax.jit(add, donate_argnums=0, out_shardings=spread)
    self._update = update
    self._total, self._weights = None, np.zeros(0)

  def start(self, weights: np.ndarray) -> None:
    """Begins a sum of n rows with these weights, `[n]`."""
    self._total, self._weights = self._zeros(), weights

  def add(self, first: int, rows: Updates) -> None:
    """Adds rows.

    Args:
      first: position of the first of these rows among the n rows.
      rows: leaves `[k, ...]`; those beyond the last of the n rows are left out.
    """
    weights = np.zeros(geometry.num_clients(rows), self._weights.dtype)
    given = self._weights[first : first + len(weights)]
    weights[: len(given)] = given
    self._total = self._add(self._total, rows, weights)

  def result(self) -> Update:
    """Ends the sum, and returns it in the dtypes of the rows."""
    total, self._total = self._total, None
    return jax.tree.map(lambda x, u: x.astype(u.dtype), total, self._update)
