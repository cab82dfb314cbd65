"""The mean after which the model is clipped, and receives noise."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import Aggregator, ExplainedUpdate
from lca.aggregators.rules.selection import average
from lca.stacked import geometry, sums
from lca.stacked.noise import with_noise
from lca.stacked.trees import check_one_update


def crfl(
  *,
  sigma: float = 0.01,
  rho: float = 2.0,
  growth: float = 0.1,
  rho_max: float = 15.0,
) -> Aggregator:
  r"""CRFL: clips the model after the mean, and adds noise to the model.

  The updates are averaged. The new model is clipped to a norm that grows with
  the rounds, and receives noise, so that a backdoor changes the distribution of
  the models by little:

  .. math:: w' = \min\Big(1, \frac{\rho_t}{\|w + \bar x\|}\Big) (w + \bar x) +
      \mathcal N(0, \sigma^2 I), \qquad
      \rho_t = \min(\rho_{max}, \rho + g\,t)

  where w is the model that the clients started from, and t the number of the
  round, from 1. The result is the update w' - w; a server that does more than
  to add the aggregate to the model does not train a model w'. The clip is on
  the *model*; `lca.static_clip` is on the clients' updates, and
  `lca.certificates` says what can be certified of the last model.

  Rejected rows (see `lca.geometry`) are left out of the mean; if no row is
  left, the update is NaN. Whatever clients send, the new model without noise is
  no longer than :math:`\rho_t`, so that the update is no longer than
  :math:`\rho_t + \|w\|`. Derivatives hold the clip and the noise
  constant.

  Batch statistics that the rule aggregates (`model.batch_stats='rule'`) belong
  to the model that is clipped and receives noise.

  Promise (docs/rules.md): full, f < n: no longer than the clip and the model
  together.

  Args:
    sigma: :math:`\sigma`, the standard deviation of the noise; 0 adds none.
    rho: :math:`\rho`, the norm of the clip before the first round.
    growth: g, what the norm grows by in every round.
    rho_max: :math:`\rho_{max}`, the largest norm. The defaults are those of the
      published code for MNIST; EMNIST has a `rho` of 4 and a `growth` of 0.25.

  Returns:
    An Aggregator whose state is the number of rounds so far. Its `update` needs
    `params`, the model w, and a `key` if there is noise. `lca.explain` reports
    the clients' `weights` and the `rejected` rows.

  Raises:
    ValueError: unless rho > 0, rho_max > 0, and sigma and growth are finite and
      >= 0. The update raises it if it lacks `params` or a key.

  Examples:
    The mean would make a model of norm 5:

    >>> import jax.numpy as jnp, lca
    >>> aggregator = lca.crfl(sigma=0., rho=2.5, growth=0.)
    >>> w = jnp.array([1., 2.])
    >>> updates = jnp.array([[1., 2.], [3., 2.]])
    >>> update, state = aggregator.update(
    ...   updates, aggregator.init(w), params=w)
    >>> print(update.round(4), state)
    [0.5 0. ] 1

  References:
    Xie, Chen, Chen and Li, CRFL: certifiably robust federated learning against
    backdoor attacks, ICML 2021.
  """
  for name, value in (('sigma', sigma), ('growth', growth)):
    if not 0 <= value < math.inf:
      raise ValueError(f'crfl needs a finite {name} >= 0, got {name}={value}')
  for name, value in (('rho', rho), ('rho_max', rho_max)):
    if not value > 0:
      raise ValueError(f'crfl needs {name} > 0, got {name}={value}')

  def init(params):
    del params
    return jnp.zeros((), jnp.int32)

  def explain(updates, state, **brought):
    params, key = brought.get('params'), brought.get('key')
    if params is None:
      raise ValueError('crfl needs params, the model: pass params=')
    if sigma > 0 and key is None:
      raise ValueError(
        f'crfl needs a key to draw sigma={sigma}: pass key=, or sigma=0'
      )
    geometry.num_clients(updates)
    check_one_update('params', params, updates)
    gram = geometry.norms_gram(lax.stop_gradient(updates))
    rejected = geometry.rejected_rows(gram)
    mean = average(gram, ~rejected).weights
    shift = geometry.mix(updates, mean)
    # The clip's factor c, in float32 or wider: the update is c x + (c - 1) w.
    model = jax.tree.map(_wide_sum, params, lax.stop_gradient(shift))
    size = geometry.norms(geometry.norms_gram(geometry.one_client(model)))
    limit = jnp.minimum(rho_max, rho + growth * (state + 1))
    factor = geometry.shrink_factors(size, limit)[0]
    update = jax.tree.map(
      lambda x, w: (factor * x + (factor - 1) * w).astype(x.dtype),
      shift,
      params,
    )
    if sigma > 0 and key is not None:
      update = with_noise(update, sigma, key)
    return update, state + 1, {'weights': factor * mean, 'rejected': rejected}

  return Aggregator(init, ExplainedUpdate(explain))


def _wide_sum(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns x + y in float32 or wider."""
  return x.astype(sums.wide(x.dtype)) + y
