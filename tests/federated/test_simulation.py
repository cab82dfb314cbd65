"""The simulation reads examples ahead and updates its state in place."""

import dataclasses
import functools
import queue
import threading

import jax
import numpy as np
import optax
import pytest
from simulations import POPULATION, TRAIN, simulation

import lca
from lca import attacks
from lca import data as datasets
from lca.federated import training
from lca.federated.optimizer import Optimizer


def test_the_next_rounds_clients_are_read_ahead(data, monkeypatch):
  gather, gathered = datasets.FederatedDataset.gather, queue.Queue()

  def recorded(self, ids, rows):
    assert threading.current_thread() is not threading.main_thread()
    gathered.put(ids.tolist())
    return gather(self, ids, rows)

  monkeypatch.setattr(datasets.FederatedDataset, 'gather', recorded)
  sim = simulation(data)
  state, _ = sim.run_round(sim.init(), 0)
  state, _ = sim.run_round(state, 1)
  state, _ = sim.run_round(state, 5)
  sim.run_round(state, 6, last=True)  # there is no round 7 to read for
  for round_idx in (0, 1, 2, 5, 6):
    ids, _ = POPULATION.sample(3, round_idx)
    assert gathered.get(timeout=60) == ids.tolist()
  assert gathered.empty()


def test_a_round_depends_on_its_number_alone(data):
  sim, other = simulation(data), simulation(data)
  state = sim.init()
  sim.run_round(state, 0)
  after, metrics = sim.run_round(state, 1)
  for round_idx in (7, 1, 1):
    again, same = other.run_round(state, round_idx)
  assert same == metrics
  jax.tree.map(np.testing.assert_array_equal, again, after)


def test_an_error_in_reading_is_raised_in_its_own_round(data, monkeypatch):
  gather, broken = datasets.FederatedDataset.gather, {1}

  def failing(self, ids, rows):
    if any(np.array_equal(ids, POPULATION.sample(3, i)[0]) for i in broken):
      raise OSError('the disk is gone')
    return gather(self, ids, rows)

  monkeypatch.setattr(datasets.FederatedDataset, 'gather', failing)
  sim = simulation(data)
  state, _ = sim.run_round(sim.init(), 0)
  with pytest.raises(OSError, match='the disk is gone'):
    sim.run_round(state, 1)
  broken.clear()
  sim.run_round(state, 1)


def test_the_remembered_state_is_overwritten_in_place(data):
  sim = simulation(data, aggregator=lca.legato(window=30), momentum=0.75)
  state = sim.init()
  variables, _, *memory = map(jax.tree.leaves, state)
  size = sum(x.nbytes for leaves in memory for x in leaves)
  assert sim.programs.step.memory_analysis().alias_size_in_bytes == size
  sim.run_round(state, 0)
  assert all(x.is_deleted() for leaves in memory for x in leaves)
  assert not any(x.is_deleted() for x in variables)


def test_a_long_round_is_told_in_parts_and_has_the_same_bits(data, monkeypatch):
  sim = simulation(data, chunk_size=3)  # 7 clients: chunks of 3, 3 and 1
  monkeypatch.setattr(training, 'SECONDS', 1e-9)
  told = []
  parts, _ = sim.run_round(sim.init(), 0, report=told.append)
  assert told == [3, 6]
  monkeypatch.setattr(training, 'SECONDS', np.inf)
  whole, _ = sim.run_round(sim.init(), 0, report=told.append)
  assert told == [3, 6]  # nothing was told of a round in one call
  jax.tree.map(np.testing.assert_array_equal, parts, whole)


def test_the_parts_overwrite_the_updates_in_place(data):
  sim = simulation(data)
  update = sum(x.nbytes for x in jax.tree.leaves(sim.init().variables))
  used = sim.programs.train.memory_analysis()
  assert used.alias_size_in_bytes == 7 * update
  assert used.output_size_in_bytes - used.alias_size_in_bytes < 200


