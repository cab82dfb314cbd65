"""An attack that searches for the row that moves the aggregate farthest."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lca import options
from lca.attacks import stats
from lca.attacks.base import replace, update_attack
from lca.stacked import geometry
from lca.typing import Update, Updates

Line = Literal['alie', 'fall_of_empires', 'min_max']

_DECADES = 3  # the grid of strengths spans three decades


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
  r"""Sends the row on a line that moves the server's aggregate farthest.

  The attackers try several strengths s of a simpler attack x(s) on the server's
  own aggregation F, and send the most harmful row:

  .. math:: \hat x_b = x(s^*), \qquad
      s^* = \arg\max_s \|F(x_H, x(s)) - \mu\|

  where :math:`\mu` is the mean of the honest rows :math:`x_H`. F includes the
  rule, its layers and its state. `direction` chooses the line x(s):

  - `'alie'`: :math:`\mu - s \sigma`, with the honest rows' standard deviation,
  - `'fall_of_empires'`: :math:`-s \mu`,
  - `'min_max'`: :math:`\mu - s D \mu / \|\mu\|`, with the largest distance D
    between two honest rows. This line has the direction of
    `'fall_of_empires'`, but its strengths are in units of how far honest rows
    spread, not of the length of their mean.

  The search tries `num_strengths` strengths of a geometric grid that spans
  three decades up to `max_strength`. Then it tries as many on a finer grid
  between the two neighbours of the best strength. So it aggregates
  `2 * num_strengths` times. An aggregate that is not finite counts as
  infinitely far. Among equal distances, the first grid wins over the second,
  and the smaller strength within a grid.

  A rule that draws random numbers is attacked with its true draws if
  `aggregate` closes over the key that the server will use.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: unused.
    aggregate: F, a traceable function from stacked updates to one update. A
      simulation passes the server's own aggregation.
    direction: the line: `'alie'`, `'fall_of_empires'` or `'min_max'`.
    num_strengths: strengths in each of the two grids, at least 2.
    max_strength: largest strength, above 0.
    batch_size: number of strengths to try at once; each needs a copy of the
      updates.

  Returns:
    Stacked updates.

  Raises:
    ValueError: `direction` is unknown, or a number is out of its range.
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
    raise TypeError(
      'optimized needs a function aggregate from stacked updates to one '
      f'update, got {aggregate!r}'
    )
  honest = stats.honest_rows(updates, byzantine)
  mean = stats.mean(updates, honest)

  # The line is x(s) = start - s * step.
  if direction == 'fall_of_empires':
    start, step = jax.tree.map(jnp.zeros_like, mean), mean
  elif direction == 'alie':
    start, step = mean, stats.std(updates, honest, mean)
  else:
    centred = stats.centred_gram(updates, honest, mean)
    spread = stats.largest_distance(centred, honest)
    start, step = (
      mean,
      jax.tree.map(lambda x: spread.astype(x.dtype) * x, stats.unit(mean)),
    )

  def attacked(strength):
    """Returns the updates if the attackers send x(strength)."""
    row = jax.tree.map(
      lambda x, y: x - strength.astype(y.dtype) * y, start, step
    )
    return replace(updates, byzantine, row)

  def distance(strength):
    """Returns how far x(strength) moves the aggregate from the honest mean."""
    update = aggregate(attacked(strength))
    moved = jax.tree.map(lambda x, y: x.astype(y.dtype) - y, update, mean)
    squared = geometry.gram(geometry.one_client(moved))[0, 0]
    # An aggregate that is not finite counts as infinitely far.
    return jnp.where(jnp.isnan(squared), jnp.inf, jnp.sqrt(squared))

  return attacked(_best(distance, num_strengths, max_strength, batch_size))


def _best(distance, num, largest, batch_size):
  """Returns the strength of the largest distance on a coarse and a fine grid.

  Args:
    distance: function from a strength to the distance to maximise.
    num: number of strengths in each grid.
    largest: the largest strength.
    batch_size: number of strengths to try at once.
  """
  batch_size = None if batch_size == 1 else batch_size
  exponents = jnp.linspace(0, 1, num)

  def search_grid(carry, _):
    low, high, best, farthest = carry
    strengths = (low * (high / low) ** exponents).at[-1].set(high)
    distances = lax.map(distance, strengths, batch_size=batch_size)
    distances = distances.astype(exponents.dtype)
    i = jnp.argmax(distances)
    better = distances[i] > farthest
    best = jnp.where(better, strengths[i], best)
    farthest = jnp.where(better, distances[i], farthest)
    # The next grid lies between the neighbours of this grid's best strength.
    low = strengths[jnp.maximum(i - 1, 0)]
    high = strengths[jnp.minimum(i + 1, num - 1)]
    return (low, high, best, farthest), None

  high = jnp.asarray(largest, exponents.dtype)
  low = high / 10**_DECADES
  farthest = jnp.full((), -1, exponents.dtype)
  # A scan over both grids compiles the aggregation only once.
  (_, _, best, _), _ = lax.scan(
    search_grid, (low, high, low, farthest), length=2
  )
  return best
