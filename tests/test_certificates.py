"""Tests of CRFL's certificates against the formula, and of their inputs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lca import certificates

KEY = jax.random.key(0)
NUMBERS = {
  'clips': [3.1, 3.2, 3.3],
  'sigma': 0.01,
  'smoothing': 0.02,
  'lipschitz': 4.1,
  'num_attackers': 1,
  'weight': 0.05,
  'scale': 10.0,
  'steps': 30,
  'learning_rate': 0.001,
  'poisoned_share': 0.05,
}


def published(p_a, p_b, attackers, clips, sigma, smoothing, lipschitz):
  """Returns the radius of Xie et al.; attackers are tuples of their factors."""
  squares = sum(math.prod(factors) ** 2 for factors in attackers)
  effect = 2 * len(attackers) * lipschitz**2 * squares
  for t, clip in enumerate(clips, start=1):
    deviation = smoothing if t == len(clips) else sigma
    effect *= 2 * stats.norm.cdf(clip / deviation) - 1
  apart = (math.sqrt(p_a) - math.sqrt(p_b)) ** 2
  return math.sqrt(-math.log(1 - apart) * sigma**2 / effect)


@pytest.mark.parametrize('sigma', [0.01, 2.0])
@pytest.mark.parametrize('num_attackers', [1, 3])
def test_the_radius_is_the_published_one(sigma, num_attackers):
  scales = np.arange(1.0, num_attackers + 1)
  changes = {'sigma': sigma, 'smoothing': 3 * sigma, 'scale': scales}
  numbers = NUMBERS | changes | {'num_attackers': num_attackers}
  got = certificates.radius([0.9, 0.6, 0.999], [0.05, 0.4, 0.0], **numbers)
  attackers = [(0.05, scale, 30, 0.001, 0.05) for scale in scales]
  want = [
    published(a, b, attackers, [3.1, 3.2, 3.3], sigma, 3 * sigma, 4.1)
    for a, b in ((0.9, 0.05), (0.6, 0.4), (0.999, 0.0))
  ]
  np.testing.assert_allclose(got, want, rtol=1e-10)


def test_the_ends():
  radii = certificates.radius([0.5, 0.3, 1.0], [0.5, 0.6, 0.0], **NUMBERS)
  assert radii.tolist() == [0.0, 0.0, np.inf]


@pytest.mark.parametrize(
  ('change', 'larger'),
  [
    ({'smoothing': 2.0}, True),  # more noise forgets more
    ({'scale': 20.0}, False),
    ({'num_attackers': 2}, False),
    ({'weight': 0.01}, True),
    ({'sigma': 0.02}, True),
  ],
)
def test_what_enlarges_the_radius(change, larger):
  before = certificates.radius(0.9, 0.05, **NUMBERS)
  after = certificates.radius(0.9, 0.05, **NUMBERS | change)
  assert (after > before) == larger and after != before


def test_votes_are_those_of_noisy_copies_of_the_clipped_model():
  """A model of one number votes as the normal distribution says."""
  inputs = jnp.array([-1.0, -0.1, 0.0, 0.3])

  def predict(params):
    return (inputs + params['w'][0] > 0).astype(int)

  counts = certificates.votes(
    predict,
    {'w': jnp.array([5.0])},
    KEY,
    num_classes=3,
    rho=0.2,
    sigma=0.5,
    num_models=4000,
  )
  assert counts.shape == (4, 3) and np.all(counts[:, 2] == 0)
  assert np.all(np.sum(counts, axis=1) == 4000)
  want = stats.norm.cdf((np.asarray(inputs) + 0.2) / 0.5)
  np.testing.assert_allclose(counts[:, 1] / 4000, want, atol=0.03)
  # A model within the clip stays as it is.
  short = {'w': jnp.array([-0.1])}
  counts = certificates.votes(
    predict, short, KEY, num_classes=2, rho=9.0, sigma=0.5, num_models=4000
  )
  want = stats.norm.cdf((np.asarray(inputs) - 0.1) / 0.5)
  np.testing.assert_allclose(counts[:, 1] / 4000, want, atol=0.03)


def test_bounds_hold_as_often_as_they_say():
  alpha, copies, shares = 0.1, 200, np.array([0.5, 0.3, 0.2])
  rng = np.random.default_rng(0)
  counts = rng.multinomial(copies, shares, size=2000)
  labels, p_a, p_b = certificates.bounds(counts, alpha)
  slack = math.sqrt(math.log(1 / alpha) / (2 * copies))
  np.testing.assert_allclose(p_a, np.max(counts, axis=1) / copies - slack)
  assert np.mean((labels == 0) & (p_a <= 0.5)) > 1 - alpha
  assert np.mean(p_b >= 0.3) > 1 - alpha
  assert np.all((p_a >= 0) & (p_b <= 1))


@pytest.mark.quick
@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: certificates.bounds([[3, 2]], alpha=0.0), r'alpha .* got 0\.0'),
    (lambda: certificates.bounds([[3, 2]], alpha=1.0), r'alpha .* got 1\.0'),
    (lambda: certificates.bounds([3, 2]), r'\[examples, classes >= 2\]'),
    (lambda: certificates.radius(1.1, 0.0, **NUMBERS), r'p_a .*1\.1'),
    (lambda: certificates.radius(0.9, np.nan, **NUMBERS), 'p_b .*nan'),
    *(
      (
        lambda name=name, value=value: certificates.radius(
          0.9, 0.1, **NUMBERS | {name: value}
        ),
        f'{name} must be .*{words}',
      )
      for name, value, words in (
        ('clips', [], r'\[\]'),
        ('clips', [3.0, 0.0], r'\[3\.0, 0\.0\]'),
        ('sigma', 0.0, '0'),
        ('scale', [1.0, -1.0], '-1'),
        ('num_attackers', 0, '0'),
        ('lipschitz', np.nan, 'nan'),
      )
    ),
    *(
      (
        lambda change=change: certificates.votes(
          jnp.round,
          jnp.ones(3),
          KEY,
          **{'num_classes': 2, 'rho': 1.0} | change,
        ),
        f'{name} must be',
      )
      for change in ({'rho': 0.0}, {'sigma': 0.0}, {'num_models': 0})
      for name in change
    ),
  ],
)
def test_wrong_numbers(call, words):
  with pytest.raises(ValueError, match=words):
    call()
