"""Batch statistics: the three ways to aggregate them, and attacks on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import Normalized

import lca
from lca import attacks
from lca import data as datasets
from lca.federated.clients import LocalTraining
from lca.federated.placement import (
  Placement,
  blank_results,
  clients_mesh,
  place_clients,
  train_clients,
)
from lca.federated.population import Population
from lca.federated.randomness import Purpose, key_for
from lca.federated.server import Server
from lca.federated.simulation import Simulation
from lca.models import Classifier

SEED = 5
POPULATION = Population(12, 7, num_attackers=4, num_byzantine=2)


CLASSIFIER = Classifier(Normalized(10), (8.0,), (8.0,))
TRAIN = LocalTraining(
  losses=CLASSIFIER.losses,
  optimizer=optax.sgd(0.05),
  batch_size=8,
  local_epochs=1,
)
MESH = clients_mesh(1)


@pytest.fixture(scope='module')
def data():
  return datasets.federate(
    datasets.load('digits'),
    partition='iid',
    num_clients=12,
    min_examples=1,
    seed=SEED,
    root_examples=40,
  )


def simulation(data, rule, attack=attacks.NO_ATTACK, **changes):
  """Returns a simulation; `changes` are attributes of its `Server`."""
  return Simulation(
    data=data,
    population=POPULATION,
    classifier=CLASSIFIER,
    train=TRAIN,
    server=Server(
      aggregator=rule, optimizer=optax.sgd(1.0), attack=attack, **changes
    ),
    seed=SEED,
    placement=Placement(MESH, chunk_size=1, eval_batch_size=50),
  )


@pytest.fixture(scope='module')
def first_round(data):
  """Trains the clients and the server of the first round.

  Returns:
    The initial variables, the clients' updates and the server's update.
  """
  ids, _ = POPULATION.sample(SEED, 0)
  trainers = np.append(ids, data.server_id)
  variables = CLASSIFIER.init(
    key_for(SEED, Purpose.INIT), data.dataset.train.input_spec
  )
  placed = place_clients(
    (data.gather(trainers), trainers.astype(np.int32)), MESH
  )
  key = key_for(SEED, Purpose.TRAIN, 0)
  results = blank_results(MESH, variables, len(trainers))()
  updates, _ = train_clients(TRAIN, MESH, 1)(
    variables, *placed, key, *results, 0, len(trainers)
  )
  server_update = jax.tree.map(lambda u: u[7], updates)
  return variables, jax.tree.map(lambda u: u[:7], updates), server_update


KRUM = lca.stateless(lca.krum, f=2)


def krum_of(tree):
  """Returns the row that the server's Krum selects."""
  return lca.krum(tree, f=2)


# The expected update of the variables for each `batch_stats`.
WANTED = {
  'rule': lambda updates, _: krum_of(updates),
  'mean': lambda updates, _: {
    'params': krum_of({'params': updates['params']})['params'],
    'batch_stats': jax.tree.map(
      lambda u: np.mean(np.asarray(u), axis=0, dtype=np.float64),
      updates['batch_stats'],
    ),
  },
  'server': lambda updates, server_update: {
    'params': krum_of({'params': updates['params']})['params'],
    'batch_stats': server_update['batch_stats'],
  },
}


@pytest.mark.parametrize('who', WANTED)
def test_who_aggregates_them(data, first_round, who):
  variables, updates, server_update = first_round
  sim = simulation(data, KRUM, batch_stats=who)
  state, metrics = sim.run_round(sim.init(), 0)
  assert metrics['floored'] == 0
  jax.tree.map(
    lambda new, old, update: np.testing.assert_allclose(
      new, old + update, rtol=1e-5, atol=1e-6
    ),
    state.variables,
    variables,
    WANTED[who](updates, server_update),
  )


def attack(rows):
  """Returns the attack in which Byzantine clients send `rows(updates)`."""

  def on_updates(updates, *, byzantine, key, aggregate):
    return jax.tree.map(
      lambda u: jnp.where(
        byzantine.reshape(-1, *[1] * (u.ndim - 1)), rows(u), u
      ),
      updates,
    )

  return attacks.NO_ATTACK._replace(on_updates=on_updates)


