"""Rules that search all subsets of n - f clients for the most coherent one."""

import itertools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lca.aggregators.base import Verdict, gram_rule
from lca.aggregators.rules.selection import average, check_majority
from lca.stacked import eigen, geometry
from lca.typing import Gram

_ENTRIES = 2**18  # of the subsets' Gram matrices that are made at once


@gram_rule
def mda(
  gram: Gram,
  *,
  f: int,
  max_subsets: int = 200_000,
  ties: Literal['mean', 'first'] = 'mean',
  distance: geometry.Distance = 'euclidean',
  power: int | None = None,
) -> Verdict:
  r"""Minimum-diameter averaging: the mean of the tightest n - f updates.

  .. math:: F(x_1, \dots, x_n) = \frac{1}{n - f} \sum_{i \in S^*} x_i, \quad
      S^* = \arg\min_{|S| = n - f} \max_{i, j \in S} d(x_i, x_j)

  All C(n, f) subsets are compared. Subsets that share their farthest pair tie;
  by default the one of the least mean distance wins. Rejected rows (see
  `lca.geometry`) are at distance +inf; with fewer than n - f others, those are
  averaged, and with none the update is NaN. What at most f clients send moves
  the result no farther than a multiple of the honest updates' lengths (not
  under the cosine distance alone, which does not see lengths).

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: how many Byzantine clients to tolerate.
    max_subsets: an error says so where there are more.
    ties: of subsets of one diameter, that of the least `'mean'` distance, or
      the `'first'` in lexicographic order of the members (byzfl, byzpy).
    distance: `'euclidean'`, `'cosine'`, or a function (`lca.distances`).
    power: of the Euclidean distance, 1, 2 or 4, which rank the same; None is 2.

  Returns:
    One update.

  Raises:
    ValueError: unless f >= 0, n > 2f and C(n, f) <= max_subsets; unknown
      `ties`.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> print(lca.mda(jnp.array([[1.], [2.], [3.], [9.], [-9.]]), f=2))
    [2.]

  References:
    El Mhamdi et al., Distributed momentum for Byzantine-resilient stochastic
    gradient descent, ICLR 2021; Rousseeuw, 1985.
  """
  if ties not in ('mean', 'first'):
    raise ValueError(f"ties must be 'mean' or 'first', got {ties!r}")
  members = _subsets('mda', len(gram), f, max_subsets)
  between = geometry.distances(gram, distance, power)

  def diameter(subset):
    inner = between[subset][:, subset]
    farthest = jnp.max(inner)
    return (farthest, jnp.mean(inner)) if ties == 'mean' else (farthest,)

  return _best(gram, members, diameter)


@gram_rule
def smea(gram: Gram, *, f: int, max_subsets: int = 200_000) -> Verdict:
  r"""The mean of the n - f updates that vary least along any direction.

  .. math:: S^* = \arg\min_{|S| = n - f} \lambda_{\max}\Big(\frac{1}{|S|}
      \sum_{i \in S} (x_i - \bar x_S)(x_i - \bar x_S)^\top\Big)

  Smallest maximum eigenvalue averaging. The eigenvalue is that of the centred
  `[n - f, n - f]` Gram matrix, whatever the model's size. All C(n, f) subsets
  are compared; ties go to the first one in lexicographic order of the members.
  With fewer than n - f rows not rejected (see `lca.geometry`), those are
  averaged, and with none the update is NaN. What at most f clients send moves
  the result no farther than a multiple of the honest updates' lengths.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: how many Byzantine clients to tolerate.
    max_subsets: an error says so where there are more.

  Returns:
    One update.

  Raises:
    ValueError: unless f >= 0, n > 2f and C(n, f) <= max_subsets.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> print(lca.smea(jnp.array([[1.], [2.], [3.], [9.], [-9.]]), f=2))
    [2.]

  References:
    Allouah et al., On the privacy-robustness-utility trilemma in distributed
    learning, ICML 2023.
  """
  members = _subsets('smea', len(gram), f, max_subsets)
  finite = geometry.without_rejected(
    geometry.differences(gram), geometry.rejected_rows(gram)
  )

  def spread(subset):
    inner = finite[subset][:, subset]
    rows = jnp.mean(inner, axis=1)
    centred = inner - rows[:, None] - rows + jnp.mean(rows)
    return (eigen.eigh(centred)[0][-1] / len(subset),)

  return _best(gram, members, spread)


def _subsets(rule: str, n: int, f: int, max_subsets: int) -> np.ndarray:
  """`[C(n, f), n - f]` members of the subsets, in lexicographic order."""
  check_majority(rule, n, f)
  count = math.comb(n, f)
  if count > max_subsets:
    raise ValueError(
      f'{rule} would compare {count} subsets, more than max_subsets='
      f'{max_subsets}, with n={n}, f={f}'
    )
  return np.array(list(itertools.combinations(range(n), n - f)), np.int32)


def _best(
  gram: Gram,
  members: np.ndarray,
  objective: Callable[[jax.Array], tuple[jax.Array, ...]],
) -> Verdict:
  """Averages the subset of the least objectives among the most complete."""
  bad = geometry.rejected_rows(gram)
  subsets = jnp.array(members)
  at_once = max(1, _ENTRIES // members.shape[1] ** 2)
  values = lax.map(objective, subsets, batch_size=at_once)
  missing = jnp.sum(bad[subsets], axis=1)
  best = jnp.lexsort((*reversed(values), missing))[0]
  chosen = jnp.zeros(len(gram), bool).at[subsets[best]].set(True)
  return average(gram, chosen)
