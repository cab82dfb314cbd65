"""Tests of noise on the aggregate, of any rule in any form."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compositions import EQUAL, call, explain, same, stack

import lca
from configs import digits
from lca.aggregators.forms.two_passes import in_two_passes

KEY = jax.random.key(0)
SHAPES = {'a': (40, 100), 'b': (40, 100), 'c': (4000,)}


def zeros(dtype=jnp.float32):
  """Returns updates of zeros, whose noisy aggregates are the noise alone."""
  return {name: jnp.zeros((7, *shape), dtype) for name, shape in SHAPES.items()}


def check_independent(noises):
  """Checks that arrays are standard normal numbers, and not of each other."""
  for x in noises:
    x = np.sort(np.ravel(x))
    share = (np.arange(len(x)) + 0.5) / len(x)
    below = [0.1587, 0.5, 0.8413, 0.9772]  # Phi(-1), Phi(0), Phi(1), Phi(2)
    at = np.searchsorted(x, [-1, 0, 1, 2])
    np.testing.assert_allclose(share[at], below, atol=0.03)
  for x, y in itertools.combinations(noises, 2):
    assert abs(np.mean(np.ravel(x) * np.ravel(y))) < 0.06


@pytest.mark.parametrize('by', ['model', 'leaf'])
@pytest.mark.parametrize('kind', ['rule', 'aggregator', 'flame'])
def test_every_coordinate_draws_its_own_number(kind, by):
  """Leaves of equal shape, layers of equal shape and rounds differ."""
  tree, hyper, sigma = zeros(), {}, 0.5
  if kind == 'flame':  # its sigma is half the median norm
    tree = jax.tree.map(lambda x: x.at[:, 0].set(1.0), tree)
    hyper = {'params': jax.tree.map(lambda x: x[0], tree), 'noise': 0.5}
    rule = lca.flame
    exact = jax.tree.map(lambda x: x[0], tree)
    squares = jax.tree.map(lambda x: np.sum(np.square(x)), exact)
    sizes = squares if by == 'leaf' else [sum(jax.tree.leaves(squares))] * 3
    sigma = 0.5 * np.sqrt(jax.tree.leaves(sizes))
  else:
    exact = jax.tree.map(lambda x: x[0], tree)
    rule = lca.krum if kind == 'rule' else lca.centered_clip(threshold=1.0)
    rule = lca.noisy(rule, sigma=sigma)
    hyper = {'f': 1} if kind == 'rule' else {}
  rule = lca.layerwise(rule, by=by)
  if kind == 'aggregator':
    rule = functools.partial(rule.update, state=rule.init(exact))
  run = jax.jit(lambda key: rule(tree, key=key, **hyper))
  outs = [run(jax.random.key(seed)) for seed in (0, 1)]
  if kind == 'aggregator':
    outs = [out for out, _ in outs]
  sigmas = np.broadcast_to(sigma, 3)
  check_independent(
    [
      (got - want) / scale
      for out in outs
      for got, want, scale in zip(
        jax.tree.leaves(out), jax.tree.leaves(exact), sigmas, strict=True
      )
    ]
  )


def test_the_dtype_is_that_of_the_leaf():
  out = call(lca.noisy(lca.mean, sigma=2.0), zeros(jnp.bfloat16), key=KEY)
  assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype('bfloat16')}
  check_independent([x.astype(float) / 2 for x in jax.tree.leaves(out)])


def test_no_noise_is_the_rule():
  tree = stack('cnn')
  out, info = explain(lca.noisy(lca.krum, sigma=0), tree, f=2)
  want, want_info = explain(lca.krum, tree, f=2)
  same(out, want)
  same(info, want_info)


def test_a_rule_draws_as_without_noise():
  tree = stack('leaf')
  rule = lca.noisy(lca.sign_guard, sigma=1e-30)
  one, info = explain(rule, tree, key=KEY, fraction=0.3)
  other, want = explain(lca.sign_guard, tree, key=KEY, fraction=0.3)
  same(info, want)
  same(one, other)
  buckets = lca.chain(lca.bucketing, lca.median)
  same(
    call(lca.noisy(buckets, sigma=1e-30), tree, key=KEY, bucket_size=3),
    call(buckets, tree, key=KEY, bucket_size=3),
  )


def test_the_noise_comes_last_in_every_form():
  tree = stack('cnn')
  noisy = functools.partial(lca.noisy, sigma=0.1)
  for one, other in (
    (lca.layerwise(noisy(lca.krum)), noisy(lca.layerwise(lca.krum))),
    (lca.layerwise(noisy(lca.median)), noisy(lca.median)),
    (lca.chain(lca.nnm, noisy(lca.krum)), noisy(lca.chain(lca.nnm, lca.krum))),
    (
      lca.layerwise(lca.chain(lca.nnm, noisy(lca.median))),
      noisy(lca.layerwise(lca.chain(lca.nnm, lca.median))),
    ),
  ):
    hyper = {'f': 2} if 'f' in one.__signature__.parameters else {}
    same(call(one, tree, key=KEY, **hyper), call(other, tree, key=KEY, **hyper))
  _, info = explain(lca.layerwise(noisy(lca.krum)), tree, key=KEY, f=2)
  assert info['selected'].shape == (len(jax.tree.leaves(tree)), 11)
  with pytest.raises(TypeError, match=r'noisy\(cosine\(krum\)\) instead'):
    lca.cosine(noisy(lca.krum))


def test_rows_of_a_pre_aggregator_get_noise_each():
  step = functools.partial(lca.noisy(lca.static_clip, sigma=2.0), threshold=1.0)
  out = call(step, zeros(), key=KEY)
  assert out['c'].shape == (7, 4000)
  check_independent(out['c'] / 2)
  mean = call(lca.chain(step, lca.mean), zeros(), key=KEY)
  check_independent([x * np.sqrt(7) / 2 for x in jax.tree.leaves(mean)])


def test_the_state_stays_as_without_noise():
  tree = stack('pair')
  plain = lca.centered_clip(threshold=2.0)
  pair = lca.noisy(plain, sigma=0.1)
  state = plain.init(jax.tree.map(lambda x: x[0], tree))
  out, after = pair.update(tree, state, key=KEY)
  want, want_after = plain.update(tree, state)
  same(after, want_after)
  assert not np.array_equal(out['bias'], want['bias'])
  with pytest.raises(TypeError, match='takes by='):
    lca.layerwise(lca.noisy(lca.legato(), sigma=0.1))


def test_what_noise_needs():
  x = jnp.ones((6, 2))
  for sigma in (-0.1, np.inf, np.nan):
    with pytest.raises(ValueError, match=f'noisy needs .*sigma={sigma}'):
      lca.noisy(lca.mean, sigma=sigma)
  with pytest.raises(TypeError, match='noisy needs a rule, got int'):
    lca.noisy(3, sigma=1.0)
  message = r'noisy needs a key to draw sigma=0\.5'
  with pytest.raises(ValueError, match=message):
    lca.noisy(lca.mean, sigma=0.5)(x)
  pair = lca.noisy(lca.centered_clip(threshold=1.0), sigma=0.5)
  with pytest.raises(ValueError, match=message):
    pair.update(x, pair.init(x[0]))
  with pytest.raises(ValueError, match='noise, which needs all coordinates'):
    in_two_passes(lca.noisy(lca.krum, sigma=0.5), f=1)


def test_nan_stays_nan():
  x = jnp.ones((6, 2)).at[0, 1].set(jnp.nan)
  out = lca.noisy(lca.mean, sigma=0.5)(x, key=KEY)
  assert np.isfinite(out[0]) and np.isnan(out[1])


# Configs -------------------------------------------------------------------


def test_a_config_adds_noise_to_any_rule():
  tree = stack('pair')
  one = jax.tree.map(lambda x: x[0], tree)
  for preset, rule in (
    ('layerwise_cosine_krum', lca.layerwise(lca.cosine(lca.krum))),
    ('nnm,median', lca.chain(functools.partial(lca.nnm, f=1), lca.median)),
    ('centered_clip', lca.centered_clip(threshold=10.0)),
    ('legato', lca.legato()),
  ):
    config = digits.get_config(preset)
    assert config.aggregator.sigma == 0
    config.aggregator.sigma = 0.5
    made = lca.make_aggregator(config.aggregator)
    if not isinstance(rule, lca.Aggregator):
      rule = lca.stateless(rule, **({'f': 1} if 'krum' in preset else {}))
    want = lca.noisy(rule, sigma=0.5)
    out, _ = jax.jit(made.update)(tree, made.init(one), key=KEY)
    other, _ = jax.jit(want.update)(tree, want.init(one), key=KEY)
    same(out, other)
  config.aggregator.sigma = -1.0
  with pytest.raises(ValueError, match=r'sigma=-1\.0'):
    lca.make_aggregator(config.aggregator)


def test_norm_clipping_is_a_preset():
  config = digits.get_config('norm_clipping').aggregator
  made = lca.make_aggregator(config)
  tree = stack('pair')
  rule = lca.noisy(lca.chain(lca.static_clip, lca.mean), sigma=0.025)
  out, _ = made.update(tree, (), key=KEY)
  same(out, rule(tree, threshold=5.0, key=KEY), EQUAL)
  config = digits.get_config('norm_clipping,nnm').aggregator
  assert config.pre == ('static_clip', 'nnm')
