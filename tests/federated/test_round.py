"""A whole round equals its parts put together by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from simulations import CLASSIFIER, POPULATION, TRAIN, simulation

import lca
from lca import attacks
from lca import data as datasets
from lca.federated.clients import LocalGradient
from lca.federated.population import Population
from lca.federated.randomness import Purpose, key_for


@pytest.mark.parametrize('drop_rate', [0.0, 0.5])
def test_a_round_is_its_parts(data, drop_rate):
  attack = attacks.make({'name': 'label_flipping', 'boost': 3.0})
  population = dataclasses.replace(POPULATION, drop_rate=drop_rate)
  sim = simulation(
    data,
    population=population,
    attack=attack,
    aggregator=lca.stateless(lca.mean),
    devices=2,
  )
  before = sim.init()
  after, metrics = sim.run_round(before, 4)

  ids, byzantine = population.sample(3, 4)
  dropped = population.dropped(3, 4, byzantine)
  assert dropped.any() == (drop_rate > 0)
  clients = data.gather(ids)
  labels = clients.labels
  for row in np.flatnonzero(byzantine):
    labels[row] = attacks.flip_labels(
      labels[row],
      client_id=ids[row],
      num_classes=10,
      key=key_for(3, Purpose.LABELS),
    )
  total, losses = jax.tree.map(jnp.zeros_like, before.variables), []
  weights = clients.num_examples * ~dropped
  for row, client_id in enumerate(ids):
    one = datasets.ClientData(
      clients.inputs[row], labels[row], clients.num_examples[row]
    )
    key = key_for(3, Purpose.TRAIN, 4, client_id)
    update, loss = jax.jit(TRAIN)(before.variables, one, key)
    boost = (3.0 if byzantine[row] else 1.0) * weights[row] / sum(weights)
    boosted = jax.tree.map(jnp.array(boost).__mul__, update)
    total = jax.tree.map(jnp.add, total, boosted)
    losses.append(float(loss))

  expected = jax.tree.map(jnp.add, before.variables, total)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    after.variables,
    expected,
  )
  honest = np.mean(np.array(losses)[~byzantine & ~dropped])
  np.testing.assert_allclose(metrics['train_loss'], honest, rtol=1e-5)
  assert (metrics['byzantine'], metrics['rejected']) == (2, 0)
  assert metrics.get('dropped', 0) == dropped.sum()
  assert sim.more_metrics == (['dropped'] if drop_rate else [])


def test_the_server_optimizer_sees_minus_the_aggregate(data):
  plain, half = simulation(data), simulation(data, optimizer=optax.sgd(0.5))
  start = plain.init().variables
  full_step = plain.run_round(plain.init(), 0)[0].variables
  half_step = half.run_round(half.init(), 0)[0].variables
  jax.tree.map(
    lambda s, f, h: np.testing.assert_allclose(h, (s + f) / 2, atol=1e-6),
    start,
    full_step,
    half_step,
  )


def test_a_nan_client_does_not_reach_the_model(data):
  def send_nan(updates, *, byzantine, key, aggregate):
    del key
    return lca.geometry.scale(updates, jnp.where(byzantine, jnp.nan, 1.0))

  attack = attacks.NO_ATTACK._replace(on_updates=send_nan)
  rule = lca.layerwise(lca.cosine(lca.krum))
  robust = simulation(data, attack=attack, aggregator=lca.stateless(rule, f=2))
  state, _ = robust.run_round(robust.init(), 0)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.variables))
  mean = simulation(data, attack=attack)
  state, _ = mean.run_round(mean.init(), 0)
  assert all(np.all(np.isnan(x)) for x in jax.tree.leaves(state.variables))


def test_the_server_trains_on_its_own_examples_as_a_client_does():
  federated = datasets.federate(
    datasets.load('digits'),
    partition='iid',
    num_clients=POPULATION.num_clients,
    min_examples=1,
    seed=3,
    root_examples=40,
  )
  held_out = set(federated.root_indices.tolist())
  assert len(held_out) == 40
  assert not held_out & {int(i) for c in federated.client_indices for i in c}

  def rule(updates, *, server_update):
    return server_update

  sim = simulation(federated, aggregator=lca.stateless(rule))
  state = sim.init()
  after, _ = sim.run_round(state, 0)
  key = jax.random.fold_in(key_for(3, Purpose.TRAIN, 0), federated.server_id)
  data = jax.tree.map(lambda x: x[0], federated.gather([federated.server_id]))
  assert data.num_examples == 40
  want, _ = jax.jit(TRAIN)(state.variables, data, key)
  got = jax.tree.map(jnp.subtract, after.variables, state.variables)
  jax.tree.map(close, got, want)


def with_clients(data, indices):
  """Returns the digits with one client for each list of indices."""
  return datasets.FederatedDataset(data.dataset, list(map(np.array, indices)))


def everyone(data, rule, **hyper):
  """Runs a round with all clients and no attackers.

  Returns:
    The variables before and after the round.
  """
  sim = simulation(
    data,
    population=Population(data.num_clients, data.num_clients),
    aggregator=lca.stateless(rule, **hyper),
  )
  state = sim.init()
  return state.variables, sim.run_round(state, 0)[0].variables


def one_step(variables, split, indices):
  """Returns the variables after one SGD step on some examples."""

  def loss(params):
    rows = np.array(indices)
    images, labels = split.inputs[rows], split.labels[rows]
    return jnp.mean(CLASSIFIER.losses({'params': params}, images, labels)[0])

  grads = jax.jit(jax.grad(loss))(variables['params'])
  step = jax.tree.map(lambda p, g: p - 0.05 * g, variables['params'], grads)
  return {'params': step}


close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


def test_a_client_with_one_example(data):
  def smallest(updates, *, weights):
    return jax.tree.map(lambda x: x[jnp.argmin(weights)], updates)

  small = with_clients(data, [range(8), [33], range(40, 45)])
  before, after = everyone(small, smallest)
  jax.tree.map(close, after, one_step(before, data.dataset.train, [33]))


@pytest.mark.parametrize(
  ('rule', 'hyper'),
  [(lca.layerwise(lca.cosine(lca.krum)), {'f': 1}), (lca.median, {})],
)
def test_all_clients_equal(data, rule, hyper):
  small = with_clients(data, [range(8)] * 5)
  before, after = everyone(small, rule, **hyper)
  jax.tree.map(close, after, one_step(before, data.dataset.train, range(8)))


def test_a_rule_that_needs_the_server_says_so(data):
  with pytest.raises(TypeError, match='server_update'):
    simulation(data, aggregator=lca.stateless(lca.fltrust)).run_round(
      simulation(data).init(), 0
    )


def test_workers_momentum_is_part_of_the_state(data):
  gradient = LocalGradient(losses=CLASSIFIER.losses, batch_size=8)
  plain = simulation(data, train=gradient)
  damped = simulation(data, train=gradient, momentum=0.75)
  start = plain.init()
  assert start.momenta == ()
  once, _ = plain.run_round(start, 0)
  state, _ = damped.run_round(damped.init(), 0)
  ids, _ = POPULATION.sample(3, 0)

  def step(new, old):
    return jax.tree.map(jnp.subtract, new.variables, old.variables)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, 0.25 * b, rtol=1e-3, atol=1e-7),
    step(state, start),
    step(once, start),
  )
  for leaf in jax.tree.leaves(state.momenta):
    assert len(leaf) == POPULATION.num_clients
    others = np.setdiff1d(np.arange(POPULATION.num_clients), ids)
    assert not np.any(leaf[others])
  mean = jax.tree.map(lambda m: jnp.mean(m[ids], 0), state.momenta)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7),
    step(state, start)['params'],
    mean,
  )


def test_who_does_not_answer_keeps_its_momentum(data):
  population = dataclasses.replace(POPULATION, drop_rate=0.5)
  sim = simulation(
    data,
    population=population,
    aggregator=lca.stateless(lca.median),
    momentum=0.75,
  )
  state, metrics = sim.run_round(sim.init(), 0)
  ids, byzantine = population.sample(3, 0)
  dropped = population.dropped(3, 0, byzantine)
  assert 0 < metrics['dropped'] < 4  # so that the median is a number, not NaN
  moved = np.zeros(population.num_clients, bool)
  for leaf in jax.tree.leaves(state.momenta):
    moved |= np.any(np.asarray(leaf), axis=tuple(range(1, leaf.ndim)))
  np.testing.assert_array_equal(np.flatnonzero(moved), sorted(ids[~dropped]))


def test_attackers_do_not_see_who_does_not_answer(data):
  population = dataclasses.replace(POPULATION, drop_rate=0.5)

  def send_how_many_are_missing(updates, *, byzantine):
    missing = lca.geometry.rejected_rows(lca.geometry.norms_gram(updates))
    rows = jax.tree.map(
      lambda x: jnp.full_like(x[0], jnp.sum(missing)), updates
    )
    return attacks.replace(updates, byzantine, rows)

  def largest(updates):
    return jax.tree.map(lambda x: jnp.nanmax(x, axis=0), updates)

  sim = simulation(
    data,
    population=population,
    attack=attacks.from_function(send_how_many_are_missing),
    aggregator=lca.stateless(largest),
  )
  before = sim.init()
  after, metrics = sim.run_round(before, 0)
  assert metrics['dropped'] > 0
  step = jax.tree.map(jnp.subtract, after.variables, before.variables)
  for leaf in jax.tree.leaves(step):
    np.testing.assert_allclose(leaf, metrics['dropped'], rtol=1e-5)


def test_the_layers_metrics(data):
  sim = simulation(data, aggregator=lca.legato(window=3), layers='leaf')
  state, metrics = sim.run_round(sim.init(), 0)
  state, metrics = sim.run_round(state, 1)
  leaves = [
    f'params/{module}/{leaf}'
    for module in ('Conv_0', 'Conv_1', 'Dense_0', 'Dense_1')
    for leaf in ('bias', 'kernel')
  ]
  assert sim.more_metrics == [
    f'{metric}/{leaf}' for metric in ('norm', 'factor') for leaf in leaves
  ]
  factors = [metrics[f'factor/{leaf}'] for leaf in leaves]
  np.testing.assert_allclose(np.sum(factors), 1, rtol=1e-5)
  norms = [metrics[f'norm/{leaf}'] for leaf in leaves]
  np.testing.assert_allclose(norms, state.aggregator.norms[1], rtol=1e-6)
  assert simulation(data).more_metrics == []


def test_an_attack_is_given_what_the_server_will_make_of_updates(data):
  received = {}

  def on_updates(updates, *, byzantine, key, aggregate):
    received['update'] = aggregate(updates)
    return jax.tree.map(jnp.zeros_like, updates)

  attack = attacks.NO_ATTACK._replace(on_updates=on_updates)
  sim = simulation(data, attack=attack)
  start = sim.init()
  after, _ = sim.run_round(start, 0)
  jax.tree.map(np.testing.assert_array_equal, after.variables, start.variables)
  assert jax.tree.structure(received['update']) == jax.tree.structure(
    start.variables
  )
