"""Bulyan: Krum selects clients, then every coordinate drops its extremes."""

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
def _nearest_to_median(n: int, *, f: int, **_: Any):
  count = n - 2 * f
  middle = (count - 1) // 2, count // 2
  return count, order_statistics.NearestMean(*middle, count - 2 * f)


@gram_rule(combine=_nearest_to_median)
def bulyan(
  gram: Gram,
  *,
  f: int,
  selection: Literal['iterative', 'once'] = 'iterative',
  distance: geometry.Distance = 'euclidean',
  power: int | None = None,
) -> Verdict:
  r"""Bulyan of El Mhamdi et al.: iterated Krum, then means around the median.

  First :math:`\theta = n - 2f` clients are selected, one by one, each time the
  winner of Krum among those that remain: of r remaining, a score sums the
  max(1, r - f - 2) smallest distances. Then, of every coordinate, the mean of
  the :math:`\theta - 2f` selected entries nearest to their median is taken;
  entries that tie for the last places share them.

  What García-Márquez et al. 2025 evaluate as "Bulyan" is `multi_krum` with
  m = 5; what their published code computes for the cosine distance is
  `bulyan_trimmed`.

  Ties go to the lowest index. Rejected rows (see `lca.geometry`) are never
  selected; if fewer than :math:`\theta` others are left, those are averaged,
  and with none the update is NaN. Whatever at most f clients send, every
  coordinate lies between those of selected clients, most of them honest.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: how many Byzantine clients to tolerate.
    selection: `'iterative'`; or `'once'`, the lowest scores of a single Krum
      (Flower's message API).
    distance: of the selection: `'euclidean'`, `'cosine'`, or a function
      (`lca.distances`).
    power: of the Euclidean distance, 1, 2 or 4; None is 2.

  Returns:
    One update.

  Raises:
    ValueError: unless f >= 0 and n >= 4f + 3; unknown `selection`.

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
  between = geometry.distances(gram, distance, power)
  others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, between)
  order = jnp.argsort(others, axis=1)
  ordered = jnp.take_along_axis(others, order, axis=1)
  acceptable = ~geometry.rejected_rows(gram)

  def select_one(step, chosen):
    remaining = ~chosen
    count = jnp.maximum(1, n - step - f - 2)
    there = remaining[order]
    near = there & (jnp.cumsum(there, axis=1) <= count)
    scores = jnp.sum(jnp.where(near, ordered, 0), axis=1)
    candidates = remaining & acceptable
    best = jnp.min(jnp.where(candidates, scores, jnp.inf))
    return chosen.at[jnp.argmax(candidates & (scores <= best))].set(True)

  chosen = lax.fori_loop(0, n - 2 * f, select_one, jnp.zeros(n, bool))
  return average(gram, chosen)


@StatisticOfSelected
def _trimmed(n: int, *, f: int, m: int, trim: int | None = None, **_: Any):
  del n
  trim = f if trim is None else trim
  return m, order_statistics.RankedMean(trim, m - 1 - trim)


@gram_rule(combine=_trimmed)
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

  The m clients of lowest score of `krum` are selected at once; of every
  coordinate, their `trim` lowest and highest entries are dropped and the rest
  is averaged. It is section 2.4 of García-Márquez et al. 2025, and, with the
  cosine distance, their published code. With m = 5 and `trim=2`, the median of
  the selected, it is flex-clash's Multi-Krum.

  Ties go to the lowest index. Rejected rows (see `lca.geometry`) are never
  selected; if fewer than m others are left, those are averaged, and with none
  the update is NaN. Whatever at most f clients send, every coordinate lies
  between those of selected clients.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: how many Byzantine clients to tolerate.
    m: how many clients to select.
    trim: how many entries to trim on each side; None is f.
    num_neighbors: how many neighbours a score sums over; None is n - f - 2.
    distance: of the selection: `'euclidean'`, `'cosine'`, or a function
      (`lca.distances`).
    power: of the Euclidean distance, 1, 2 or 4; None is 2.

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
