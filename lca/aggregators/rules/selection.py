"""What rules that select clients share: which ones, and their average."""

import jax
import jax.numpy as jnp
import numpy as np

from lca.aggregators.base import Verdict
from lca.stacked import geometry
from lca.typing import Gram


def select_lowest(gram: Gram, scores: jax.Array, m: int) -> Verdict:
  """Averages the m clients of lowest score among those not rejected.

  Args:
    gram: `[n, n]` inner products.
    scores: `[n]`; ties go to the lowest index.
    m: how many to select; fewer if fewer are left, NaN weights if none is.

  Returns:
    The verdict, with weights 1/m on the selected clients.
  """
  bad = geometry.rejected_rows(gram)
  order = jnp.lexsort((scores, bad))  # rejected ones last, whatever the score
  chosen = jnp.zeros(len(gram), bool).at[order[:m]].set(True)
  return average(gram, chosen, scores)


def average(
  gram: Gram, chosen: jax.Array, scores: jax.Array | None = None
) -> Verdict:
  """Equal weights on the chosen clients that are not rejected.

  Args:
    gram: `[n, n]` inner products.
    chosen: `[n]` mask.
    scores: `[n]`, of rules that rank the clients.

  Returns:
    The verdict, with NaN weights if nobody is left.
  """
  chosen = chosen & ~geometry.rejected_rows(gram)
  # The NaN is explicit: compiled, booleans divided by their sum give 0 / 0 = 0.
  count = jnp.sum(chosen)
  weights = jnp.where(count > 0, chosen / jnp.maximum(count, 1), jnp.nan)
  return Verdict(weights.astype(gram.dtype), scores)


def check_integers(rule: str, **counts: int) -> None:
  """Raises a ValueError unless all are integers, such as f."""
  for name, count in counts.items():
    if not isinstance(count, (int, np.integer)):
      raise ValueError(f'{rule} needs an integer {name}, got {name}={count!r}')


def check_majority(rule: str, n: int, f: int) -> None:
  """Raises a ValueError unless more than half of the clients are honest."""
  check_integers(rule, f=f)
  if f < 0 or n <= 2 * f:
    raise ValueError(f'{rule} needs f >= 0 and n > 2f, got n={n}, f={f}')
