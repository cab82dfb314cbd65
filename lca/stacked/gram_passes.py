"""Makes Gram matrices, and finds the central rows of close rows.

The products of the rows come from one pass over the parameters. They show if
most rows are close. If so, another pass takes the inner products of the rows'
small parts (see `lca.stacked.inner_products`). `of_layers` makes both passes
over arrays. `Search` has the steps between the passes, so that a caller whose
rows are not all in memory can make the passes itself.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lca.stacked import sums
from lca.stacked.inner_products import (
  GramMatrix,
  diagonal,
  rejected_rows,
  tolerance,
)

_PASSES = 2  # the second one runs if the first one's row c was not central
_FAR = 32  # times the least median distance: a row beyond it is not central


@jax.custom_jvp
def of_layers(layers: Sequence[Sequence[jax.Array]]) -> GramMatrix:
  """Returns the Gram matrix of each layer, stacked: `[layers, n, n]`.

  Args:
    layers: lists of leaves `[n, ...]`.
  """
  gram, _ = _grams(layers)
  return gram


@jax.jit
def _grams(layers):
  """Returns the Gram matrices, and `[layers]` indices of the rows c.

  An index has no meaning where c is 0.
  """

  def make_pass(search):
    search = choose_rows(search)
    parts = sums.parts_products(
      layers, search.lost, search.shares, search.middle
    )
    return with_parts(search, parts)

  products = jnp.stack(
    [functools.reduce(jnp.add, map(sums.products, leaves)) for leaves in layers]
  )
  search = lax.while_loop(needs_pass, make_pass, first_search(products))
  return found(search), search.middle


class Search(NamedTuple):
  """The search for the central rows c of some layers, pass by pass.

    search = first_search(products)
    while needs_pass(search):
      search = choose_rows(search)
      search = with_parts(search, <a pass: sums.parts_products>)
    gram = found(search)

  Attributes:
    products: `[layers, n, n]` inner products of the rows.
    parts: `[layers, n + 1, n + 1]` inner products of the parts and of c. Before
      the first pass c is 0 and the parts are the rows.
    shares: `[layers, n]`, 1 + alpha. Before the first pass the norms take their
      place, so that directions are compared.
    middle: `[layers]` indices of the rows c.
    lost: `[layers]` mask of the layers that the next pass is for.
    passes: number of passes so far.
  """

  products: jax.Array
  parts: jax.Array
  shares: jax.Array
  middle: jax.Array
  lost: jax.Array
  passes: jax.Array | int


def first_search(products: jax.Array) -> Search:
  """Begins with the inner products of each layer's rows, `[layers, n, n]`."""
  finite = _of_finite(products)
  lengths = jnp.sqrt(diagonal(finite))
  return Search(
    products,
    parts=jnp.pad(finite, ((0, 0), (0, 1), (0, 1))),
    shares=lengths,
    middle=jnp.zeros(len(products), int),
    lost=_most_are_parallel(finite, lengths),
    passes=0,
  )


def needs_pass(search: Search) -> jax.Array:
  """Returns True if another pass over the parameters is needed."""
  return jnp.any(search.lost) & (search.passes < _PASSES)


def choose_rows(search: Search) -> Search:
  """Chooses the row c of every layer that still needs a pass, and the shares.

  The row c is the one of the least median distance from the others, by the
  distances known so far. A row that is central by the products alone may turn
  out to be far from the others; then a second pass takes another row.
  """
  finite = _of_finite(search.products)
  eps = jnp.finfo(finite.dtype).eps
  medians = _median_distances(search.parts[:, :-1, :-1], search.shares)
  near = _entry(medians, search.middle) <= _FAR * jnp.min(medians, axis=-1)
  lost = search.lost & (~near | (search.passes == 0))
  middle = jnp.where(lost, jnp.argmin(medians, axis=-1), search.middle)
  # (1 + alpha_i) c is the multiple of c nearest to x_i. The alpha are rounded
  # to whole multiples of eps, so that 1 + alpha has no rounding error.
  with_c = jnp.take_along_axis(finite, middle[:, None, None], axis=1)[:, 0]
  ratios = with_c / _entry(with_c, middle)[:, None]
  alpha = jnp.round((ratios - 1) / eps) * eps
  shares = jnp.where(lost[:, None], 1 + alpha, search.shares)
  return search._replace(middle=middle, lost=lost, shares=shares)


