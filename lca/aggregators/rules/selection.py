"""Selection of clients by score, their average, and checks of arguments."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lca.aggregators.base import Verdict
from lca.stacked import geometry
from lca.typing import Gram


def select_lowest(
  gram: Gram, scores: jax.Array, m: int, sizes: jax.Array | None = None
) -> Verdict:
  """Averages the m clients of lowest score among those not rejected.

  Args:
    gram: `[n, n]` inner products.
    scores: `[n]`; ties go to the lowest index.
    m: number of clients to select. If fewer are left, all of them are selected;
      if none is left, the weights are NaN.
    sizes: as in `average`.

  Returns:
    The verdict, with weights 1/m, or in proportion to the sizes, on the
    selected clients.
  """
  rejected = geometry.rejected_rows(gram)
  order = jnp.lexsort((scores, rejected))  # rejected rows last, at any score
  chosen = jnp.zeros(len(gram), bool).at[order[:m]].set(True)
  return average(gram, chosen, scores, sizes)


def average(
  gram: Gram,
  chosen: jax.Array,
  scores: jax.Array | None = None,
  sizes: jax.Array | None = None,
) -> Verdict:
  """Averages the chosen clients among those not rejected.

  Args:
    gram: `[n, n]` inner products.
    chosen: `[n]` mask.
    scores: `[n]`, for rules that rank the clients.
    sizes: `[n]`, nonnegative, to which the weights are proportional; None
      weighs the clients equally.

  Returns:
    The verdict, with weights on these clients that sum to 1, or NaN weights if
    there are none, or none with a positive size.
  """
  chosen = chosen & ~geometry.rejected_rows(gram)
  shares = chosen if sizes is None else jnp.where(chosen, sizes, 0)
  # NaN is set explicitly: compiled, XLA divides booleans by their sum to
  # 0 / 0 = 0 (jaxlib 0.10).
  total = jnp.sum(shares)
  weights = jnp.where(
    total > 0, shares / jnp.where(total > 0, total, 1), jnp.nan
  )
  return Verdict(weights.astype(gram.dtype), scores)


def near_median(
  values: jax.Array, rejected: jax.Array, bound: float
) -> jax.Array:
  """Returns a mask of values within `bound` standard deviations of the median.

  Args:
    values: `[n]`.
    rejected: `[n]` mask of rows that enter neither the median nor the standard
      deviation; their mask is False.
    bound: number of standard deviations. A value exactly at the bound is
      within it.
  """
  values = jnp.where(rejected, jnp.nan, values)
  gaps, deviation = jnp.abs(values - jnp.nanmedian(values)), jnp.nanstd(values)
  # A comparison with NaN is False. `inf * 0` would be NaN: the `where` lets an
  # infinite bound keep all clients also where their values are equal.
  return gaps <= jnp.where(deviation > 0, bound * deviation, 0)


def check_weights(rule: str, n: int, weights: jax.Array | None) -> jax.Array:
  """Returns the clients' weights, `[n]`, equal ones for None.

  Raises:
    ValueError: unless there is one weight per client.
  """
  weights = jnp.ones(n) if weights is None else jnp.asarray(weights)
  if weights.shape != (n,):
    raise ValueError(
      f'{rule} needs one weight per client, weights of shape ({n},), got '
      f'shape {weights.shape}'
    )
  return weights


def of_population(
  verdict: Verdict, ids: jax.Array, num_clients: int
) -> Verdict:
  """Returns the verdict, with NaN weights if an id is `num_clients` or more."""
  unknown = jnp.any(ids >= num_clients)
  weights = jnp.where(unknown, jnp.nan, verdict.weights)
  return verdict._replace(weights=weights)


def check_population(rule: str, n: int, num_clients: int) -> None:
  """Raises a ValueError if the population is less than a round's n clients."""
  if n > num_clients:
    raise ValueError(
      f'{rule} needs num_clients, the clients of the population, of at least '
      f'n, got num_clients={num_clients}, n={n}'
    )


def check_brought(rule: str, brought: Mapping[str, Any], *names: str) -> None:
  """Raises a ValueError unless the round brings these arguments."""
  for name in names:
    if brought.get(name) is None:
      raise ValueError(f'{rule} needs {name}: pass {name}=')


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
