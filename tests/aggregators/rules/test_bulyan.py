"""Tests of `bulyan` and `bulyan_trimmed`."""

import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca

# Options that give other definitions ---------------------------------------


def test_bulyan_may_select_at_once():
  differ = 0
  for seed in range(6):
    x = pool.stack('leaf', 12, seed)
    rows = x.astype(float)
    scores = oracles.krum_scores(rows, f=2)
    members = oracles.select(scores, np.zeros(12, bool), 8)
    hyper = {'f': 2, 'selection': 'once'}
    out, info = lca.explain(lca.bulyan)(jnp.asarray(x), **hyper)
    assert np.flatnonzero(info['selected']).tolist() == sorted(members)
    want = oracles.bulyan(rows, members, f=2)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)
    differ += set(members) != set(oracles.bulyan_members(rows, f=2))
  assert differ


# Bulyan --------------------------------------------------------------------


@pytest.mark.parametrize('power', [None, 1])
@pytest.mark.parametrize(
  ('n', 'f'), [(3, 0), (7, 1), (11, 2), (12, 2), (25, 5)]
)
def test_bulyan_follows_the_oracle(n, f, power):
  x = pool.stack('leaf', n).astype(float)
  members = oracles.bulyan_members(x, f=f, power=power or 2)
  out, info = lca.explain(lca.bulyan)(
    jnp.asarray(x, jnp.float32), f=f, power=power
  )
  assert np.flatnonzero(info['selected']).tolist() == sorted(members)
  want = oracles.bulyan(x, members, f=f)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)


def test_bulyan_takes_the_lowest_index_in_a_tie():
  """All rows are copies of two points: candidates tie at every step."""
  x = np.array([[0.0]] * 7 + [[1.0]] * 4)
  _, info = lca.explain(lca.bulyan)(jnp.asarray(x), f=2)
  # Three zeros win. Then four zeros and four ones tie, and a zero wins. Then
  # three zeros lose to four ones. The remaining steps are ties again.
  assert oracles.bulyan_members(x, f=2) == [0, 1, 2, 3, 7, 4, 5]
  assert np.flatnonzero(info['selected']).tolist() == [0, 1, 2, 3, 4, 5, 7]
  _, info = lca.explain(lca.bulyan)(jnp.ones((11, 1)), f=2)
  assert np.flatnonzero(info['selected']).tolist() == list(range(7))


@pytest.mark.parametrize('count', range(12))
def test_bulyan_with_rejected_rows(count):
  """Up to f rejected rows change the selection; more leave a plain mean."""
  x = pool.stack('leaf', 11)
  x[np.random.default_rng(count).permutation(11)[:count]] = np.nan
  rows = x.astype(float)
  members = oracles.bulyan_members(rows, f=2)
  out, info = lca.explain(lca.bulyan)(jnp.asarray(x), f=2)
  assert np.flatnonzero(info['selected']).tolist() == sorted(members)
  want = oracles.bulyan(rows, members, f=2)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
  'hyper',
  [
    {'f': 1, 'm': 10},
    {'f': 2, 'm': 5, 'trim': 0},
    {'f': 3, 'm': 8, 'num_neighbors': 2, 'power': 1},
  ],
)
def test_bulyan_trimmed_options_follow_the_oracle(hyper):
  x = pool.stack('leaf', 11).astype(float)
  krum = {k: v for k, v in hyper.items() if k not in ('m', 'trim')}
  scores = oracles.krum_scores(x, **krum)
  members = oracles.select(scores, np.zeros(11, bool), hyper['m'])
  want = oracles.bulyan_trimmed(x, members, **hyper)
  out, info = lca.explain(lca.bulyan_trimmed)(
    jnp.asarray(x, jnp.float32), **hyper
  )
  assert np.flatnonzero(info['selected']).tolist() == sorted(members)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)


def test_bulyan_trimmed_without_trim_is_multi_krum():
  x = jnp.asarray(pool.stack('leaf', 11))
  for wrap in (lambda rule: rule, lca.cosine):
    out = wrap(lca.bulyan_trimmed)(x, f=2, m=5, trim=0)
    want = wrap(lca.multi_krum)(x, f=2, m=5)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
