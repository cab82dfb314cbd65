"""The server's step on numbers whose results are worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lca
from lca import attacks
from lca.federated import metrics
from lca.federated.round import server_step
from lca.federated.server import Round, Sent, Server, server_init

VARIABLES = {'params': {'a': jnp.array([1.0, 2.0]), 'b': jnp.array(3.0)}}
UPDATES = {
  'params': {
    'a': jnp.array([[1.0, 0.0], [3.0, 0.0], [8.0, 4.0]]),
    'b': jnp.array([0.0, 2.0, 4.0]),
  }
}
IDS = np.array([4, 0, 2], np.int32)
EXAMPLES = np.array([1, 1, 2], np.int32)
MEAN = lca.stateless(lca.mean)


def server(**changes):
  parts = {'aggregator': MEAN, 'optimizer': optax.sgd(1.0)}
  return Server(**(parts | changes))


def drawn(byzantine=(), answered=None):
  """Returns a round of three clients; `byzantine` holds row indices."""
  return Round(
    ids=IDS,
    byzantine=np.isin(np.arange(3), byzantine),
    num_examples=EXAMPLES,
    attack_key=jax.random.key(1),
    rule_key=jax.random.key(2),
    answered=answered,
  )


def start(server, variables=VARIABLES):
  return server_init(server, variables, variables, num_clients=6)


def step(server, updates=UPDATES, state=None, server_update=None, **who):
  """Takes one step; `who` holds arguments of `drawn`."""
  state = start(server) if state is None else state
  sent = Sent(updates, jnp.array([0.5, 1.5, 4.0]), server_update)
  return server_step(server, state, sent, drawn(**who))


def test_the_aggregate_is_added_and_the_metrics_have_their_names():
  state, measured = step(server())
  # The mean is weighted by the numbers of examples: (1 + 3 + 2 * 8) / 4 = 5.
  np.testing.assert_allclose(state.variables['params']['a'], [6.0, 4.0])
  np.testing.assert_allclose(state.variables['params']['b'], 3.0 + 2.5)
  assert list(measured) == ['train_loss', 'byzantine', 'rejected', 'nonfinite']
  assert measured == {
    'train_loss': 2.0,
    'byzantine': 0,
    'rejected': 0,
    'nonfinite': 0,
  }


def test_a_jitted_step_keeps_the_order_of_the_metrics():
  one = server(layers='leaf', aggregator=lca.legato(window=3))
  answered = np.array([True, False, True])
  _, expected = step(one, answered=answered)
  jitted = jax.jit(functools.partial(server_step, one))
  sent = Sent(UPDATES, jnp.zeros(3))
  _, measured = jitted(start(one), sent, drawn(answered=answered))
  assert list(measured) == list(expected)
  assert list(measured)[4:] == ['dropped', 'norm', 'factor']


def test_a_rule_is_given_all_that_a_round_brings():
  given = {}

  def update(updates, state, **brought):
    given.update(brought)
    return jax.tree.map(lambda u: u[0], updates), state

  rule = lca.Aggregator(lambda params: (), update)
  variables = VARIABLES | {'batch_stats': {'bn': {'var': jnp.ones(2)}}}
  updates = UPDATES | {'batch_stats': {'bn': {'var': jnp.ones((3, 2))}}}
  server_update = jax.tree.map(lambda u: u[1], updates)
  predict = lca.Predictor(
    lambda tree, x: tree['params']['a'] + tree['batch_stats']['bn']['var'] * x,
    jax.ShapeDtypeStruct((), jnp.float32),
  )
  one = server(aggregator=rule, batch_stats='server', predict=predict)
  step(
    one,
    updates,
    start(one, variables),
    server_update,
    answered=np.array([True, False, True]),
  )
  assert given.keys() == {
    'key',
    'weights',
    'server_update',
    'params',
    'client_ids',
    'predict',
  }
  assert jnp.all(jax.random.key_data(given['key']) == jnp.array([0, 2]))
  np.testing.assert_array_equal(given['weights'], [1, 0, 2])
  np.testing.assert_array_equal(given['client_ids'], IDS)
  # Both lack the batch statistics, which the rule does not aggregate.
  np.testing.assert_array_equal(given['params']['params']['a'], [1, 2])
  np.testing.assert_array_equal(given['server_update']['params']['b'], 2)
  assert given['params'].keys() == given['server_update'].keys() == {'params'}
  # The model's function takes its statistics from the server.
  assert given['predict'].input_spec == predict.input_spec
  np.testing.assert_array_equal(given['predict'](given['params'], 5), [6, 7])


def test_a_stateless_rule_is_given_what_it_names():
  def towards(updates, *, params, client_ids):
    del updates
    return jax.tree.map(lambda p: jnp.sum(client_ids) - p, params)

  state, _ = step(server(aggregator=lca.stateless(towards)))
  np.testing.assert_allclose(state.variables['params']['a'], [6.0, 6.0])


def test_the_mean_loss_is_of_the_honest_that_answer():
  _, measured = step(
    server(), byzantine=[2], answered=np.array([True, False, True])
  )
  assert measured['train_loss'] == 0.5
  assert (measured['byzantine'], measured['dropped'], measured['rejected']) == (
    1,
    1,
    0,
  )


def test_an_aggregate_that_is_not_finite_is_counted_once():
  broken = {'params': UPDATES['params'] | {'b': jnp.array([0, jnp.nan, 0])}}
  _, measured = step(server(), broken)
  assert measured['nonfinite'] == 1
  # One row holds the NaN, and one entry of the aggregate comes from it.
  assert measured['rejected'] == 1


def test_a_model_that_overflows_is_counted_where_the_aggregate_is_finite():
  large = jax.tree.map(lambda u: jnp.full_like(u, 1e10), UPDATES)
  state, measured = step(server(optimizer=optax.sgd(1e30)), large)
  assert not np.any(np.isfinite(state.variables['params']['a']))
  assert measured['rejected'] == 0
  assert measured['nonfinite'] == 3


def test_the_attack_sees_what_the_server_will_make():
  received = {}

  def on_updates(updates, *, byzantine, key, aggregate):
    received['update'] = aggregate(updates)
    return attacks.replace(
      updates, byzantine, jax.tree.map(lambda u: 2 * u[0], updates)
    )

  attack = attacks.NO_ATTACK._replace(on_updates=on_updates)
  state, measured = step(server(attack=attack), byzantine=[1])
  np.testing.assert_allclose(received['update']['params']['a'], [5.0, 2.0])
  np.testing.assert_allclose(
    state.variables['params']['a'], [1 + (1 + 2 + 16) / 4, 2 + 8 / 4]
  )
  assert measured['byzantine'] == 1


def test_who_does_not_answer_keeps_its_momentum():
  one = server(momentum=0.75, aggregator=lca.stateless(lca.median))
  state, _ = step(one, answered=np.array([True, False, True]))
  momenta = np.zeros((6, 2))
  momenta[4], momenta[2] = [0.25, 0], [2, 1]
  np.testing.assert_allclose(state.momenta['a'], momenta)


def with_factors(values):
  """Returns the mean as an aggregator whose info has factors."""
  explain = lca.explain(MEAN)

  def update(updates, state, **brought):
    update, state, info = explain(updates, state, **brought)
    return update, state, info | {'factors': jnp.array(values)}

  return lca.Aggregator(MEAN.init, lca.aggregators.base.ExplainedUpdate(update))


def test_any_rule_with_factors_reports_them():
  rule = with_factors([0.25, 0.75])
  _, measured = step(server(aggregator=rule, layers='leaf'))
  np.testing.assert_array_equal(measured['factor'], [0.25, 0.75])
  assert metrics.columns(measured, ['a', 'b'])[4:] == [
    'norm/a',
    'norm/b',
    'factor/a',
    'factor/b',
  ]
  _, measured = step(server(aggregator=rule))
  assert 'factor' not in measured and 'norm' not in measured
  _, measured = step(server(layers='leaf'))
  assert 'factor' not in measured and 'norm' in measured


def test_factors_of_other_layers_are_an_error():
  _, measured = step(server(aggregator=with_factors([1.0]), layers='leaf'))
  with pytest.raises(ValueError, match=r"'factor' has the shape \(1,\).* 2 la"):
    metrics.columns(measured, ['a', 'b'])


def test_the_norms_are_legatos():
  _, measured = step(server(layers='leaf'))
  a, b = (np.asarray(x) for x in jax.tree.leaves(UPDATES))
  whole = np.sqrt(np.sum(a**2, axis=1) + b**2)
  expected = np.array([np.linalg.norm(a), np.linalg.norm(b)]) / whole.sum()
  np.testing.assert_allclose(measured['norm'], expected, rtol=1e-6)


def test_unknown_statistics_are_an_error():
  with pytest.raises(ValueError, match=r"model\.batch_stats .* 'clients'"):
    server(batch_stats='clients')
  with pytest.raises(ValueError, match=r'data\.root_examples'):
    server(batch_stats='server').check_examples(has_examples=False)
  server(batch_stats='server').check_examples(has_examples=True)
