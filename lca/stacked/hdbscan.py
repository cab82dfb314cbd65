r"""HDBSCAN, which finds clusters of any number and density among few points.

Points are joined as a threshold rises: at a threshold t, two points are in one
*component* if steps of at most t lead from one to the other. Read from large
thresholds to small ones, a component of at least m points is a *cluster* that
goes on while it loses fewer than m points at a time. It ends where it falls
into several components of at least m points, each of which is a new cluster, or
into smaller ones alone. HDBSCAN selects clusters that last for a wide range of
densities :math:`\lambda = 1 / t`, no two of which overlap. The points of no
selected cluster are noise.

All steps work on `[n, n]` arrays, for up to some hundred points.
"""

import jax
import jax.numpy as jnp
from jax import lax


def hdbscan(
  distances: jax.Array,
  absent: jax.Array | None = None,
  *,
  min_cluster_size: int = 5,
  min_samples: int | None = None,
  allow_single_cluster: bool = False,
) -> jax.Array:
  r"""Returns the clusters of points by their distances, with HDBSCAN.

  The distance between two points counts as at least the *core distance* of each
  of them: the distance to its `min_samples`-th nearest point, where a point is
  the nearest to itself. The stability of a cluster is its excess of mass

  .. math:: \sum_{i \in C} (\lambda_i - \lambda_C)

  where :math:`\lambda_C` is the density at which the cluster begins and
  :math:`\lambda_i` the density at which point i leaves it. A cluster is
  preferred to those inside it if its stability is at least the largest sum of
  theirs; stabilities that agree up to rounding count as equal.

  Components that join at exactly the same distance join at once, so that the
  result does not depend on the order of the points. (Implementations that join
  two at a time depend on it, where a point at the same distance from two
  clusters becomes a member of one of them.)

  Args:
    distances: `[n, n]`, symmetric, nonnegative and not NaN. Points at an
      infinite distance share no cluster.
    absent: `[n]` mask of points that are left out; they are noise.
    min_cluster_size: m, the smallest number of points in a cluster, at least 2.
    min_samples: at least 1; None takes `min_cluster_size`. If fewer points are
      not absent, their number takes its place.
    allow_single_cluster: True if all points may be one cluster. Those that
      leave it before it ends are noise.

  Returns:
    `[n]` integers: the number of a point's cluster, or -1 for noise. Clusters
    are numbered in the order of their first points.

  Examples:
    >>> import jax.numpy as jnp
    >>> x = jnp.array([0., 9., 0.1, 9.1, 0.2, 9.3, 30.])
    >>> print(hdbscan(abs(x[:, None] - x), min_cluster_size=2))
    [ 0  1  0  1  0  1 -1]

  References:
    Campello et al., Density-based clustering based on hierarchical density
    estimates, PAKDD 2013; McInnes and Healy, Accelerated hierarchical density
    based clustering, ICDMW 2017.
  """
  n, m = len(distances), min_cluster_size
  if absent is None:
    absent = jnp.zeros(n, bool)
  apart = jnp.where(absent[:, None] | absent, jnp.inf, distances)
  k = jnp.minimum(min_samples or m, jnp.sum(~absent))
  core = jnp.sort(apart, axis=1)[:, jnp.maximum(k - 1, 0)]
  reach = jnp.maximum(apart, jnp.maximum(core, core[:, None]))
  order, steps = linkage_order(reach)

  # Component i is the run of places around i, in this order, that the step to
  # place i joins: no step inside it is longer. It stands for a component only
  # if i is the first such step in it; place 0 stands for none.
  places = jnp.arange(n)
  longer = steps > steps[:, None]
  before, after = places < places[:, None], places > places[:, None]
  start = jnp.max(jnp.where(longer & before, places, 0), axis=1)
  end = jnp.min(jnp.where(longer & after, places, n), axis=1)
  size, whole = end - start, end - start == n
  same = (start == start[:, None]) & (end == end[:, None]) & (places > 0)
  first = jnp.argmax(same, axis=1)
  large = (places > 0) & (first == places) & (size >= m)

  # The component that a component becomes part of: the shorter one of the steps
  # that bound it joins them.
  right = jnp.minimum(end, n - 1)
  by_right = (start == 0) | (end < n) & (steps[right] < steps[start])
  parent = jnp.where(whole, 0, first[jnp.where(by_right, right, start)])

  # Densities lie between 0 and infinity. Those that are not infinite are kept
  # so small that sums over the points are finite.
  least = 4 * n * jnp.finfo(steps.dtype).tiny
  density = jnp.where(steps > 0, 1 / jnp.maximum(steps, least), jnp.inf)
  excess = size * (density - jnp.where(whole, 0, density[parent]))

  # From short steps to long ones, every large component tells its parent about
  # itself: that it is one more `part`, its cluster's `mass` so far, the largest
  # mass of the clusters `inside` it, the larger one of both, and the component
  # at which its cluster ends.
  def summary(told, i):
    parts, mass, inside, best, ends = told
    goes_on = parts[i] == 1  # with fewer points
    mass = excess[i] + jnp.where(goes_on, mass[i], 0)
    inside = jnp.where(goes_on, inside[i], best[i])
    return mass, inside, jnp.where(goes_on, ends[i], i)

  by_length = jnp.argsort(steps)

  def tell(j, told):
    parts, mass, inside, best, ends = told
    i = by_length[j]
    its_mass, its_inside, its_end = summary(told, i)
    to = jnp.where(large[i], parent[i], 0)  # to nobody
    return (
      parts.at[to].add(1),
      mass.at[to].add(its_mass),
      inside.at[to].add(its_inside),
      best.at[to].add(jnp.maximum(its_mass, its_inside)),
      ends.at[to].set(its_end),
    )

  nothing = jnp.zeros(n, excess.dtype)
  told = places * 0, nothing, nothing, nothing, places
  told = lax.fori_loop(0, n, tell, told)
  mass, inside, ends = summary(told, places)

  begins = whole | (told[0][parent] > 1)
  lasts = mass >= inside * (1 - n * jnp.finfo(steps.dtype).eps)
  stable = large & begins & lasts & (allow_single_cluster | ~whole)
  covers = (start[:, None] <= places) & (places < end[:, None])
  sizes = jnp.where(stable[:, None] & covers, size[:, None], 0)
  largest = jnp.argmax(sizes, axis=0)  # of the clusters around each place
  # All points as one cluster: its members are those that are left at its end.
  cluster = jnp.where(whole[largest], ends[largest], largest)
  member = (jnp.max(sizes, axis=0) > 0) & covers[cluster, places]

  cluster = jnp.zeros(n, int).at[order].set(jnp.where(member, cluster, -1))
  leader = jnp.argmax(cluster == cluster[:, None], axis=1)
  leads = (leader == places) & (cluster >= 0)
  number = jnp.cumsum(leads) - 1
  return jnp.where(cluster >= 0, number[leader], -1)


