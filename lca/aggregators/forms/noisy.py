"""The noisy form of a rule: Gaussian noise on the aggregate."""

import inspect
import math
from collections.abc import Callable
from typing import Any, overload

import jax

from lca.aggregators.base import (
  Aggregator,
  ExplainedUpdate,
  Info,
  Rule,
  explain,
  hyper_of,
  rule_name,
  rule_signature,
)
from lca.stacked.noise import with_noise
from lca.typing import Update, Updates

_KEY = inspect.Parameter(
  'key',
  inspect.Parameter.KEYWORD_ONLY,
  default=None,
  annotation=jax.Array | None,
)


@overload
def noisy(rule: Aggregator, *, sigma: float) -> Aggregator: ...


@overload
def noisy(rule: Callable[..., Update], *, sigma: float) -> Rule[...]: ...


def noisy(rule: Any, *, sigma: float) -> Any:
  r"""Adds Gaussian noise to a rule's update.

  .. math:: F'(x_1, \dots, x_n) = F(x_1, \dots, x_n) +
      \mathcal N(0, \sigma^2 I)

  After a clip and the mean this is the defence of Sun et al. 2019 against
  backdoors, norm clipping with noise: the clip bounds what one client can do,
  and the noise covers small changes. The central differential privacy of
  DP-FedAvg (McMahan et al. 2018) is the same computation with
  :math:`\sigma = z C / n`, where C is the threshold of the clip and z the noise
  multiplier. The noise is added to the update of the rule, in other words to
  the mean, not to the sum.

  Every coordinate draws a number of its own, in all leaves and layers:
  `layerwise(noisy(rule))` is `noisy(layerwise(rule))`, and a chain that ends in
  `noisy(rule)` is `noisy(chain)`. If the rule draws as well, its draws are the
  same as without noise. Derivatives hold the noise constant.

  Noise gives up the promise of the rule (docs/rules.md) about the length of the
  update: the noise on d coordinates is about :math:`\sigma \sqrt d` long.

  Args:
    rule: any function of stacked updates, or an Aggregator. A pre-aggregator
      returns rows, and each of them receives noise of its own.
    sigma: :math:`\sigma`, the standard deviation of the noise, in the updates'
      unit. 0 adds none, and needs no key.

  Returns:
    A rule with the hyper-parameters of `rule` and `key`, the PRNG key of the
    noise; or an Aggregator, whose `update` takes the key. A round of the
    simulator brings one.

  Raises:
    TypeError: `rule` is neither a function nor an Aggregator.
    ValueError: unless sigma is finite and >= 0. The call raises it if
      `sigma > 0` and there is no key.

  Examples:
    Norm clipping with noise on the mean:

    >>> import jax, jax.numpy as jnp, lca
    >>> rule = lca.noisy(lca.chain(lca.static_clip, lca.mean), sigma=0.01)
    >>> updates = jnp.array([[.3], [.5], [90.]])
    >>> print(rule(updates, threshold=1., key=jax.random.key(0)).round(1))
    [0.6]

  References:
    Sun, Kairouz, Suresh and McMahan, Can you really backdoor federated
    learning?, 2019. McMahan, Ramage, Talwar and Zhang, Learning differentially
    private recurrent language models, ICLR 2018.
  """
  if not 0 <= sigma < math.inf:
    raise ValueError(f'noisy needs a finite sigma >= 0, got sigma={sigma}')
  if isinstance(rule, Aggregator):
    return _noisy_aggregator(rule, sigma)
  if not callable(rule):
    raise TypeError(f'noisy needs a rule, got {type(rule).__name__}')
  return Noisy(rule, sigma)


class Noisy(Rule[...]):
  """The rule that `noisy` returns.

  Attributes:
    rule: the rule whose update receives the noise.
    sigma: standard deviation of the noise.
  """

  def __init__(self, rule: Callable[..., Update], sigma: float):
    self.rule, self.sigma = rule, sigma
    self.__name__ = f'noisy({rule_name(rule)}, sigma={sigma})'
    self.__doc__ = rule.__doc__
    hyper = hyper_of(rule)
    self._draws = 'key' in hyper
    self.__signature__ = rule_signature(({'key': _KEY} | hyper).values())

  def explain(
    self, updates: Updates, *, key: jax.Array | None = None, **hyper: Any
  ) -> tuple[Update, Info]:
    if self._draws:
      hyper['key'] = key
    update, info = explain(self.rule)(updates, **hyper)
    return _add(update, self.sigma, key), info


def _noisy_aggregator(aggregator: Aggregator, sigma: float) -> Aggregator:
  def explain_update(updates, state, **brought):
    update, state, info = explain(aggregator)(updates, state, **brought)
    return _add(update, sigma, brought.get('key')), state, info

  takes_scope = getattr(aggregator.update, 'takes_scope', False)
  return Aggregator(
    aggregator.init, ExplainedUpdate(explain_update, takes_scope)
  )


def _add(update: Update, sigma: float, key: jax.Array | None) -> Update:
  """Adds the noise; the rule may have drawn from the key itself."""
  if sigma == 0:
    return update
  if key is None:
    raise ValueError(f'noisy needs a key to draw sigma={sigma}: pass key=')
  return with_noise(update, sigma, jax.random.fold_in(key, _OF_NOISE))


# Folded into the key: a number beyond those that split a key in two or more.
_OF_NOISE = 0x6E6F6973
