r"""Inner products that keep the distances of close rows.

Rows with a large common part, such as the models of clients that started from
one model, lose their distances in float32: of :math:`\|x_i\|^2 + \|x_j\|^2 -
2 \langle x_i, x_j \rangle` the leading digits cancel, and rounding is left.

Where that happens to most rows, a second pass over the parameters parts every
row by one row c in the middle,

.. math:: x_i = (1 + \alpha_i) c + p_i

and takes the inner products of the small parts :math:`p_i`, from which
distances and angles follow to all digits. Numbers of `[n, n]` say whether the
pass is needed; where it is not, it does not run.
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lca.stacked import sums

_LOST = 2**13  # roundings: what is left of 1 - cos below is known to 1e-3
_PASSES = 2  # the second one if the first one's row was far from the middle
_FAR = 32  # times the least median of 1 - cos, of a row not in the middle

_DATA = ['products', 'parts', 'along']


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=_DATA, meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GramMatrix:
  r"""The inner products of n rows, and those of what the rows differ by.

  In expressions, indexed, and as an argument of functions of arrays it is the
  `[n, n]` array of the inner products; what comes out is a plain array, whose
  distances are as exact as the products are. It is a pytree, so that `jax.jit`
  and `jax.vmap` take and return it.

  Attributes:
    products: `[n, n]`, :math:`\langle x_i, x_j \rangle`.
    parts: `[n + 1, n + 1]`, the inner products of :math:`p_1, \dots, p_n, c`
      (see the module), zeros for rejected rows. Where products tell distances,
      c is 0 and these are the products themselves.
    along: `[n]`, :math:`\alpha`.
  """

  products: jax.Array
  parts: jax.Array
  along: jax.Array

  def __jax_array__(self) -> jax.Array:
    return self.products

  def __array__(self, *args: Any, **kwargs: Any) -> Any:
    return self.products.__array__(*args, **kwargs)

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__') or name in _DATA:  # what copies and pickles ask
      raise AttributeError(name)
    return getattr(self.products, name)

  def __getitem__(self, index: Any) -> jax.Array:
    return self.products[index]

  def __len__(self) -> int:
    return len(self.products)

  def __iter__(self) -> Any:
    return iter(self.products)

  def __repr__(self) -> str:
    return repr(self.products)


def _as_products(name, turned=False):
  """Returns a method that is an operator on the products."""

  def method(*operands):
    operands = [getattr(x, 'products', x) for x in operands]
    return getattr(operator, name)(*operands[:: -1 if turned else 1])

  return method


for _name in ('add', 'sub', 'mul', 'truediv', 'matmul', 'pow'):
  setattr(GramMatrix, f'__{_name}__', _as_products(_name))
  setattr(GramMatrix, f'__r{_name}__', _as_products(_name, turned=True))
for _name in ('neg', 'abs', 'eq', 'ne', 'lt', 'le', 'gt', 'ge'):
  setattr(GramMatrix, f'__{_name}__', _as_products(_name))


def diagonal(matrix: jax.Array) -> jax.Array:
  """`[..., n]`, with a third of the operations of `jnp.diagonal`."""
  return jnp.einsum('...ii->...i', jnp.asarray(matrix))


def squared_norms(gram: jax.Array) -> jax.Array:
  """`[n]` squared norms, +inf for rejected rows."""
  squares = diagonal(gram)
  acceptable = squares <= jnp.finfo(gram.dtype).max / 16  # False for NaN
  return jnp.where(acceptable, squares, jnp.inf)


def rejected_rows(gram: jax.Array) -> jax.Array:
  """`[n]` mask of the rows that no rule selects or mixes (see geometry)."""
  return jnp.isinf(squared_norms(gram))


def norms(gram: jax.Array) -> jax.Array:
  """`[n]` Euclidean norms, +inf for rejected rows."""
  return jnp.sqrt(squared_norms(gram))


def cosines(gram: jax.Array) -> jax.Array:
  """`[n, n]` cosines in [-1, 1]; 0 beside a zero row or a rejected one.

  A number near 1 cannot tell nearly parallel rows apart: 1 less it, to all
  digits, is `distances(gram, 'cosine')`.
  """
  lengths = norms(gram)
  absent = (lengths == 0) | jnp.isinf(lengths)
  safe = jnp.where(absent, 1, lengths)
  # One division after the other, as the product of two norms may overflow: the
  # longer one first, so that the matrix is symmetric to the last bit.
  longer = jnp.maximum(safe[:, None], safe)
  shorter = jnp.minimum(safe[:, None], safe)
  cos = jnp.clip(gram / longer / shorter, -1, 1)
  return jnp.where(absent[:, None] | absent, 0, cos)


def squared_distances(gram: jax.Array) -> jax.Array:
  """`[n, n]` squared distances, from the parts where the products lose them."""
  squares = diagonal(gram)
  both = squares[:, None] + squares
  rough = jnp.maximum(both - 2 * gram, 0)
  if not isinstance(gram, GramMatrix):
    return rough
  rest, across, square = _blocks(gram)
  own, more = diagonal(rest), gram.along[:, None] - gram.along
  exact = own[:, None] + own - 2 * rest
  exact += more * (2 * (across[:, None] - across) + more * square)
  lost = (square > 0) & (rough <= _tolerance(gram) * both)
  return jnp.where(lost, jnp.maximum(exact, 0), rough)


def one_less_cosines(gram: jax.Array) -> jax.Array:
  """`[n, n]`, 1 - cos in [0, 2], from the parts where the products lose it."""
  rough = 1 - cosines(gram)
  if not isinstance(gram, GramMatrix):
    return rough
  rest, across, square = _blocks(gram)
  shares = 1 + gram.along
  there = (square > 0) & (shares > 0)
  shares = jnp.where(there, shares, 1)
  # Rows divided by their shares are c and a little more, q.
  rest, across = rest / (shares[:, None] * shares), across / shares
  own = diagonal(rest)
  lengths = jnp.sqrt(jnp.where(there, square + 2 * across + own, 1))
  longer = 2 * (across[:, None] - across) + own[:, None] - own
  longer /= lengths[:, None] + lengths
  exact = own[:, None] + own - 2 * rest - longer**2
  exact /= 2 * (lengths[:, None] * lengths)
  lost = there[:, None] & there & (rough <= _tolerance(gram))
  return jnp.where(lost, jnp.maximum(exact, 0), rough)


def differences(gram: jax.Array) -> jax.Array:
  r"""`[n, n]` inner products of the rows less a point that they share.

  .. math:: \langle x_i - c, x_j - c \rangle

  where most rows are so close to the row c in the middle that the products
  lose their distances; elsewhere c is 0, and these are the products. What
  depends on differences alone, as a variance does, is the same for every c,
  and more exact for this one.
  """
  if not isinstance(gram, GramMatrix):
    return gram
  rest, across, square = _blocks(gram)
  more = gram.along
  shifted = rest + more[:, None] * across + more * across[:, None]
  shifted += more[:, None] * more * square
  squares = diagonal(gram)
  good = ~rejected_rows(gram)
  near = diagonal(shifted) <= _tolerance(gram) * (squares + square)
  most = jnp.sum(good & near) > jnp.sum(good) // 2
  return jnp.where((square > 0) & most, shifted, gram.products)


def without(gram: Any, rows: jax.Array) -> Any:
  """The matrix with zeros in the rows and columns of a mask, `[n]`."""
  if not isinstance(gram, GramMatrix):
    return jnp.where(rows[:, None] | rows, 0, gram)
  absent = jnp.append(rows, False)
  return GramMatrix(
    without(gram.products, rows),
    without(gram.parts, absent),
    jnp.where(rows, 0, gram.along),
  )


def gram_of_sums(weights: jax.Array, gram: Any, lost: jax.Array) -> Any:
  """The inner products of weighted sums of the rows.

  Args:
    weights: `[k, n]`. Those that sum to 1 but for rounding count as such.
    gram: `[n, n]` of finite rows.
    lost: `[k]` mask of the sums that are to be NaN.

  Returns:
    `[k, k]`.
  """

  def on_both_sides(weights, products):
    mixed = sums.dot(sums.dot(weights, products), weights.T)
    squares = jnp.maximum(diagonal(mixed), 0)  # of rows that cancel out
    return jnp.where(jnp.eye(len(mixed), dtype=bool), squares, mixed)

  products = on_both_sides(weights, jnp.asarray(gram))
  products = jnp.where(lost[:, None] | lost, jnp.nan, products)
  if not isinstance(gram, GramMatrix):
    return products
  more = jnp.sum(weights, axis=1) - 1
  rounding = len(gram) * jnp.finfo(gram.dtype).eps
  more = jnp.where(jnp.abs(more) <= rounding, 0, more)
  # The row c stays what it is.
  extended = jnp.pad(weights, ((0, 1), (0, 1))).at[-1, -1].set(1)
  parts = on_both_sides(extended, gram.parts)
  return GramMatrix(products, parts, more + sums.dot(weights, gram.along))


# Making them ----------------------------------------------------------------


@jax.custom_jvp
def of_layers(layers: Sequence[Sequence[jax.Array]]) -> GramMatrix:
  """The inner products of all pairs of rows, of each layer.

  Args:
    layers: lists of leaves `[n, ...]`.

  Returns:
    `[layers, n, n]`.
  """
  gram, _ = _parted(layers)
  return gram


@jax.jit
def _parted(layers):
  """The matrices, and `[layers]` which row is c where it is not 0."""
  products = jnp.stack(
    [functools.reduce(jnp.add, map(sums.products, leaves)) for leaves in layers]
  )
  good, eps = ~rejected_rows(products), jnp.finfo(products.dtype).eps
  finite = jnp.where(_pairs(good), products, 0)
  lengths = jnp.sqrt(diagonal(finite))
  lost = _most_are_parallel(finite, lengths)
  parts = jnp.pad(finite, ((0, 0), (0, 1), (0, 1)))
  present = jnp.pad(good, ((0, 0), (0, 1)), constant_values=True)

  # The row c is the one of the least median distance from the others, by what
  # is known of the distances so far. A row that the products alone have put in
  # the middle may turn out to be far from it, and then another one is c.
  def look_again(carry):
    parts, shares, middle, lost, passes = carry
    medians = _medians(parts[:, :-1, :-1], shares)
    near = _at(medians, middle) <= _FAR * jnp.min(medians, axis=-1)
    lost &= ~near | (passes == 0)
    middle = jnp.where(lost, jnp.argmin(medians, axis=-1), middle)
    # The multiples of c that the rows are nearest to, less 1, a whole number of
    # eps each, for 1 + alpha to have no rounding of its own.
    own = jnp.take_along_axis(finite, middle[:, None, None], axis=1)[:, 0]
    alpha = jnp.round((own / _at(own, middle)[:, None] - 1) / eps) * eps
    shares = jnp.where(lost[:, None], 1 + alpha, shares)
    found = sums.parts_products(layers, lost, shares, middle)
    found = jnp.where(_pairs(present), found, 0)
    parts = jnp.where(lost[:, None, None], found, parts)
    return parts, shares, middle, lost, passes + 1

  def goes_on(carry):
    *_, lost, passes = carry
    return jnp.any(lost) & (passes < _PASSES)

  carry = parts, lengths, jnp.zeros(len(layers), int), lost, 0
  parts, shares, middle, *_ = lax.while_loop(goes_on, look_again, carry)
  along = jnp.where(parts[:, -1:, -1] > 0, shares - 1, 0)
  return GramMatrix(products, parts, along), middle


def _most_are_parallel(products, lengths):
  """`[layers]`: a row and most others are too near to parallel for products."""
  sizes = lengths[:, :, None] * lengths[:, None]
  near = (sizes > 0) & (products >= (1 - _tolerance(products)) * sizes)
  half = jnp.sum(lengths > 0, axis=-1) // 2
  return (jnp.max(jnp.sum(near, axis=-1), axis=-1) > half) & (half > 0)


def _medians(parts, shares):
  """`[layers, n]` medians of squared distances of the rows over their shares.

  +inf for rows without a positive share.
  """
  there = shares > 0
  safe = jnp.where(there, shares, 1)
  scaled = parts / safe[:, :, None] / safe[:, None]
  own = diagonal(scaled)
  apart = own[:, :, None] + own[:, None] - 2 * scaled
  ordered = jnp.sort(jnp.where(_pairs(there), apart, jnp.inf), axis=-1)
  return _at(ordered, jnp.sum(there, axis=-1, keepdims=True) // 2)


def _pairs(rows):
  """Returns the mask of pairs of rows of a mask `[..., n]`."""
  return rows[..., :, None] & rows[..., None, :]


def _at(numbers, places):
  """Takes one entry along the last axis, of the index `places[...]`."""
  return jnp.take_along_axis(numbers, places[..., None], axis=-1)[..., 0]


def _tolerance(gram):
  return _LOST * jnp.finfo(gram.dtype).eps


def _blocks(gram):
  """Inner products of the parts, of the parts with c, and of c."""
  parts = gram.parts
  return parts[:-1, :-1], parts[:-1, -1], parts[-1, -1]


@of_layers.defjvp
def _of_layers_jvp(primals, tangents):
  """With c the same row and alpha held; rejected rows are nobody's."""
  (layers,), (moved,) = primals, tangents
  gram, middle = _parted(layers)
  tangent = [
    _tangent(*row)
    for row in zip(layers, moved, gram.along, gram.parts, middle, strict=True)
  ]
  return gram, jax.tree.map(lambda *x: jnp.stack(x), *tangent)


def _tangent(leaves, moved, along, parts, middle):
  parted = parts[-1, -1] > 0
  shares = jnp.where(parted, 1 + along, 0)
  # Of the rows' tangents with the parts, and with c.
  products = functools.reduce(
    jnp.add,
    [
      sums.tangent_products(leaf, leaf_dot, shares, middle, parted)
      for leaf, leaf_dot in zip(leaves, moved, strict=True)
    ],
  ).astype(parts.dtype)
  within, across = products[:, :-1], products[:, -1]
  half = within + across[:, None] * shares
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
