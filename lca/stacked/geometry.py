"""The geometry of stacked updates: Gram matrix, distances, norms, mixtures.

Every distance-based rule runs Gram -> distances -> weights -> mix. Only the
first and the last of these steps touch the parameters. The steps between work
on `[n, n]` numbers, whatever the model's size. The Gram matrix of a model is
the sum of its leaves' Gram matrices.

A row (one client's update) is *rejected* when it holds a NaN or an infinity,
or when its squared norm exceeds `finfo.max / 16`, beyond which distances would
overflow. A rejected row keeps its place: its distances and its norm are +inf,
its weight is 0.
"""

import functools
from collections.abc import Sequence
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from lca.stacked import gram_passes, inner_products, sums
from lca.stacked.distances import (
  DISTANCES,
  Distance,
  distances,
  mixed,
  rank_weighted,
  separating,
)
from lca.stacked.inner_products import (
  cosines,
  differences,
  gram_of_sums,
  norm_differences,
  norms,
  rejected_rows,
  rejected_squares,
  squared_norms,
)
from lca.typing import Gram, PyTree, Update, Updates

__all__ = [
  'DISTANCES',
  'Distance',
  'Median',
  'clip_factors',
  'cosines',
  'differences',
  'distances',
  'gram',
  'gram_of_sums',
  'grams',
  'inner',
  'median_norm',
  'mix',
  'mixed',
  'norm_differences',
  'norms',
  'norms_gram',
  'num_clients',
  'one_client',
  'rank_weighted',
  'rejected_rows',
  'rejected_squares',
  'scale',
  'separating',
  'shrink_factors',
  'squared_norms',
  'total_squares',
  'without_rejected',
]

Median = Literal['interpolated', 'lower']


def num_clients(updates: Updates) -> int:
  """Returns `n`, the leading axis that all leaves of `updates` share.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.

  Raises:
    TypeError: a leaf is not an array of JAX or NumPy.
    ValueError: there is no leaf or no client, a leaf is a scalar or not
      floating-point, or the leaves' leading axes differ.
  """
  arrays = jax.Array, np.ndarray, np.generic, int, float
  for leaf in jax.tree.leaves(updates):
    if not isinstance(leaf, arrays):
      raise TypeError(
        f'updates must be arrays of JAX or NumPy, got {type(leaf).__name__}; '
        "lca.stack converts a list of the clients' tensors"
      )
  shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(updates)]
  if not shapes or any(not shape or not shape[0] for shape in shapes):
    raise ValueError(
      f'updates must be stacked leaves [n, ...] with n > 0, got {shapes}'
    )
  dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(updates)}
  if wrong := [d.name for d in dtypes if not jnp.issubdtype(d, jnp.floating)]:
    raise ValueError(f'updates must be floating-point, got {sorted(wrong)}')
  sizes = {shape[0] for shape in shapes}
  if len(sizes) > 1:
    raise ValueError(f'leaves disagree on the number of clients: {shapes}')
  return sizes.pop()


def gram(updates: Updates) -> Gram:
  r"""Returns the inner products of all pairs of clients.

  .. math:: K_{ij} = \langle x_i, x_j \rangle

  If the rows have a large common part, such as models instead of updates, the
  rounding errors of the products may exceed the rows' distances. If most rows
  are so close, a second pass over the updates takes the inner products of the
  rows' differences. The result carries these products for `distances` and the
  other functions of this module.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.

  Returns:
    `[n, n]` in float32 (float64 for float64 leaves), a `GramMatrix`, which
    behaves as the array of the products in every expression. The diagonal holds
    the squared norms. A client with NaN or infinite entries affects its own row
    and column only.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> kernel, bias = jnp.array([[3., 0.], [0., 2.]]), jnp.array([4., 0.])
    >>> lca.gram({'kernel': kernel, 'bias': bias})
    Array([[25.,  0.],
           [ 0.,  4.]], dtype=float32)
  """
  return jax.tree.map(lambda x: x[0], grams([updates]))


def grams(layers: Sequence[Updates]) -> Gram:
  """Returns the Gram matrix of each of several layers, `[layers, n, n]`.

  It equals `gram` of each layer. Taking all layers together lets one loop make
  the second pass over those layers whose rows are close.

  Args:
    layers: stacked pytrees, leaves `[n, ...]`.
  """
  for layer in layers:
    num_clients(layer)
  leaves = [jax.tree.leaves(layer) for layer in layers]
  return cast(Gram, gram_passes.of_layers(leaves))


def norms_gram(updates: Updates) -> Gram:
  """Returns the diagonal of `gram` with zeros elsewhere, `[n, n]`.

  Rules that need norms only use this function, which reads the updates once.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
  """
  num_clients(updates)
  return jnp.diag(total_squares(jax.tree.map(sums.squares, updates)))


def total_squares(squares: PyTree) -> jax.Array:
  """Returns the rows' squared norms, `[n]`, from those of all leaves."""
  return functools.reduce(jnp.add, jax.tree.leaves(squares))


def one_client(update: Update) -> Updates:
  """Returns one update as the stacked updates of a single client."""
  return jax.tree.map(lambda x: x[None], update)