def with_parts(search: Search, parts: jax.Array) -> Search:
  """Takes the result of a pass for the rows that `choose_rows` has chosen."""
  good = ~rejected_rows(search.products)
  present = jnp.pad(good, ((0, 0), (0, 1)), constant_values=True)
  parts = jnp.where(_pairs(present), parts, 0)
  parts = jnp.where(search.lost[:, None, None], parts, search.parts)
  return search._replace(parts=parts, passes=search.passes + 1)


def found(search: Search) -> GramMatrix:
  """Returns the Gram matrix of each layer, `[layers, n, n]`."""
  parts = search.parts
  along = jnp.where(parts[:, -1:, -1] > 0, search.shares - 1, 0)
  return GramMatrix(search.products, parts, along)


def _of_finite(products):
  """Returns the products with zeros for rejected rows."""
  return jnp.where(_pairs(~rejected_rows(products)), products, 0)


def _most_are_parallel(products, lengths):
  """Returns `[layers]`, True if most rows are nearly parallel to one row."""
  sizes = lengths[:, :, None] * lengths[:, None]
  near = (sizes > 0) & (products >= (1 - tolerance(products)) * sizes)
  half = jnp.sum(lengths > 0, axis=-1) // 2
  return (jnp.max(jnp.sum(near, axis=-1), axis=-1) > half) & (half > 0)


def _median_distances(parts, shares):
  """Returns each row's median squared distance to the others, `[layers, n]`.

  Rows are divided by their shares first. Rows without a positive share are left
  out, and get +inf.
  """
  valid = shares > 0
  safe = jnp.where(valid, shares, 1)
  scaled = parts / safe[:, :, None] / safe[:, None]
  squares = diagonal(scaled)
  between = squares[:, :, None] + squares[:, None] - 2 * scaled
  ordered = jnp.sort(jnp.where(_pairs(valid), between, jnp.inf), axis=-1)
  return _entry(ordered, jnp.sum(valid, axis=-1, keepdims=True) // 2)


def _pairs(rows):
  """Returns `[..., n, n]`, True for pairs of rows of a mask `[..., n]`."""
  return rows[..., :, None] & rows[..., None, :]


def _entry(numbers, places):
  """Returns the entries of the last axis with the indices `places[...]`."""
  return jnp.take_along_axis(numbers, places[..., None], axis=-1)[..., 0]


@of_layers.defjvp
def _of_layers_jvp(primals, tangents):
  """Differentiates with alpha, and the choice of the row c, held constant."""
  (layers,), (layers_dot,) = primals, tangents
  gram, middle = _grams(layers)
  arguments = layers, layers_dot, gram.along, gram.parts, middle
  tangent = [_tangent(*layer) for layer in zip(*arguments, strict=True)]
  return gram, jax.tree.map(lambda *x: jnp.stack(x), *tangent)


def _tangent(leaves, leaves_dot, along, parts, middle):
  """Returns the tangent of one layer's Gram matrix; dx is the tangent of x."""
  parted = parts[-1, -1] > 0  # False if c is 0
  shares = jnp.where(parted, 1 + along, 0)
  products = functools.reduce(
    jnp.add,
    [
      sums.tangent_products(leaf, leaf_dot, shares, middle, parted)
      for leaf, leaf_dot in zip(leaves, leaves_dot, strict=True)
    ],
  ).astype(parts.dtype)
  within, across = products[:, :-1], products[:, -1]  # <dx_i, p_j>, <dx_i, c>
  half = within + across[:, None] * shares  # <dx_i, x_j>
  # From dp_i = dx_i - shares_i dc: <dp_i, p_j>, d<p_i, c> and d<c, c>.
  rest = within - shares[:, None] * within[middle]
  beside = across - shares * across[middle]
  beside += jnp.where(parted, within[middle], 0)
  corner = 2 * across[middle]
  rows = jnp.concatenate([rest + rest.T, beside[:, None]], axis=1)
  last = jnp.append(beside, corner)
  return GramMatrix(
    half + half.T,
    jnp.concatenate([rows, last[None]]),
    jnp.zeros_like(along),
  )
