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
the same on every backend; `lca.stacked.gram_passes` makes the passes.
"""

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from lca.stacked import sums

_LOST = 2**13  # times eps: products give smaller 1 - cos with errors above 1e-3

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
  return jnp.where(rejected_squares(squares), jnp.inf, squares)


def rejected_squares(squares: jax.Array) -> jax.Array:
  """Returns the mask of the rows rejected for their squared norms, `[n]`."""
  return ~(squares <= jnp.finfo(squares.dtype).max / 16)  # also for NaN


def rejected_rows(gram: jax.Array) -> jax.Array:
  """Returns the mask of rejected rows, `[n]` (see `lca.geometry`)."""
  return jnp.isinf(squared_norms(gram))


def norms(gram: jax.Array) -> jax.Array:
  """Returns the Euclidean norms, `[n]`, +inf for rejected rows."""
  return jnp.sqrt(squared_norms(gram))


def norm_differences(gram: jax.Array) -> jax.Array:
  """Returns the differences of all pairs of norms, `[n, n]`.

  The differences from the parts have the digits that the norms of close rows
  lose. Differences with a rejected row have no meaning.
  """
  lengths = norms(gram)
  rough = lengths[:, None] - lengths
  if not isinstance(gram, GramMatrix):
    return rough
  # The squared norms of x_i = (1 + alpha_i) c + p_i, less those of x_j.
  rest, across, square = _blocks(gram)
  shares = 1 + gram.along
  own = 2 * shares * across + diagonal(rest)
  exact = (gram.along[:, None] - gram.along) * (shares[:, None] + shares)
  exact = exact * square + own[:, None] - own
  both = lengths[:, None] + lengths
  return jnp.where(square > 0, exact / jnp.where(both > 0, both, 1), rough)


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
  lost = (square > 0) & (rough <= tolerance(gram) * both)
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
  lost = valid[:, None] & valid & (rough <= tolerance(gram))
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
  near = diagonal(shifted) <= tolerance(gram) * (squares + square)
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


def tolerance(gram: jax.Array) -> float:
  """Returns the relative squared distance below which the parts are needed."""
  return _LOST * float(jnp.finfo(gram.dtype).eps)


def _blocks(gram):
  """Returns `[n, n]` <p_i, p_j>, `[n]` <p_i, c> and <c, c>."""
  parts = gram.parts
  return parts[:-1, :-1], parts[:-1, -1], parts[-1, -1]
