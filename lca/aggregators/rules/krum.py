"""Rules that select clients by their distances: Krum, Multi-Krum, the medoid.

These are Krum, "Bulyan" and "GeoMed" of sections 2.4 and 4.3 of García-Márquez
et al. 2025.
"""

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

  Sections 2.4 and 4.3 of García-Márquez et al. 2025 define this operator KR and
  the score s(i):

  .. math:: \mathrm{KR}(x_1, \dots, x_n) = x_{i^*}, \quad
      i^* = \arg\min_i s(i), \quad
      s(i) = \sum_{i \to j} \|x_i - x_j\|^2

  where :math:`i \to j` runs over the n - f - 2 clients nearest to i, without i
  itself (Blanchard et al. 2017).

  Ties go to the lowest index. A rejected row (see `lca.geometry`) is at
  distance +inf and never selected; if all rows are rejected, the update is NaN.
  Whatever at most f Byzantine clients send, the result is finite, and close to
  the honest updates in the sense of (α, f)-Byzantine resilience.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.
    num_neighbors: number of neighbours in a score; None is n - f - 2. byzfl and
      byzpy take n - f - 1. With fewer than f neighbours, Byzantine clients can
      be each other's neighbours and win.
    distance: `'euclidean'`; `'cosine'`, which ignores lengths
      (`lca.cosine(krum)` also clips the updates to their median norm); or a
      function (`lca.distances`).
    power: power of the Euclidean distance, 1, 2 or 4; None is 2. Blades uses 4.

  Returns:
    One update, bit for bit the update of one client.

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
  return select_lowest(gram, scores, 1)  # argmin_i s(i)


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

  With m = 5 it is the operator B that García-Márquez et al. 2025, section 4.3,
  call "Bulyan":

  .. math:: B(x_1, \dots, x_n) = \frac{1}{|V|} \sum_{i \in V} x_i

  where V holds the m clients of lowest score :math:`s(i)` of `krum`. byzfl's
  default is m = n - f.

  Ties go to the lowest index. Rejected rows (see `lca.geometry`) are never
  selected. If fewer than m rows are left, those are averaged; if none is left,
  the update is NaN. Whatever at most f Byzantine clients send, the result is
  finite, and every selected update is about as near to the honest updates as
  these are to each other, up to a factor that depends on n.

  Promise (docs/rules.md): full.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    f: number of Byzantine clients to tolerate.
    m: number of clients to average.
    num_neighbors: number of neighbours in a score; None is n - f - 2.
    distance: `'euclidean'`, `'cosine'`, or another (`lca.distances`).
    power: power of the Euclidean distance, 1, 2 or 4; None is 2. Blades uses 4.

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
    gradient descent, NeurIPS 2017; García-Márquez et al. 2025, section 4.3.
  """
  check_integers('multi_krum', f=f, m=m)
  if not 1 <= m <= len(gram) - f:
    raise ValueError(
      f'multi_krum needs 1 <= m <= n - f, got n={len(gram)}, f={f}, m={m}'
    )
  scores = krum_scores('multi_krum', gram, f, num_neighbors, distance, power)
  return select_lowest(gram, scores, m)  # the mean over V


@gram_rule
def medoid(
  gram: Gram,
  *,
  distance: geometry.Distance = 'euclidean',
  power: int | None = None,
) -> Verdict:
  r"""The medoid: the client's update with the smallest sum of distances.

  Sections 2.4 and 4.3 of García-Márquez et al. 2025 define this operator Geo,
  "GeoMed":

  .. math:: \mathrm{Geo}(x_1, \dots, x_n) = x_{j^*}, \quad
      j^* = \arg\min_j \frac{1}{n} \sum_{i=1}^n \|x_i - x_j\|^p

  The formula of section 4.3 has p = 2 (`power=2`), which selects the client
  nearest to the mean. The published code, and section 2.4 in words, have p = 1,
  the default here. The medoid is not the geometric median, which in general is
  no client's update.

  Ties go to the lowest index. Rejected rows (see `lca.geometry`) are left out
  of the sums and never selected; if all rows are rejected, the update is NaN.
  Whatever fewer than half of the clients send, the winner is near the honest
  updates (except with `power=2`). But a single client influences *which* update
  wins. Beside a row of 1e6 times the norm of the others, float32 distinguishes
  the sums of distances of the others less well than float64. To keep this loss
  small, the distances of one row in the middle are subtracted before the sums
  are taken.

  Promise (docs/rules.md): full, f < n/2.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    distance: `'euclidean'`, `'cosine'`, or another (`lca.distances`).
    power: power of the Euclidean distance, 1, 2 or 4; None is 1.

  Returns:
    One update, bit for bit the update of one client.

  Raises:
    ValueError: unknown `distance` or `power`, or a `power` without the
      Euclidean distance.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[0.], [1.], [2.], [3.], [99.]])
    >>> print(lca.medoid(updates), lca.medoid(updates, power=2))
    [2.] [3.]

  References:
    El Mhamdi et al., The hidden vulnerability of distributed learning in
    Byzantium, ICML 2018 (as GeoMed); García-Márquez et al. 2025, section 4.3.
  """
  if distance == 'euclidean' and power is None:
    power = 1
  distances = geometry.distances(gram, distance, power)
  rejected = geometry.rejected_rows(gram)
  if distance == 'cosine' or (distance, power) == ('euclidean', 1):
    distances = _relative_to_a_middle_row(distances, rejected, distance)
  # GeoMed's sums. Each distance is divided by n before the sum, as the sum of
  # many distances near float32's limit would overflow.
  scores = jnp.sum(jnp.where(rejected, 0, distances / len(gram)), axis=1)
  return select_lowest(gram, jnp.where(rejected, jnp.inf, scores), 1)


def _relative_to_a_middle_row(
  distances: jax.Array, rejected: jax.Array, distance: geometry.Distance
) -> jax.Array:
  r"""Subtracts the distances of a row r in the middle from those of each row.

  The same amount, :math:`\sum_j d_{rj}`, is subtracted from every row's sum, so
  the ranking stays. The differences obey the triangle inequality,

  .. math:: |d_{ij} - d_{rj}| \le d_{ir},

  and are clipped to it. Without the clip, rounding in the distances to a row j
  far away would exceed the bound and hide all other distances. For the cosine
  distance, the square roots of the distances obey the inequality.
  """
  # The row r whose median distance is least; rejected rows sort last.
  num_accepted = jnp.sum(~rejected)
  medians = order_statistics.sort(distances)[:, num_accepted // 2]
  r = jnp.argmin(medians)
  bound = distances[:, r, None]  # d_ir
  if distance == 'cosine':  # a - b = (sqrt(a) - sqrt(b)) (sqrt(a) + sqrt(b))
    bound = jnp.sqrt(bound) * (jnp.sqrt(distances) + jnp.sqrt(distances[r]))
  return jnp.clip(distances - distances[r], -bound, bound)


def krum_scores(
  rule: str,
  gram: Gram,
  f: int,
  num_neighbors: int | None,
  distance: geometry.Distance,
  power: int | None,
) -> jax.Array:
  """Returns the Krum scores s(i): `[n]` sums over the nearest neighbours."""
  n = len(gram)
  check_integers(rule, f=f)
  if f < 0 or n <= 2 * f + 2:
    raise ValueError(f'{rule} needs f >= 0 and n > 2f + 2, got n={n}, f={f}')
  k = n - f - 2 if num_neighbors is None else num_neighbors
  check_integers(rule, num_neighbors=k)
  if not 1 <= k < n - f:  # with more, f rejected rows make every score +inf
    raise ValueError(
      f'{rule} needs 1 <= num_neighbors < n - f, got n={n}, f={f}, '
      f'num_neighbors={k}'
    )
  distances = geometry.distances(gram, distance, power)
  # s(i): the sum of the k smallest distances d(x_i, x_j) to the others.
  others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, distances)
  return jnp.sum(order_statistics.sort(others)[:, :k], axis=1)
