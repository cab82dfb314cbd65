"""The rows of Byzantine clients: replaced, or all that the attackers know."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lca.typing import Update, Updates


def replace(
  updates: Updates, byzantine: jax.Array, rows: Update | Updates
) -> Updates:
  """Replaces the rows of the Byzantine clients.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.
    rows: a single update, leaves `[...]`, that all Byzantine clients send; or
      stacked updates, leaves `[n, ...]`, whose Byzantine rows are the new rows.

  Returns:
    Stacked updates in the dtypes of `updates`. Honest rows are unchanged bit
    for bit.
  """

  def replace_in_leaf(leaf, new):
    mask = byzantine.reshape((-1,) + (1,) * (leaf.ndim - 1))
    return jnp.where(mask, jnp.asarray(new).astype(leaf.dtype), leaf)

  return jax.tree.map(replace_in_leaf, updates, rows)


def own_knowledge(
  updates: Updates, byzantine: jax.Array
) -> tuple[Updates, Callable[[Updates], Updates]]:
  """Returns a round as attackers see it who know their own updates alone.

  The updates that the Byzantine clients have trained honestly take the place of
  the honest ones. If there are fewer of them, the rows of the other honest
  clients are NaN, as if these had not answered; if there are more, the last
  ones are left out.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    byzantine: `[n]` mask.

  Returns:
    The updates that the attackers know, and a function that replaces the NaN
    rows of such updates, so that a rule can be tried on n rows: it repeats the
    attackers' own updates.

  References:
    Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021 ("unknown
    benign gradients").
  """
  order = jnp.argsort(~byzantine, stable=True)  # Byzantine rows come first
  attackers = jnp.sum(byzantine)
  number = jnp.cumsum(~byzantine) - 1  # of each honest row
  source = order[number % jnp.maximum(attackers, 1)]
  missing = ~byzantine & (number >= attackers)

  def repeated(rows):
    return replace(rows, ~byzantine, jax.tree.map(lambda x: x[source], updates))

  unknown = jax.tree.map(lambda x: jnp.full_like(x[0], jnp.nan), updates)
  known = replace(repeated(updates), missing, unknown)
  return known, lambda rows: replace(rows, missing, repeated(updates))
