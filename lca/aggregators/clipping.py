"""Rules for lengths: what bounds how far one client's update reaches."""

import jax.numpy as jnp

from lca import geometry
from lca.typing import Updates


def clip_to_median_norm(
  updates: Updates, *, median: geometry.Median = 'interpolated'
) -> Updates:
  r"""Clips every client's update to the median of the clients' norms.

  .. math:: \hat x_i = \min(1, \mathrm{med}_j \|x_j\| / \|x_i\|)\, x_i

  The median is taken over the rows that are not rejected (see `lca.geometry`).
  With fewer than half of the clients Byzantine it lies among the honest norms.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    median: for an even count, `'interpolated'` takes the mean of the middle
      pair, `'lower'` its lower one.

  Returns:
    Stacked updates of the same structure and dtypes. Rejected rows are NaN.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> lca.clip_to_median_norm(jnp.array([[1.], [2.], [-9.]]))
    Array([[ 1.],
           [ 2.],
           [-2.]], dtype=float32)

  References:
    García-Márquez et al. 2025, section 3.2.
  """
  gram = geometry.gram(updates)
  factors = geometry.clip_factors(gram, median)
  bad = geometry.rejected_rows(gram)
  return geometry.scale(updates, jnp.where(bad, jnp.nan, factors))
