"""Each layer's share of a round's norms: LEGATO's Eq. 2."""

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
  r"""Returns the `[layers]` normalised norms of one round.

  .. math:: P_l = \frac{\|[g_{1,l}, \dots, g_{n,l}]\|}{\sum_p \|G_p\|}

  Rejected rows (see `lca.geometry`) are left out. Where no row is left, the
  norms are 0.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    by: the scope of a layer, as in `lca.layerwise`.
    norm: of the matrix of a layer's gradients; see `lca.legato`.

  References:
    Varma, Zhou, Baracaldo and Anwar, LEGATO, 2021.
  """
  geometry.num_clients(updates)
  grams = layer_grams(Layers(updates, grouping(by)).split(updates), norm)
  return normalized(grams, geometry.rejected_rows(jnp.sum(grams, 0)), norm)


def layer_grams(parts: list[Updates], norm: Norm) -> Gram:
  """Returns `[layers, n, n]` inner products, without derivatives.

  For the Frobenius norm they are zero off the diagonals, which suffice.
  """
  inner = geometry.norms_gram if norm == 'frobenius' else geometry.gram
  return lax.stop_gradient(jnp.stack([inner(part) for part in parts]))


def normalized(grams: Gram, bad: jax.Array, norm: Norm) -> jax.Array:
  """Returns the `[layers]` normalised norms from the layers' Gram matrices.

  Args:
    grams: `[layers, n, n]`, from `layer_grams`.
    bad: `[n]` mask of the rejected rows, which are left out.
    norm: as for `layer_grams`.
  """
  grams = geometry.without_rejected(grams, bad)
  squares = jnp.diagonal(jnp.sum(grams, axis=0))
  longest = jnp.sqrt(jnp.max(squares))  # in its unit nothing overflows
  unit = jnp.where(longest > 0, longest, 1)
  grams = grams / unit / unit
  if norm == 'frobenius':
    matrix_squares = jnp.trace(grams, axis1=1, axis2=2)
  else:
    matrix_squares = jax.vmap(eigen.eigh)(grams)[0][:, -1]
  total = jnp.sum(jnp.sqrt(squares) / unit)
  return jnp.sqrt(jnp.maximum(matrix_squares, 0)) / jnp.maximum(total, 1)
