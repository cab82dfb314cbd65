"""Rows as far from the honest mean as distances of honest rows allow."""

from typing import Literal

import jax
import jax.numpy as jnp

from lca import options
from lca.attacks import honest as among
from lca.attacks.base import replace, update_attack
from lca.typing import Updates

Direction = Literal['unit', 'std', 'sign']

_direction = options.one_of('unit', 'std', 'sign')


@update_attack(direction=_direction)
def min_max(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  direction: Direction = 'std',
) -> Updates:
  r"""Min-Max: no farther from any honest row than those are from each other.

  .. math:: \hat x_b = \mu + \gamma p, \qquad \gamma = \max \gamma : \;
      \max_{i \in H} \|\mu + \gamma p - x_i\| \le
      \max_{i, j \in H} \|x_i - x_j\|

  The paper halves steps until :math:`\gamma` is close to the largest one. Each
  i bounds it by a quadratic, :math:`\gamma^2 \|p\|^2 + 2 \gamma \langle p, \mu
  - x_i \rangle + \|\mu - x_i\|^2 \le D^2`, and the smallest of their larger
  roots is that :math:`\gamma`, in closed form; the length of p cancels.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    direction: p; `'unit'` :math:`-\mu / \|\mu\|`, `'std'` minus the honest
      rows' deviation, `'sign'` :math:`-\mathrm{sign}(\mu)`.

  Returns:
    Stacked updates. With one honest row, or p = 0, the mean is sent.

  Raises:
    ValueError: unknown direction.

  Examples:
    >>> import jax.numpy as jnp
    >>> from lca import attacks
    >>> print(attacks.min_max(jnp.array([1., 9., 3.]),
    ...   byzantine=jnp.arange(3) == 1))
    [1. 1. 3.]

  References:
    Shejwalkar and Houmansadr, Manipulating the Byzantine: optimizing model
    poisoning attacks and defenses for federated learning, NDSS 2021.
  """
  honest = among.honest_rows(updates, byzantine)
  mean = among.mean(updates, honest)
  p = _unit_direction(direction, updates, honest, mean)
  gram = among.centred_gram(updates, honest, mean, p)
  # The larger root of x**2 + 2 b x + c, with c <= 0, without cancellation.
  b = -gram[:-1, -1]
  c = jnp.diagonal(gram)[:-1] - among.largest_distance(gram, honest) ** 2
  c = jnp.minimum(c, 0)
  root = jnp.sqrt(b * b - c)
  roots = jnp.where(b > 0, -c / jnp.where(b > 0, b + root, 1), root - b)
  length = jnp.min(jnp.where(honest, roots, jnp.inf))
  return _send(updates, byzantine, mean, p, jnp.where(honest.any(), length, 0))


@update_attack(direction=_direction)
def min_sum(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  direction: Direction = 'std',
) -> Updates:
  r"""Min-Sum: the squared distances add up to no more than an honest row's.

  .. math:: \hat x_b = \mu + \gamma p, \qquad \gamma = \max \gamma : \;
      \sum_{i \in H} \|\mu + \gamma p - x_i\|^2 \le
      \max_{i \in H} \sum_{j \in H} \|x_i - x_j\|^2

  Around their mean both sums are :math:`|H|` times a squared distance from it
  plus the same constant, so that :math:`\gamma \|p\| = \max_i \|x_i - \mu\|`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    direction: p, as in `min_max`.

  Returns:
    Stacked updates. With one honest row, or p = 0, the mean is sent.

  Raises:
    ValueError: unknown direction.

  References:
    Shejwalkar and Houmansadr, Manipulating the Byzantine: optimizing model
    poisoning attacks and defenses for federated learning, NDSS 2021.
  """
  honest = among.honest_rows(updates, byzantine)
  mean = among.mean(updates, honest)
  p = _unit_direction(direction, updates, honest, mean)
  squares = among.squared_deviations(updates, honest, mean)
  return _send(updates, byzantine, mean, p, jnp.sqrt(jnp.max(squares)))


def _unit_direction(direction, updates, honest, mean):
  if direction == 'std':
    against = among.std(updates, honest, mean)
  else:
    against = jax.tree.map(jnp.sign, mean) if direction == 'sign' else mean
  return jax.tree.map(jnp.negative, among.unit(against))


def _send(updates, byzantine, mean, p, length):
  rows = jax.tree.map(lambda m, p: m + length.astype(m.dtype) * p, mean, p)
  return replace(updates, byzantine, rows)
