"""Rules that weigh clients by similarity: to each other, or to the server."""

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import FunctionRule, Info, Verdict, gram_rule
from lca.stacked import geometry
from lca.typing import Gram, Update, Updates


@gram_rule
def foolsgold(gram: Gram) -> Verdict:
  r"""FoolsGold: the more a client resembles another one, the lower its weight.

  With :math:`c_{ij}` the cosine of two updates and :math:`v_i = \max_{j \ne i}
  c_{ij}`, honest clients are first pardoned: :math:`c_{ij}` is replaced by
  :math:`c_{ij} v_i / v_j` where :math:`v_i < v_j`. The weights are

  .. math:: \alpha_i = 1 - \max_j c_{ij}, \qquad
      w_i = \Big[\ln \frac{\alpha_i}{1 - \alpha_i} + \frac{1}{2}\Big]_0^1

  where :math:`\alpha` is clipped to [0, 1] and divided by its maximum, and
  values of 1 are replaced by 0.99, before the logarithm. The update is the mean
  with weights w (in the paper the sum).

  The rule uses this round alone. The published rule compares the sums of each
  client's past updates, for which the same clients must return. FoolsGold
  defends against an attacker who controls several similar clients; nothing is
  promised, as a Byzantine client that resembles no other has full weight. If
  all weights are 0, as for identical updates, all clients weigh the same.
  Rejected rows (see `lca.geometry`) have weight 0; if no row is left, the
  update is NaN. A zero row resembles no other.

  Promise (docs/rules.md): none.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.

  Returns:
    One update.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[1., 0.], [0., 1.], [-1., -1.], [-1., -1.]])
    >>> print(lca.foolsgold(updates))
    [0.5 0.5]

  References:
    Fung, Yoon and Beschastnikh, The limitations of federated learning in
    Sybil settings, RAID 2020.
  """
  rejected, n = geometry.rejected_rows(gram), len(gram)
  no_direction = rejected | (geometry.norms(gram) == 0)
  ignored = no_direction[:, None] | no_direction | jnp.eye(n, dtype=bool)
  # The code keeps 1 - c and 1 - v, as cosines of nearly parallel rows round to
  # 1 in float32.
  dissimilarity = jnp.where(ignored, 1, geometry.distances(gram, 'cosine'))
  least = jnp.min(dissimilarity, axis=1)  # 1 - v
  # Pardoning: 1 - c_ij v_i / v_j, where v_i < v_j.
  is_pardoned = least[:, None] > least
  numerator = dissimilarity * (1 - least[:, None]) + least[:, None] - least
  dissimilarity = jnp.where(
    is_pardoned,
    numerator / jnp.where(is_pardoned, 1 - least, 1),
    dissimilarity,
  )
  alpha = jnp.clip(jnp.min(dissimilarity, axis=1), 0, 1)
  alpha = jnp.where(rejected, 0, alpha)
  largest = jnp.max(alpha)
  alpha = alpha / jnp.where(largest > 0, largest, 1)
  alpha = jnp.where(alpha == 1, 0.99, alpha)
  weights = jnp.clip(jnp.log(alpha / (1 - alpha)) + 0.5, 0, 1)
  weights = jnp.where(jnp.any(weights > 0), weights, ~rejected)
  return Verdict(weights / jnp.sum(weights))


@FunctionRule
def fltrust(updates: Updates, *, server_update: Update) -> tuple[Update, Info]:
  r"""FLTrust: weighs clients by their agreement with the server's own update.

  .. math:: F(x_1, \dots, x_n) = \frac{1}{\sum_i t_i} \sum_i t_i
      \frac{\|g\|}{\|x_i\|} x_i, \qquad t_i = \max(0, \cos(x_i, g))

  where g is the update that the server computed on its own examples. The result
  is never longer than g, whatever any number of clients send.

  Rejected rows (see `lca.geometry`) have no trust, nor have zero rows and rows
  so short that float32 cannot represent their squared norm. If no client has
  trust, or g itself is rejected, the update is NaN. Derivatives hold the
  :math:`t_i` constant; with respect to g, only the length has a derivative.

  Promise (docs/rules.md): full: no longer than the server's update, if any row
  agrees with it.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    server_update: g, one update.

  Returns:
    One update.

  Raises:
    ValueError: unless `server_update` is shaped like one update.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[4., 0.], [0., 9.], [-1e9, 0.]])
    >>> print(lca.fltrust(updates, server_update=jnp.array([1., 0.])))
    [1. 0.]

  References:
    Cao et al., FLTrust: Byzantine-robust federated learning via trust
    bootstrapping, NDSS 2021.
  """
  constant_updates, constant_server = lax.stop_gradient(
    (updates, server_update)
  )
  gram = geometry.norms_gram(constant_updates)
  rejected, norms = geometry.rejected_rows(gram), geometry.norms(gram)
  (server_norm,) = geometry.norms(
    geometry.norms_gram(geometry.one_client(server_update))
  )
  constant_norm = lax.stop_gradient(server_norm)
  # The squared norm may lack entries whose squares are subnormal. A norm is
  # trusted only if such entries cannot matter.
  size = sum(leaf[0].size for leaf in jax.tree.leaves(constant_updates))
  tiny = 1e6 * size * jnp.finfo(gram.dtype).tiny
  ignored = rejected | (norms**2 <= tiny)
  inner = jnp.where(
    ignored, 0, geometry.inner(constant_updates, constant_server)
  )
  safe_norms = jnp.where(ignored, 1, norms)
  cosines = inner / safe_norms / jnp.where(constant_norm > 0, constant_norm, 1)
  trust = jnp.maximum(cosines, 0)  # t_i
  trust = jnp.where(jnp.isinf(constant_norm), jnp.nan, trust)
  # The factors ||g|| / ||x_i|| keep the derivative of ||g||.
  factors = jnp.where(ignored, 0, server_norm / safe_norms)
  verdict = Verdict(trust / jnp.sum(trust), factors=factors)
  return geometry.mix(updates, verdict.scaled_weights), verdict.info(gram)
