"""Seeds that run together have the rounds of each alone, but for rounding."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from simulations import POPULATION, parts, simulation

import lca
from lca import attacks
from lca import data as datasets
from lca.federated import plan
from lca.federated.seeds import SeedsSimulation
from lca.federated.simulation import Simulation


def data_of(seeds, **options):
  """Returns the data of each seed; the largest clients differ in size."""
  spread = [
    datasets.federate(
      datasets.load('digits'),
      partition='dirichlet',
      alpha=0.5,
      num_clients=POPULATION.num_clients,
      min_examples=1,
      seed=seed,
      **options,
    )
    for seed in seeds
  ]
  assert len({data.max_examples for data in spread}) > 1
  return spread


def together(seeds, spread, **changes):
  """Returns the simulation of several seeds."""
  length = max(data.max_examples for data in spread)
  of_runs = [
    parts(dataclasses.replace(data, length=length), seed=seed, **changes)
    for seed, data in zip(seeds, spread, strict=True)
  ]
  return SeedsSimulation([Simulation(**each) for each in of_runs], **of_runs[0])


def check_same(ours, theirs):
  """Checks that states, or metrics, differ by rounding alone."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
    ours,
    theirs,
  )


GAUSSIAN = attacks.from_function(attacks.gaussian, sigma=0.1)


@pytest.mark.parametrize(
  ('seeds', 'options', 'changes'),
  [
    pytest.param([3, 5, 7], {}, {}, id='one device'),
    pytest.param(
      [3, 5],
      {'validation': 0.1},
      {
        'devices': 4,
        'chunk_size': 2,
        'attack': GAUSSIAN,
        'aggregator': lca.stateless(lca.layerwise(lca.cosine(lca.krum)), f=2),
        'forensics': True,
        'layers': 'leaf',
      },
      id='two devices for each seed',
    ),
    pytest.param(
      [3, 5, 7, 9],
      {},
      {
        'devices': 2,
        'aggregator': lca.legato(window=30),
        'optimizer': optax.adam(0.01),
        'momentum': 0.5,
        'population': dataclasses.replace(POPULATION, drop_rate=0.2),
      },
      id='two seeds on each device',
    ),
    pytest.param(
      [3, 5, 7],
      {'root_examples': 20},
      {'devices': 2, 'aggregator': lca.stateless(lca.fltrust)},
      id='all seeds on all devices',
    ),
  ],
)
def test_rounds_are_those_of_each_seed_alone(seeds, options, changes):
  spread = data_of(seeds, **options)
  sim = together(seeds, spread, **changes)
  states = sim.init()
  for round_idx in range(3):
    states, measured = sim.run_round(states, round_idx)
  for k, (seed, data) in enumerate(zip(seeds, spread, strict=True)):
    alone = simulation(data, seed=seed, **changes)
    state = alone.init()
    for round_idx in range(3):
      state, metrics = alone.run_round(state, round_idx)
    check_same(sim.state_of(states, k), state)
    check_same(measured[k], metrics)
    run = sim.runs[k]
    assert run.more_metrics == alone.more_metrics
    tested = run.evaluate(sim.state_of(states, k))
    assert tested.keys() == alone.evaluate(state).keys()
    check_same(tested['test_loss'], alone.evaluate(state)['test_loss'])


def test_the_test_set_is_on_the_devices_once():
  seeds = [3, 5]
  sim = together(seeds, data_of(seeds, validation=0.1))
  first, second = (run._evaluation._blocks for run in sim.runs)
  assert first['test'] is second['test']
  assert first['validation'] is not second['validation']


def test_the_memory_is_that_of_all_seeds_of_a_device():
  seeds = [3, 5, 7, 9]
  spread = data_of(seeds)
  sim = together(seeds, spread, devices=2)
  needed = plan.of(sim)
  one = plan.of(sim.runs[0])
  assert sim.seeds_per_device == 2
  # On one row of devices alone a run would have all of its clients on one.
  assert needed.model == 2 * one.model
  assert needed.updates == 2 * 7 * one.model
  assert needed.training > one.training


def test_nothing_is_compiled_after_the_first_round(compiled):
  seeds = [3, 5]
  sim = together(seeds, data_of(seeds), devices=2, attack=GAUSSIAN)
  states = sim.init()
  for round_idx in range(3):
    states, _ = sim.run_round(states, round_idx)
    for k, run in enumerate(sim.runs):
      run.evaluate(sim.state_of(states, k))
    if round_idx == 0:
      in_the_first = len(compiled)
  assert in_the_first > 3
  assert compiled[in_the_first:] == []


def test_a_model_alone_is_that_of_the_whole_state():
  seeds = [3, 5]
  sim = together(seeds, data_of(seeds), momentum=0.5)
  states = sim.init()
  alone = sim.state_of(states, 1, whole=False)
  assert not jax.tree.leaves(alone._replace(variables=()))
  whole = sim.state_of(states, 1)
  jax.tree.map(np.testing.assert_array_equal, alone.variables, whole.variables)
