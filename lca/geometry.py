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
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from lca import sharding
from lca.typing import Gram, Update, Updates

Distance = Literal['euclidean', 'cosine']
Median = Literal['interpolated', 'lower']

_COLUMNS = 8192  # a [100, 8192] chunk of float32 stays in a CPU's cache
_AT_ONCE = 4  # parts of a chunk, whose products and copies need not wait
_FEW_COLUMNS = 4096  # so many that all rows cost no more than a walk
_ROWS = 8  # that a CPU adds at once


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
  grams = [_products(leaf) for leaf in jax.tree.leaves(updates)]
  return functools.reduce(jnp.add, grams)


def wide(dtype: jnp.dtype) -> jnp.dtype:
  """The dtype that sums run in: float32, or wider where the data are."""
  return jnp.promote_types(dtype, jnp.float32)


def norms_gram(updates: Updates) -> Gram:
  """The diagonal of `gram` with zeros beside it, for what needs norms only.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.

  Returns:
    `[n, n]`; it costs one reading of the updates.
  """
  num_clients(updates)
  squares = [_squares(leaf) for leaf in jax.tree.leaves(updates)]
  return jnp.diag(functools.reduce(jnp.add, squares))


def one_client(update: Update) -> Updates:
  """One update as the stacked updates of a single client."""
  return jax.tree.map(lambda x: x[None], update)


@jax.jit
def _squares(leaf: jax.Array) -> jax.Array:
  x = leaf.astype(wide(leaf.dtype))
  return jnp.sum(x * x, axis=range(1, x.ndim))


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

  products = jax.tree.map(_leaf_inner, updates, update)
  return functools.reduce(jnp.add, jax.tree.leaves(products))


@jax.jit
def _leaf_inner(leaf: jax.Array, other: jax.Array) -> jax.Array:
  return sum_over_columns(lambda x, y: dot(x, y.T)[:, 0], leaf, other[None])


def flat(leaf: jax.Array) -> jax.Array:
  """The columns of a stacked leaf, `[n, columns]`."""
  return jnp.reshape(leaf, (len(leaf), -1))


@jax.custom_jvp
@jax.jit
def _products(leaf: jax.Array) -> Gram:
  """The Gram matrix of a leaf's rows."""
  return sum_over_columns(lambda x: dot(x, x.T), leaf)


def sum_over_columns(
  function: Callable[..., jax.Array],
  *leaves: jax.Array,
  whole: tuple[jax.Array, ...] = (),
) -> jax.Array:
  """Sums what a function makes of blocks of columns that stay in cache.

  Args:
    function: of `[n, c]` blocks, one of each leaf, and of `whole`; what it
      returns is shaped alike for every c.
    *leaves: `[n, ...]`, alike but for n.
    whole: what it needs beside the blocks.

  Returns:
    The sum; where there is no cache to mind, of a single block a device.
  """

  def on_device(leaves, whole):
    return _sum_over_blocks(
      lambda *blocks: function(*blocks, *whole), *map(flat, leaves)
    )

  return sharding.sum_over_devices(on_device, leaves, whole)


def _sum_over_blocks(function, *rows):
  columns = rows[0].shape[1]

  def whole():
    return function(*rows)

  def block(start, width):
    return function(
      *(lax.dynamic_slice_in_dim(x, start, width, axis=1) for x in rows)
    )

  def by_blocks():
    count, rest = divmod(columns, _COLUMNS)
    width = _COLUMNS // _AT_ONCE

    def step(i, total):
      for part in range(_AT_ONCE):
        total += block(i * _COLUMNS + part * width, width)
      return total

    return lax.fori_loop(0, count, step, block(count * _COLUMNS, rest))

  if columns <= _COLUMNS:
    return whole()
  return lax.platform_dependent(cpu=by_blocks, default=whole)


@_products.defjvp
def _products_jvp(primals, tangents):
  """Rows that are not finite are nobody's neighbours."""
  (leaf,), (leaf_dot,) = primals, tangents
  products, half = _products(leaf), dot(flat(leaf_dot), _finite(flat(leaf)).T)
  return products, (half + half.T).astype(products.dtype)


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
  """A product in float32 or wider.

  TPUs and TF32 multiply in less than float32 unless told otherwise, and
  distances of close clients would drown in that.
  """
  x, y = x.astype(wide(x.dtype)), y.astype(wide(y.dtype))
  return jnp.dot(x, y, precision=lax.Precision.HIGHEST)


def _finite(x: jax.Array) -> jax.Array:
  return jnp.where(jnp.isfinite(x), x, 0)


def squared_norms(gram: Gram) -> jax.Array:
  """`[n]` squared norms, +inf for rejected rows."""
  squares = jnp.diagonal(gram)
  acceptable = squares <= jnp.finfo(gram.dtype).max / 16  # False for NaN
  return jnp.where(acceptable, squares, jnp.inf)


def rejected_rows(gram: Gram) -> jax.Array:
  """`[n]` mask of the rows that no rule selects or mixes (see the module)."""
  return jnp.isinf(squared_norms(gram))


def without_rejected(gram: Gram, rejected: jax.Array | None = None) -> Gram:
  """`gram` with zeros in the rows and columns of rejected clients.

  Args:
    gram: `[..., n, n]` inner products.
    rejected: `[n]` mask of these clients; by default those that `gram`,
      `[n, n]`, itself rejects.
  """
  bad = rejected_rows(gram) if rejected is None else rejected
  return jnp.where(bad[:, None] | bad, 0, gram)


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


