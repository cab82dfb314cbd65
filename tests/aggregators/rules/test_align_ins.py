"""Tests of AlignIns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca
from lca.aggregators.rules.align_ins import _disagreement


def explain(x, w, **hyper):
  rule = functools.partial(lca.explain(lca.align_ins), **hyper)
  return jax.jit(rule)(x, params=w)


# Against the oracle --------------------------------------------------------


@pytest.mark.parametrize(
  'hyper',
  [
    {'top_fraction': 1.0},
    {'top_fraction': 0.01},  # of 50 entries: one
    {'lambda_s': 0.4, 'lambda_c': 2.0},
    {'lambda_s': np.inf, 'lambda_c': 0.5},
    {'lambda_s': 0.5, 'lambda_c': np.inf},
  ],
)
def test_every_option_follows_the_oracle(hyper):
  for seed in range(4):
    x = pool.stack('leaf', 12, seed)
    x[3] *= 100
    x[7] = np.nan
    w = np.random.default_rng(seed).normal(size=50).astype(np.float32)
    out, info = explain(x, w, **hyper)
    kept = oracles.align_ins_kept(x.astype(float), params=w, **hyper)
    np.testing.assert_array_equal(info['selected'], kept)
    weights = oracles.align_ins_factors(x.astype(float), kept)
    want = oracles.mix(x.astype(float), weights) if np.any(kept) else 0 * w
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('top_fraction', [0.1, 0.3, 1.0])
def test_tied_entries_share_the_last_places(top_fraction):
  """Many entries are zero, as of a layer that learns little, or equal."""
  x = np.round(pool.stack('wide', 11)[:, :500])
  x[4] = 0
  good = np.arange(11) != 6
  got = _disagreement([x[:, :200], x[:, 200:]], good, top_fraction)
  principal = np.sign(np.sum(np.sign(x[good]), axis=0))
  k = int(top_fraction * 500)
  want = [oracles.sign_alignment(row, principal, k) for row in x]
  np.testing.assert_allclose(1 - got, want, rtol=1e-6)


def test_more_examples_weigh_more():
  x, w = pool.stack('leaf', 11), np.ones(50, np.float32)
  sizes = np.arange(1.0, 12.0, dtype=np.float32)
  _, equal = explain(x, w)
  _, info = explain(x, w, weights=sizes)
  np.testing.assert_array_equal(info['selected'], equal['selected'])
  want = equal['weights'] * sizes
  factor = np.sum(equal['selected']) / np.sum(sizes[equal['selected']])
  np.testing.assert_allclose(info['weights'], want * factor, rtol=1e-5)
  with pytest.raises(ValueError, match=r'align_ins .*\(11,\).*\(10,\)'):
    lca.align_ins(x, params=w, weights=sizes[1:])


# Nobody is left ------------------------------------------------------------


def test_the_update_is_zero_if_the_filters_agree_on_nobody():
  """The cosines keep the first and the last two, the signs the others."""
  x = np.ones((5, 8), np.float32)
  x[3:, :4] = -1
  w = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)
  x[:3] *= np.linspace(0.5, 2, 8) ** np.array([[1], [3], [-3]])
  hyper = {'lambda_s': 0.0, 'lambda_c': 0.0, 'top_fraction': 1.0}
  rows = x.astype(float)
  assert not np.any(oracles.align_ins_kept(rows, params=w, **hyper))
  out, info = explain(x, w, **hyper)
  np.testing.assert_array_equal(out, np.zeros(8))
  assert not np.any(info['selected']) and not np.any(info['rejected'])


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e30])
def test_parameters_that_are_lost_leave_nobody(bad):
  x = pool.stack('leaf', 11)
  out, info = explain(x, np.ones(50, np.float32) * np.float32(bad))
  assert np.all(np.isnan(out)) and np.all(info['rejected'])


def test_zeros_have_no_direction():
  """Zero parameters, and zero rows, have the cosine 0 with anything."""
  x = pool.stack('leaf', 11)
  _, info = explain(x, np.zeros(50, np.float32))
  signs = oracles.align_ins_kept(x.astype(float), params=np.zeros(50))
  np.testing.assert_array_equal(info['selected'], signs)
  x = np.zeros((5, 50), np.float32)
  out, info = explain(x, np.ones(50, np.float32))
  assert np.all(info['selected']) and not np.any(out)


# Attacks -------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['direction', 'signs'])
def test_a_backdoor_of_the_usual_length_is_left_out(kind):
  """Four of eleven clients; each of the two filters alone finds one kind.

  Some models go astray along w. Others have the cosine of the honest ones, but
  the few large entries of a backdoor instead of theirs.
  """
  for seed in range(5):
    rng = np.random.default_rng(seed)
    w, common = rng.normal(size=(2, 2000))
    x = common + rng.normal(size=(11, 2000))
    bad = rng.permutation(11)[:4]
    if kind == 'direction':
      x[bad] += w
    else:
      backdoor = np.where(rng.random(2000) < 0.1, 4, 0.5) * -np.sign(common)
      backdoor -= (backdoor @ w - common @ w) / (w @ w) * w
      x[bad] += backdoor
    x[bad] *= np.linalg.norm(x[0]) / np.linalg.norm(x[bad], axis=1)[:, None]
    other = {'direction': 'lambda_s', 'signs': 'lambda_c'}[kind]
    for hyper in ({}, {other: np.inf}):
      _, info = explain(x.astype(np.float32), w.astype(np.float32), **hyper)
      assert not np.any(info['selected'][bad])
      assert np.sum(info['selected']) >= 3


# Arguments -----------------------------------------------------------------


def test_what_align_ins_needs():
  x = jnp.ones((6, 2))
  with pytest.raises(TypeError, match='params'):
    lca.align_ins(x)
  with pytest.raises(ValueError, match='shaped'):
    lca.align_ins(x, params=jnp.ones(3))
  for hyper in (
    {'top_fraction': 0.0},
    {'top_fraction': 1.5},
    {'lambda_s': -1.0},
    {'lambda_c': np.nan},
  ):
    ((name, value),) = hyper.items()
    with pytest.raises(ValueError, match=f'align_ins needs .*{name}={value}'):
      lca.align_ins(x, params=x[0], **hyper)
  with pytest.raises(TypeError, match='align_ins needs params from the round'):
    lca.stateless(lca.align_ins).update(x, ())


def test_a_config_weighs_by_examples_on_request():
  x, sizes = jnp.asarray(pool.stack('leaf', 11)), jnp.arange(1.0, 12)
  for name, weights in (('uniform', None), ('examples', sizes)):
    aggregator = lca.make_aggregator({'name': 'align_ins', 'weights': name})
    out, _ = aggregator.update(x, (), params=x[0], weights=sizes)
    want = lca.align_ins(x, params=x[0], weights=weights)
    np.testing.assert_array_equal(out, want)
