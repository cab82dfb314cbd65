"""The mean of updates clipped to a quantile of their norms, with noise."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import Aggregator, ExplainedUpdate
from lca.aggregators.rules.clipping import check_threshold
from lca.stacked import geometry
from lca.stacked.noise import with_noise


def adaptive_clip(
  *,
  threshold: float = 0.1,
  quantile: float = 0.5,
  rate: float = 0.2,
  noise_multiplier: float = 0.0,
  count_noise: float | None = None,
) -> Aggregator:
  r"""Averages clipped updates; the clip follows a quantile of their norms.

  In every round the updates are clipped to C and averaged, with noise if asked
  for. The share b of the updates that are no longer than C then moves C:

  .. math:: F(x_1, \dots, x_n) = \frac{1}{n} \sum_{i=1}^n
      \min\Big(1, \frac{C}{\|x_i\|}\Big)\, x_i +
      \mathcal N\Big(0, \frac{z_\Delta^2 C^2}{n^2} I\Big), \qquad
      C \leftarrow C e^{-\eta (b - \gamma)}

  where :math:`b = (\#\{i : \|x_i\| \le C\} + \mathcal N(0, \sigma_b^2)) / n`.
  So C comes to the :math:`\gamma`-quantile of the norms. The noise on the mean
  and on the count together are as private as a noise multiplier of z on the
  mean alone if

  .. math:: z_\Delta = \big(z^{-2} - (2 \sigma_b)^{-2}\big)^{-1/2}

  With `rate=0` the clip stays as it is and nothing is counted, so that
  :math:`z_\Delta = z`: this is DP-FedAvg (McMahan et al. 2018) with clients of
  equal weight.

  A rejected row (see `lca.geometry`) contributes nothing and counts as longer
  than C; the divisor stays n. If fewer than :math:`(1 - \gamma) n` clients are
  Byzantine, C grows only in rounds in which an honest update is longer than C.
  So, without noise, the update is no longer than the first C, or than
  :math:`e^{\eta \gamma}` times the longest honest update so far. Under
  `lca.layerwise` every layer has a C, and noise of the multiplier z, of its
  own.

  Promise (docs/rules.md): full, f < (1 - quantile) n.

  Args:
    threshold: the first C, in the updates' unit.
    quantile: :math:`\gamma`, the share of the updates that should stay as they
      are.
    rate: :math:`\eta`, the step size of log C.
    noise_multiplier: z; 0 adds no noise to the mean.
    count_noise: :math:`\sigma_b`, the standard deviation of the noise on the
      count. None is n / 20 with noise on the mean, as the paper recommends, and
      0 without.

  Returns:
    An Aggregator whose state is C. Its `update` needs a `key` if there is
    noise. `lca.explain` reports the clients' `weights` and the `rejected` rows.

  Raises:
    ValueError: unless threshold > 0, quantile is in [0, 1], and rate,
      noise_multiplier and count_noise are finite and >= 0. The update raises it
      unless noise_multiplier < 2 count_noise where C is moved, or if it needs a
      key and there is none.

  Examples:
    Two of three updates are longer than the first C, so that C grows:

    >>> import jax.numpy as jnp, lca
    >>> aggregator = lca.adaptive_clip(threshold=1.)
    >>> state = aggregator.init(jnp.zeros(1))
    >>> updates = jnp.array([[.5], [2.], [1e9]])
    >>> update, state = aggregator.update(updates, state)
    >>> print(update.round(4), state.round(4))
    [0.8333] 1.0339

  References:
    Andrew, Thakkar, McMahan and Ramaswamy, Differentially private learning with
    adaptive clipping, NeurIPS 2021.
  """
  check_threshold('adaptive_clip', threshold)
  if not 0 <= quantile <= 1:
    raise ValueError(
      f'adaptive_clip needs quantile in [0, 1], got quantile={quantile}'
    )
  for name, value in (
    ('rate', rate),
    ('noise_multiplier', noise_multiplier),
    ('count_noise', 0 if count_noise is None else count_noise),
  ):
    if not 0 <= value < math.inf:
      raise ValueError(
        f'adaptive_clip needs a finite {name} >= 0, got {name}={value}'
      )

  def init(params):
    del params
    return jnp.array(threshold, jnp.float32)

  def explain(updates, state, **brought):
    gram = geometry.norms_gram(lax.stop_gradient(updates))
    norms, rejected = geometry.norms(gram), geometry.rejected_rows(gram)
    n = len(gram)
    z, of_count = noise_deviations(n, rate, noise_multiplier, count_noise)
    factors = geometry.shrink_factors(norms, state)
    weights = jnp.where(rejected, 0, factors / n)
    update = geometry.mix(updates, weights)
    unclipped = jnp.sum(norms <= state) / n  # b; a rejected norm is +inf
    if z or of_count:
      if brought.get('key') is None:
        raise ValueError(
          'adaptive_clip needs a key to draw noise: pass key=, or '
          'noise_multiplier=0'
        )
      for_mean, for_count = jax.random.split(brought['key'])
      update = with_noise(update, z * state / n, for_mean)
      unclipped += of_count / n * jax.random.normal(for_count)
    state = (state * jnp.exp(-rate * (unclipped - quantile))).astype(
      state.dtype
    )
    return update, state, {'weights': weights, 'rejected': rejected}

  return Aggregator(init, ExplainedUpdate(explain))


def noise_deviations(
  n: int, rate: float, noise_multiplier: float, count_noise: float | None
) -> tuple[float, float]:
  """Returns the noise multiplier of the mean, and the deviation of the count.

  They are :math:`z_\\Delta` and :math:`\\sigma_b` of `adaptive_clip`.

  Args:
    n: number of clients.
    rate, noise_multiplier, count_noise: options of `adaptive_clip`.

  Raises:
    ValueError: the noise on the count alone is less private than asked for.
  """
  if rate == 0:  # nothing is counted
    return noise_multiplier, 0.0
  if count_noise is None:
    count_noise = n / 20 if noise_multiplier > 0 else 0.0
  if noise_multiplier == 0:
    return 0.0, count_noise
  if noise_multiplier >= 2 * count_noise:
    raise ValueError(
      'adaptive_clip needs noise_multiplier < 2 count_noise, got '
      f'noise_multiplier={noise_multiplier}, count_noise={count_noise}, '
      f'n={n}'
    )
  of_mean = (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5
  return of_mean, count_noise
