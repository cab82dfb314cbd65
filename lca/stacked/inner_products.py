r"""Gram matrices that keep the distances of close rows.

Rows with a large common part, such as the models of clients that started from
one model, lose their distances in float32: in :math:`\|x_i\|^2 + \|x_j\|^2 -
2 \langle x_i, x_j \rangle` the leading digits cancel, and rounding errors
remain.

If most rows are so close, a second pass over the parameters writes every row as
a multiple of one central row c plus a small part :math:`p_i`,

.. math:: x_i = (1 + \alpha_i) c + p_i

and takes the inner products of the parts and of c, from which distances and
angles follow without cancellation. The Gram matrix itself shows if rows are so
close. If they are not, the second pass does not run, and c is 0. The method is
the same on every backend; `sums.parts_products` makes the pass.
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

_LOST = 2**13  # times eps: products give smaller 1 - cos with errors above 1e-3
_PASSES = 2  # the second one runs if the first one's row c was not central
_FAR = 32  # times the least median distance: a row beyond it is not central

_DATA = ['products', 'parts', 'along']


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=_DATA, meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GramMatrix:
  r"""The inner products of n rows, and of the small parts in which they differ.

  In expressions, when indexed, and as an argument of functions of arrays it
  behaves as the `[n, n]` array of the inner products. The result is then a
  plain array, which carries no parts. A `GramMatrix` is a pytree, so that
  `jax.jit` and `jax.vmap` take and return it.

  Attributes:
    products: `[n, n]`, :math:`\langle x_i, x_j \rangle`.
    parts: `[n + 1, n + 1]`, the inner products of :math:`p_1, \dots, p_n, c`
      (see the module), zeros for rejected rows. If the products suffice, c is 0
      and every part :math:`p_i` is the row :math:`x_i`.
    along: `[n]`, :math:`\alpha`; 0 if c is 0.
  """

  products: jax.Array
  parts: jax.Array
  along: jax.Array

  def __jax_array__(self) -> jax.Array:
    return self.products

  def __array__(self, *args: Any, **kwargs: Any) -> Any:
    return self.products.__array__(*args, **kwargs)

  def __getattr__(self, name: str) -> Any:
    # Copying and unpickling look up these names before the fields are set.
    if name.startswith('__') or name in _DATA:
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


def _as_products(name, reflected=False):
  """Returns a method that applies an operator to the products."""

  def method(*operands):
    operands = [getattr(x, 'products', x) for x in operands]
    return getattr(operator, name)(*operands[:: -1 if reflected else 1])

  return method


for _name in ('add', 'sub', 'mul', 'truediv', 'matmul', 'pow'):
  setattr(GramMatrix, f'__{_name}__', _as_products(_name))
  setattr(GramMatrix, f'__r{_name}__', _as_products(_name, reflected=True))
for _name in ('neg', 'abs', 'eq', 'ne', 'lt', 'le', 'gt', 'ge'):
  setattr(GramMatrix, f'__{_name}__', _as_products(_name))


def diagonal(matrix: jax.Array) -> jax.Array:
  """Returns the diagonals, `[..., n]`, more cheaply than `jnp.diagonal`."""
  return jnp.einsum('...ii->...i', jnp.asarray(matrix))


def squared_norms(gram: jax.Array) -> jax.Array:
  """Returns the squared norms, `[n]`, +inf for rejected rows."""
  squares = diagonal(gram)
  acceptable = squares <= jnp.finfo(gram.dtype).max / 16  # False for NaN
  return jnp.where(acceptable, squares, jnp.inf)


def rejected_rows(gram: jax.Array) -> jax.Array:
  """Returns the mask of rejected rows, `[n]` (see `lca.geometry`)."""
  return jnp.isinf(squared_norms(gram))


def norms(gram: jax.Array) -> jax.Array:
  """Returns the Euclidean norms, `[n]`, +inf for rejected rows."""
  return jnp.sqrt(squared_norms(gram))


def cosines(gram: jax.Array) -> jax.Array:
  """Returns the cosines between rows, `[n, n]`, in [-1, 1].

  Cosines with a zero row or a rejected row are 0. Near 1, rounding hides the
  differences between cosines; `distances(gram, 'cosine')` has 1 - cos without
  this loss.
  """
  lengths = norms(gram)
  absent = (lengths == 0) | jnp.isinf(lengths)
  safe = jnp.where(absent, 1, lengths)
  # The product of two norms may overflow, so divide by one after the other. The
  # longer one comes first, which makes the matrix symmetric to the last bit.
  longer = jnp.maximum(safe[:, None], safe)
  shorter = jnp.minimum(safe[:, None], safe)
  cos = jnp.clip(gram / longer / shorter, -1, 1)
  return jnp.where(absent[:, None] | absent, 0, cos)


def squared_distances(gram: jax.Array) -> jax.Array:
  """Returns the squared distances, `[n, n]`, from the parts where needed."""
  squares = diagonal(gram)
  both = squares[:, None] + squares
  rough = jnp.maximum(both - 2 * gram, 0)
  if not isinstance(gram, GramMatrix):
    return rough
  # The squared norm of x_i - x_j = (p_i - p_j) + (alpha_i - alpha_j) c.
  rest, across, square = _blocks(gram)
  rest_squares, delta = diagonal(rest), gram.along[:, None] - gram.along
  exact = rest_squares[:, None] + rest_squares - 2 * rest
  exact += delta * (2 * (across[:, None] - across) + delta * square)
  lost = (square > 0) & (rough <= _tolerance(gram) * both)
  return jnp.where(lost, jnp.maximum(exact, 0), rough)


def one_less_cosines(gram: jax.Array) -> jax.Array:
  """Returns 1 - cos in [0, 2], `[n, n]`, from the parts where needed."""
  rough = 1 - cosines(gram)
  if not isinstance(gram, GramMatrix):
    return rough
  rest, across, square = _blocks(gram)
  shares = 1 + gram.along
  valid = (square > 0) & (shares > 0)
  shares = jnp.where(valid, shares, 1)
  # y_i = x_i / (1 + alpha_i) = c + q_i has the direction of x_i, and
  # 1 - cos = (|y_i - y_j|^2 - (|y_i| - |y_j|)^2) / (2 |y_i| |y_j|).
  rest, across = rest / (shares[:, None] * shares), across / shares  # of the q
  rest_squares = diagonal(rest)
  lengths = jnp.sqrt(jnp.where(valid, square + 2 * across + rest_squares, 1))
  longer = 2 * (across[:, None] - across) + rest_squares[:, None] - rest_squares
  longer /= lengths[:, None] + lengths  # |y_i| - |y_j|, from their squares
  exact = rest_squares[:, None] + rest_squares - 2 * rest - longer**2
  exact /= 2 * (lengths[:, None] * lengths)
  lost = valid[:, None] & valid & (rough <= _tolerance(gram))
  return jnp.where(lost, jnp.maximum(exact, 0), rough)


def differences(gram: jax.Array) -> jax.Array:
  r"""Returns the inner products of the rows' differences from one point c.

  .. math:: \langle x_i - c, x_j - c \rangle

  Here c is the central row if most rows are so close to it that the products
  lose their distances. Otherwise c is 0, and the result is the products. A
  quantity that depends on differences alone, such as a variance, is the same
  for every c, and more exact for a central one.

  Returns:
    `[n, n]`.
  """
  if not isinstance(gram, GramMatrix):
    return gram
  # With x_i - c = p_i + alpha_i c.
  rest, across, square = _blocks(gram)
  alpha = gram.along
  shifted = rest + alpha[:, None] * across + alpha * across[:, None]
  shifted += alpha[:, None] * alpha * square
  squares = diagonal(gram)
  good = ~rejected_rows(gram)
  near = diagonal(shifted) <= _tolerance(gram) * (squares + square)
  most = jnp.sum(good & near) > jnp.sum(good) // 2
  return jnp.where((square > 0) & most, shifted, gram.products)


def without(gram: Any, rows: jax.Array) -> Any:
  """Returns the matrix with zeros in the rows and columns of a mask, `[n]`."""
  if not isinstance(gram, GramMatrix):
    return jnp.where(rows[:, None] | rows, 0, gram)
  absent = jnp.append(rows, False)
  return GramMatrix(
    without(gram.products, rows),
    without(gram.parts, absent),
    jnp.where(rows, 0, gram.along),
  )


def gram_of_sums(weights: jax.Array, gram: Any, lost: jax.Array) -> Any:
  """Returns the Gram matrix of k weighted sums of the rows, `[k, k]`.

  Args:
    weights: `[k, n]`. If a row's sum is 1 up to rounding, it counts as 1.
    gram: `[n, n]` inner products of finite rows.
    lost: `[k]` mask of the sums that are set to NaN.
  """

  def on_both_sides(weights, products):
    mixed = sums.dot(sums.dot(weights, products), weights.T)
    # If rows cancel out, rounding may make the sum's squared norm negative.
    squares = jnp.maximum(diagonal(mixed), 0)
    return jnp.where(jnp.eye(len(mixed), dtype=bool), squares, mixed)

  products = on_both_sides(weights, jnp.asarray(gram))
  products = jnp.where(lost[:, None] | lost, jnp.nan, products)
  if not isinstance(gram, GramMatrix):
    return products
  # A sum is (1 + alpha) c + sum_i w_i p_i with
  # alpha = sum_i w_i - 1 + sum_i w_i alpha_i.
  excess = jnp.sum(weights, axis=1) - 1
  rounding = len(gram) * jnp.finfo(gram.dtype).eps
  excess = jnp.where(jnp.abs(excess) <= rounding, 0, excess)
  extended = jnp.pad(weights, ((0, 1), (0, 1))).at[-1, -1].set(1)  # keeps c
  parts = on_both_sides(extended, gram.parts)
  return GramMatrix(products, parts, excess + sums.dot(weights, gram.along))


# Making the matrices --------------------------------------------------------


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
  products = jnp.stack(
    [functools.reduce(jnp.add, map(sums.products, leaves)) for leaves in layers]
  )
  good, eps = ~rejected_rows(products), jnp.finfo(products.dtype).eps
  finite = jnp.where(_pairs(good), products, 0)
  lengths = jnp.sqrt(diagonal(finite))
  lost = _most_are_parallel(finite, lengths)  # [layers] that need another pass
  # Before the first pass c is 0 and the parts p_i are the rows. The norms take
  # the place of the shares 1 + alpha_i, so that directions are compared.
  parts = jnp.pad(finite, ((0, 0), (0, 1), (0, 1)))
  present = jnp.pad(good, ((0, 0), (0, 1)), constant_values=True)

  # The row c is the one of the least median distance from the others, by the
  # distances known so far. A row that is central by the products alone may turn
  # out to be far from the others; then a second pass takes another row.
  def make_pass(carry):
    parts, shares, middle, lost, passes = carry
    medians = _median_distances(parts[:, :-1, :-1], shares)
    near = _entry(medians, middle) <= _FAR * jnp.min(medians, axis=-1)
    lost &= ~near | (passes == 0)
    middle = jnp.where(lost, jnp.argmin(medians, axis=-1), middle)
    # (1 + alpha_i) c is the multiple of c nearest to x_i. The alpha are rounded
    # to whole multiples of eps, so that 1 + alpha has no rounding error.
    with_c = jnp.take_along_axis(finite, middle[:, None, None], axis=1)[:, 0]
    ratios = with_c / _entry(with_c, middle)[:, None]
    alpha = jnp.round((ratios - 1) / eps) * eps
    shares = jnp.where(lost[:, None], 1 + alpha, shares)
    new_parts = sums.parts_products(layers, lost, shares, middle)
    new_parts = jnp.where(_pairs(present), new_parts, 0)
    parts = jnp.where(lost[:, None, None], new_parts, parts)
    return parts, shares, middle, lost, passes + 1

  def is_needed(carry):
    *_, lost, passes = carry
    return jnp.any(lost) & (passes < _PASSES)

  carry = parts, lengths, jnp.zeros(len(layers), int), lost, 0
  parts, shares, middle, *_ = lax.while_loop(is_needed, make_pass, carry)
  along = jnp.where(parts[:, -1:, -1] > 0, shares - 1, 0)
  return GramMatrix(products, parts, along), middle


def _most_are_parallel(products, lengths):
  """Returns `[layers]`, True if most rows are nearly parallel to one row."""
  sizes = lengths[:, :, None] * lengths[:, None]
  near = (sizes > 0) & (products >= (1 - _tolerance(products)) * sizes)
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


def _tolerance(gram):
  """Returns the relative squared distance below which the parts are needed."""
  return _LOST * jnp.finfo(gram.dtype).eps


def _blocks(gram):
  """Returns `[n, n]` <p_i, p_j>, `[n]` <p_i, c> and <c, c>."""
  parts = gram.parts
  return parts[:-1, :-1], parts[:-1, -1], parts[-1, -1]


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
