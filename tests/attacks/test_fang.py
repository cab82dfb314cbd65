"""Fang et al.'s attacks on Krum and on the trimmed mean."""

import functools

import jax
import numpy as np
import pytest
from attack_cases import (
  compiled,
  flat,
  flat_update,
  krum_index,
  mask,
  plain,
  sent,
  stack,
)

import lca
from lca import attacks


def fang_strength(rows, byzantine, f, threshold=1e-5):
  """Searches for the strength of the attack on Krum as the paper does.

  Args:
    rows: `[n, d]` updates.
    byzantine: `[n]` mask.
    f: number of clients that Krum tolerates.
    threshold: where the search ends.

  Returns:
    The upper bound of theorem 1, the strength that the search ends with, and
    the `[d]` signs of the honest mean.
  """
  n, m, d = len(rows), byzantine.sum(), rows.shape[1]
  honest = rows[~byzantine]
  signs = np.sign(honest.mean(axis=0))
  between = np.sum((honest[:, None] - honest) ** 2, axis=2)
  np.fill_diagonal(between, np.inf)
  nearest = np.sort(between, axis=1)[:, : n - m - 2].sum(axis=1)
  strength = np.sqrt(nearest.min() / ((n - 2 * m - 1) * d)) + np.max(
    np.linalg.norm(honest, axis=1)
  ) / np.sqrt(d)
  bound, attacked = strength, rows.copy()
  while True:
    attacked[byzantine] = -strength * signs
    if byzantine[krum_index(attacked, f)] or strength <= threshold:
      return bound, strength, signs
    strength /= 2


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('m', [2, 4])
def test_fang_krum_is_selected(m, seed):
  tree, byzantine = stack(seed=seed), mask(11, m, seed)
  _, strength, signs = fang_strength(flat(tree), byzantine, f=m)
  attacked = compiled('fang_krum', tree, byzantine, f=m)
  rows = flat(attacked)[byzantine]
  np.testing.assert_allclose(
    rows, np.tile(-strength * signs, (m, 1)), rtol=1e-5
  )
  if strength > 1e-5:
    krum = jax.jit(functools.partial(lca.krum, f=m))
    np.testing.assert_array_equal(flat_update(krum(attacked)), rows[0])


def test_fang_krum_finds_a_strength_below_the_bound():
  """At least one of the cases above needs a strength below the bound.

  Otherwise they would not test the search.
  """
  searched = []
  for seed in range(5):
    rows, byzantine = flat(stack(seed=seed)), mask(11, 4, seed)
    bound, strength, _ = fang_strength(rows, byzantine, f=4)
    searched.append(1e-3 < strength < bound)
  assert any(searched)


def test_fang_krum_ends_at_its_threshold():
  tree, byzantine = stack(), mask(11, 1)
  rows = flat(tree)
  bound, strength, _ = fang_strength(rows, byzantine, f=1, threshold=1e-5)
  assert strength <= 1e-5  # Krum never selects a lone row far from the others
  out = sent('fang_krum', tree, byzantine, f=1)
  np.testing.assert_allclose(np.abs(out), strength, rtol=1e-5)
  out = sent('fang_krum', tree, byzantine, f=1, threshold=10 * bound)
  np.testing.assert_allclose(np.abs(out), bound, rtol=1e-5)


def test_fang_krum_needs_what_krum_needs():
  with pytest.raises(ValueError, match='n=11, f=5'):
    plain('fang_krum', stack(), mask(11, 3), f=5)


def test_fang_trimmed_mean_draws_beyond_the_extremes():
  rng = np.random.default_rng(0)
  # Coordinates around -3, 0 and 3 have all signs of means and of extremes.
  rows = rng.normal(size=(9, 9000)) + np.repeat([-3.0, 0.0, 3.0], 3000)
  rows = rows.astype(np.float32)
  byzantine = mask(9, 2)
  honest = rows[~byzantine].astype(np.float64)
  mean, low, high = honest.mean(axis=0), honest.min(axis=0), honest.max(axis=0)
  out = sent('fang_trimmed_mean', rows, byzantine)
  falling = mean < 0
  extreme = np.where(falling, high, low)
  end = np.where(
    falling,
    np.where(high > 0, 2 * high, high / 2),
    np.where(low < 0, 2 * low, low / 2),
  )
  parts = (out - extreme) / (end - extreme)
  assert np.all(np.where(falling, out >= high, out <= low))
  assert parts.min() > -1e-5 and parts.max() < 1 + 1e-5
  # A uniform distribution has mean 1/2 and variance 1/12; the estimates lie
  # within five standard deviations of them.
  assert abs(parts.mean() - 1 / 2) < 5 / np.sqrt(12 * parts.size)
  assert abs(parts.var() - 1 / 12) < 5 / np.sqrt(180 * parts.size)
  assert abs(np.corrcoef(parts)[0, 1]) < 5 / np.sqrt(9000)


@pytest.mark.parametrize('rule', ['median', 'trimmed_mean'])
def test_fang_trimmed_mean_holds_the_aggregate_back(rule):
  tree, byzantine = stack(), mask(11, 3)
  signs = np.sign(flat(tree)[~byzantine].mean(axis=0))
  rule = (
    lca.median if rule == 'median' else functools.partial(lca.trimmed_mean, f=3)
  )
  attacked = flat_update(rule(compiled('fang_trimmed_mean', tree, byzantine)))
  honest = jax.tree.map(lambda x: x[~byzantine], tree)
  calm = flat_update(lca.median(honest))
  assert np.mean(signs * attacked < signs * calm) > 0.9


def minus_first_row(updates):
  """Aggregates to minus the first row, whose signs differ from the mean's."""
  return jax.tree.map(lambda x: -x[0], updates)


def test_fang_krum_may_push_against_the_servers_own_change():
  tree, byzantine = stack(), mask(11, 2)
  attacked = attacks.fang_krum(
    tree,
    byzantine=byzantine,
    f=2,
    aggregate=minus_first_row,
    changes='aggregate',
  )
  pushed = flat(attacked)[byzantine]
  signs = np.sign(flat(tree)[0])  # the attack pushes against minus row 0
  np.testing.assert_array_equal(np.sign(pushed), np.tile(signs, (2, 1)))


def test_fang_trimmed_mean_may_push_against_the_servers_own_change():
  tree, byzantine = stack(), mask(11, 2)
  attacked = attacks.fang_trimmed_mean(
    tree,
    byzantine=byzantine,
    key=jax.random.key(0),
    aggregate=minus_first_row,
    changes='aggregate',
  )
  rows, honest = flat(attacked)[byzantine], flat(tree)[~byzantine]
  falls = flat(tree)[0] > 0  # coordinates in which minus row 0 is negative
  assert np.all(rows[:, falls] >= honest.max(axis=0)[falls])
  assert np.all(rows[:, ~falls] <= honest.min(axis=0)[~falls])


@pytest.mark.parametrize('name', ['fang_krum', 'fang_trimmed_mean'])
def test_the_servers_own_change_is_asked_for(name):
  options = {'f': 2} if name == 'fang_krum' else {}
  with pytest.raises(
    TypeError, match=r'needs a function aggregate .* got None'
  ):
    getattr(attacks, name)(
      stack(),
      byzantine=mask(11, 2),
      key=jax.random.key(0),
      changes='aggregate',
      **options,
    )
