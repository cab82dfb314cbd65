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
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from lca.typing import Gram, Update, Updates

Distance = Literal['euclidean', 'cosine']
Median = Literal['interpolated', 'lower']

_COLUMNS = 8192  # a [100, 8192] chunk of float32 stays in a CPU's cache


def num_clients(updates: Updates) -> int:
  """Returns `n`, the leading axis that all leaves of `updates` share.

  Raises:
    ValueError: if there is no leaf or no client, a leaf is a scalar or not
      floating, or leaves disagree.
  """
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

  Returns:
    `[n, n]` in float32 (float64 for float64 leaves). The diagonal holds the
    squared norms. A NaN or infinite client spoils its own row and column only.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> kernel, bias = jnp.array([[3., 0.], [0., 2.]]), jnp.array([4., 0.])
    >>> lca.gram({'kernel': kernel, 'bias': bias})
    Array([[25.,  0.],
           [ 0.,  4.]], dtype=float32)
  """
  num_clients(updates)
  return functools.reduce(jnp.add, map(_leaf_gram, jax.tree.leaves(updates)))


def _wide(dtype: jnp.dtype) -> jnp.dtype:
  """The dtype that sums run in: float32, or wider where the data are."""
  return jnp.promote_types(dtype, jnp.float32)


def _leaf_gram(leaf: jax.Array) -> Gram:
  return _products(jnp.reshape(leaf, (len(leaf), -1)))


@jax.jit
def _products(rows: jax.Array) -> Gram:
  """The Gram matrix of `[n, columns]` rows."""

  def block(start, width):
    x = lax.dynamic_slice_in_dim(rows, start, width, axis=1)
    x = x.astype(_wide(x.dtype))
    # TPUs and TF32 multiply in less than float32 unless told otherwise, and
    # distances of close clients would drown in that.
    return jnp.dot(x, x.T, precision=lax.Precision.HIGHEST)

  def whole():
    return block(0, rows.shape[1])

  def by_columns():
    count, rest = divmod(rows.shape[1], _COLUMNS)
    total = lax.fori_loop(
      1,
      count,
      lambda i, total: total + block(i * _COLUMNS, _COLUMNS),
      block(0, _COLUMNS),
    )
    return total + block(count * _COLUMNS, rest) if rest else total

  if rows.shape[1] <= _COLUMNS:
    return whole()
  return lax.platform_dependent(cpu=by_columns, default=whole)


def squared_norms(gram: Gram) -> jax.Array:
  """`[n]` squared norms, +inf for rejected rows."""
  squares = jnp.diagonal(gram)
  acceptable = squares <= jnp.finfo(gram.dtype).max / 16  # False for NaN
  return jnp.where(acceptable, squares, jnp.inf)


def rejected_rows(gram: Gram) -> jax.Array:
  """`[n]` mask of the rows that no rule selects or mixes (see the module)."""
  return jnp.isinf(squared_norms(gram))


def norms(gram: Gram) -> jax.Array:
  """`[n]` Euclidean norms, +inf for rejected rows."""
  return jnp.sqrt(squared_norms(gram))


def distances(
  gram: Gram, distance: Distance = 'euclidean', power: int | None = None
) -> jax.Array:
  r"""Pairwise distances from inner products.

  Euclidean: :math:`\|x_i - x_j\|^p`, with :math:`\|x_i - x_j\|^2 = K_{ii} +
  K_{jj} - 2 K_{ij}` clamped at 0. Cosine: :math:`1 - K_{ij} / (\|x_i\|
  \|x_j\|)`, clamped to [0, 2]; it is half the squared Euclidean distance of
  the unit vectors, and is used as it is.

  A zero row has no direction. Its cosine distance is 2, the largest, to every
  nonzero row and 0 to another zero row, so that a client that sends nothing
  is never taken for a central one.

  Args:
    gram: `[n, n]` inner products.
    distance: `'euclidean'` or `'cosine'`.
    power: 1 or 2, the power of the Euclidean distance; None is 2.

  Returns:
    `[n, n]`, zero on the diagonal, +inf in the rows and columns of rejected
    clients (their diagonal included).

  Raises:
    ValueError: unknown distance or power, or a power with the cosine distance.
  """
  if distance == 'euclidean':
    between = _euclidean(gram, 2 if power is None else power)
  elif distance == 'cosine':
    if power is not None:
      raise ValueError(
        f'power belongs to the Euclidean distance, got power={power} with '
        "distance='cosine'"
      )
    between = _cosine(gram)
  else:
    raise ValueError(
      f"distance must be 'euclidean' or 'cosine', got {distance!r}"
    )
  between = jnp.where(jnp.eye(len(gram), dtype=bool), 0, between)
  bad = rejected_rows(gram)
  return jnp.where(bad[:, None] | bad, jnp.inf, between)


def _euclidean(gram: Gram, power: int) -> jax.Array:
  if power not in (1, 2):
    raise ValueError(f'power must be 1 or 2, got {power}')
  squares = jnp.diagonal(gram)
  squared = jnp.maximum(squares[:, None] + squares - 2 * gram, 0)
  return squared if power == 2 else jnp.sqrt(squared)


def _cosine(gram: Gram) -> jax.Array:
  lengths = jnp.sqrt(jnp.diagonal(gram))
  zero = lengths == 0
  safe = jnp.where(zero, 1, lengths)
  # One division after the other: the product of two norms may overflow.
  cos = jnp.clip(gram / safe[:, None] / safe, -1, 1)
  cos = jnp.where(zero[:, None] ^ zero, -1, cos)
  return 1 - jnp.where(zero[:, None] & zero, 1, cos)


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
  if median not in ('interpolated', 'lower'):
    raise ValueError(
      f"median must be 'interpolated' or 'lower', got {median!r}"
    )
  out = rejected_rows(gram) if rejected is None else rejected
  lengths = jnp.where(out, jnp.inf, norms(gram))
  ordered = jnp.sort(lengths)
  last = jnp.sum(~out) - 1
  low, high = ordered[last // 2], ordered[(last + 1) // 2]
  middle = low if median == 'lower' else low + (high - low) / 2
  return jnp.where(
    out | (lengths <= middle), 1, middle / jnp.where(out, 1, lengths)
  )


def scale(updates: Updates, factors: jax.Array) -> Updates:
  """Multiplies each client's row by its factor, `[n]`, keeping dtypes."""

  def one(leaf):
    column = factors.reshape((-1,) + (1,) * (leaf.ndim - 1))
    return (leaf * column).astype(leaf.dtype)

  return jax.tree.map(one, updates)


