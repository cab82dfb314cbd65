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

_ENTRIES = 2**18  # entries of the subsets' Gram matrices in memory at once


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
  r"""Minimum-diameter averaging (MDA): the mean of the tightest n - f updates.

  .. math:: F(x_1, \dots, x_n) = \frac{1}{n - f} \sum_{i \in S^*} x_i, \quad
      S^* = \arg\min_{|S| = n - f} \max_{i, j \in S} d(x_i, x_j)

  All C(n, f) subsets are compared. Subsets with the same farthest pair tie; by
  default, the subset of least mean distance wins. Rejected rows (see
  `lca.geometry`) are at distance +inf. If fewer than n - f rows are left, those
  are averaged; if none is left, the update is NaN. Whatever at most f clients
  send, the length of the result is at most a multiple of the honest updates'
  lengths (except with `distance='cosine'` alone, which ignores lengths).

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.
    max_subsets: largest number of subsets; more raise an error.
    ties: winner among subsets of the same diameter: `'mean'` is the subset of
      least mean distance, `'first'` the first in lexicographic order of the
      members (byzfl, byzpy).
    distance: `'euclidean'`, `'cosine'`, or another (`lca.distances`).
    power: power of the Euclidean distance, 1, 2 or 4, which rank the rows
      alike; None is 2.

  Returns:
    One update.

  Raises:
    ValueError: unless f >= 0, n > 2f and C(n, f) <= max_subsets, or if `ties`
      is unknown.

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
  distances = geometry.distances(gram, distance, power)

  def diameter(subset):
    inner = distances[subset][:, subset]
    farthest = jnp.max(inner)
    return (farthest, jnp.mean(inner)) if ties == 'mean' else (farthest,)

  return _best(gram, members, diameter)


@gram_rule
def smea(gram: Gram, *, f: int, max_subsets: int = 200_000) -> Verdict:
  r"""The mean of the n - f updates that vary least along any direction.

  Smallest maximum eigenvalue averaging (SMEA) averages the subset

  .. math:: S^* = \arg\min_{|S| = n - f} \lambda_{\max}\Big(\frac{1}{|S|}
      \sum_{i \in S} (x_i - \bar x_S)(x_i - \bar x_S)^\top\Big)

  The eigenvalue is computed from the centred `[n - f, n - f]` Gram matrix,
  whatever the model's size. All C(n, f) subsets are compared; ties go to the
  first subset in lexicographic order of the members. If fewer than n - f rows
  are not rejected (see `lca.geometry`), those are averaged; if none is left,
  the update is NaN. Whatever at most f clients send, the length of the result
  is at most a multiple of the honest updates' lengths.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.
    max_subsets: largest number of subsets; more raise an error.

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
    means = jnp.mean(inner, axis=1)
    centred = inner - means[:, None] - means + jnp.mean(means)
    return (eigen.eigh(centred)[0][-1] / len(subset),)

  return _best(gram, members, spread)


def _subsets(rule: str, n: int, f: int, max_subsets: int) -> np.ndarray:
  """Returns `[C(n, f), n - f]` members of all subsets, in lexicographic order.

  Raises:
    ValueError: there are more than `max_subsets`.
  """
  check_majority(rule, n, f)
  count = math.comb(n, f)
  if count > max_subsets:
    raise ValueError(
      f'{rule} would compare {count} subsets with n={n}, f={f}, more than '
      f'max_subsets={max_subsets}: lower f or raise max_subsets'
    )
  return np.array(list(itertools.combinations(range(n), n - f)), np.int32)


def _best(
  gram: Gram,
  members: np.ndarray,
  objective: Callable[[jax.Array], tuple[jax.Array, ...]],
) -> Verdict:
  """Averages the subset with the fewest rejected rows and the least objective.

  Args:
    gram: `[n, n]` inner products.
    members: `[subsets, n - f]`.
    objective: function from `[n - f]` members to values to minimise, compared
      in their order.
  """
  rejected = geometry.rejected_rows(gram)
  subsets = jnp.array(members)
  at_once = max(1, _ENTRIES // members.shape[1] ** 2)
  values = lax.map(objective, subsets, batch_size=at_once)
  missing = jnp.sum(rejected[subsets], axis=1)
  best = jnp.lexsort((*reversed(values), missing))[0]
  chosen = jnp.zeros(len(gram), bool).at[subsets[best]].set(True)
  return average(gram, chosen)