@pytest.mark.parametrize('who', WANTED)
def test_nan_from_attackers_does_not_reach_them(data, who):
  nan = attack(lambda u: jnp.full_like(u, jnp.nan))
  sim = simulation(data, KRUM, nan, batch_stats=who)
  state, _ = sim.run_round(sim.init(), 0)
  for leaf in jax.tree.leaves(state.variables):
    assert np.all(np.isfinite(leaf))


def test_a_mean_of_nobody_is_nan(data):
  def nobody(updates, **_):
    return jax.tree.map(lambda u: jnp.full_like(u, jnp.nan), updates)

  attack = attacks.NO_ATTACK._replace(on_updates=nobody)
  sim = simulation(data, KRUM, attack, batch_stats='mean')
  state, metrics = sim.run_round(sim.init(), 0)
  assert metrics['rejected'] == 7
  sizes = [leaf.size for leaf in jax.tree.leaves(state.variables)]
  assert metrics['nonfinite'] == sum(sizes)
  for leaf in jax.tree.leaves(state.variables['batch_stats']):
    assert np.all(np.isnan(leaf))


def test_negative_variances_are_floored_and_counted(data):
  mean = lca.stateless(lca.mean, weights=None)
  sim = simulation(data, mean, attack(lambda u: jnp.full_like(u, -1e3)))
  state, metrics = sim.run_round(sim.init(), 0)
  stats = state.variables['batch_stats']['BatchNorm_0']
  assert metrics['floored'] == 5  # all variances of the layer
  np.testing.assert_array_equal(stats['var'], np.zeros(5))
  assert np.all(stats['mean'] < -100)  # means may be negative
  test = sim.evaluate(state)
  assert np.isfinite(test['test_loss'])


def test_one_value_is_floored_alone(data, first_round):
  variables, updates, _ = first_round

  def on_updates(updates, *, byzantine, key, aggregate):
    stats = updates['batch_stats']['BatchNorm_0']
    var = stats['var'].at[:, 2].set(-8.0)
    return updates | {'batch_stats': {'BatchNorm_0': stats | {'var': var}}}

  sim = simulation(
    data,
    lca.stateless(lca.mean, weights=None),
    attacks.NO_ATTACK._replace(on_updates=on_updates),
  )
  state, metrics = sim.run_round(sim.init(), 0)
  assert metrics['floored'] == 1
  want = variables['batch_stats']['BatchNorm_0']['var'] + np.mean(
    updates['batch_stats']['BatchNorm_0']['var'], axis=0
  )
  got = state.variables['batch_stats']['BatchNorm_0']['var']
  np.testing.assert_allclose(got, want.at[2].set(0), rtol=1e-5)


def test_momentum_is_of_the_parameters_alone(data, first_round):
  variables, updates, _ = first_round
  mean = lca.stateless(lca.mean, weights=None)
  sim = simulation(data, mean, momentum=0.75)
  state, _ = sim.run_round(sim.init(), 0)
  assert state.momenta.keys() == variables['params'].keys()
  jax.tree.map(
    lambda new, old, u: np.testing.assert_allclose(
      new, old + np.mean(u, axis=0), rtol=1e-5, atol=1e-6
    ),
    state.variables['batch_stats'],
    variables['batch_stats'],
    updates['batch_stats'],
  )


@pytest.mark.filterwarnings('ignore:with . layers and window=2')
def test_legato_and_the_layers_metrics_see_what_the_rule_sees(data):
  sim = simulation(
    data, lca.legato(window=2), batch_stats='mean', layers='leaf'
  )
  _, metrics = sim.run_round(sim.init(), 0)
  assert sim.more_metrics[0] == 'floored'
  assert not any('batch_stats' in name for name in metrics)
  rule = simulation(data, lca.legato(window=2), layers='leaf').more_metrics
  assert 'norm/batch_stats/BatchNorm_0/var' in rule


def test_options_that_cannot_be(data):
  with pytest.raises(ValueError, match=r"model.batch_stats .* 'clients'"):
    simulation(data, KRUM, batch_stats='clients')
  without = datasets.federate(
    data.dataset, partition='iid', num_clients=12, min_examples=1, seed=SEED
  )
  with pytest.raises(ValueError, match=r'data\.root_examples'):
    simulation(without, KRUM, batch_stats='server')
