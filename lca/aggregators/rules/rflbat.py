"""The rule that clusters updates along their two principal components."""

import jax
import jax.numpy as jnp

from lca.aggregators.base import Verdict, gram_rule
from lca.aggregators.rules.selection import average, check_integers
from lca.aggregators.rules.spectral import centred_gram
from lca.stacked import eigen, geometry
from lca.stacked.k_means import clusters_by_gap
from lca.typing import Gram


@gram_rule
def rflbat(
  gram: Gram,
  *,
  epsilon_1: float = 10.0,
  epsilon_2: float = 4.0,
  max_clusters: int = 9,
) -> Verdict:
  r"""RFLBAT: averages the cluster of updates that resemble each other least.

  Attackers who share a backdoor send updates that resemble each other more than
  honest updates do. Every update is reduced to a point :math:`p_i`, its first
  two principal components. Then

  1. a client is dropped if its sum of distances :math:`\sum_j \|p_i - p_j\|`
     exceeds :math:`\epsilon_1` times the median of these sums;
  2. the others are divided by k-means, into as many clusters as the gap
     statistic says, but at most `max_clusters`;
  3. the mean cosine of each update with the updates of its cluster is taken,
     and the cluster with the lowest median of these is kept. The cosine of an
     update with itself, 1, counts as well, so that a cluster of one client is
     kept last;
  4. a client of that cluster is dropped as in step 1, by the distances in the
     cluster and with :math:`\epsilon_2`.

  The clients that remain are averaged.

  K-means starts from points that are far from each other, the first one nearest
  to the mean, and the gap statistic compares with the same ten sets of uniform
  points in every call, so that the rule needs no PRNG key. Rejected rows (see
  `lca.geometry`) are left out from the beginning; if no row is left, the update
  is NaN. Cosines with a zero row are 1 less the distances of `lca.distances`.
  The update is finite, whatever fewer than all clients send. Its length is not
  bounded: several long updates that do not resemble each other can be the
  cluster that is kept.

  Promise (docs/rules.md): finite.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    epsilon_1: bound of step 1, in medians.
    epsilon_2: bound of step 4, in medians.
    max_clusters: largest number of clusters.

  Returns:
    One update.

  Raises:
    ValueError: unless epsilon_1 >= 1, epsilon_2 >= 1 and max_clusters >= 1.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1., 0.], [0., 1.], [1., 1.], [0., 0.5],
    ...                      [9., 9.], [9., 9.1]])
    >>> update, info = lca.explain(lca.rflbat)(updates)
    >>> print(info['selected'])
    [ True  True  True  True False False]

  References:
    Wang et al., RFLBAT: a robust federated learning algorithm against backdoor
    attack, 2022.
  """
  check_integers('rflbat', max_clusters=max_clusters)
  if not (epsilon_1 >= 1 and epsilon_2 >= 1 and max_clusters >= 1):
    raise ValueError(
      'rflbat needs epsilon_1 >= 1, epsilon_2 >= 1 and max_clusters >= 1, got '
      f'epsilon_1={epsilon_1}, epsilon_2={epsilon_2}, '
      f'max_clusters={max_clusters}'
    )
  accepted = ~geometry.rejected_rows(gram)
  points = _principal_components(gram, accepted)
  gaps = points[:, None] - points
  between = jnp.sqrt(jnp.sum(gaps**2, axis=-1))
  near = _near_others(between, accepted, epsilon_1)
  most = min(max_clusters, len(gram))
  labels = clusters_by_gap(points, near, most)
  members = near & (labels == jnp.arange(most)[:, None])  # [clusters, n]
  cosine = geometry.distances(gram, 'cosine')
  unlikeness = jax.vmap(_median_unlikeness, (None, 0))(cosine, members)
  kept = members[jnp.argmax(unlikeness)]
  return average(gram, _near_others(between, kept, epsilon_2))


def _principal_components(gram: Gram, accepted: jax.Array) -> jax.Array:
  """Returns the rows' first two principal components, `[n, 2]`, in any unit.

  For a single client there is one component. Rejected rows are at 0.
  """
  inner = geometry.without_rejected(geometry.differences(gram), ~accepted)
  share = accepted / jnp.maximum(jnp.sum(accepted), 1)
  centred = centred_gram(inner, share.astype(inner.dtype), accepted)
  # Scaled to magnitude 1, so that products of long rows do not overflow.
  size = jnp.max(jnp.diagonal(centred))
  values, vectors = eigen.eigh(centred / jnp.where(size > 0, size, 1))
  largest = slice(None, -3, -1)  # the last two, the largest one first
  return vectors[:, largest] * jnp.sqrt(jnp.maximum(values[largest], 0))


def _near_others(
  between: jax.Array, present: jax.Array, bound: float
) -> jax.Array:
  """Returns a mask of clients whose sum of distances is at most some medians.

  Args:
    between: `[n, n]` distances.
    present: `[n]` mask of the clients to compare; the others are not near.
    bound: in medians of the sums.
  """
  sums = jnp.sum(jnp.where(present, between, 0), axis=1)
  return present & (sums <= bound * _median(sums, present))


def _median_unlikeness(distances: jax.Array, members: jax.Array) -> jax.Array:
  """Returns the median of the members' mean distances to all members.

  It is -1, less than any distance, if there is no member.
  """
  total = jnp.sum(jnp.where(members, distances, 0), axis=1)
  means = total / jnp.maximum(jnp.sum(members), 1)
  return jnp.where(jnp.any(members), _median(means, members), -1)


def _median(values: jax.Array, present: jax.Array) -> jax.Array:
  """Returns the median of the values in a mask; +inf if there are none."""
  ordered = jnp.sort(jnp.where(present, values, jnp.inf))
  last = jnp.sum(present) - 1
  return ordered[last // 2] / 2 + ordered[(last + 1) // 2] / 2
