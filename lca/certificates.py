r"""Certificates of CRFL: which triggers cannot change a prediction.

A model that `lca.crfl` has trained predicts by a vote of noisy copies of
itself. If the vote is clear enough, the vote would have been the same after any
attack in one round whose trigger is shorter than a radius (Xie et al. 2021):

    counts = lca.certificates.votes(predict, params, key, ...)
    labels, p_a, p_b = lca.certificates.bounds(counts)
    radii = lca.certificates.radius(p_a, p_b, ...)
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from lca.options import number, positive, whole
from lca.stacked import geometry
from lca.stacked.noise import with_noise
from lca.typing import PyTree


def votes(
  predict: Callable[[PyTree], jax.Array],
  params: PyTree,
  key: jax.Array,
  *,
  num_classes: int,
  rho: float,
  sigma: float = 0.01,
  num_models: int = 1000,
) -> jax.Array:
  r"""Counts the votes of noisy copies of a model.

  Args:
    predict: a function from parameters to the predicted classes, `[m]`
      integers, of m examples.
    params: the trained model.
    key: PRNG key of the noise.
    num_classes: C, the number of classes.
    rho: :math:`\rho_T`, the norm that the model is clipped to first, the clip
      of the last round. The models of `lca.crfl` carry noise after their last
      clip.
    sigma: :math:`\sigma_T`, standard deviation of the noise.
    num_models: number of copies.

  Returns:
    `[m, C]` numbers of copies by the class that they predict.

  Raises:
    ValueError: unless rho > 0 and sigma > 0, and the numbers are at least 1.

  Examples:
    >>> import jax, jax.numpy as jnp, lca
    >>> inputs = jnp.array([-1., 1.])
    >>> predict = lambda params: (inputs + params > 0).astype(int)
    >>> print(lca.certificates.votes(
    ...   predict, jnp.zeros(()), jax.random.key(0), num_classes=2, rho=1.,
    ...   num_models=100))
    [[100   0]
     [  0 100]]
  """
  whole(1)('num_classes', num_classes)
  whole(1)('num_models', num_models)
  positive('rho', rho)
  positive('sigma', sigma)
  one = geometry.one_client(params)
  size = geometry.norms(geometry.norms_gram(one))
  clipped = geometry.scale(one, geometry.shrink_factors(size, rho))
  model = jax.tree.map(lambda x: x[0], clipped)

  def vote(key):
    labels = predict(with_noise(model, sigma, key))
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.int32)

  keys = jax.random.split(key, num_models)
  none = jnp.zeros_like(jax.eval_shape(vote, keys[0]))
  return lax.scan(lambda sum, key: (sum + vote(key), None), none, keys)[0]


def bounds(
  counts: ArrayLike, alpha: float = 0.001
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  r"""Returns the winners of votes, and bounds on the two largest shares.

  The bounds are Hoeffding's, as in the published code: with M copies, a share
  is within :math:`\sqrt{\log(1 / \alpha) / 2 M}` of its expectation, on one
  side, with probability :math:`1 - \alpha`.

  Args:
    counts: `[m, C]`, from `votes`, with C >= 2.
    alpha: the probability that a bound does not hold.

  Returns:
    `[m]` predicted classes (of equal counts the first), lower bounds on their
    shares, and upper bounds on the shares of the runners-up.

  Raises:
    ValueError: unless alpha is in (0, 1), or if the counts are of another
      shape.

  Examples:
    >>> import lca
    >>> labels, p_a, p_b = lca.certificates.bounds([[900, 20, 80]])
    >>> print(labels, p_a.round(3), p_b.round(3))
    [0] [0.841] [0.139]
  """
  if not 0 < number()('alpha', alpha) < 1:
    raise ValueError(f'alpha must be in (0, 1), got {alpha}')
  counts = np.asarray(counts)
  if counts.ndim != 2 or counts.shape[1] < 2:
    raise ValueError(
      f'counts must be [examples, classes >= 2], got {counts.shape}'
    )
  copies = np.sum(counts, axis=1)
  slack = np.sqrt(math.log(1 / alpha) / (2 * copies))
  second, first = np.sort(counts, axis=1)[:, -2:].T
  return (
    np.argmax(counts, axis=1),
    np.maximum(first / copies - slack, 0),
    np.minimum(second / copies + slack, 1),
  )


def radius(
  p_a: ArrayLike,
  p_b: ArrayLike,
  *,
  clips: Sequence[float],
  sigma: float,
  smoothing: float,
  lipschitz: float,
  num_attackers: int,
  weight: ArrayLike,
  scale: ArrayLike,
  steps: ArrayLike,
  learning_rate: ArrayLike,
  poisoned_share: ArrayLike,
) -> np.ndarray:
  r"""Returns the norm that a trigger must have to change a prediction.

  R attackers add a trigger to examples in one round, and scale their updates.
  As long as the trigger is shorter than the radius, the vote comes out as
  without the attack:

  .. math:: \mathrm{RAD} = \sqrt{\frac{-\log\big(1 - (\sqrt{p_A} -
      \sqrt{p_B})^2\big)\, \sigma^2} {2 R L_Z^2 \sum_{i=1}^R \big(p_i \gamma_i
      \tau_i \eta_i \frac{q_i}{n_i}\big)^2 \prod_{t = t_{adv} + 1}^T \big(2
      \Phi(\rho_t / \sigma_t) - 1\big)}}

  This is the radius of the published code. The paper proves it for a loss that
  is convex and smooth in the parameters, so that it is no proof for a network
  with hidden layers; the published models are linear. It also assumes that all
  clients take part in every round, and that attackers only add a trigger: they
  do not send anything else. The product is 1, and later rounds help nothing,
  unless the noise is nearly as large as the clips: :math:`2 \Phi(\rho / \sigma)
  - 1` is 1 - 1e-15 for :math:`\rho = 8 \sigma`.

  Args:
    p_a: lower bounds on the winners' shares of the votes.
    p_b: upper bounds on the runners-up's.
    clips: :math:`\rho_t` of the rounds after the attack, up to the last one, T.
    sigma: :math:`\sigma`, deviation of the noise in training.
    smoothing: :math:`\sigma_T`, deviation of the noise in the vote, which comes
      after the last clip.
    lipschitz: :math:`L_Z`, the Lipschitz constant of the loss's gradient as a
      function of the example. The published code has :math:`\sqrt{2 + 2 \rho +
      \rho^2}` for logistic regression, with the clip :math:`\rho` of the round
      of the attack.
    num_attackers: R.
    weight: :math:`p_i`, the attackers' weights in the mean, such as 1 / n.
    scale: :math:`\gamma_i`, what they multiply their updates by.
    steps: :math:`\tau_i`, their local steps.
    learning_rate: :math:`\eta_i`, their learning rates.
    poisoned_share: :math:`q_i / n_i`, the share of the examples of a batch that
      have the trigger. This and the four before are numbers, or one for each
      attacker.

  Returns:
    The radii, in the unit of the examples' norm; 0 where :math:`p_A \le p_B`,
    which certifies nothing.

  Raises:
    ValueError: unless p_a and p_b are in [0, 1], there is a clip, and all
      other numbers are above 0.

  Examples:
    >>> import lca
    >>> lca.certificates.radius(
    ...   0.9, 0.05, clips=[3.1, 3.2], sigma=0.01, smoothing=0.01,
    ...   lipschitz=4.1, num_attackers=1, weight=1/20, scale=10, steps=30,
    ...   learning_rate=0.001, poisoned_share=0.05).round(4)
    np.float64(1.9861)

  References:
    Xie, Chen, Chen and Li, CRFL: certifiably robust federated learning against
    backdoor attacks, ICML 2021. Published code: AI-secure/CRFL,
    `certify_mnist.py`.
  """
  p_a, p_b = np.asarray(p_a, float), np.asarray(p_b, float)
  for name, shares in (('p_a', p_a), ('p_b', p_b)):
    if not np.all((shares >= 0) & (shares <= 1)):
      raise ValueError(f'{name} must be in [0, 1], got {shares}')
  whole(1)('num_attackers', num_attackers)
  factors = {
    'weight': weight,
    'scale': scale,
    'steps': steps,
    'learning_rate': learning_rate,
    'poisoned_share': poisoned_share,
  }
  single = {'sigma': sigma, 'smoothing': smoothing, 'lipschitz': lipschitz}
  for name, value in (factors | single | {'clips': clips}).items():
    if np.size(value) == 0 or not np.all(np.asarray(value) > 0):
      raise ValueError(f'{name} must be above 0, got {value}')
  effects = np.broadcast_to(
    math.prod(map(np.asarray, factors.values())), num_attackers
  )
  deviations = [sigma] * (len(clips) - 1) + [smoothing]
  contraction = math.prod(
    math.erf(clip / deviation / math.sqrt(2))  # 2 Phi(clip / deviation) - 1
    for clip, deviation in zip(clips, deviations, strict=True)
  )
  apart = np.maximum(np.sqrt(p_a) - np.sqrt(p_b), 0)
  with np.errstate(divide='ignore'):  # no other share: the radius is infinite
    distance = -np.log1p(-(apart**2)) * sigma**2
  effect = 2 * num_attackers * lipschitz**2 * np.sum(effects**2) * contraction
  return np.sqrt(distance / effect)
