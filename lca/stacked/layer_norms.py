"""Normalised norms of the layers in one round: LEGATO's Eq. 2."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lca.stacked import eigen, geometry, sums
from lca.stacked.trees import Layers, Scope, grouping
from lca.typing import PyTree, Updates

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
  products = layer_products(Layers(updates, grouping(by)).split(updates), norm)
  return normalized(products, rejected_rows(products))


def norms_from_squares(squares: PyTree, by: Scope = 'leaf') -> jax.Array:
  """Returns `normalized_norms` of the rows whose squared norms are given.

  Args:
    squares: squared norms of the rows by leaf, a tree of `[n]`.
    by: as in `normalized_norms`.
  """
  parts = Layers(squares, grouping(by)).split(squares)
  products = jnp.stack([geometry.total_squares(part) for part in parts])
  return normalized(products, rejected_rows(products))


def layer_products(parts: list[Updates], norm: Norm) -> jax.Array:
  """Returns what the norms of the layers' matrices follow from.

  The gradient is stopped.

  Returns:
    The rows' squared norms in each layer, `[layers, n]`, for the Frobenius
    norm; their inner products, `[layers, n, n]`, for the spectral norm.
  """

  def squares(part):
    return geometry.total_squares(jax.tree.map(sums.squares, part))

  of_layer = squares if norm == 'frobenius' else geometry.gram
  return lax.stop_gradient(jnp.stack([of_layer(part) for part in parts]))


def rejected_rows(products: jax.Array) -> jax.Array:
  """Returns the mask of the rejected rows, `[n]`, from `layer_products`."""
  return geometry.rejected_squares(jnp.sum(_squares(products), axis=0))


def normalized(products: jax.Array, rejected: jax.Array) -> jax.Array:
  """Returns the normalised norms, `[layers]`.

  Args:
    products: from `layer_products`.
    rejected: `[n]` mask of the rejected rows, which are left out.
  """
  spectral = products.ndim == 3
  absent = rejected[:, None] | rejected if spectral else rejected
  products = jnp.where(absent, 0, products)
  squares = jnp.sum(_squares(products), axis=0)
  # Norms are divided by the largest client's norm, so that no sum overflows.
  longest = jnp.sqrt(jnp.max(squares))
  unit = jnp.where(longest > 0, longest, 1)
  products = products / unit / unit
  if spectral:
    # The largest eigenvalue is the squared spectral norm of the layer's matrix.
    matrix_squares = jax.vmap(eigen.eigh)(products)[0][:, -1]
  else:
    matrix_squares = jnp.sum(products, axis=1)
  total = jnp.sum(jnp.sqrt(squares) / unit)
  # In this unit the total is at least 1, unless all rows are zero or left out.
  return jnp.sqrt(jnp.maximum(matrix_squares, 0)) / jnp.maximum(total, 1)


def _squares(products):
  """Returns the rows' squared norms in each layer, `[layers, n]`."""
  if products.ndim == 2:
    return products
  return jnp.diagonal(products, axis1=1, axis2=2)
