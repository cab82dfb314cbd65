"""The strength that moves the server's own aggregate farthest."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lca import options
from lca.attacks import honest as among
from lca.attacks.base import replace, update_attack
from lca.stacked import geometry
from lca.typing import Update, Updates

Line = Literal['alie', 'fall_of_empires', 'min_max']

_DECADES = 3  # that the grid spans below the largest strength


@update_attack(
  direction=options.one_of('alie', 'fall_of_empires', 'min_max'),
  num_strengths=options.whole(2),
  max_strength=options.positive,
  batch_size=options.whole(1),
)
def optimized(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array | None = None,
  aggregate: Callable[[Updates], Update],
  direction: Line = 'alie',
  num_strengths: int = 16,
  max_strength: float = 10.0,
  batch_size: int = 1,
) -> Updates:
  r"""All send the row of a line that moves the aggregate farthest.

  .. math:: \hat x_b = x(s^*), \qquad
      s^* = \arg\max_s \|F(x_H, x(s)) - \mu\|

  where F is the server's own aggregate, whatever rule, layers and state it is
  made of, and :math:`\mu` the mean of the honest rows. The lines:

  - `'alie'`: :math:`\mu - s \sigma`, the honest rows' deviation,
  - `'fall_of_empires'`: :math:`-s \mu`,
  - `'min_max'`: :math:`\mu - s D \mu / \|\mu\|`, with D the largest distance
    of two honest rows: the line of the one before, measured by how far honest
    rows spread and not by how far they go.

  The strengths are `num_strengths` in a geometric row over three decades up to
  `max_strength`, and then as many between the neighbours of the best of them.
  An aggregate that is not finite counts as infinitely far. Among equals the
  smallest strength of the first row wins.

  It aggregates `2 * num_strengths` times. With a random rule, close over the
  key that the server will use: then the attackers foresee its draws.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    aggregate: from stacked updates to one update; it is traced.
    direction: the line.
    num_strengths: in each of the two rows, at least 2.
    max_strength: above 0.
    batch_size: strengths that are tried at once, each with a copy of the
      updates.

  Returns:
    Stacked updates.

  Raises:
    ValueError: an unknown direction or an impossible number.
    TypeError: `aggregate` is no function.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> from lca import attacks
    >>> print(attacks.optimized(jnp.array([1., 9., 3.]),
    ...   byzantine=jnp.arange(3) == 1, aggregate=lca.mean))
    [ 1. -8.  3.]

  References:
    Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021 (an attack
    for each rule); Allouah et al., Fixing by mixing: a recipe for optimal
    Byzantine ML under heterogeneity, AISTATS 2023 (the search over strengths
    of ALIE and Fall of Empires).
  """
  if not callable(aggregate):
    raise TypeError(f'optimized needs a function aggregate, got {aggregate!r}')
  honest = among.honest_rows(updates, byzantine)
  mean = among.mean(updates, honest)

  # Strength 0 is at the start, strength 1 one step from there.
  if direction == 'fall_of_empires':
    start, step = jax.tree.map(jnp.zeros_like, mean), mean
  elif direction == 'alie':
    start, step = mean, among.std(updates, honest, mean)
  else:
    centred = among.centred_gram(updates, honest, mean)
    spread = among.largest_distance(centred, honest)
    start, step = (
      mean,
      jax.tree.map(lambda x: spread.astype(x.dtype) * x, among.unit(mean)),
    )

  def attacked(strength):
    def at(x, y):
      return x - strength.astype(y.dtype) * y

    return replace(updates, byzantine, jax.tree.map(at, start, step))

  def distance(strength):
    update = aggregate(attacked(strength))
    apart = jax.tree.map(lambda x, y: x.astype(y.dtype) - y, update, mean)
    squared = geometry.gram(geometry.one_client(apart))[0, 0]
    # An update that is not finite is infinitely far.
    return jnp.where(jnp.isnan(squared), jnp.inf, jnp.sqrt(squared))

  return attacked(_best(distance, num_strengths, max_strength, batch_size))


def _best(distance, num, largest, batch_size):
  """The strength of the largest distance, in a row and then in a finer one."""
  batch_size = None if batch_size == 1 else batch_size
  part = jnp.linspace(0, 1, num)

  # Both rows are one loop's: the aggregate is compiled once.
  def one_row(carry, _):
    low, high, best, farthest = carry
    strengths = (low * (high / low) ** part).at[-1].set(high)
    distances = lax.map(distance, strengths, batch_size=batch_size)
    distances = distances.astype(part.dtype)
    i = jnp.argmax(distances)
    better = distances[i] > farthest
    best = jnp.where(better, strengths[i], best)
    farthest = jnp.where(better, distances[i], farthest)
    low = strengths[jnp.maximum(i - 1, 0)]
    high = strengths[jnp.minimum(i + 1, num - 1)]
    return (low, high, best, farthest), None

  high = jnp.asarray(largest, part.dtype)
  low = high / 10**_DECADES
  farthest = jnp.full((), -1, part.dtype)
  (_, _, best, _), _ = lax.scan(one_row, (low, high, low, farthest), length=2)
  return best