def mix(updates: Updates, weights: jax.Array) -> Update:
  r"""The weighted sum of the clients' rows, :math:`\sum_i w_i x_i`.

  A row of weight zero is left out, not multiplied: `0 * nan` is `nan`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    weights: `[n]`. Not normalised here.

  Returns:
    One update, in the leaves' dtypes; sums run in float32 or wider.

  Raises:
    ValueError: if there is not one weight a client.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> lca.mix(jnp.array([[1., 2.], [jnp.nan, 5.]]), jnp.array([1., 0.]))
    Array([1., 2.], dtype=float32)
  """
  n = num_clients(updates)
  if jnp.shape(weights) != (n,):
    raise ValueError(
      f'weights must be one a client, ({n},), got {jnp.shape(weights)}'
    )
  return jax.tree.map(functools.partial(_leaf_mix, weights), updates)


def _leaf_mix(weights: jax.Array, leaf: jax.Array) -> jax.Array:
  rows = jnp.reshape(leaf, (len(leaf), -1))
  return _compiled_sum(weights, rows).reshape(leaf.shape[1:])


@jax.custom_jvp
def _weighted_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
  """`[n]` weights times `[n, columns]` rows, in the rows' dtype."""
  dtype = _wide(jnp.promote_types(rows.dtype, weights.dtype))
  w = weights.astype(dtype)
  used = w != 0

  def fused():
    x = jnp.where(used[:, None], rows, 0).astype(dtype)
    return jnp.sum(w[:, None] * x, axis=0)

  # XLA's CPU backend fuses no mask into a product: it would copy all the
  # updates. So it multiplies where no row is left out, and otherwise walks
  # over the rows in use, which are few when a rule selects.
  def product():
    return jnp.dot(w, rows.astype(dtype), precision=lax.Precision.HIGHEST)

  def walk():
    first = jnp.argsort(~used, stable=True)
    return lax.fori_loop(
      0,
      jnp.sum(used),
      lambda i, total: total + w[first[i]] * rows[first[i]].astype(dtype),
      jnp.zeros(rows.shape[1], dtype),
    )

  if rows.shape[1] <= _COLUMNS:
    return fused().astype(rows.dtype)
  total = lax.platform_dependent(
    cpu=lambda: lax.cond(jnp.all(used), product, walk), default=fused
  )
  return total.astype(rows.dtype)


@functools.partial(_weighted_sum.defjvp, symbolic_zeros=True)
def _weighted_sum_jvp(primals, tangents):
  """Linear in both; what has no tangent is left out, not multiplied by 0."""
  (weights, rows), (weights_dot, rows_dot) = primals, tangents
  dtype = _wide(jnp.promote_types(rows.dtype, weights.dtype))

  def product(w, x):
    return jnp.dot(
      w.astype(dtype), x.astype(dtype), precision=lax.Precision.HIGHEST
    )

  tangent = jnp.zeros(rows.shape[1], dtype)
  if not isinstance(weights_dot, SymbolicZero):
    tangent += product(weights_dot, rows)
  if not isinstance(rows_dot, SymbolicZero):
    tangent += product(weights, rows_dot)
  return _weighted_sum(weights, rows), tangent.astype(rows.dtype)


_compiled_sum = jax.jit(_weighted_sum)