def test_an_attack_overwrites_the_updates_in_place_on_one_device(data):
  zero = attacks.from_function(attacks.zero)
  update = sum(x.nbytes for x in jax.tree.leaves(simulation(data).init()[0]))
  one, two = (simulation(data, devices=d, attack=zero) for d in (1, 2))
  used = one.programs.receive.memory_analysis()
  assert used.alias_size_in_bytes == 7 * update
  assert two.programs.receive.memory_analysis().alias_size_in_bytes == 0


def programs(data, rule, attack, **changes):
  """Returns the texts of the programs before their compilation, by name."""
  sim = simulation(
    data, aggregator=lca.stateless(rule), attack=attack, **changes
  )
  return {
    name: program and program.as_text()
    for name, program in sim._lowered._asdict().items()
  }


def test_attacks_and_rules_have_programs_of_their_own(data):
  """A sweep over both compiles each of them once."""
  flip = attacks.from_function(attacks.sign_flip)
  zero = attacks.from_function(attacks.zero)
  krum = functools.partial(lca.krum, f=2)
  one, other_attack = (programs(data, krum, attack) for attack in (flip, zero))
  other_rule = programs(data, lca.median, flip)
  assert one['receive'] != other_attack['receive']
  assert one['step'] != other_rule['step']
  assert one['receive'] == other_rule['receive']
  assert one['step'] == other_attack['step']
  assert one['train'] == other_attack['train'] == other_rule['train']


def test_runs_that_differ_in_numbers_alone_share_their_programs(data):
  def texts(number):
    return programs(
      data,
      lca.median,
      attacks.from_function(attacks.gaussian, sigma=number),
      optimizer=Optimizer(optax.adam, number),
      train=dataclasses.replace(TRAIN, optimizer=Optimizer(optax.sgd, number)),
    )

  assert texts(0.5) == texts(2.0)


def test_numbers_as_arguments_are_those_of_constants(data):
  """The bits are the same, and other numbers give other bits."""

  def after(rate, sigma, constant):
    gaussian = attacks.from_function(attacks.gaussian, sigma=sigma)
    optimizers = [Optimizer(make, rate) for make in (optax.adam, optax.sgd)]
    if constant:
      gaussian = gaussian._replace(numbers={})
      optimizers = [optax.adam(rate), optax.sgd(rate)]
    local, server = optimizers
    sim = simulation(
      data,
      attack=gaussian,
      optimizer=server,
      train=dataclasses.replace(TRAIN, optimizer=local),
    )
    state, _ = sim.run_round(sim.init(), 0)
    return state.variables

  numbers = 0.05, 0.5
  jax.tree.map(
    np.testing.assert_array_equal, after(*numbers, True), after(*numbers, False)
  )
  leaves = [jax.tree.leaves(after(*x, False)) for x in (numbers, (0.05, 0.6))]
  assert any((a != b).any() for a, b in zip(*leaves, strict=True))


@pytest.mark.parametrize(
  ('changes', 'attack', 'changed'),
  [
    ({}, attacks.NO_ATTACK, False),
    ({}, attacks.label_flipping(), False),
    ({}, attacks.label_flipping(boost=2.0), True),
    ({'momentum': 0.5}, attacks.NO_ATTACK, True),
    ({'drop_rate': 0.5}, attacks.NO_ATTACK, True),
  ],
)
def test_updates_that_arrive_as_they_are_take_no_program(
  data, changes, attack, changed
):
  if 'drop_rate' in changes:
    changes = {'population': dataclasses.replace(POPULATION, **changes)}
  assert bool(programs(data, lca.mean, attack, **changes)['receive']) == changed


def test_nothing_is_compiled_after_the_first_round(data, compiled):
  sim = simulation(
    data,
    devices=2,
    aggregator=lca.legato(window=30),
    attack=attacks.from_function(attacks.gaussian, sigma=1.0),
    momentum=0.5,
    population=dataclasses.replace(POPULATION, drop_rate=0.2),
  )
  state = sim.init()
  for round_idx in range(4):
    state, _ = sim.run_round(state, round_idx)
    sim.evaluate(state)
    if round_idx == 0:
      in_the_first = len(compiled)
  assert in_the_first > 5
  assert compiled[in_the_first:] == []
