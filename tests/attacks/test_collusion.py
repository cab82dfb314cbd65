"""Attacks that flip an update, shift the honest mean, or copy an update."""

import numpy as np
import pytest
import scipy.stats
from attack_cases import (
  compiled,
  flat,
  flat_update,
  mask,
  plain,
  sent,
  stack,
  vectors,
)

import lca

# Noise and constants -------------------------------------------------------


def test_sign_flip_turns_a_clients_own_row():
  tree, byzantine = stack(), mask(11, 3)
  np.testing.assert_array_equal(
    sent('sign_flip', tree, byzantine, scale=4.0), -4 * flat(tree)[byzantine]
  )


# Collusion -----------------------------------------------------------------


@pytest.mark.parametrize(('m', 'epsilon'), [(1, 0.5), (5, 0.001), (8, 2.0)])
def test_fall_of_empires_scales_the_mean(m, epsilon):
  tree, byzantine = stack(), mask(11, m)
  mean = flat(tree)[~byzantine].mean(axis=0)
  rows = sent('fall_of_empires', tree, byzantine, epsilon=epsilon)
  np.testing.assert_allclose(
    rows, np.tile(-epsilon * mean, (m, 1)), rtol=1e-5, atol=1e-6
  )
  attacked = compiled('fall_of_empires', tree, byzantine, epsilon=epsilon)
  np.testing.assert_allclose(
    flat_update(lca.mean(attacked)),
    (11 - m - epsilon * m) / 11 * mean,
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize(
  ('n', 'm'), [(5, 1), (6, 1), (11, 3), (25, 4), (25, 11), (50, 24), (100, 1)]
)
def test_alie_is_the_papers_z(n, m):
  byzantine = mask(n, m)
  tree = vectors(n)
  supporters = np.floor(n / 2 + 1) - m
  z = scipy.stats.norm.ppf((n - m - supporters) / (n - m))
  honest = flat(tree)[~byzantine]
  want = honest.mean(axis=0) - z * honest.std(axis=0)
  np.testing.assert_allclose(
    sent('alie', tree, byzantine), np.tile(want, (m, 1)), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize(('n', 'signs'), [(15, [0, 1, 1]), (16, [-1, 0, 1])])
def test_alie_of_few_attackers_is_none_without_a_z(n, signs):
  tree = vectors(n)
  for m, sign in enumerate(signs, start=1):
    byzantine = mask(n, m)
    honest = flat(tree)[~byzantine]
    step = sent('alie', tree, byzantine)[0] - honest.mean(axis=0)
    z = -np.mean(step / honest.std(axis=0))
    assert np.sign(np.round(z, 5)) == sign


def test_alie_with_a_z_of_ones_own_and_under_the_mean():
  tree, byzantine = stack(), mask(11, 4)
  honest = flat(tree)[~byzantine]
  mean, std = honest.mean(axis=0), honest.std(axis=0)
  out = compiled('alie', tree, byzantine, z=1.5)
  np.testing.assert_allclose(
    flat_update(lca.mean(out)), mean - 4 / 11 * 1.5 * std, rtol=1e-5, atol=1e-5
  )


def test_alie_with_a_majority_or_one_honest_client_is_finite():
  for n, m in [(11, 8), (11, 10), (2, 1)]:
    assert np.all(np.isfinite(sent('alie', vectors(n), mask(n, m))))


def test_alie_follows_close_clients_far_from_zero():
  rng = np.random.default_rng(0)
  rows = (1000 + rng.normal(size=(25, 300))).astype(np.float32)
  byzantine = mask(25, 4)
  honest = rows[~byzantine].astype(np.float64)
  want = honest.mean(axis=0) - 2 * honest.std(axis=0)
  # The spacing of float32 at 1000 is 6e-5. A variance from the mean of squares
  # would be off by 0.1.
  np.testing.assert_allclose(
    sent('alie', rows, byzantine, z=2.0), np.tile(want, (4, 1)), atol=5e-4
  )


@pytest.mark.parametrize('seed', range(4))
def test_mimic_copies_the_most_extreme_client(seed):
  tree, byzantine = stack(seed=seed), mask(11, 3, seed)
  honest = flat(tree)[~byzantine]
  centred = honest - honest.mean(axis=0)
  direction = np.linalg.svd(centred)[2][0]
  want = honest[np.argmax(np.abs(centred @ direction))]
  np.testing.assert_array_equal(
    sent('mimic', tree, byzantine), np.tile(want, (3, 1))
  )


def test_mimic_of_a_given_client():
  tree, byzantine = stack(), mask(11, 3)
  honest = flat(tree)[~byzantine]
  for target, copied in [(0, 0), (5, 5), (7, 7), (10, 7)]:
    np.testing.assert_array_equal(
      sent('mimic', tree, byzantine, target=target),
      np.tile(honest[copied], (3, 1)),
    )
  with pytest.raises(ValueError, match='n=11, target=11'):
    plain('mimic', tree, byzantine, target=11)
