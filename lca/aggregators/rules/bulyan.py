"""Bulyan: Krum selects clients, then each coordinate drops its extremes."""

from typing import Any, Literal

import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import Verdict, gram_rule
from lca.aggregators.rules.krum import krum_scores
from lca.aggregators.rules.selection import (
  average,
  check_integers,
  select_lowest,
)
from lca.aggregators.verdict import StatisticOfSelected
from lca.stacked import geometry, order_statistics
from lca.typing import Gram


@StatisticOfSelected
def _mean_around_median(n: int, *, f: int, **_: Any):
  count = n - 2 * f
  middle = (count - 1) // 2, count // 2
  return count, order_statistics.NearestMean(*middle, count - 2 * f)


@gram_rule(combine=_mean_around_median)
def bulyan(
  gram: Gram,
  *,
  f: int,
  selection: Literal['iterative', 'once'] = 'iterative',
  distance: geometry.Distance = 'euclidean',
  power: int | None = None,
) -> Verdict:
  r"""Bulyan of El Mhamdi et al.: iterated Krum, then means around the median.

  First :math:`\theta = n - 2f` clients are selected one by one. Each step
  selects the winner of Krum among the r clients that remain; a score is the sum
  of the max(1, r - f - 2) smallest distances. Then each coordinate of the
  update is the mean of the :math:`\theta - 2f` selected entries nearest to
  their median; entries that tie for the last places share these places.

  García-Márquez et al. 2025 use the name "Bulyan" for other rules: section 4.3
  evaluates `multi_krum` with m = 5, and section 2.4 and the published code for
  the cosine distance describe `bulyan_trimmed`.

  Ties go to the lowest index. Rejected rows (see `lca.geometry`) are never
  selected. If fewer than :math:`\theta` rows are left, those are averaged; if
  none is left, the update is NaN. Whatever at most f clients send, every
  coordinate lies between entries of the selected clients, most of which are
  honest.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.
    selection: `'iterative'`, as published, or `'once'`, which takes the lowest
      scores of a single Krum, as in Flower's message API.
    distance: distance of the selection: `'euclidean'`, `'cosine'`, or a
      function (`lca.distances`).
    power: power of the Euclidean distance, 1, 2 or 4; None is 2.

  Returns:
    One update.

  Raises:
    ValueError: unless f >= 0 and n >= 4f + 3, or if `selection` is unknown.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1.], [2.], [2.], [0.], [3.], [1.], [99.]])
    >>> print(lca.bulyan(updates, f=1))
    [2.]

  References:
    El Mhamdi, Guerraoui and Rouault, The hidden vulnerability of distributed
    learning in Byzantium, ICML 2018.
  """
  n = len(gram)
  check_integers('bulyan', f=f)
  if f < 0 or n < 4 * f + 3:
    raise ValueError(f'bulyan needs f >= 0 and n >= 4f + 3, got n={n}, f={f}')
  if selection == 'once':
    scores = krum_scores('bulyan', gram, f, None, distance, power)
    return select_lowest(gram, scores, n - 2 * f)
  if selection != 'iterative':
    raise ValueError(
      f"selection must be 'iterative' or 'once', got {selection!r}"
    )
  distances = geometry.distances(gram, distance, power)
  # Row i of `order` lists the clients, nearest to i first; i itself is at +inf.
  others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, distances)
  order = jnp.argsort(others, axis=1)
  ordered = jnp.take_along_axis(others, order, axis=1)
  accepted = ~geometry.rejected_rows(gram)

  def select_one(step, chosen):
    remaining = ~chosen
    num_neighbors = jnp.maximum(1, n - step - f - 2)
    # A score sums the first `num_neighbors` entries that still remain.
    in_play = remaining[order]
    is_neighbor = in_play & (jnp.cumsum(in_play, axis=1) <= num_neighbors)
    scores = jnp.sum(jnp.where(is_neighbor, ordered, 0), axis=1)
    candidates = remaining & accepted
    best = jnp.min(jnp.where(candidates, scores, jnp.inf))
    return chosen.at[jnp.argmax(candidates & (scores <= best))].set(True)

  chosen = lax.fori_loop(0, n - 2 * f, select_one, jnp.zeros(n, bool))
  return average(gram, chosen)


@StatisticOfSelected
def _trimmed_mean(n: int, *, f: int, m: int, trim: int | None = None, **_: Any):
  del n
  trim = f if trim is None else trim
  return m, order_statistics.RankedMean(trim, m - 1 - trim)


@gram_rule(combine=_trimmed_mean)
def bulyan_trimmed(
  gram: Gram,
  *,
  f: int,
  m: int,
  trim: int | None = None,
  num_neighbors: int | None = None,
  distance: geometry.Distance = 'euclidean',
  power: int | None = None,
) -> Verdict:
  r"""Bulyan with one selection: the trimmed mean of the m lowest Krum scores.

  Section 2.4 of García-Márquez et al. 2025 describes this rule, and their
  published code computes it for the cosine distance. (Their section 4.3
  evaluates `multi_krum` instead.)

  1. The m clients of lowest score :math:`s(i)` of `krum` are selected at once.
  2. In every coordinate, the `trim` lowest and the `trim` highest entries of
     the selected clients are dropped, and the rest is averaged.

  With m = 5 and `trim=2`, the result is the median of the selected clients, as
  in flex-clash's Multi-Krum.

  Ties go to the lowest index. Rejected rows (see `lca.geometry`) are never
  selected. If fewer than m rows are left, those are averaged; if none is left,
  the update is NaN. Whatever at most f clients send, every coordinate lies
  between entries of the selected clients.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.
    m: number of clients to select.
    trim: number of entries to trim on each side; None is f.
    num_neighbors: number of neighbours in a score; None is n - f - 2.
    distance: distance of the selection: `'euclidean'`, `'cosine'`, or a
      function (`lca.distances`).
    power: power of the Euclidean distance, 1, 2 or 4; None is 2.

  Returns:
    One update.

  Raises:
    ValueError: unless n > 2f + 2, f >= 0, m <= n - f, trim >= 0, m > 2 trim
      and 1 <= num_neighbors < n - f.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1.], [1.1], [1.3], [0.8], [99.]])
    >>> print(lca.bulyan_trimmed(updates, f=1, m=3))
    [1.1]

  References:
    García-Márquez et al. 2025, section 2.4.
  """
  n, sides = len(gram), f if trim is None else trim
  check_integers('bulyan_trimmed', f=f, m=m, trim=sides)
  if sides < 0 or not 2 * sides < m <= n - f:
    raise ValueError(
      f'bulyan_trimmed needs trim >= 0 and 2 trim < m <= n - f, got n={n}, '
      f'f={f}, m={m}, trim={sides}'
    )
  scores = krum_scores(
    'bulyan_trimmed', gram, f, num_neighbors, distance, power
  )
  return select_lowest(gram, scores, m)
