"""Tests of `layerwise`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest
from compositions import RULES, call, every_rule, explain, same, stack

import lca

EQUAL = np.testing.assert_array_equal
# Clips are quotients of rounded norms; averages are sums of rounded products.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)


# layerwise -----------------------------------------------------------------


@every_rule
def test_layerwise_of_one_leaf_is_the_rule(name):
  rule, hyper = RULES[name]
  x = stack('leaf')
  for form, by in [(rule, 'leaf'), (lca.cosine(rule), 'module')]:
    got, info = explain(lca.layerwise(form, by=by), x, **hyper)
    want, flat = explain(form, x, **hyper)
    CLOSE(got, want)
    EQUAL(info['selected'], flat['selected'][None])


@every_rule
def test_layerwise_by_model_is_the_rule(name):
  rule, hyper = RULES[name]
  tree = stack('cnn')
  got = call(lca.layerwise(rule, by='model'), tree, **hyper)
  same(got, call(rule, tree, **hyper), CLOSE)


@every_rule
def test_layerwise_is_the_rule_on_every_leaf(name):
  rule, hyper = RULES[name]
  tree = stack('pair')
  got = call(lca.layerwise(rule), tree, **hyper)
  want = {key: call(rule, leaf, **hyper) for key, leaf in tree.items()}
  same(got, want, CLOSE)


def test_layers_disagree_in_the_pool():
  """Layers select different clients, so layerwise differs from plain above."""
  _, info = explain(lca.layerwise(lca.krum), stack('cnn'), f=2)
  chosen = np.argmax(info['selected'], axis=1)
  assert len(set(chosen.tolist())) > 2


@pytest.mark.parametrize(
  ('by', 'layers'),
  [
    ('model', 1),
    ('leaf', 8),
    ('module', 3),
    ('block', 2),
    (lambda path: path[-1], 5),
    (lambda path: path[0], 2),
    (lambda path: len(path), 2),
  ],
  ids=['model', 'leaf', 'module', 'block', 'name', 'collection', 'depth'],
)
def test_scopes(by, layers):
  tree = stack('stats')
  groups = oracles.groups(pool.stack('stats', 11), by)
  assert len(groups) == layers
  got, info = explain(lca.layerwise(lca.krum, by=by), tree, f=2)
  leaves, outs = jax.tree.leaves(tree), jax.tree.leaves(got)
  for index, positions in enumerate(groups):
    layer = [leaves[p] for p in positions]
    want, one = explain(lca.krum, layer, f=2)
    EQUAL(info['selected'][index], one['selected'])
    same([outs[p] for p in positions], want)


def test_parameters_and_statistics_of_a_module_fall_together():
  tree = stack('stats')
  for by in ('module', 'block'):
    out = call(lca.layerwise(lca.krum, by=by), tree, f=2)

    def client(path, out=out):
      leaf, stacked = out, tree
      for key in path:
        leaf, stacked = leaf[key], stacked[key]
      return int(np.flatnonzero(np.all(stacked == leaf, axis=1))[0])

    scale = client(['params', 'block', 'norm', 'scale'])
    assert client(['params', 'block', 'norm', 'bias']) == scale
    for key in ('mean', 'var'):
      assert client(['batch_stats', 'block', 'norm', key]) == scale


def test_a_path_is_a_tuple_of_strings():
  seen = []

  def by(path):
    seen.append(path)
    return path

  tree = {'a': {'b': jnp.zeros((5, 1))}, 'c': [jnp.zeros((5, 1))]}
  lca.layerwise(lca.medoid, by=by)(tree)
  assert {('a', 'b'), ('c', '0')} == set(seen)


def test_without_collections_the_first_key_is_the_block():
  tree = {
    'a': {'x': {'k': (3,), 'b': (3,)}, 'y': {'k': (3,)}},
    'b': {'x': {'k': (3,)}},
  }
  tree = jax.tree.map(
    lambda shape: jnp.zeros((5, *shape)),
    tree,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  for by, layers in [('block', 2), ('module', 3), ('leaf', 4)]:
    _, info = explain(lca.layerwise(lca.medoid, by=by), tree)
    assert info['selected'].shape == (layers, 5)


@pytest.mark.parametrize('by', ['leaf', 'module'])
def test_layerwise_takes_a_plain_function(by):
  def krum(updates, *, f):
    return lca.krum(updates, f=f)

  tree = stack('pair')
  same(
    call(lca.layerwise(krum, by=by), tree, f=2),
    call(lca.layerwise(lca.krum, by=by), tree, f=2),
  )


def test_layerwise_of_a_new_gram_rule():
  @lca.gram_rule
  def smallest(gram, *, rank=0):
    norms = lca.geometry.norms(gram)
    winner = jax.nn.one_hot(jnp.argsort(norms)[rank], len(gram))
    return lca.Verdict(winner)

  tree = stack('pair')
  out, info = explain(lca.layerwise(smallest), tree, rank=1)
  for key, leaf in pool.stack('pair', 11).items():
    norms = np.linalg.norm(leaf.reshape(11, -1), axis=1)
    EQUAL(out[key], leaf[np.argsort(norms)[1]])
  assert 'scores' not in info  # the rule has no scores
  assert info['weights'].shape == (2, 11)


def test_layerwise_rejects_layer_by_layer():
  tree = stack('pair')
  bad = tree | {'bias': tree['bias'].at[3].set(jnp.nan)}
  out, info = explain(lca.layerwise(lca.krum), bad, f=2)
  want = call(lca.layerwise(lca.krum), tree, f=2)
  EQUAL(out['kernel'], want['kernel'])  # the NaN is in the other layer
  assert np.argwhere(info['rejected']).tolist() == [[0, 3]]


def test_layerwise_refuses():
  with pytest.raises(TypeError, match='layerwise'):
    lca.layerwise(lca.layerwise(lca.krum))
  with pytest.raises(TypeError, match='needs a rule, got int'):
    lca.layerwise(3)
  with pytest.raises(ValueError, match='tensor'):
    lca.layerwise(lca.krum, by='tensor')