def cosines(gram: Gram) -> jax.Array:
  """`[n, n]` cosines in [-1, 1]; 0 beside a zero row or a rejected one."""
  lengths = norms(gram)
  absent = (lengths == 0) | jnp.isinf(lengths)
  safe = jnp.where(absent, 1, lengths)
  # One division after the other: the product of two norms may overflow.
  cos = jnp.clip(gram / safe[:, None] / safe, -1, 1)
  return jnp.where(absent[:, None] | absent, 0, cos)


def _cosine(gram: Gram) -> jax.Array:
  zero = jnp.diagonal(gram) == 0
  cos = jnp.where(zero[:, None] ^ zero, -1, cosines(gram))
  return 1 - jnp.where(zero[:, None] & zero, 1, cos)


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


def shrink_factors(lengths: jax.Array, threshold: jax.Array) -> jax.Array:
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
  return jax.tree.map(functools.partial(_mixed, weights), updates)


# What brackets do, traced in half the time.
_at = functools.partial(
  lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False
)


@jax.jit
def rows_of(x: jax.Array) -> list[jax.Array]:
  """The rows of `[k, ...]` numbers, for k sums of which each takes one.

  XLA's CPU backend would fuse what makes them into every sum, and compile it
  as often: it does not fuse a sort, even of what is in order. And it compiles
  equal programs once: sums of equal leaves become such, as the number of the
  row is read from a place that it does not know.
  """

  def looked_up(x):
    place = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    place, x = lax.sort_key_val(place, x)
    first = place[(0,) * x.ndim]
    return [_at(x, _at(jnp.array([k, -1]), first)) for k in range(len(x))]

  return lax.platform_dependent(x, cpu=looked_up, default=list)


@jax.custom_jvp
@jax.jit
def _mixed(weights: jax.Array, leaf: jax.Array) -> jax.Array:
  """`[..., n]` weights times the rows `[n, ...]`, in their dtype."""
  lead, dtype = weights.shape[:-1], _mixed_dtype(weights, leaf)
  sums = _many_sums if lead else _one_sum

  def on_device(leaves, weights):
    (leaf,) = leaves
    mixed = sums(weights, flat(leaf))
    return [mixed.reshape(*lead, *leaf.shape[1:]).astype(leaf.dtype)]

  (mixed,) = sharding.on_each_device(
    on_device, [leaf], weights.astype(dtype), len(lead)
  )
  return mixed


def _mixed_dtype(weights, leaf):
  return wide(jnp.promote_types(leaf.dtype, weights.dtype))


def _one_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
  """`[n]` weights times rows."""

  def fused():
    column = weights[:, None]
    x = jnp.where(column != 0, rows, 0).astype(weights.dtype)
    return jnp.sum(column * x, axis=0)

  # XLA's CPU backend sums the rows of a large leaf column by column, which is
  # slow. So it walks over those in use, which are few when a rule selects.
  def walk():
    padded = jnp.pad(weights, (0, _ROWS))
    number = jnp.arange(len(padded))
    _, order, w = lax.sort((padded == 0, number, padded), num_keys=1)

    def weighed(k):
      weight, row = _at(w, k), _at(rows, _at(order, k)).astype(w.dtype)
      return jnp.where(weight != 0, weight * row, 0)

    def step(i, total):
      for k in range(1, _ROWS + 1):
        total += weighed(i * _ROWS + k)
      return total

    more = jnp.sum(weights != 0) - 1
    return lax.fori_loop(0, -(-more // _ROWS), step, weighed(0))

  if rows.shape[1] <= _FEW_COLUMNS:
    return fused()
  return lax.platform_dependent(cpu=walk, default=fused)


def _many_sums(weights: jax.Array, rows: jax.Array) -> jax.Array:
  """`[k, n]` weights times rows, without a masked copy of all rows."""
  # A row of NaN weights is a sum that is to be NaN: it makes use of no row.
  used = jnp.any((weights != 0) & ~jnp.isnan(weights), axis=0)

  def block(start, width):
    x = lax.dynamic_slice_in_dim(rows, start, width, axis=1)
    x = jnp.where(used[:, None], x, 0).astype(weights.dtype)
    return dot(weights, x)

  def by_columns(width):
    last = rows.shape[1] - width  # the last block reaches back

    def step(i, out):
      start = jnp.minimum(i * width, last)
      return lax.dynamic_update_slice(out, block(start, width), (0, start))

    out = jnp.zeros((len(weights), rows.shape[1]), weights.dtype)
    return lax.fori_loop(0, -(-rows.shape[1] // width), step, out)

  if rows.shape[1] <= _COLUMNS:
    return block(0, rows.shape[1])
  return lax.platform_dependent(
    cpu=functools.partial(by_columns, _COLUMNS),
    default=functools.partial(by_columns, min(2**18, rows.shape[1])),
  )


@functools.partial(_mixed.defjvp, symbolic_zeros=True)
def _mixed_jvp(primals, tangents):
  """Linear in both; what has no tangent is left out, not multiplied by 0."""
  (weights, leaf), (weights_dot, leaf_dot) = primals, tangents
  rows = flat(leaf)
  dtype = _mixed_dtype(weights, leaf)
  tangent = jnp.zeros((*weights.shape[:-1], rows.shape[1]), dtype)
  if not isinstance(weights_dot, SymbolicZero):
    # A row left out may hold anything, and has a weight that does not change.
    tangent += dot(weights_dot, _finite(rows))
  if not isinstance(leaf_dot, SymbolicZero):
    tangent += dot(weights, flat(leaf_dot))
  mixed = _mixed(weights, leaf)
  return mixed, tangent.reshape(mixed.shape).astype(leaf.dtype)
