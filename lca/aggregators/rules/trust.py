"""Rules that weigh clients by whom they resemble: each other, or the server."""

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import FunctionRule, Info, Verdict, gram_rule
from lca.stacked import geometry
from lca.typing import Gram, Update, Updates


@gram_rule
def foolsgold(gram: Gram) -> Verdict:
  r"""FoolsGold: the more a client resembles another one, the less it weighs.

  With :math:`c_{ij}` the cosine of two updates and :math:`v_i = \max_{j \ne i}
  c_{ij}`, honest clients are pardoned, :math:`c_{ij} \leftarrow c_{ij} v_i /
  v_j` where :math:`v_i < v_j`, and

  .. math:: \alpha_i = 1 - \max_j c_{ij}, \qquad
      w_i = \Big[\ln \frac{\alpha_i}{1 - \alpha_i} + \frac{1}{2}\Big]_0^1

  after :math:`\alpha` was cut to [0, 1] and divided by its maximum, and 1
  replaced by 0.99. The update is the mean with weights w (the paper: the sum).

  It looks at this round alone: the published rule compares the sums of each
  client's past updates, which supposes that the same clients come back. It is
  against copies of one attacker, and nothing is promised: one that resembles
  nobody has the full weight. If all weights are 0, as of identical updates,
  all clients weigh the same. Rejected rows (see `lca.geometry`) weigh nothing;
  with none left the update is NaN. A zero row resembles nobody.

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
  bad, n = geometry.rejected_rows(gram), len(gram)
  absent = bad | (geometry.norms(gram) == 0) | jnp.eye(n, dtype=bool)
  # In place of cosines and v, 1 less them: nearly parallel rows have digits.
  apart = jnp.where(absent | absent.T, 1, geometry.distances(gram, 'cosine'))
  least = jnp.min(apart, axis=1)
  pardoned = least[:, None] > least
  more = apart * (1 - least[:, None]) + least[:, None] - least
  apart = jnp.where(pardoned, more / jnp.where(pardoned, 1 - least, 1), apart)
  alpha = jnp.where(bad, 0, jnp.clip(jnp.min(apart, axis=1), 0, 1))
  largest = jnp.max(alpha)
  alpha = alpha / jnp.where(largest > 0, largest, 1)
  alpha = jnp.where(alpha == 1, 0.99, alpha)
  weights = jnp.clip(jnp.log(alpha / (1 - alpha)) + 0.5, 0, 1)
  weights = jnp.where(jnp.any(weights > 0), weights, ~bad)
  return Verdict(weights / jnp.sum(weights))


@FunctionRule
def fltrust(updates: Updates, *, server_update: Update) -> tuple[Update, Info]:
  r"""FLTrust: weighs clients by how far they point where the server does.

  .. math:: F(x_1, \dots, x_n) = \frac{1}{\sum_i t_i} \sum_i t_i
      \frac{\|g\|}{\|x_i\|} x_i, \qquad t_i = \max(0, \cos(x_i, g))

  with g what the server computed on examples of its own. The result is never
  longer than g, whatever any number of clients send.

  Rejected rows (see `lca.geometry`) are not trusted, nor are rows that are zero
  or so short that float32 cannot tell their length. If nobody is trusted, or g
  is rejected itself, the update is NaN. Its derivative holds the :math:`t_i`
  fixed; of g it is that of the length.

  Promise (docs/rules.md): full: no longer than the server's, where any row
  agrees with that.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    server_update: g, one update.

  Returns:
    One update.

  Raises:
    ValueError: if `server_update` is not shaped like one update.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[4., 0.], [0., 9.], [-1e9, 0.]])
    >>> print(lca.fltrust(updates, server_update=jnp.array([1., 0.])))
    [1. 0.]

  References:
    Cao et al., FLTrust: Byzantine-robust federated learning via trust
    bootstrapping, NDSS 2021.
  """
  held, own = lax.stop_gradient((updates, server_update))
  gram = geometry.norms_gram(held)
  bad, lengths = geometry.rejected_rows(gram), geometry.norms(gram)
  (scale,) = geometry.norms(
    geometry.norms_gram(geometry.one_client(server_update))
  )
  length = lax.stop_gradient(scale)
  # Entries whose squares are subnormal may be missing from a length.
  size = sum(leaf[0].size for leaf in jax.tree.leaves(held))
  tiny = 1e6 * size * jnp.finfo(gram.dtype).tiny
  absent = bad | (lengths**2 <= tiny)
  along = jnp.where(absent, 0, geometry.inner(held, own))
  safe = jnp.where(absent, 1, lengths)
  trust = jnp.maximum(along / safe / jnp.where(length > 0, length, 1), 0)
  trust = jnp.where(jnp.isinf(length), jnp.nan, trust)
  factors = jnp.where(absent, 0, scale / safe)  # in derivatives, too
  verdict = Verdict(trust / jnp.sum(trust), factors=factors)
  return geometry.mix(updates, verdict.scaled_weights), verdict.info(gram)
