"""Normalised norms of the layers in one round: LEGATO's Eq. 2."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lca.stacked import eigen, geometry
from lca.stacked.trees import Layers, Scope, grouping
from lca.typing import Gram, Updates

Norm = Literal['frobenius', 'spectral']


def normalized_norms(
  updates: Updates, by: Scope = 'leaf', norm: Norm = 'frobenius'
) -> jax.Array:
  r"""Returns each layer's norm, divided by the sum of the clients' norms.

  .. math:: P_l = \frac{\|[g_{1,l}, \dots, g_{n,l}]\|}{\sum_p \|G_p\|}

  The numerator is the norm of the matrix of all clients' updates of layer l;
  :math:`\|G_p\|` is the norm of client p's whole update. Rejected rows (see
  `lca.geometry`) are left out. If all rows are rejected, the result is 0.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    by: the scope of a layer, as in `lca.layerwise`.
    norm: the norm of a layer's matrix: `'frobenius'` or `'spectral'`.

  Returns:
    `[layers]` normalised norms.

  References:
    Varma, Zhou, Baracaldo and Anwar, LEGATO, 2021.
  """
  geometry.num_clients(updates)
  grams = layer_grams(Layers(updates, grouping(by)).split(updates), norm)
  return normalized(grams, geometry.rejected_rows(jnp.sum(grams, 0)), norm)


def layer_grams(parts: list[Updates], norm: Norm) -> Gram:
  """Returns the Gram matrix of every layer, `[layers, n, n]`.

  The Frobenius norm needs the diagonals alone; the other entries are then zero.
  The gradient is stopped.
  """
  inner = geometry.norms_gram if norm == 'frobenius' else geometry.gram
  return lax.stop_gradient(jnp.stack([inner(part) for part in parts]))


def normalized(grams: Gram, bad: jax.Array, norm: Norm) -> jax.Array:
  """Returns the normalised norms, `[layers]`, from the layers' Gram matrices.

  Args:
    grams: `[layers, n, n]`, from `layer_grams`.
    bad: `[n]` mask of the rejected rows, which are left out.
    norm: the norm that `grams` were made for.
  """
  grams = geometry.without_rejected(grams, bad)
  squares = jnp.diagonal(jnp.sum(grams, axis=0))
  # Norms are divided by the largest client's norm, so that no sum overflows.
  longest = jnp.sqrt(jnp.max(squares))
  unit = jnp.where(longest > 0, longest, 1)
  grams = grams / unit / unit
  if norm == 'frobenius':
    matrix_squares = jnp.trace(grams, axis1=1, axis2=2)
  else:
    # The largest eigenvalue is the squared spectral norm of the layer's matrix.
    matrix_squares = jax.vmap(eigen.eigh)(grams)[0][:, -1]
  total = jnp.sum(jnp.sqrt(squares) / unit)
  # In this unit the total is at least 1, unless all rows are zero or left out.
  return jnp.sqrt(jnp.maximum(matrix_squares, 0)) / jnp.maximum(total, 1)