def inner(updates: Updates, update: Update) -> jax.Array:
  """Returns the inner product of each client's update with `update`, `[n]`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    update: a tree of the same structure, leaves `[...]`.

  Raises:
    ValueError: the structures or shapes differ.
  """
  num_clients(updates)
  shapes = jax.tree.map(lambda x: x.shape[1:], updates)
  if (got := jax.tree.map(jnp.shape, update)) != shapes:
    raise ValueError(f'one update must be shaped {shapes}, got {got}')

  products = jax.tree.map(sums.inner, updates, update)
  return functools.reduce(jnp.add, jax.tree.leaves(products))


def without_rejected(gram: Gram, rejected: jax.Array | None = None) -> Gram:
  """Returns `gram` with zeros in the rows and columns of rejected clients.

  Args:
    gram: `[..., n, n]` inner products.
    rejected: `[n]` mask of the rejected clients. None rejects the clients whose
      squared norm, on the diagonal, is not finite or too large; `gram` must
      then be `[n, n]`.
  """
  bad = rejected_rows(gram) if rejected is None else rejected
  return inner_products.without(gram, bad)


def median_norm(
  gram: Gram,
  median: Median = 'interpolated',
  rejected: jax.Array | None = None,
) -> jax.Array:
  """Returns the median of the norms of the rows that are not rejected.

  If all rows are rejected, the result is +inf or NaN.

  Args:
    gram: `[n, n]` inner products.
    median: for an even number of rows, `'interpolated'` takes the mean of the
      middle pair and `'lower'` the smaller of the two.
    rejected: `[n]` mask of the rows to leave out; by default the rows that are
      rejected according to `gram`.

  Raises:
    ValueError: the median is unknown.
  """
  if median not in ('interpolated', 'lower'):
    raise ValueError(
      f"median must be 'interpolated' or 'lower', got {median!r}"
    )
  out = rejected_rows(gram) if rejected is None else rejected
  # Rows left out are sorted to the end as +inf, after the rank `last`.
  ordered = jnp.sort(jnp.where(out, jnp.inf, norms(gram)))
  last = jnp.sum(~out) - 1
  low, high = ordered[last // 2], ordered[(last + 1) // 2]
  return low if median == 'lower' else low + (high - low) / 2


def clip_factors(
  gram: Gram,
  median: Median = 'interpolated',
  rejected: jax.Array | None = None,
) -> jax.Array:
  r"""Returns the factors that clip the rows to their median norm.

  The median is taken over the rows that are not rejected. Longer rows are
  shortened to the median norm; shorter rows keep their length.

  .. math:: c_i = \min(1, \mathrm{med}_j \|x_j\| / \|x_i\|)

  Args:
    gram: `[n, n]` inner products.
    median: as for `median_norm`.
    rejected: `[n]` mask of the rows to leave out; by default the rows that are
      rejected according to `gram`.

  Returns:
    `[n]` factors in [0, 1]; 1 for zero rows and for rejected rows.

  Raises:
    ValueError: the median is unknown.
  """
  out = rejected_rows(gram) if rejected is None else rejected
  lengths = jnp.where(out, jnp.inf, norms(gram))
  return shrink_factors(lengths, median_norm(gram, median, out))


def shrink_factors(
  lengths: jax.Array, threshold: jax.Array | float
) -> jax.Array:
  """Returns factors that shorten lengths above a threshold to the threshold.

  The factor is 1 for the other lengths, and for infinite ones.

  Args:
    lengths: `[n]` norms, +inf for rejected rows.
    threshold: the largest length that is allowed.
  """
  longer = (lengths > threshold) & ~jnp.isinf(lengths)
  return jnp.where(longer, threshold / jnp.where(longer, lengths, 1), 1)


def scale(updates: Updates, factors: jax.Array) -> Updates:
  """Multiplies each client's row by its factor.

  A row with factor 0 becomes zero, even if it held NaN or infinities.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    factors: `[n]`.

  Returns:
    The scaled updates, in the leaves' dtypes.
  """

  def scale_leaf(leaf):
    column = factors.reshape((-1,) + (1,) * (leaf.ndim - 1))  # [n, 1, ..., 1]
    return jnp.where(column == 0, 0, leaf * column).astype(leaf.dtype)

  return jax.tree.map(scale_leaf, updates)


def mix(updates: Updates, weights: jax.Array) -> Update | Updates:
  r"""Returns the weighted sum of the clients' rows, :math:`\sum_i w_i x_i`.

  A row of weight zero is left out instead of multiplied, as `0 * nan` is `nan`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    weights: `[n]`, or `[k, n]` for k sums. They are not normalised here.

  Returns:
    One update, or k stacked updates, in the leaves' dtypes. The sums run in
    float32 or wider.

  Raises:
    ValueError: the number of weights differs from the number of clients.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1., 2.], [jnp.nan, 5.]])
    >>> lca.mix(updates, jnp.array([1., 0.]))
    Array([1., 2.], dtype=float32)
    >>> lca.mix(updates, jnp.array([[1., 0.], [2., 0.]]))
    Array([[1., 2.],
           [2., 4.]], dtype=float32)
  """
  n, shape = num_clients(updates), jnp.shape(weights)
  if len(shape) not in (1, 2) or shape[-1] != n:
    raise ValueError(
      f'weights must be shaped ({n},) or (k, {n}), one for each client, got '
      f'{shape}'
    )
  return jax.tree.map(functools.partial(sums.over_rows, weights), updates)
