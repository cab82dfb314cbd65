"""The rule that scores clients by three distances at once."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import FunctionRule, Info
from lca.aggregators.rules.selection import check_weights, select_lowest
from lca.stacked import eigen, geometry, sums
from lca.typing import Gram, Update, Updates

_SINGULAR = 1e-5  # of the largest variance: less counts as none


@FunctionRule
def multi_metrics(
  updates: Updates,
  *,
  weights: jax.Array | None = None,
  fraction: float = 0.3,
) -> tuple[Update, Info]:
  r"""Multi-metrics: averages the clients nearest to others by three distances.

  Every client has three features, sums over the other clients of a squared
  cosine distance, a Manhattan distance and a difference of norms:

  .. math:: v_i = \sum_j \Big( (1 - \cos(x_i, x_j))^2,\; \|x_i - x_j\|_1,\;
      \big| \|x_i\| - \|x_j\| \big| \Big), \qquad
      s_i = v_i^\top\, \mathrm{cov}(v)^{-1}\, v_i

  The inverse covariance of the features lets each of them count by its spread
  over the clients, and counts only once what two of them have in common. The
  clients with the lowest :math:`s_i`, a `fraction` of all, are averaged.

  The covariance is singular if a feature is the same for all clients, if two
  features are proportional, or for fewer than four clients. Directions in which
  the standardised features have less than 1e-5 of the largest variance then
  count as none: the inverse is a pseudo-inverse.

  Ties go to the lowest index. Rejected rows (see `lca.geometry`) are left out
  of the sums and of the covariance, and have the score +inf; if no row is left,
  the update is NaN. Cosine distances with a zero row are those of
  `lca.distances`. The update is finite, whatever fewer than all clients send.
  Its length is not bounded: the scores of several clients that agree can be the
  lowest.

  Promise (docs/rules.md): finite.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    weights: `[n]`, nonnegative, such as numbers of examples; None weighs all
      selected clients equally.
    fraction: share of the clients to select, rounded down, but at least one.

  Returns:
    One update.

  Raises:
    ValueError: unless 0 < fraction <= 1 and there is one weight per client.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1., 0.], [1., .5], [1., 1.], [2., 1.], [-9., 9.]])
    >>> update, info = lca.explain(lca.multi_metrics)(updates, fraction=0.4)
    >>> print(update, info['selected'])
    [1.   0.25] [ True  True False False False]

  References:
    Huang et al., Multi-metrics adaptively identifies backdoors in federated
    learning, ICCV 2023.
  """
  if not 0 < fraction <= 1:
    raise ValueError(
      f'multi_metrics needs 0 < fraction <= 1, got fraction={fraction}'
    )
  constant = lax.stop_gradient(updates)
  gram = geometry.gram(constant)
  n, accepted = len(gram), ~geometry.rejected_rows(gram)
  sizes = check_weights('multi_metrics', n, weights)
  scores = _scores(_features(constant, gram, accepted), accepted)
  verdict = select_lowest(gram, scores, max(1, int(fraction * n)), sizes)
  return geometry.mix(updates, verdict.weights), verdict.info(gram)


def _features(updates: Updates, gram: Gram, accepted: jax.Array) -> jax.Array:
  """Returns the three sums of distances, `[n, 3]`, 0 for rejected rows."""

  def manhattan(x, accepted):
    x = x.astype(sums.wide(x.dtype))

    def add(j, total):
      row = lax.dynamic_slice_in_dim(x, j, 1)
      distances = jnp.sum(jnp.abs(x - row), axis=1)
      return total + jnp.where(accepted[j], distances, 0)

    return lax.fori_loop(0, len(x), add, jnp.zeros(len(x), x.dtype))

  def total(between):
    return jnp.sum(jnp.where(accepted, between, 0), axis=1)

  features = [
    total(geometry.distances(gram, 'cosine') ** 2),
    functools.reduce(
      jnp.add,
      [
        sums.over_columns(manhattan, leaf, whole=(accepted,))
        for leaf in jax.tree.leaves(updates)
      ],
    ).astype(gram.dtype),
    total(jnp.abs(geometry.norm_differences(gram))),
  ]
  return jnp.where(accepted[:, None], jnp.stack(features, axis=1), 0)


def _scores(features: jax.Array, accepted: jax.Array) -> jax.Array:
  """Returns the `[n]` scores :math:`s_i`, +inf for rejected rows."""

  def unless_zero(x):
    return jnp.where(x > 0, x, 1)

  # Scaled to magnitude 1, so that squares of large features do not overflow.
  features /= unless_zero(jnp.max(features, axis=0))
  count = jnp.sum(accepted)
  mean = jnp.sum(features, axis=0) / jnp.maximum(count, 1)
  centred = jnp.where(accepted[:, None], features - mean, 0)
  degrees = jnp.maximum(count - 1, 1)  # of freedom
  deviation = unless_zero(jnp.sqrt(jnp.sum(centred**2, axis=0) / degrees))
  standard, centred = features / deviation, centred / deviation
  variances, directions = eigen.eigh(sums.dot(centred.T, centred) / degrees)
  used = variances > _SINGULAR * variances[-1]
  along = sums.dot(standard, directions) ** 2 / jnp.where(used, variances, 1)
  return jnp.where(
    accepted, jnp.sum(jnp.where(used, along, 0), axis=1), jnp.inf
  )
