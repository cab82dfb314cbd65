"""A rule in two passes gives what the rule gives, from parts of the rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lca
from lca.aggregators.forms.two_passes import in_two_passes, of_aggregator
from lca.aggregators.verdict import GRAMS
from lca.stacked.trees import Layers, grouping

clip = lca.clip_to_median_norm
by_module = functools.partial(lca.layerwise, by='module')

RULES = {
  'mean': (lca.mean, {'weights': jnp.arange(9.0)}),
  'krum': (lca.krum, {'f': 2}),
  'bulyan': (lca.bulyan, {'f': 1}),
  'geometric_median': (lca.geometric_median, {}),
  'median': (lca.median, {}),
  'cge': (lca.cge, {'f': 2}),
  'layerwise': (lca.layerwise(lca.krum), {'f': 2}),
  'modules': (by_module(lca.multi_krum), {'f': 2, 'm': 3}),
  'cosine': (lca.cosine(lca.krum), {'f': 2}),
  'layerwise cosine': (lca.layerwise(lca.cosine(lca.bulyan)), {'f': 1}),
  'bound': (functools.partial(lca.krum, f=2), {}),
  'clipped mean': (lca.chain(clip, lca.mean), {'weights': None}),
  'nnm, krum': (lca.chain(lca.nnm, lca.krum), {'f': 2}),
  # Bulyan with f=0 selects all rows. Among fewer ones of nnm there are ties.
  'nnm, bulyan': (
    lca.layerwise(lca.chain(functools.partial(lca.nnm, f=2), lca.bulyan)),
    {'f': 0},
  ),
  'nnm, median': (lca.layerwise(lca.chain(lca.nnm, lca.median)), {'f': 2}),
  'clip, trimmed': (lca.chain(clip, lca.trimmed_mean), {'f': 2}),
  'clip, nnm, median': (lca.chain(clip, lca.nnm, lca.median), {'f': 2}),
  'buckets': (
    lca.chain(lca.bucketing, lca.krum),
    {'f': 1, 'bucket_size': 2, 'key': jax.random.key(3)},
  ),
}


def _updates(bad_rows):
  rng = np.random.default_rng(0)
  shapes = {'a': {'w': (9, 3, 5), 'b': (9, 4)}, 'c': {'w': (9, 6)}}
  updates = jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  if bad_rows:
    updates['a']['w'] = updates['a']['w'].at[2, 0, 1].set(jnp.nan)
    updates['c']['w'] = updates['c']['w'].at[5].set(1e30)
  return updates


def _by_parts(passes, updates):
  """Applies a rule in two passes, two columns at a time."""
  layers = Layers(updates, passes.key or grouping('model'))
  parts = layers.split(updates)
  decision, info = passes.decide(GRAMS[passes.needs](parts))

  def combine(k, leaf):
    flat = leaf.reshape(len(leaf), -1)
    of_layer = jax.tree.map(lambda x: x[k : k + 1], decision)
    columns = [
      passes.combine(flat[:, start : start + 2], of_layer)
      for start in range(0, flat.shape[1], 2)
    ]
    return jnp.concatenate(columns).reshape(leaf.shape[1:])

  return layers.join(
    [[combine(k, leaf) for leaf in part] for k, part in enumerate(parts)]
  ), info


@pytest.mark.parametrize('bad_rows', [False, True])
@pytest.mark.parametrize('name', RULES)
def test_the_parts_make_the_update_and_the_info(name, bad_rows):
  rule, hyper = RULES[name]
  updates = _updates(bad_rows)
  got, got_info = _by_parts(in_two_passes(rule, **hyper), updates)
  want, info = lca.explain(rule)(updates, **hyper)
  close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6)
  jax.tree.map(close, got, want)
  jax.tree.map(close, got_info, info)


def test_what_one_pass_is_enough_for():
  one = {
    n for n, (rule, h) in RULES.items() if in_two_passes(rule, **h).needs_one
  }
  assert one == {'mean'}


@pytest.mark.parametrize(
  ('rule', 'hyper'),
  [
    (lca.dnc, {'f': 1}),
    (lambda updates: updates[0], {}),
    (lca.layerwise(lca.dnc), {'f': 1}),
    (lca.chain(lca.nnm, lca.dnc), {'f': 1}),
    (lca.chain(lca.bulyan, lca.median), {'f': 1}),
    (lca.cosine(lca.krum, clip_by='leaf'), {'f': 1}),
  ],
)
def test_other_rules_are_refused(rule, hyper):
  with pytest.raises(ValueError, match=r'reads? all coordinates of all rows'):
    in_two_passes(rule, **hyper)


def test_steps_with_different_layers_are_refused():
  rule = lca.chain(lca.nnm, lca.layerwise(lca.krum))
  with pytest.raises(ValueError, match='different layers'):
    in_two_passes(rule, f=2)


def test_an_aggregator_with_a_state_is_refused():
  with pytest.raises(ValueError, match='an aggregator with a state'):
    of_aggregator(lca.centered_clip(threshold=1.0), {})
