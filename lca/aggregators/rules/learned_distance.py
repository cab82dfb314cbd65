"""A mean by soft Krum scores whose distance the server learns."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import Aggregator, ExplainedUpdate, Verdict
from lca.aggregators.rules.selection import check_brought, check_integers
from lca.stacked import geometry, sums

_LIMIT = 5.0  # of the logit, so that the weight can always return from 0 or 1


def learned_distance(
  *,
  f: int,
  share: float = 0.5,
  temperature: float = 0.1,
  rate: float = 100.0,
) -> Aggregator:
  r"""Learns the weight of the Euclidean distance from the server's own update.

  The distance is the mixture of the Euclidean and the cosine distance
  (`lca.geometry.mixed`) with the weight :math:`\lambda = \sigma(\theta)`. Each
  client has the mean distance :math:`s_i(\theta)` to its n - f - 2 nearest
  others, Krum's score. The update is a mean with soft weights, after a clip to
  the median norm:

  .. math:: F_\theta(x_1, \dots, x_n) = \sum_i w_i
      \min\Big(1, \frac{\mathrm{med}_j \|x_j\|}{\|x_i\|}\Big) x_i, \qquad
      w_i = \frac{e^{-s_i(\theta) / \tau}}{\sum_j e^{-s_j(\theta) / \tau}}

  The weights are differentiable, so that the server then climbs the agreement
  with g, the update that it trained on its own examples:

  .. math:: \theta \leftarrow \theta + \eta\, \frac{\partial}{\partial \theta}
      \cos\big(F_\theta(x_1, \dots, x_n), g\big)

  by at most 1 in a round, and within [-5, 5]. (The derivative is small, often
  below 0.001, which explains the size of the default :math:`\eta`.) The update
  of a round uses the :math:`\theta` of the rounds before. Cosine and derivative
  come from the clients' inner products with each other and with g. One number
  is learned, and under `lca.layerwise` one per layer. A small :math:`\tau`
  approaches Krum, a large one the mean of the clipped updates.

  A rejected row (see `lca.geometry`) has weight 0; if no row is left, the
  update is NaN. If more than f rows are rejected, the rest weigh the same.
  A round whose derivative is not finite, as with a rejected g, leaves
  :math:`\theta` as it is. The update is never longer than the median norm. But
  every client has some weight, and the server's own examples steer the
  distance alone, never the update directly.

  Promise (docs/rules.md): full, f < n/2.

  Args:
    f: number of Byzantine clients to tolerate.
    share: :math:`\sigma(\theta)` at first, the Euclidean distance's weight.
    temperature: :math:`\tau`, in the unit of the mixture.
    rate: :math:`\eta`, the step size of :math:`\theta`; 0 learns nothing.

  Returns:
    An Aggregator whose state is :math:`\theta`. Its `update` needs the
    `server_update`, which a round brings with `data.root_examples`.
    `lca.explain` reports `weights`, `scores`, `selected` and `rejected`.

  Raises:
    ValueError: unless f is an integer >= 0, 0.01 <= share <= 0.99, temperature
      > 0 and rate >= 0, both finite. The update raises it unless n > 2f + 2,
      and without a `server_update` that is shaped like one update.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> aggregator = lca.learned_distance(f=1)
    >>> updates = jnp.array([[1., 0.], [1., .2], [2., .2], [1.5, 0.], [0., 9.]])
    >>> update, state = aggregator.update(
    ...   updates, aggregator.init(jnp.zeros(2)),
    ...   server_update=jnp.array([1., 0.]))
    >>> bool(jnp.linalg.norm(update) < 2.), state.shape
    (True, ())

  References:
    "Learnable layer-wise distance metrics" are future work of García-Márquez et
    al. 2025; g is that of Cao et al., FLTrust, NDSS 2021.
  """
  check_integers('learned_distance', f=f)
  if f < 0:
    raise ValueError(f'learned_distance needs f >= 0, got f={f}')
  if not 0.01 <= share <= 0.99:
    raise ValueError(
      f'learned_distance needs share in [0.01, 0.99], got share={share}'
    )
  if not 0 < temperature < math.inf:
    raise ValueError(
      'learned_distance needs a finite temperature > 0, got '
      f'temperature={temperature}'
    )
  if not 0 <= rate < math.inf:
    raise ValueError(
      f'learned_distance needs a finite rate >= 0, got rate={rate}'
    )

  def init(params):
    del params
    return jnp.array(math.log(share / (1 - share)), jnp.float32)

  def explain(updates, state, **brought):
    check_brought('learned_distance', brought, 'server_update')
    constant, server = lax.stop_gradient((updates, brought['server_update']))
    gram = geometry.gram(constant)
    n, rejected = len(gram), geometry.rejected_rows(gram)
    if n <= 2 * f + 2:
      raise ValueError(f'learned_distance needs n > 2f + 2, got n={n}, f={f}')

    def weigh(logit):
      between = geometry.mixed(gram, share=jax.nn.sigmoid(logit), f=f)
      others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, between)
      scores = jnp.mean(jnp.sort(others)[:, : n - f - 2], axis=1)  # s_i
      # With more than f rejected rows, every score is +inf.
      finite = jnp.where(jnp.isinf(scores), 0, scores)
      logits = jnp.where(rejected, -jnp.inf, -finite / temperature)
      return jax.nn.softmax(logits), scores

    factors = geometry.clip_factors(gram)
    toward, alike = _directions(constant, server, gram)
    lengths = jnp.where(rejected, 0, factors * geometry.norms(gram))
    largest = jnp.max(lengths)
    lengths = lengths / jnp.where(largest > 0, largest, 1)

    def alignment(logit):  # cos(F, g)
      weights, _ = weigh(logit)
      pull = weights * lengths
      square = jnp.sum(pull * sums.dot(alike, pull))
      return jnp.sum(pull * toward) / jnp.sqrt(jnp.where(square > 0, square, 1))

    weights, scores = weigh(state)
    slope = jax.grad(alignment)(state)
    step = rate * jnp.where(jnp.isfinite(slope), slope, 0)
    after = jnp.clip(state + jnp.clip(step, -1, 1), -_LIMIT, _LIMIT).astype(
      state.dtype
    )
    verdict = Verdict(weights, scores, factors)
    update = geometry.mix(updates, verdict.scaled_weights)
    return update, after, verdict.info(gram)

  return Aggregator(init, ExplainedUpdate(explain))


def _directions(updates, server, gram):
  """Returns cosines of the rows with the server's update, and of all pairs.

  Cosines with a zero or a rejected row are 0, and those with a rejected update
  of the server NaN.
  """
  norms = geometry.norms(gram)
  (length,) = geometry.norms(geometry.norms_gram(geometry.one_client(server)))
  absent = (norms == 0) | jnp.isinf(norms)
  inner = jnp.where(absent, 0, geometry.inner(updates, server))
  cosines = inner / jnp.where(absent, 1, norms)
  cosines = cosines / jnp.where(length > 0, length, 1)
  cosines = jnp.where(jnp.isinf(length), jnp.nan, jnp.clip(cosines, -1, 1))
  return cosines, geometry.cosines(gram)
