r"""The Gram matrix of the clients' models, from their updates.

A client's model is :math:`u_i = w + x_i`, the parameters w that it started from
plus its update. Models may differ by little of their length. In float32 their
inner products then lose the differences, and each sum w + x_i is rounded like
w. As in `lca.stacked.inner_products`, every model is therefore a multiple of
one central model c plus a small part,

.. math:: u_i = (1 + \alpha_i) c + p_i, \quad
    p_i = (x_i - x_m) - \alpha_i c, \quad c = w + x_m

where m is the central client. The differences of the updates keep their digits.
The models are made for some columns at a time, and no copy of them all is kept.
"""

import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax

from lca.stacked import geometry, gram_passes, sums
from lca.stacked.trees import check_one_update
from lca.typing import Gram, Update, Updates

_WIDTH = 2**18  # columns whose models are made at once, on GPU and TPU


def models_gram(updates: Updates, params: Update) -> Gram:
  r"""Returns the inner products of all pairs of models.

  .. math:: K_{ij} = \langle w + x_i, w + x_j \rangle

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    params: w, a tree shaped like one update.

  Returns:
    `[n, n]`, a `GramMatrix` (see `lca.gram`), which carries the products of the
    models' small parts for `lca.distances`. It rejects a client (see
    `lca.geometry`) whose update or model is rejected. It is constant in
    derivatives.

  Raises:
    ValueError: unless `params` is shaped like one update.
  """
  geometry.num_clients(updates)
  check_one_update('params', params, updates)
  updates, params = lax.stop_gradient((updates, params))
  pairs = [
    (leaf, jnp.asarray(w)[None])
    for leaf, w in zip(
      jax.tree.leaves(updates), jax.tree.leaves(params), strict=True
    )
  ]

  def total(function, *whole):
    """Sums the function's results over blocks of columns of all leaves."""
    by_blocks = functools.partial(_by_blocks, function)
    return functools.reduce(
      jnp.add,
      [sums.over_columns(by_blocks, *pair, whole=whole) for pair in pairs],
    )

  products = total(_products)
  rejected = geometry.rejected_rows(geometry.norms_gram(updates))
  products = jnp.where(rejected[:, None] | rejected, jnp.nan, products)

  def make_pass(search):
    search = gram_passes.choose_rows(search)
    parts = total(_parts_products, search.shares[0], search.middle[0])
    return gram_passes.with_parts(search, parts[None])

  search = lax.while_loop(
    gram_passes.needs_pass, make_pass, gram_passes.first_search(products[None])
  )
  found = gram_passes.found(search)
  return cast(Gram, jax.tree.map(lambda x: x[0], found))


def _by_blocks(
  function: Callable[..., jax.Array],
  x: jax.Array,
  w: jax.Array,
  *whole: jax.Array,
) -> jax.Array:
  """Sums `function(x, w, *whole)` over blocks of at most `_WIDTH` columns."""

  def block(start, width):
    columns = [
      lax.dynamic_slice_in_dim(rows, start, width, axis=1) for rows in (x, w)
    ]
    return function(*(c.astype(sums.wide(c.dtype)) for c in columns), *whole)

  count, rest = divmod(x.shape[1], _WIDTH)
  last = block(count * _WIDTH, rest)
  if not count:
    return last
  return lax.fori_loop(
    0, count, lambda i, out: out + block(i * _WIDTH, _WIDTH), last
  )


def _products(x: jax.Array, w: jax.Array) -> Gram:
  """Returns the inner products `[n, n]` of the models, for some columns."""
  models = w + x
  return sums.dot(models, models.T)


def _parts_products(
  x: jax.Array, w: jax.Array, shares: jax.Array, middle: jax.Array
) -> Gram:
  """Returns the inner products `[n + 1, n + 1]` of the p_i and of c.

  Args:
    x: `[n, c]`, some columns of the updates.
    w: `[1, c]`, the same columns of the parameters.
    shares: `[n]`, 1 + alpha.
    middle: the index m of the central client.
  """
  central = lax.dynamic_slice_in_dim(x, middle, 1)
  c, shares = w + central, shares[:, None]
  parts = jnp.where(
    jnp.abs(shares - 1) <= 0.5,
    (x - central) - (shares - 1) * c,
    (w + x) - shares * c,  # of models that are much shorter or longer than c
  )
  rows = jnp.concatenate([parts, c.astype(parts.dtype)])
  return sums.dot(rows, rows.T)
