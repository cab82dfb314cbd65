"""An attack that climbs the gradient of the server's own rule."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lca import options
from lca.attacks import stats
from lca.attacks.base import draw_rows, replace, update_attack
from lca.stacked import geometry, sums
from lca.typing import PyTree, Update, Updates

Objective = (
  Literal['deviation', 'inner_product', 'loss'] | Callable[[Update], Any]
)

# Each start is a times the honest mean plus b times the honest deviations: the
# mean itself, ALIE, Fall of Empires, and zero.
_STARTS = ((1.0, 0.0), (1.0, -1.0), (-1.0, 0.0), (0.0, 0.0))
_SPREAD = 1e-2  # of the rows at a start, in units of the honest rows' spread


def _objective(name: str, value: Any) -> Any:
  if callable(value):
    return value
  return options.one_of('deviation', 'inner_product', 'loss')(name, value)


@update_attack(
  objective=_objective, num_steps=options.whole(1), step_size=options.positive
)
def white_box(
  updates: Updates,
  *,
  byzantine: jax.Array,
  key: jax.Array,
  aggregate: Callable[[Updates], Update],
  loss: Callable[[Update], jax.Array] | None = None,
  objective: Objective = 'deviation',
  num_steps: int = 20,
  step_size: float = 0.5,
) -> Updates:
  r"""Sends rows found by gradient ascent through the server's aggregation.

  The attackers know the server's aggregation F, with its layers and its state,
  and climb an objective J of the aggregate, each with a row of its own:

  .. math:: x_b \leftarrow x_b + \gamma s\,
      \frac{\nabla_{x_b} J(F(x))}{\|\nabla_{x_b} J(F(x))\|}

  where s is the root of the honest rows' mean squared distance from their mean
  :math:`\mu`. The ascent begins four times: near :math:`\mu`, near :math:`\mu -
  \sigma` (ALIE), near :math:`-\mu` (Fall of Empires) and near zero. The best
  rows of all steps are sent. A rule that selects rows is flat where it selects
  no attacker; rows stay where they are once their gradient is zero.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    key: PRNG key, which moves the rows a little apart at each start.
    aggregate: F, a traceable function from stacked updates to one update. A
      simulation passes the server's own aggregation.
    loss: function from an aggregate to the mean loss of the model plus this
      aggregate; for the objective `'loss'` alone. A simulation takes it on the
      true examples of the round's first attacker.
    objective: J. `'deviation'` is the squared distance of the aggregate from
      :math:`\mu`, `'inner_product'` minus their inner product, `'loss'` the
      loss. A function maps the aggregate to the number that is to be large.
    num_steps: steps from each start, at least 1. Each takes the rule and its
      gradient once.
    step_size: :math:`\gamma`, above 0.

  Returns:
    Stacked updates.

  Raises:
    ValueError: `objective` is unknown, or a number is out of its range.
    TypeError: `aggregate` is no function, or the objective `'loss'` has none.

  Examples:
    >>> import jax, jax.numpy as jnp, lca
    >>> from lca import attacks
    >>> sent = attacks.white_box(
    ...   jnp.array([1., 9., 3.]), byzantine=jnp.arange(3) == 1,
    ...   key=jax.random.key(0), aggregate=lca.median)
    >>> print(lca.median(jnp.array([1., 9., 3.])), lca.median(sent))
    3.0 1.0

  References:
    Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021, and Fang
    et al., USENIX Security 2020, search along one direction; here the gradient
    chooses the direction.
  """
  if not callable(aggregate):
    raise TypeError(
      'white_box needs a function aggregate from stacked updates to one '
      f'update, got {aggregate!r}'
    )
  if objective == 'loss':
    if loss is None:
      raise TypeError("white_box needs a function loss with objective='loss'")
    objective = loss
  honest = stats.honest_rows(updates, byzantine)
  mean = stats.mean(updates, honest)
  std = stats.std(updates, honest, mean)
  spread = jnp.sqrt(
    jnp.sum(stats.squared_deviations(updates, honest, mean))
    / jnp.maximum(jnp.sum(honest), 1)
  )

  def harm(rows: Updates) -> tuple[Any, tuple[()]]:
    """Returns the objective, if the Byzantine clients send these rows."""
    update = aggregate(replace(updates, byzantine, rows))
    if callable(objective):
      return objective(update), ()
    other = mean
    if objective == 'deviation':
      update = jax.tree.map(lambda x, m: x.astype(m.dtype) - m, update, mean)
      other = jax.tree.map(jnp.negative, update)
    products = jax.tree.map(
      lambda x, y: jnp.sum(x.astype(sums.wide(x.dtype)) * y), update, other
    )
    return -sum(jax.tree.leaves(products)), ()

  def climb(best, start):
    rows = _near(start, mean, std, spread, updates, byzantine, key)
    best, _ = ascend(
      harm, rows, best, num_steps=num_steps, length=step_size * spread
    )
    return best, None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, sums.wide(x.dtype)), updates
  )
  lowest = jnp.full((), -jnp.inf, jax.eval_shape(harm, zeros)[0].dtype)
  best, _ = lax.scan(climb, Peak(zeros, lowest, ()), jnp.array(_STARTS))
  return replace(updates, byzantine, best.rows)


class Peak(NamedTuple):
  """The best rows of an ascent.

  Attributes:
    rows: stacked updates.
    value: the objective.
    more: what the function of the ascent returned beside the objective.
  """

  rows: Updates
  value: jax.Array
  more: PyTree


def ascend(
  harm: Callable[[Updates], tuple[jax.Array, PyTree]],
  rows: Updates,
  best: Peak,
  *,
  num_steps: int,
  length: jax.Array,
) -> tuple[Peak, jax.Array]:
  """Moves rows along the gradient of an objective, by steps of one length.

  A row whose gradient is zero or not finite stays where it is.

  Args:
    harm: function from rows to the objective, and to more that is to be kept
      with the best rows.
    rows: where the ascent starts, leaves `[n, ...]`.
    best: the best rows so far, which the ascent has to exceed.
    num_steps: number of steps. `harm` is called once more, after the last.
    length: how far each row moves in a step.

  Returns:
    The best rows of all steps and of `best`, and the `[num_steps + 1]` values.
    A value that is NaN counts as infinity: an aggregate that is not finite is
    as harmful as can be.
  """

  def step(carry, _):
    rows, best = carry
    (value, more), gradient = jax.value_and_grad(harm, has_aux=True)(rows)
    value = jnp.where(jnp.isnan(value), jnp.inf, value)
    better = value > best.value
    best = jax.tree.map(
      lambda x, y: jnp.where(better, x, y), Peak(rows, value, more), best
    )
    lengths = geometry.norms(geometry.norms_gram(gradient))
    climbing = jnp.isfinite(lengths) & (lengths > 0)
    factors = jnp.where(climbing, length / lengths, 0)
    steps = geometry.scale(gradient, factors)
    return (jax.tree.map(jnp.add, rows, steps), best), value

  (_, best), values = lax.scan(step, (rows, best), length=num_steps + 1)
  return best, values


def _near(start, mean, std, spread, updates, byzantine, key):
  """Returns rows near a start, a little apart from each other."""
  of_mean, of_std = start
  centre = [
    of_mean * m + of_std * s
    for m, s in zip(jax.tree.leaves(mean), jax.tree.leaves(std), strict=True)
  ]
  size = sum(x.size for x in centre)
  apart = _SPREAD * spread / jnp.sqrt(size)  # in each coordinate

  def row(k, own, numbers):
    del own
    return centre[k] + apart * numbers

  leaves, structure = jax.tree.flatten(updates)
  wide = [x.astype(sums.wide(x.dtype)) for x in leaves]
  rows = draw_rows(wide, byzantine, key, jax.random.normal, row)
  return jax.tree.unflatten(structure, rows)
