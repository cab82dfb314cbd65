r"""Distances between clients, by name: functions of the Gram matrix.

A distance is a function from the `[n, n]` inner products to `[n, n]`
dissimilarities. Beside the Euclidean and the cosine distance there are mixtures
of both, two of which adapt to the layer that they measure. A mixture needs both
distances in one unit. With h = n - f the number of clients in the least honest
majority, the unit of a distance d is

.. math:: u(d) = \mathrm{med}_i\, r_i, \qquad
    r_i = \text{the } h\text{-th smallest of } d_{i1}, \dots, d_{in}

where :math:`d_{ii} = 0` counts, and of an even number of radii the lower one of
the middle pair. As long as at most f < n/2 clients are Byzantine, the unit is
never above the largest distance between two honest clients. The median of all
pairs may be, as Byzantine clients are in most pairs when n is 3f.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from lca.registry import Registry
from lca.stacked import inner_products, sums
from lca.typing import Gram

Distance = (
  Literal['euclidean', 'cosine', 'mixed', 'separating', 'rank_weighted']
  | Callable[[Gram], jax.Array]
)

DISTANCES: Registry[Callable[..., jax.Array]] = Registry(
  'distance', of_data=True
)
"""Functions from the Gram matrix to `[n, n]` distances."""

# In units. A mixture counts longer distances as this, so that sums of distances
# keep the short ones in float32.
_FAR = 1e4
_SHARES = 0.0, 0.25, 0.5, 0.75, 1.0  # the grid of `separating`


def distances(
  gram: Gram, distance: Distance = 'euclidean', power: int | None = None
) -> jax.Array:
  r"""Returns the pairwise distances of the clients from their inner products.

  Euclidean: :math:`\|x_i - x_j\|^p`, with :math:`\|x_i - x_j\|^2 = K_{ii} +
  K_{jj} - 2 K_{ij}` clamped at 0. Cosine: :math:`1 - K_{ij} / (\|x_i\|
  \|x_j\|)`, clamped to [0, 2]. The cosine distance is half the squared
  Euclidean distance of the unit vectors, and takes no power.

  A zero row has no direction. Its cosine distance is 2, the largest, to every
  nonzero row, so that a single client that sends zeros is not selected as the
  most central one. Two zero rows have cosine distance 0. Several zero rows are
  therefore neighbours, and a rule may select one of them if the other clients'
  directions differ much.

  If `gram` comes from `lca.gram`, distances of rows that differ by 1e-6 of
  their common part have a relative error of at most 1e-3. If `gram` is a plain
  array, rounding errors in the products may exceed the distances of close rows.

  Args:
    gram: `[n, n]` inner products.
    distance: `'euclidean'`, `'cosine'`, or another name in
      `lca.geometry.DISTANCES`, such as `'separating'`; or your own function
      from the inner products to `[n, n]` distances. Its values on the diagonal
      and for rejected clients are overwritten.
    power: 1, 2 or 4, the power of the Euclidean distance; None means 2. Fourth
      powers of distances beyond 4e9 are +inf in float32.

  Returns:
    `[n, n]`: zero on the diagonal, +inf in the rows and columns of rejected
    clients, their diagonal entries included.

  Raises:
    ValueError: the distance or the power is unknown, or a power is given with
      another distance than the Euclidean one.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> gram = lca.gram(jnp.array([[3., 0.], [0., 4.], [0., 0.]]))
    >>> print(lca.distances(gram, power=1))
    [[0. 5. 3.]
     [5. 0. 4.]
     [3. 4. 0.]]
    >>> print(lca.distances(gram, 'cosine'))
    [[0. 1. 2.]
     [1. 0. 2.]
     [2. 2. 0.]]
  """
  if not callable(distance) and distance not in DISTANCES:
    raise ValueError(
      f'distance must be one of {sorted(DISTANCES)} or a function, got '
      f'{distance!r}'
    )
  if power is not None and distance != 'euclidean':
    raise ValueError(
      f"power needs distance='euclidean', got power={power} with "
      f'distance={distance!r}'
    )
  if power not in (None, 1, 2, 4):
    raise ValueError(f'power must be 1, 2 or 4, got {power}')

  between = (distance if callable(distance) else DISTANCES[distance])(gram)
  if power in (1, 4):
    between = jnp.sqrt(between) if power == 1 else jnp.square(between)
  between = jnp.where(jnp.eye(len(gram), dtype=bool), 0, between)
  bad = inner_products.rejected_rows(gram)
  return jnp.where(bad[:, None] | bad, jnp.inf, between)


@DISTANCES.register(name='euclidean')
def _euclidean(gram: Gram) -> jax.Array:
  """Returns the squared Euclidean distances, as `distances` defines them."""
  return inner_products.squared_distances(gram)


@DISTANCES.register(name='cosine')
def _cosine(gram: Gram) -> jax.Array:
  """Returns the cosine distances, as `distances` defines them."""
  zero = inner_products.diagonal(gram) == 0  # [n] mask of the zero rows
  between = inner_products.one_less_cosines(gram)
  between = jnp.where(zero[:, None] ^ zero, 2, between)
  return jnp.where(zero[:, None] & zero, 0, between)


def mixed(
  gram: Gram, *, share: jax.Array | float = 0.5, f: int | None = None
) -> jax.Array:
  r"""Returns a mixture of the squared Euclidean and the cosine distance.

  .. math:: d_{ij} = \lambda \frac{\|x_i - x_j\|^2}{u_E} +
      (1 - \lambda) \frac{1 - \cos\theta_{ij}}{u_C}

  The units u (see the module) are those of either distance, so that the mixture
  does not change with the length of the updates. If a unit is 0, because most
  clients agree, the largest distance takes its place. Distances beyond 1e4
  units count as 1e4 units.

  Args:
    gram: `[n, n]` inner products.
    share: :math:`\lambda` in [0, 1], the weight of the Euclidean distance.
    f: number of Byzantine clients that the units tolerate; None is the largest
      minority, (n - 1) // 2.

  Returns:
    `[n, n]`, +inf for rejected rows.

  Raises:
    ValueError: unless f is an integer and 0 <= f < n / 2.

  Examples:
    The second row is long, the third has another direction:

    >>> import jax.numpy as jnp, lca
    >>> gram = lca.gram(jnp.array([[1., 0.], [2., 0.], [0., 1.]]))
    >>> print(lca.geometry.mixed(gram, share=.5))
    [[0.  0.5 1.5]
     [0.5 0.  3. ]
     [1.5 3.  0. ]]
  """
  return _mix(share, *_in_units(gram, f))


def separating(gram: Gram, *, f: int | None = None) -> jax.Array:
  r"""Returns the mixture that best separates a majority from the others.

  For each of the weights :math:`\lambda = 0, 1/4, 1/2, 3/4, 1` of `mixed`, let
  :math:`S_i` be client i with its n - f - 1 nearest others, and S the
  :math:`S_i` of the least sum of distances to i. The result is the mixture of
  the greatest separation

  .. math:: \frac{\mathrm{mean}_{a \in S,\, b \notin S}\; d_{ab}}
      {\mathrm{mean}_{a, b \in S,\, a \ne b}\; d_{ab}}

  So a layer in which clients stand out by their lengths is measured by the
  Euclidean distance, and one in which they stand out by their directions by the
  cosine distance. For one set S the separation is monotone in :math:`\lambda`:
  a mixture of both wins only where it finds another set than either alone.

  Equal separations go to the smallest weight, which is the cosine distance.
  Clients at the distance of the farthest of :math:`S_i` all belong to
  :math:`S_i`, and of several :math:`S_i` of the same sum the one of the
  greatest separation counts, so that the order of the clients does not matter.
  Rejected rows belong to no set. If no client is left outside S, the separation
  is 0. Byzantine clients can influence the choice, for instance towards the
  Euclidean distance with one long update. If the cosine distance is chosen,
  lengths do not count: clip the updates, as with `lca.clip_to_median_norm`
  before the rule.

  Args:
    gram: `[n, n]` inner products.
    f: number of Byzantine clients to tolerate; None is the largest minority,
      (n - 1) // 2.

  Returns:
    `[n, n]`, +inf for rejected rows.

  Raises:
    ValueError: unless f is an integer and 0 <= f < n / 2.

  Examples:
    The last row stands out by its direction, and then by its length:

    >>> import jax.numpy as jnp, lca
    >>> rows = jnp.array([[1., 0.], [3., .1], [2., 0.], [0., 2.]])
    >>> def is_mixture(share, rows):
    ...   gram = lca.gram(rows)
    ...   mixture = lca.geometry.mixed(gram, share=share)
    ...   return bool(jnp.allclose(lca.geometry.separating(gram), mixture))
    >>> is_mixture(0., rows), is_mixture(1., rows.at[3].set(1e9))
    (True, True)
  """
  euclidean, cosine = _in_units(gram, f)
  mixtures = jax.vmap(lambda share: _mix(share, euclidean, cosine))(
    jnp.array(_SHARES, euclidean.dtype)
  )
  majority = _majority(gram, f)
  separations = jax.vmap(lambda d: _separation(d, majority))(mixtures)
  return mixtures[jnp.argmax(separations)]


def rank_weighted(gram: Gram, *, f: int | None = None) -> jax.Array:
  r"""Returns the mixture whose weight follows the effective rank of the layer.

  The effective rank (participation ratio) of the m nonzero rows' directions,

  .. math:: \rho = \frac{(\mathrm{tr}\, C)^2}{\mathrm{tr}\, C^2} =
      \frac{m^2}{\sum_{ij} \cos^2 \theta_{ij}} \in [1, m], \qquad
      \lambda = 1 - \frac{\rho - 1}{m - 1}

  is how many dimensions the updates really use. It is never above the number
  of the layer's parameters, and it is large for wide layers of which every
  client moves other entries, as sparse updates do. There the squared Euclidean
  distance is :math:`\|x_i\|^2 + \|x_j\|^2` and ranks the clients by length
  alone, so that the mixture (see `mixed`) is the cosine distance. A layer of
  few parameters, such as the bias of an output, has directions that say little:
  with one parameter they are signs. There the mixture is the Euclidean
  distance.

  Directions alone decide the weight, so that the length of a row does not, and
  f of m clients change few of the m² cosines. With one nonzero row or none,
  :math:`\lambda` is 1. Rejected rows do not count. Where the weight is near 0,
  lengths hardly count: clip the updates, as with `lca.clip_to_median_norm`
  before the rule.

  Args:
    gram: `[n, n]` inner products.
    f: number of Byzantine clients that the units of `mixed` tolerate; None is
      the largest minority, (n - 1) // 2.

  Returns:
    `[n, n]`, +inf for rejected rows.

  Raises:
    ValueError: unless f is an integer and 0 <= f < n / 2.

  Examples:
    Orthogonal rows use all dimensions, and rows of one parameter a single one:

    >>> import jax.numpy as jnp, lca
    >>> rows = jnp.array([1., 2., 4.])
    >>> print(lca.distances(lca.gram(jnp.diag(rows)), 'rank_weighted'))
    [[0. 1. 1.]
     [1. 0. 1.]
     [1. 1. 0.]]
    >>> print(lca.distances(lca.gram(rows[:, None]), 'rank_weighted'))
    [[0. 1. 9.]
     [1. 0. 4.]
     [9. 4. 0.]]
  """
  # Cosines with rows that are zero or rejected are 0, their own included.
  squares = jnp.square(inner_products.cosines(gram))
  m = jnp.sum(inner_products.diagonal(squares) > 0.5)
  rank = m**2 / jnp.maximum(jnp.sum(squares), 1)
  share = 1 - jnp.clip((rank - 1) / jnp.maximum(m - 1, 1), 0, 1)
  return _mix(share, *_in_units(gram, f))


for _distance in (mixed, separating, rank_weighted):
  DISTANCES.register(_distance)


def _majority(gram, f):
  """Returns n - f, or the number of rows that are not rejected if less."""
  n = len(gram)
  f = (n - 1) // 2 if f is None else f
  if not isinstance(f, int) or not 0 <= 2 * f < n:
    raise ValueError(f'the distance needs 0 <= f < n / 2, got n={n}, f={f!r}')
  left = jnp.sum(~inner_products.rejected_rows(gram))
  return jnp.clip(left, 1, n - f)


def _in_units(gram, f):
  """Returns the Euclidean and the cosine distances, each in its unit."""
  majority = _majority(gram, f)
  left = jnp.sum(~inner_products.rejected_rows(gram))

  def in_units(between):
    # Rejected rows are at distance +inf and so come last.
    radii = jnp.sort(between)[:, majority - 1]
    unit = jnp.sort(radii)[jnp.maximum(left - 1, 0) // 2]
    largest = jnp.max(jnp.where(jnp.isinf(between), 0, between))
    unit = jnp.where(unit > 0, unit, largest)
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
    scaled = jnp.minimum(between / unit, _FAR)
    return jnp.where(jnp.isinf(between), jnp.inf, scaled)

  return in_units(distances(gram)), in_units(distances(gram, 'cosine'))


def _mix(share, euclidean, cosine):
  """Returns the mixture of two distances, +inf where they are."""
  rejected = jnp.isinf(euclidean)
  euclidean, cosine = (jnp.where(rejected, 0, d) for d in (euclidean, cosine))
  mixture = share * euclidean + (1 - share) * cosine
  return jnp.where(rejected, jnp.inf, mixture)


def _separation(between, majority):
  """Returns the separation of the most central majority (`separating`)."""
  ordered = jnp.sort(between)
  radii = ordered[:, majority - 1]
  inner = jnp.arange(len(between)) < majority
  # Sums to the rows of a set; a rejected row's sum is +inf.
  reach = jnp.sum(jnp.where(inner, ordered, 0), axis=1)
  present = jnp.isfinite(inner_products.diagonal(between))
  inside = (between <= radii[:, None]) & present  # [n, n], a set S_i each row
  outside = ~inside & present
  finite = jnp.where(jnp.isinf(between), 0, between)
  sums_to = sums.dot(inside.astype(finite.dtype), finite)
  size, rest = (jnp.sum(x, axis=1) for x in (inside, outside))
  within = jnp.sum(jnp.where(inside, sums_to, 0), axis=1)
  across = jnp.sum(jnp.where(outside, sums_to, 0), axis=1)
  within = within / jnp.maximum(size * (size - 1), 1)
  across = across / jnp.maximum(size * rest, 1)
  # Several clients that agree have no distance within: the best separation.
  ratio = jnp.where(
    within > 0,
    across / jnp.where(within > 0, within, 1),
    jnp.where(across > 0, jnp.inf, 0),
  )
  return jnp.max(jnp.where(reach == jnp.min(reach), ratio, -1))
