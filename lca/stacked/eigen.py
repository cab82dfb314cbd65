"""Eigenvalues and eigenvectors of symmetric matrices.

On CPU, jaxlib's kernels part a batch of matrices among the threads that run
the program, and wait for them on one of these. Two batches at once can wait
for each other for ever, as with two cores they did beside a model of 213
leaves. So a batch is one matrix after the other there.
"""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_batching.custom_vmap
def eigh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`[n]` eigenvalues in ascending order, and `[n, n]` vectors in columns.

  Args:
    x: `[n, n]`, symmetric. `jax.vmap` makes batches of it.
  """
  return tuple(jnp.linalg.eigh(x))


@eigh.def_vmap
def _one_after_the_other(axis_size, in_batched, x):
  del axis_size, in_batched
  found = lax.platform_dependent(
    x,
    cpu=lambda x: lax.map(eigh, x),
    default=lambda x: tuple(jnp.linalg.eigh(x)),
  )
  return found, (True, True)
