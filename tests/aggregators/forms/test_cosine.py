"""Tests of `cosine`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest
from compositions import RULES, call, every_rule, explain, same, stack, uneven

import lca

EQUAL = np.testing.assert_array_equal
# Clips are quotients of rounded norms; averages are sums of rounded products.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)


# cosine --------------------------------------------------------------------


@every_rule
def test_cosine_is_the_cosine_distance_on_clipped_updates(name):
  rule, hyper = RULES[name]
  tree = uneven('pair')
  for median in ('interpolated', 'lower'):
    clipped = lca.clip_to_median_norm(tree, median=median)
    form = lca.cosine(rule, median=median)
    want = call(rule, clipped, distance='cosine', **hyper)
    same(call(form, tree, **hyper), want, CLOSE)
    got = call(lca.layerwise(form), tree, **hyper)
    clipped = lca.layerwise(lca.clip_to_median_norm)(tree, median=median)
    want = call(lca.layerwise(rule), clipped, distance='cosine', **hyper)
    same(got, want, CLOSE)


@every_rule
@pytest.mark.parametrize('by', ['model', 'leaf', 'module'])
@pytest.mark.parametrize(
  'options',
  [
    {'clip': None},
    {'median': 'interpolated'},
    {'median': 'lower'},
    {'clip_by': 'leaf', 'median': 'interpolated'},
    {'clip_by': 'leaf', 'median': 'lower'},
  ],
  ids=['noclip', 'interpolated', 'lower', 'by leaf', 'by leaf, lower'],
)
def test_clips_follow_the_oracle(name, by, options):
  rule, hyper = RULES[name]
  tree = uneven('pair')
  tree['bias'][5] = np.nan  # one layer then has an odd number of rows
  tree['kernel'][7] *= 1e3
  form = jax.jit(
    functools.partial(lca.layerwise(lca.cosine(rule, **options), by), **hyper)
  )
  want = oracles.aggregate(
    name,
    tree,
    hyper,
    kind='cosine',
    by=by,
    clip=options.get('clip', 'median'),
    clip_by=options.get('clip_by', 'scope'),
    median_kind=options.get('median', 'interpolated'),
  )
  same(form(tree), want, CLOSE)


def test_the_options_of_the_clip_differ():
  """The options give different results, so the tests above tell them apart."""
  tree = uneven('pair')
  forms = [
    {'clip': None},
    {},
    {'median': 'lower'},
    {'clip_by': 'leaf'},
    {'clip_by': 'leaf', 'median': 'lower'},
  ]
  answers = [
    call(lca.cosine(lca.multi_krum, **options), tree, f=2, m=4)
    for options in forms
  ]
  for i, one in enumerate(answers):
    for other in answers[:i]:
      assert not np.allclose(one['kernel'], other['kernel'], rtol=1e-4)


@every_rule
def test_clip_by_leaf_is_clip_by_scope_layer_by_layer(name):
  rule, hyper = RULES[name]
  tree = jax.tree.map(jnp.asarray, uneven('pair'))
  same(
    call(lca.layerwise(lca.cosine(rule, clip_by='leaf')), tree, **hyper),
    call(lca.layerwise(lca.cosine(rule)), tree, **hyper),
    CLOSE,
  )


def test_clip_by_leaf_leaves_out_the_rows_that_the_scope_rejects():
  kernel = np.ones((5, 2), np.float32) * [[1], [2], [3], [4], [np.nan]]
  bias = np.array([[1.0], [2], [3], [4], [100]])
  tree = {'bias': jnp.asarray(bias), 'kernel': jnp.asarray(kernel)}
  rule = lca.gram_rule(lambda gram, *, distance: lca.Verdict(jnp.eye(5)[3]))
  out = lca.cosine(rule, clip_by='leaf')(tree)
  CLOSE(out['bias'], [2.5])  # the median of 1, 2, 3, 4; with the 100 it is 3
  CLOSE(out['kernel'], [2.5, 2.5])


@every_rule
def test_squared_distances_of_unit_vectors_choose_as_the_cosine_does(name):
  rule, hyper = RULES[name]
  for seed in range(3):
    x = pool.stack('leaf', 11, seed).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = jnp.asarray(x, jnp.float32)
    _, euclidean = explain(rule, x, power=2, **hyper)
    _, cosine = explain(rule, x, distance='cosine', **hyper)
    EQUAL(euclidean['selected'], cosine['selected'])


@every_rule
def test_lengths_do_not_change_who_is_selected(name):
  rule, hyper = RULES[name]
  x = stack('leaf')
  scales = np.random.default_rng(0).uniform(0.01, 100, (11, 1))
  _, info = explain(lca.cosine(rule), x, **hyper)
  _, scaled = explain(
    lca.cosine(rule), x * jnp.asarray(scales, jnp.float32), **hyper
  )
  EQUAL(info['selected'], scaled['selected'])


@every_rule
def test_a_silent_client_is_not_central(name):
  """A zero row would be the nearest to all others if its cosine were 0."""
  rule, hyper = RULES[name]
  x = jnp.concatenate([jnp.zeros((1, 11)), jnp.eye(11)[:10]])
  _, info = explain(lca.cosine(rule), x, **hyper)
  assert not info['selected'][0]
  assert np.all(np.isfinite(info['scores']))


@every_rule
def test_cosine_near_overflow(name):
  rule, hyper = RULES[name]
  x = pool.stack('leaf', 11)
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  small, info = explain(lca.cosine(rule), jnp.asarray(x), **hyper)
  big, other = explain(
    lca.cosine(rule), jnp.asarray(x * np.float32(1e18)), **hyper
  )
  EQUAL(info['selected'], other['selected'])
  assert not np.any(other['rejected'])
  CLOSE(big / 1e18, small)


def test_cosine_refuses():
  with pytest.raises(TypeError, match=r'layerwise\(cosine\(krum\)\)'):
    lca.cosine(lca.layerwise(lca.krum))
  with pytest.raises(TypeError, match=r'chain\(nnm, krum\).*steps'):
    lca.cosine(lca.chain(lca.nnm, lca.krum))
  with pytest.raises(TypeError, match=r'chain\(nnm, bulyan\).*steps'):
    lca.cosine(lca.chain(lca.nnm, lca.bulyan))
  with pytest.raises(TypeError, match='mean'):
    lca.cosine(lca.mean)
  with pytest.raises(TypeError, match='clip_to_median_norm'):
    lca.cosine(lca.clip_to_median_norm)
  with pytest.raises(TypeError, match='cosine'):
    lca.cosine(lca.cosine(lca.krum))
  for option in ('clip', 'clip_by', 'median'):
    with pytest.raises(ValueError, match=f'{option}.*mean'):
      lca.cosine(lca.krum, **{option: 'mean'})
  with pytest.raises((TypeError, ValueError), match='power'):
    lca.cosine(lca.krum)(jnp.zeros((11, 3)), f=2, power=2)
