"""Rules that average the n - f clients that rank first."""

import jax.numpy as jnp

from lca.aggregators.base import Verdict, gram_rule
from lca.aggregators.rules.selection import (
  check_integers,
  check_majority,
  select_lowest,
)
from lca.stacked import geometry
from lca.typing import Gram


@gram_rule(needs='norms')
def cge(gram: Gram, *, f: int) -> Verdict:
  r"""Comparative gradient elimination: the mean of the n - f shortest updates.

  .. math:: F(x_1, \dots, x_n) = \frac{1}{n - f} \sum_{i \in S} x_i

  where S holds the n - f smallest norms. The published filter returns the sum;
  byzfl, byzpy and this rule return the mean, which differs by the constant
  n - f.

  Ties go to the lowest index. Rejected rows (see `lca.geometry`) have norm
  +inf. If fewer than n - f rows are left, those are averaged; if none is left,
  the update is NaN. Whatever at most f clients send, the result is no longer
  than the longest honest update. Rows with a large common part have norms that
  agree in float32; rounding then decides their rank.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.

  Returns:
    One update.

  Raises:
    ValueError: unless f >= 0 and n > 2f.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> print(lca.cge(jnp.array([[1.], [2.], [-9.]]), f=1))
    [1.5]

  References:
    Gupta, Liu and Vaidya, Byzantine fault-tolerant distributed machine
    learning using stochastic gradient descent and norm-based comparative
    gradient elimination, DSN-W 2021.
  """
  check_majority('cge', len(gram), f)
  return select_lowest(gram, geometry.norms(gram), len(gram) - f)


@gram_rule
def monna(
  gram: Gram,
  *,
  f: int,
  pivot: int = 0,
  distance: geometry.Distance = 'euclidean',
  power: int | None = None,
) -> Verdict:
  r"""MoNNA: the mean of the n - f updates nearest to a trusted one, the pivot.

  .. math:: F(x_1, \dots, x_n) = \frac{1}{n - f} \sum_{i \in S} x_i

  where S holds the pivot and the n - f - 1 clients nearest to it.

  The pivot is trusted by definition: if it is Byzantine, nothing is promised.
  Ties go to the lowest index. Rejected rows (see `lca.geometry`) are at
  distance +inf; if fewer than n - f rows are left, those are averaged. If the
  pivot is rejected, the update is NaN. The order of the clients matters only
  for the choice of the pivot and for ties.

  Promise (docs/rules.md): none; full if the pivot is honest.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.
    pivot: index of the trusted client; 0 as in byzfl.
    distance: `'euclidean'`, `'cosine'`, or another (`lca.distances`).
    power: power of the Euclidean distance, 1, 2 or 4, which rank the rows
      alike; None is 2.

  Returns:
    One update.

  Raises:
    ValueError: unless f >= 0, n > 2f and 0 <= pivot < n.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> print(lca.monna(jnp.array([[1.], [2.], [-9.]]), f=1))
    [1.5]

  References:
    Farhadkhani et al., Robust collaborative learning with linear gradient
    overhead, ICML 2023.
  """
  n = len(gram)
  check_majority('monna', n, f)
  check_integers('monna', pivot=pivot)
  if not 0 <= pivot < n:
    raise ValueError(f'monna needs 0 <= pivot < n, got n={n}, pivot={pivot}')
  scores = geometry.distances(gram, distance, power)[pivot]  # [n]
  scores_with_pivot_first = scores.at[pivot].set(-1)
  verdict = select_lowest(gram, scores_with_pivot_first, n - f)
  trusted = ~geometry.rejected_rows(gram)[pivot]
  weights = jnp.where(trusted, verdict.weights, jnp.nan)
  return Verdict(weights, scores)
