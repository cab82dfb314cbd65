"""The rule that averages the cluster of a majority of similar models."""

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import FunctionRule, Info
from lca.aggregators.rules.selection import average
from lca.stacked import geometry
from lca.stacked.hdbscan import linkage_order
from lca.stacked.models_gram import models_gram
from lca.stacked.noise import with_noise
from lca.typing import Update, Updates


@FunctionRule
def flame(
  updates: Updates,
  *,
  params: Update,
  noise: float = 0.0,
  key: jax.Array | None = None,
) -> tuple[Update, Info]:
  r"""FLAME: averages a majority of clients whose models have like directions.

  The models are :math:`w + x_i`, where w are the parameters that the clients
  started from. They are clustered by their cosine distances

  .. math:: d_{ij} = 1 - \cos(w + x_i, w + x_j)

  B is the first single-linkage cluster of at least n // 2 + 1 clients. As a
  threshold t rises from 0, clients i and j are joined once :math:`d_{ij} \le
  t`; at the least t at which that many are connected to each other, B holds all
  clients that are connected to them. The updates in B are clipped to the median
  norm S and averaged:

  .. math:: F(x_1, \dots, x_n) = \frac{1}{|B|} \sum_{i \in B}
      \min\Big(1, \frac{S}{\|x_i\|}\Big)\, x_i + \mathcal N(0, \sigma^2 I),
      \qquad S = \mathrm{med}_j \|x_j\|, \quad \sigma = \lambda S

  where the median runs over all clients. The paper finds B with HDBSCAN
  (`min_cluster_size = n // 2 + 1`, `min_samples = 1`,
  `allow_single_cluster = True`). The noise, off by default, is the paper's
  adaptive noise.

  Clients that join at exactly the same distance all join, so that the order of
  the clients does not matter. A rejected row (see `lca.geometry`) never joins
  and does not enter the median; neither does a row whose model is too large. If
  fewer than n // 2 + 1 rows are left, those are averaged; if none is left, the
  update is NaN. A zero row is a client with the model w. A zero model has no
  direction, and is as far from the others as in `lca.distances`. Whatever fewer
  than half of the clients send, the update without noise is no longer than S,
  and S is no longer than the longest honest update.

  Derivatives hold B, the clip and the noise constant, so that there is none
  with respect to w.

  Promise (docs/rules.md): full, f < n/2.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    params: w, one tree shaped like one update. A round of the simulator passes
      it.
    noise: :math:`\lambda`, the standard deviation of the noise, in units of S.
    key: PRNG key of the noise; not needed with `noise=0`.

  Returns:
    One update.

  Raises:
    ValueError: unless noise is finite and >= 0, and `params` is shaped like one
      update, or if `noise > 0` and there is no key.

  Examples:
    Three models are near the direction of w. The fourth is not, and the length
    of its update does not matter:

    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[0., 1.], [0., 2.], [0., 4.], [-90., 0.]])
    >>> update, info = lca.explain(lca.flame)(
    ...   updates, params=jnp.array([10., 0.]))
    >>> print(update, info['selected'])
    [0. 2.] [ True  True  True False]

  References:
    Nguyen et al., FLAME: taming backdoors in federated learning, USENIX
    Security 2022.
  """
  if not 0 <= noise < float('inf'):
    raise ValueError(f'flame needs a finite noise >= 0, got noise={noise}')
  if noise > 0 and key is None:
    raise ValueError(
      f'flame needs a key to draw noise={noise}: pass key=, or noise=0'
    )
  gram = geometry.norms_gram(lax.stop_gradient(updates))
  models = models_gram(updates, params)
  rejected = geometry.rejected_rows(models)
  distances = geometry.distances(models, 'cosine')
  verdict = average(models, majority_cluster(distances, rejected))
  factors = geometry.clip_factors(gram, rejected=rejected)
  verdict = verdict._replace(factors=factors)
  update = geometry.mix(updates, verdict.scaled_weights)
  if noise > 0 and key is not None:
    size = geometry.median_norm(gram, rejected=rejected)  # S
    update = with_noise(update, noise * size, key)
  return update, verdict.info(models)


def majority_cluster(distances: jax.Array, absent: jax.Array) -> jax.Array:
  """Returns the first single-linkage cluster of more than half of the clients.

  In the order of `linkage_order`, the clusters of single linkage at a threshold
  t are the runs that a step longer than t ends. So the least threshold with a
  cluster of k clients is the least value of the longest of k - 1 steps in a
  row.

  Args:
    distances: `[n, n]`, in [0, 2] for the clients that are not absent.
    absent: `[n]` mask of clients that belong to no cluster.

  Returns:
    `[n]` mask of the cluster's members: n // 2 + 1 clients or more, or all that
    are not absent if these are fewer.
  """
  n = len(distances)
  k = n // 2 + 1
  # Absent clients are farther away than any other.
  order, steps = linkage_order(
    jnp.where(absent[:, None] | absent, jnp.inf, distances)
  )

  # Windows of k clients in a row, by the k - 1 steps between them.
  first = jnp.arange(n - k + 1)
  inside = steps[first[:, None] + jnp.arange(1, k)]
  longest = jnp.max(inside, axis=1, initial=0)
  window = jnp.argmin(longest)
  run = jnp.cumsum(steps > longest[window])  # `[n]` numbers of the runs
  members = jnp.zeros(n, bool).at[order].set(run == run[window])
  return members & ~absent
