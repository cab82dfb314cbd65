"""Tests of `explain` and of the names of rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compositions import RULES, every_rule, explain, same, stack

import lca

EQUAL = np.testing.assert_array_equal
# Clips are quotients of rounded norms; averages are sums of rounded products.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)


# explain -------------------------------------------------------------------


@every_rule
def test_explain_says_what_was_decided(name):
  rule, hyper = RULES[name]
  tree = stack('pair')
  tree['bias'] = tree['bias'].at[2].set(jnp.inf)
  for form, shape in [(rule, (11,)), (lca.layerwise(rule), (2, 11))]:
    update, info = explain(form, tree, **hyper)
    assert set(info) == {'weights', 'scores', 'selected', 'rejected'}
    assert all(value.shape == shape for value in info.values())
    assert info['selected'].dtype == info['rejected'].dtype == bool
    CLOSE(np.sum(info['weights'], axis=-1), np.ones(shape[:-1]))
    EQUAL(info['weights'] > 0, info['selected'])
    assert np.sum(info['rejected']) == 1
    if shape == (11,):
      same(update, jax.jit(lca.mix)(tree, info['weights']))


def test_explain_tells_no_weights_of_what_is_not_mixed_by_them():
  x = stack('leaf')
  for rule in (lca.bulyan, lca.layerwise(lca.bulyan), lca.cosine(lca.bulyan)):
    _, info = explain(rule, x, f=2)
    assert set(info) == {'selected', 'rejected'}


def test_explain_tells_no_weights_of_leaves_with_clips_of_their_own():
  x = stack('pair')
  _, info = explain(lca.cosine(lca.multi_krum, clip_by='leaf'), x, f=2, m=3)
  assert set(info) == {'scores', 'selected', 'rejected'}


def test_explain_sees_through_what_is_bound():
  x = stack('pair')
  bound = functools.partial(lca.krum, f=2)
  for form in (lambda rule: rule, lca.layerwise):
    _, info = explain(form(bound), x)
    _, want = explain(form(lca.krum), x, f=2)
    assert set(info) == set(want)
    EQUAL(info['selected'], want['selected'])


def test_explain_of_a_chain_is_of_the_rows_that_came():
  x = stack('leaf')
  rule = lca.chain(lca.bucketing, lca.krum)
  update, info = lca.explain(rule)(x, f=1, key=jax.random.key(0))
  assert {k: v.shape for k, v in info.items()} == dict.fromkeys(
    ('weights', 'selected', 'rejected'), (11,)
  )
  CLOSE(update, lca.mix(x, info['weights']))


def test_explain_of_a_plain_function_has_nothing_to_say():
  x = stack('leaf')
  plain = lambda updates: jnp.sum(updates, axis=0)  # noqa: E731
  for form in (plain, lca.layerwise(plain)):
    update, info = explain(form, x)
    EQUAL(update, jax.jit(plain)(x))
    assert info == {}


def test_explain_of_an_aggregator():
  x = stack('leaf')
  aggregator = lca.stateless(lca.krum, f=2)
  update, state, info = lca.explain(aggregator)(x, aggregator.init(x[0]))
  want, told = lca.explain(lca.krum)(x, f=2)
  EQUAL(update, want)
  assert state == ()
  same(info, told)
  by_hand = lca.Aggregator(lambda params: 0, lambda u, s, **_: (u[0], s + 1))
  update, state, info = lca.explain(by_hand)(x, 4, key=None)
  assert state == 5 and info == {}


def test_names_say_the_composition():
  form = lca.layerwise(lca.cosine(lca.krum))
  assert repr(form) == 'layerwise(cosine(krum))'


def test_explain_needs_a_rule():
  with pytest.raises(TypeError, match=r'explain needs a rule .*, got int'):
    lca.explain(3)
