"""Rules that select clients by distance: Krum, Multi-Krum, the medoid."""

import jax
import jax.numpy as jnp

from lca.aggregators.base import Verdict, gram_rule
from lca.aggregators.rules.selection import check_integers, select_lowest
from lca.stacked import geometry, order_statistics
from lca.typing import Gram


@gram_rule
def krum(
  gram: Gram,
  *,
  f: int,
  num_neighbors: int | None = None,
  distance: geometry.Distance = 'euclidean',
  power: int | None = None,
) -> Verdict:
  r"""Krum: the update of the client that is closest to its nearest neighbours.

  .. math:: \mathrm{Kr}(x_1, \dots, x_n) = x_{i^*}, \quad
      i^* = \arg\min_i s(i), \quad
      s(i) = \sum_{i \to j} d(x_i, x_j)

  where :math:`i \to j` runs over the n - f - 2 clients nearest to i, itself
  excluded, and d is the squared Euclidean distance (Blanchard et al. 2017).

  Ties go to the lowest index. A rejected row (see `lca.geometry`) is at
  distance +inf and never selected; if all are rejected, the update is NaN.
  Whatever at most f Byzantine clients send, the result is finite, and close to
  the honest ones in the sense of (α, f)-Byzantine resilience.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: how many Byzantine clients to tolerate.
    num_neighbors: how many neighbours a score sums over; None is n - f - 2.
      byzfl and byzpy take n - f - 1. With fewer than f, liars may be each
      other's.
    distance: `'euclidean'`; `'cosine'`, which does not see lengths (with
      `lca.cosine(krum)` the updates are clipped to their median norm as well);
      or a function (`lca.distances`).
    power: of the Euclidean distance, 1, 2 or 4, which is Blades'; None is 2.

  Returns:
    One update, bit for bit one of the clients'.

  Raises:
    ValueError: unless n > 2f + 2, f >= 0 and 1 <= num_neighbors < n - f.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = {'w': jnp.array([[1.], [1.1], [1.2], [0.8], [99.]])}
    >>> print(lca.krum(updates, f=1))
    {'w': Array([1.1], dtype=float32)}

  References:
    Blanchard et al., Machine learning with adversaries: Byzantine tolerant
    gradient descent, NeurIPS 2017.
  """
  scores = krum_scores('krum', gram, f, num_neighbors, distance, power)
  return select_lowest(gram, scores, 1)


@gram_rule
def multi_krum(
  gram: Gram,
  *,
  f: int,
  m: int,
  num_neighbors: int | None = None,
  distance: geometry.Distance = 'euclidean',
  power: int | None = None,
) -> Verdict:
  r"""Multi-Krum: the mean of the m clients of lowest Krum score.

  .. math:: F(x_1, \dots, x_n) = \frac{1}{m} \sum_{i \in V} x_i

  where V holds the m lowest scores :math:`s(i)` of `krum`. With m = 5 it is
  what García-Márquez et al. 2025, section 4.3, evaluate as "Bulyan"; byzfl's
  default is m = n - f.

  Ties go to the lowest index. Rejected rows are never selected; with fewer
  than m others, those are averaged, and with none the update is NaN. Whatever
  at most f Byzantine clients send, the result is finite, and each of the m lies
  as near to the honest ones as some of these do to each other, up to a factor
  by n.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: how many Byzantine clients to tolerate.
    m: how many clients to average.
    num_neighbors: how many neighbours a score sums over; None is n - f - 2.
    distance: `'euclidean'`, `'cosine'`, or a function (`lca.distances`).
    power: of the Euclidean distance, 1, 2 or 4, which is Blades'; None is 2.

  Returns:
    One update.

  Raises:
    ValueError: unless n > 2f + 2, f >= 0, 1 <= m <= n - f and
      1 <= num_neighbors < n - f.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1.], [1.1], [1.2], [0.8], [99.]])
    >>> print(lca.multi_krum(updates, f=1, m=3).round(4))
    [1.1]

  References:
    Blanchard et al., Machine learning with adversaries: Byzantine tolerant
    gradient descent, NeurIPS 2017.
  """
  check_integers('multi_krum', f=f, m=m)
  if not 1 <= m <= len(gram) - f:
    raise ValueError(
      f'multi_krum needs 1 <= m <= n - f, got n={len(gram)}, f={f}, m={m}'
    )
  scores = krum_scores('multi_krum', gram, f, num_neighbors, distance, power)
  return select_lowest(gram, scores, m)


