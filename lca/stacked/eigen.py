"""Eigenvalues and eigenvectors of symmetric matrices.

On CPU a batched `jnp.linalg.eigh` can hang for ever. jaxlib's kernel (0.10)
divides a batch among the threads that run the program, and blocks one of these
threads until all parts are done. Two batches that run at the same time can
therefore wait for each other. With two cores this happened in a rule on a model
of 213 leaves. On CPU `eigh` therefore decomposes the matrices of a batch one
after the other.
"""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_batching.custom_vmap
def eigh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the eigenvalues and eigenvectors of a symmetric matrix.

  Args:
    x: `[n, n]`, symmetric. `jax.vmap` gives batches of matrices.

  Returns:
    `[n]` eigenvalues in ascending order, and `[n, n]` eigenvectors in columns.
  """
  return tuple(jnp.linalg.eigh(x))


@eigh.def_vmap
def _one_after_the_other(axis_size, in_batched, x):
  del axis_size, in_batched
  pairs = lax.platform_dependent(
    x,
    cpu=lambda x: lax.map(eigh, x),
    default=lambda x: tuple(jnp.linalg.eigh(x)),
  )
  return pairs, (True, True)  # both results have the batch axis
