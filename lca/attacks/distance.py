"""Min-Max and Min-Sum: rows as far away as the honest rows' distances allow."""

from typing import Literal

import jax
import jax.numpy as jnp

from lca import options
from lca.attacks import stats
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
  r"""Min-Max: goes as far from honest rows as they are from each other.

  The attackers move from the honest mean :math:`\mu` along a direction p, until
  their largest distance to an honest row is the largest distance D between two
  honest rows:

  .. math:: \hat x_b = \mu + \gamma p, \qquad \gamma = \max \gamma : \;
      \max_{i \in H} \|\mu + \gamma p - x_i\| \le D =
      \max_{i, j \in H} \|x_i - x_j\|

  The paper approximates :math:`\gamma` by halving steps. Here it is computed in
  closed form. Each honest row i bounds it by a quadratic,

  .. math:: \gamma^2 \|p\|^2 + 2 \gamma \langle p, \mu - x_i \rangle +
      \|\mu - x_i\|^2 \le D^2

  and :math:`\gamma` is the smallest of their larger roots. The length of p does
  not matter.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    direction: p: `'unit'` is :math:`-\mu / \|\mu\|`, `'std'` minus the honest
      rows' standard deviation, `'sign'` :math:`-\mathrm{sign}(\mu)`.

  Returns:
    Stacked updates. With one honest row, or p = 0, the honest mean is sent.

  Raises:
    ValueError: `direction` is unknown.

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
  honest = stats.honest_rows(updates, byzantine)
  mean = stats.mean(updates, honest)
  p = _unit_direction(direction, updates, honest, mean)
  gram = stats.centred_gram(updates, honest, mean, p)  # p is the last row
  # Row i's quadratic is x**2 + 2 b x + c, with c <= 0. Where b > 0, root - b
  # would cancel, so the larger root is computed as -c / (b + root).
  b = -gram[:-1, -1]
  c = jnp.diagonal(gram)[:-1] - stats.largest_distance(gram, honest) ** 2
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
  r"""Min-Sum: bounds the sum of squared distances to the honest rows.

  The attackers move from the honest mean :math:`\mu` along a direction p, until
  their sum is as large as the largest sum of an honest row:

  .. math:: \hat x_b = \mu + \gamma p, \qquad \gamma = \max \gamma : \;
      \sum_{i \in H} \|\mu + \gamma p - x_i\|^2 \le
      \max_{i \in H} \sum_{j \in H} \|x_i - x_j\|^2

  The sum from any point x is :math:`|H| \, \|x - \mu\|^2` plus a constant.
  Therefore :math:`\gamma \|p\| = \max_i \|x_i - \mu\|`.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    direction: p, as in `min_max`.

  Returns:
    Stacked updates. With one honest row, or p = 0, the honest mean is sent.

  Raises:
    ValueError: `direction` is unknown.

  Examples:
    >>> import jax.numpy as jnp
    >>> from lca import attacks
    >>> print(attacks.min_sum(jnp.array([1., 9., 3.]),
    ...   byzantine=jnp.arange(3) == 1))
    [1. 1. 3.]

  References:
    Shejwalkar and Houmansadr, Manipulating the Byzantine: optimizing model
    poisoning attacks and defenses for federated learning, NDSS 2021.
  """
  honest = stats.honest_rows(updates, byzantine)
  mean = stats.mean(updates, honest)
  p = _unit_direction(direction, updates, honest, mean)
  squares = stats.squared_deviations(updates, honest, mean)
  return _send(updates, byzantine, mean, p, jnp.sqrt(jnp.max(squares)))


def _unit_direction(direction, updates, honest, mean):
  """Returns p, scaled to norm 1; zeros if its norm is 0."""
  if direction == 'std':
    minus_p = stats.std(updates, honest, mean)
  else:
    minus_p = jax.tree.map(jnp.sign, mean) if direction == 'sign' else mean
  return jax.tree.map(jnp.negative, stats.unit(minus_p))


def _send(updates, byzantine, mean, p, length):
  """Replaces the Byzantine rows by `mean + length * p`."""
  rows = jax.tree.map(lambda m, p: m + length.astype(m.dtype) * p, mean, p)
  return replace(updates, byzantine, rows)