@gram_rule
def medoid(
  gram: Gram,
  *,
  distance: geometry.Distance = 'euclidean',
  power: int | None = None,
) -> Verdict:
  r"""The medoid: the client's update with the smallest sum of distances.

  .. math:: F(x_1, \dots, x_n) = x_{i^*}, \quad
      i^* = \arg\min_i \frac{1}{n} \sum_{j=1}^n \|x_i - x_j\|^p

  García-Márquez et al. 2025 evaluate it as "GeoMed". Their text sums squared
  distances (`power=2`: the client nearest to the mean), their published code
  the distances themselves, which is the default here. It is not the geometric
  median, which is no client's update in general.

  Ties go to the lowest index. Rejected rows are left out of the sums and never
  selected; if all are rejected, the update is NaN. Whatever fewer than half of
  the clients send, the winner is near the honest ones (not with `power=2`), but
  a single client steers *which* one it is, and next to a row of 1e6 times the
  others' norm float32 no longer tells the others apart. Scores count from the
  distances of a row in the middle, which the sums beside them would hide.

  Promise (docs/rules.md): full, f < n/2.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    distance: `'euclidean'`, `'cosine'`, or a function (`lca.distances`).
    power: of the Euclidean distance, 1, 2 or 4; None is 1.

  Returns:
    One update, bit for bit one of the clients'.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[0.], [1.], [2.], [3.], [99.]])
    >>> print(lca.medoid(updates), lca.medoid(updates, power=2))
    [2.] [3.]

  References:
    El Mhamdi et al., The hidden vulnerability of distributed learning in
    Byzantium, ICML 2018 (as GeoMed).
  """
  if distance == 'euclidean' and power is None:
    power = 1
  between = geometry.distances(gram, distance, power)
  bad = geometry.rejected_rows(gram)
  if distance == 'cosine' or (distance, power) == ('euclidean', 1):
    between = _beside_a_middle_one(between, bad, distance)
  # Divided before they are summed: many distances near the limit overflow.
  scores = jnp.sum(jnp.where(bad, 0, between / len(gram)), axis=1)
  return select_lowest(gram, jnp.where(bad, jnp.inf, scores), 1)


def _beside_a_middle_one(
  between: jax.Array, bad: jax.Array, distance: geometry.Distance
) -> jax.Array:
  r"""Distances less those of a row r in the middle, which rank the same.

  .. math:: |d_{ij} - d_{rj}| \le d_{ir}

  Beside a row j far away it is rounding alone that breaks this, and would hide
  all the other distances. Under the cosine it holds of the distances' roots:
  beside a zero row nothing is left.
  """
  middle = order_statistics.sort(between)[:, jnp.sum(~bad) // 2]
  r = jnp.argmin(middle)
  within = between[:, r, None]
  if distance == 'cosine':
    within = jnp.sqrt(within) * (jnp.sqrt(between) + jnp.sqrt(between[r]))
  return jnp.clip(between - between[r], -within, within)


def krum_scores(
  rule: str,
  gram: Gram,
  f: int,
  num_neighbors: int | None,
  distance: geometry.Distance,
  power: int | None,
) -> jax.Array:
  """`[n]` sums of the distances to the nearest neighbours."""
  n = len(gram)
  check_integers(rule, f=f)
  if f < 0 or n <= 2 * f + 2:
    raise ValueError(f'{rule} needs f >= 0 and n > 2f + 2, got n={n}, f={f}')
  k = n - f - 2 if num_neighbors is None else num_neighbors
  check_integers(rule, num_neighbors=k)
  if not 1 <= k < n - f:  # beyond, f rejected rows would spoil every score
    raise ValueError(
      f'{rule} needs 1 <= num_neighbors < n - f, got n={n}, f={f}, '
      f'num_neighbors={k}'
    )
  between = geometry.distances(gram, distance, power)
  others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, between)
  return jnp.sum(order_statistics.sort(others)[:, :k], axis=1)
