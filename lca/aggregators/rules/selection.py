"""Selection of clients by score, their average, and checks of arguments."""

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
    m: number of clients to select. If fewer are left, all of them are selected;
      if none is left, the weights are NaN.

  Returns:
    The verdict, with weights 1/m on the selected clients.
  """
  rejected = geometry.rejected_rows(gram)
  order = jnp.lexsort((scores, rejected))  # rejected rows last, at any score
  chosen = jnp.zeros(len(gram), bool).at[order[:m]].set(True)
  return average(gram, chosen, scores)


def average(
  gram: Gram, chosen: jax.Array, scores: jax.Array | None = None
) -> Verdict:
  """Averages the chosen clients among those not rejected.

  Args:
    gram: `[n, n]` inner products.
    chosen: `[n]` mask.
    scores: `[n]`, for rules that rank the clients.

  Returns:
    The verdict, with equal weights on these clients, or NaN weights if there
    are none.
  """
  chosen = chosen & ~geometry.rejected_rows(gram)
  # NaN is set explicitly: compiled, XLA divides booleans by their sum to
  # 0 / 0 = 0 (jaxlib 0.10).
  count = jnp.sum(chosen)
  weights = jnp.where(count > 0, chosen / jnp.maximum(count, 1), jnp.nan)
  return Verdict(weights.astype(gram.dtype), scores)


def check_integers(rule: str, **counts: int) -> None:
  """Raises a ValueError unless all counts, such as f, are integers."""
  for name, count in counts.items():
    if not isinstance(count, (int, np.integer)):
      raise ValueError(f'{rule} needs an integer {name}, got {name}={count!r}')


def check_majority(rule: str, n: int, f: int) -> None:
  """Raises a ValueError unless f >= 0 and n > 2f, an honest majority."""
  check_integers(rule, f=f)
  if f < 0 or n <= 2 * f:
    raise ValueError(f'{rule} needs f >= 0 and n > 2f, got n={n}, f={f}')
