"""The geometry of stacked updates: Gram matrix, distances, norms, mixtures.

Every distance-based rule runs Gram -> distances -> weights -> mix. Only the
first and the last of these touch the parameters; everything between works on
`[n, n]` numbers, whatever the model's size. The Gram matrix of a model is the
sum of its leaves' Gram matrices.

A row (one client's update) is *rejected* when it holds a NaN or an infinity,
or when its squared norm exceeds `finfo.max / 16`, from where on distances
would overflow. A rejected row keeps its place: its distances and its norm are
+inf, its weight is 0.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from lca.stacked import inner_products, sums
from lca.stacked.inner_products import (
  cosines,
  differences,
  gram_of_sums,
  norms,
  rejected_rows,
  squared_norms,
)
from lca.typing import Gram, Update, Updates

__all__ = [
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
  'norms',
  'norms_gram',
  'num_clients',
  'one_client',
  'rejected_rows',
  'scale',
  'shrink_factors',
  'squared_norms',
  'without_rejected',
]

Distance = Literal['euclidean', 'cosine'] | Callable[[Gram], jax.Array]
Median = Literal['interpolated', 'lower']


def num_clients(updates: Updates) -> int:
  """Returns `n`, the leading axis that all leaves of `updates` share.

  Raises:
    TypeError: if a leaf is no array of JAX or NumPy.
    ValueError: if there is no leaf or no client, a leaf is a scalar or not
      floating, or leaves disagree.
  """
  arrays = jax.Array, np.ndarray, np.generic, int, float
  for leaf in jax.tree.leaves(updates):
    if not isinstance(leaf, arrays):
      raise TypeError(
        f'updates must be arrays of JAX or NumPy, got {type(leaf).__name__}; '
        'lca.stack makes them of the tensors of all clients'
      )
  shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(updates)]
  if not shapes or any(not shape or not shape[0] for shape in shapes):
    raise ValueError(
      f'updates must be stacked leaves [n, ...] with n > 0, got {shapes}'
    )
  dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(updates)}
  if wrong := [d.name for d in dtypes if not jnp.issubdtype(d, jnp.floating)]:
    raise ValueError(f'updates must be floating, got {sorted(wrong)}')
  sizes = {shape[0] for shape in shapes}
  if len(sizes) > 1:
    raise ValueError(f'leaves disagree on the number of clients: {shapes}')
  return sizes.pop()


def gram(updates: Updates) -> Gram:
  r"""Inner products of all pairs of clients.

  .. math:: K_{ij} = \langle x_i, x_j \rangle

  Args:
    updates: stacked pytree, leaves `[n, ...]`.

  Rows with a large common part lose their distances in these products. Where
  most do, a second pass over the updates takes the products of what they differ
  by, and the result carries them for `distances` and the like.

  Returns:
    `[n, n]` in float32 (float64 for float64 leaves), a `GramMatrix`, which is
    the array of the products in every expression. The diagonal holds the
    squared norms. A NaN or infinite client spoils its own row and column only.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> kernel, bias = jnp.array([[3., 0.], [0., 2.]]), jnp.array([4., 0.])
    >>> lca.gram({'kernel': kernel, 'bias': bias})
    Array([[25.,  0.],
           [ 0.,  4.]], dtype=float32)
  """
  return jax.tree.map(lambda x: x[0], grams([updates]))


def grams(layers: Sequence[Updates]) -> Gram:
  """The inner products of each of several layers, `[layers, n, n]`.

  As `gram`, at once: one look tells which layers' rows are close.
  """
  for layer in layers:
    num_clients(layer)
  leaves = [jax.tree.leaves(layer) for layer in layers]
  return cast(Gram, inner_products.of_layers(leaves))


def norms_gram(updates: Updates) -> Gram:
  """The diagonal of `gram` with zeros beside it, for what needs norms only.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.

  Returns:
    `[n, n]`; it costs one reading of the updates.
  """
  num_clients(updates)
  squares = [sums.squares(leaf) for leaf in jax.tree.leaves(updates)]
  return jnp.diag(functools.reduce(jnp.add, squares))


def one_client(update: Update) -> Updates:
  """One update as the stacked updates of a single client."""
  return jax.tree.map(lambda x: x[None], update)


def inner(updates: Updates, update: Update) -> jax.Array:
  """`[n]` inner products of the clients' updates with another one.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    update: a tree of the same structure, leaves `[...]`.

  Raises:
    ValueError: if the structures or shapes differ.
  """
  num_clients(updates)
  shapes = jax.tree.map(lambda x: x.shape[1:], updates)
  if (got := jax.tree.map(jnp.shape, update)) != shapes:
    raise ValueError(f'one update must be shaped {shapes}, got {got}')

  products = jax.tree.map(sums.inner, updates, update)
  return functools.reduce(jnp.add, jax.tree.leaves(products))


def without_rejected(gram: Gram, rejected: jax.Array | None = None) -> Gram:
  """`gram` with zeros in the rows and columns of rejected clients.

  Args:
    gram: `[..., n, n]` inner products.
    rejected: `[n]` mask of these clients; by default those that `gram`,
      `[n, n]`, itself rejects.
  """
  bad = rejected_rows(gram) if rejected is None else rejected
  return inner_products.without(gram, bad)


def distances(
  gram: Gram, distance: Distance = 'euclidean', power: int | None = None
) -> jax.Array:
  r"""Pairwise distances from inner products.

  Euclidean: :math:`\|x_i - x_j\|^p`, with :math:`\|x_i - x_j\|^2 = K_{ii} +
  K_{jj} - 2 K_{ij}` clamped at 0. Cosine: :math:`1 - K_{ij} / (\|x_i\|
  \|x_j\|)`, clamped to [0, 2]; it is half the squared Euclidean distance of
  the unit vectors, and is used as it is.

  A zero row has no direction. Its cosine distance is 2, the largest, to every
  nonzero row and 0 to another zero row, so that one client that sends nothing
  is not taken for a central one. Several are each other's neighbours, and may
  be taken where the others' directions differ much.

  Of the result of `gram` both are right to 1e-3 where the rows differ by 1e-6
  of what they share; of a plain array they are as exact as the products are.

  Args:
    gram: `[n, n]` inner products.
    distance: `'euclidean'` or `'cosine'`; or a function from the inner products
      to `[n, n]` distances of one's own, of which the rows and columns of
      rejected clients and the diagonal do not matter.
    power: 1, 2 or 4, the power of the Euclidean distance; None is 2. Fourth
      powers of distances beyond 4e9 are +inf in float32.

  Returns:
    `[n, n]`, zero on the diagonal, +inf in the rows and columns of rejected
    clients (their diagonal included).

  Raises:
    ValueError: unknown distance or power, or a power without the Euclidean
      distance.
  """
  if distance not in ('euclidean', 'cosine') and not callable(distance):
    raise ValueError(
      f"distance must be 'euclidean' or 'cosine', got {distance!r}"
    )
  if power is not None and distance != 'euclidean':
    raise ValueError(
      f'power belongs to the Euclidean distance, got power={power} with '
      f'distance={distance!r}'
    )
  if power not in (None, 1, 2, 4):
    raise ValueError(f'power must be 1, 2 or 4, got {power}')

  if callable(distance):
    between = distance(gram)
  elif distance == 'cosine':
    zero = inner_products.diagonal(gram) == 0
    between = inner_products.one_less_cosines(gram)
    between = jnp.where(zero[:, None] ^ zero, 2, between)
    between = jnp.where(zero[:, None] & zero, 0, between)
  else:
    between = inner_products.squared_distances(gram)
    if power in (1, 4):
      between = jnp.sqrt(between) if power == 1 else jnp.square(between)
  between = jnp.where(jnp.eye(len(gram), dtype=bool), 0, between)
  bad = rejected_rows(gram)
  return jnp.where(bad[:, None] | bad, jnp.inf, between)


def median_norm(
  gram: Gram,
  median: Median = 'interpolated',
  rejected: jax.Array | None = None,
) -> jax.Array:
  """The median of the norms of the rows not rejected.

  Args:
    gram: `[n, n]` inner products.
    median: of an even number the mean of the middle pair, `'interpolated'`, or
      its `'lower'` one.
    rejected: `[n]` mask of the rows left out; by default those that `gram`
      itself rejects.

  Raises:
    ValueError: unknown median.
  """
  if median not in ('interpolated', 'lower'):
    raise ValueError(
      f"median must be 'interpolated' or 'lower', got {median!r}"
    )
  out = rejected_rows(gram) if rejected is None else rejected
  ordered = jnp.sort(jnp.where(out, jnp.inf, norms(gram)))
  last = jnp.sum(~out) - 1
  low, high = ordered[last // 2], ordered[(last + 1) // 2]
  return low if median == 'lower' else low + (high - low) / 2


def clip_factors(
  gram: Gram,
  median: Median = 'interpolated',
  rejected: jax.Array | None = None,
) -> jax.Array:
  r"""Factors that clip every row to the median norm of the rows not rejected.

  .. math:: c_i = \min(1, \mathrm{med}_j \|x_j\| / \|x_i\|)

  Args:
    gram: `[n, n]` inner products.
    median: `'interpolated'` is the mean of the middle pair when the count is
      even, `'lower'` the lower one of the two.
    rejected: `[n]` mask of the rows left out; by default those that `gram`
      itself rejects.

  Returns:
    `[n]` factors in [0, 1]; 1 for zero rows and for rejected ones.

  Raises:
    ValueError: unknown median.
  """
  out = rejected_rows(gram) if rejected is None else rejected
  lengths = jnp.where(out, jnp.inf, norms(gram))
  return shrink_factors(lengths, median_norm(gram, median, out))


def shrink_factors(
  lengths: jax.Array, threshold: jax.Array | float
) -> jax.Array:
  """What brings lengths down to a threshold; 1 for the others and for inf."""
  longer = (lengths > threshold) & ~jnp.isinf(lengths)
  return jnp.where(longer, threshold / jnp.where(longer, lengths, 1), 1)


def scale(updates: Updates, factors: jax.Array) -> Updates:
  """Multiplies each client's row by its factor, `[n]`, keeping dtypes.

  Of a row with factor zero nothing is left, whatever it held.
  """

  def one(leaf):
    column = factors.reshape((-1,) + (1,) * (leaf.ndim - 1))
    return jnp.where(column == 0, 0, leaf * column).astype(leaf.dtype)

  return jax.tree.map(one, updates)


def mix(updates: Updates, weights: jax.Array) -> Update | Updates:
  r"""The weighted sum of the clients' rows, :math:`\sum_i w_i x_i`.

  A row of weight zero is left out, not multiplied: `0 * nan` is `nan`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    weights: `[n]`; or `[k, n]`, for k sums. Not normalised here.

  Returns:
    One update, or k stacked ones, in the leaves' dtypes; sums run in float32
    or wider.

  Raises:
    ValueError: if there is not one weight a client.

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
      f'weights must be one a client, ({n},) or (k, {n}), got {shape}'
    )
  return jax.tree.map(functools.partial(sums.over_rows, weights), updates)
