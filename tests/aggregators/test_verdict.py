"""Gram rules with options; the arguments that a round brings."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lca
from lca.aggregators import ROUND_BRINGS
from lca.aggregators.verdict import StatisticOfSelected, scale_rows
from lca.stacked import order_statistics

EQUAL = np.testing.assert_array_equal
TREE = {'b': jnp.array([1.0, 2, 4]), 'w': jnp.arange(6.0).reshape(3, 2)}
ONE = jax.tree.map(lambda x: x[0], TREE)


def test_the_round_brings_what_the_protocol_names():
  from lca.aggregators.base import UpdateFn

  parameters = inspect.signature(UpdateFn.__call__).parameters.values()
  named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
  assert tuple(named) == ROUND_BRINGS


# The three ways to combine rows --------------------------------------------


def test_a_rule_that_scales_rows():
  @lca.gram_rule(combine=scale_rows, needs='norms')
  def halved(gram, *, by: float = 0.5):
    return lca.Verdict(by * jnp.eye(len(gram)))

  out, info = lca.explain(halved)(TREE)
  jax.tree.map(lambda x, y: EQUAL(x, y / 2), out, TREE)
  EQUAL(info['weights'], np.eye(3) / 2)
  EQUAL(lca.chain(halved, lca.mean)(TREE)['w'], [1, 1.5])


def test_a_rule_that_takes_a_statistic():
  @StatisticOfSelected
  def lowest(n, *, m):
    del n
    return m, order_statistics.RankedMean(0, 0)

  @lca.gram_rule(combine=lowest, needs='norms')
  def lowest_of_the_last(gram, *, m):
    return lca.Verdict(
      jnp.where(jnp.arange(len(gram)) >= len(gram) - m, 1.0, 0)
    )

  x = jnp.array([[0.0, 0], [3, 1], [2, 5]])
  out, info = lca.explain(lowest_of_the_last)(x, m=2)
  EQUAL(out, [2, 1])
  EQUAL(info['selected'], [False, True, True])
  assert 'weights' not in info
  EQUAL(
    lca.chain(lca.cge, lowest_of_the_last).__name__,
    'chain(cge, lowest_of_the_last)',
  )


def test_a_rule_without_a_look_at_the_updates_is_coordinatewise():
  @lca.gram_rule(needs='nothing')
  def first(gram):
    return lca.Verdict(jnp.zeros(len(gram)).at[0].set(1))

  assert lca.layerwise(first) is first
  assert lca.layerwise(lca.mean) is lca.mean
  assert lca.layerwise(lca.cge) is not lca.cge


@pytest.mark.parametrize('differentiable', [False, True])
def test_derivatives_run_through_the_verdict_on_demand(differentiable):
  @lca.gram_rule(needs='norms', differentiable_verdict=differentiable)
  def by_square(gram):
    return lca.Verdict(jnp.diagonal(gram))

  slope = jax.grad(lambda x: by_square(x)[0])(jnp.array([[2.0], [3.0]]))
  EQUAL(slope[:, 0], [12, 27] if differentiable else [4, 9])  # x^3 or c x


# Arguments that a round brings ---------------------------------------------

BROUGHT = {
  'key': jax.random.key(0),
  'weights': jnp.ones(3),
  'server_update': ONE,
  'params': jax.tree.map(lambda x: 10 + x, ONE),
  'client_ids': jnp.array([7, 5, 6]),
  'predict': lca.Predictor(
    lambda params, x: x, jax.ShapeDtypeStruct((1,), jnp.float32)
  ),
}


def from_params(updates, *, params):
  return jax.tree.map(lambda x, p: x[0] + p, updates, params)


def test_a_rule_is_given_what_it_names():
  seen = {}

  def nosy(updates, *, params, client_ids, weights=None):
    seen.update(params=params, client_ids=client_ids, weights=weights)
    return jax.tree.map(lambda x: x[0], updates)

  aggregator = lca.stateless(nosy)
  aggregator.update(TREE, (), **BROUGHT)
  assert all(seen[name] is BROUGHT[name] for name in seen)
  assert set(seen) == {'params', 'client_ids', 'weights'}


@pytest.mark.parametrize(
  'aggregator',
  [
    lca.stateless(from_params),
    lca.stateless(lca.layerwise(from_params)),
    lca.layerwise(lca.stateless(from_params)),
    lca.chain(lca.clip_to_median_norm, lca.stateless(from_params)),
    lca.stateless(lca.chain(lca.clip_to_median_norm, from_params)),
  ],
  ids=['rule', 'layerwise-rule', 'layerwise', 'before', 'chain'],
)
def test_trees_go_through_every_form(aggregator):
  state = aggregator.init(ONE)
  out, _ = aggregator.update(TREE, state, **BROUGHT)
  want = jax.tree.map(lambda x: 10 + 2 * x, ONE)  # row 0 is the shortest
  jax.tree.map(EQUAL, out, want)


def test_an_update_may_name_less():
  def update(updates, state, *, client_ids):
    return jax.tree.map(lambda x: x[0], updates), state + client_ids

  aggregator = lca.Aggregator(lambda params: jnp.zeros(3, int), update)
  _, state, info = lca.explain(aggregator)(
    TREE, aggregator.init(ONE), **BROUGHT
  )
  EQUAL(state, [7, 5, 6])
  assert info == {}
  layers = lca.layerwise(aggregator)
  _, states = layers.update(TREE, layers.init(ONE), **BROUGHT)
  assert len(states) == 2


def test_what_no_round_brings_is_refused():
  aggregator = lca.stateless(lca.mean)
  with pytest.raises(TypeError, match=r'round brings.*kye'):
    aggregator.update(TREE, (), kye=1)


@pytest.mark.parametrize('name', ['params', 'client_ids', 'server_update'])
def test_what_is_lacking_is_named_with_a_remedy(name):
  def rule(updates, *, params, client_ids, server_update):
    del params, client_ids, server_update
    return updates

  brought = {k: v for k, v in BROUGHT.items() if k != name}
  with pytest.raises(TypeError, match=f'rule needs {name}.*{name}=') as error:
    lca.stateless(rule).update(TREE, (), **brought)
  assert ('data.root_examples' in str(error.value)) == (name == 'server_update')