def linkage_order(distances: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the points in an order in which single linkage clusters are runs.

  Points are visited in the order of Prim's minimum spanning tree: next is
  always the point nearest to any point visited before. At a threshold t, the
  clusters of single linkage are the runs of this order that a step longer than
  t ends.

  Args:
    distances: `[n, n]`, symmetric and not NaN; they may be infinite.

  Returns:
    `[n]` indices of the points in their order, and `[n]` distances of each of
    them from the nearest point before it. The first one has none before it, and
    an infinite distance.
  """
  n, dtype = len(distances), distances.dtype
  # Infinity marks the points that have been visited.
  far = jnp.finfo(dtype).max
  between = jnp.minimum(distances, far)

  def visit(i, carry):
    order, steps, nearest = carry
    point = jnp.argmin(nearest)
    order, steps = order.at[i].set(point), steps.at[i].set(nearest[point])
    visited = jnp.isinf(nearest).at[point].set(True)
    nearest = jnp.where(visited, jnp.inf, jnp.minimum(nearest, between[point]))
    return order, steps, nearest

  empty = jnp.zeros(n, int), jnp.zeros(n, dtype), jnp.full(n, far)
  order, steps, _ = lax.fori_loop(0, n, visit, empty)
  return order, jnp.where(steps < far, steps, jnp.inf)
