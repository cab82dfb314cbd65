"""Rounds with backdoors and schedules: who changes which examples, and when."""

import dataclasses
import inspect

import jax
import numpy as np
import optax
import pytest
from simulations import CLASSIFIER, POPULATION, TRAIN, simulation

import lca
from lca import attacks
from lca import data as datasets
from lca.aggregators.base import ExplainedUpdate
from lca.federated.drawing import Drawing
from lca.federated.population import Population
from lca.federated.schedule import Schedule
from lca.models import CNN, Classifier

# A model and a training that learn the digits within some rounds.
LEARNS = Classifier(CNN(10, features=(8, 16), hidden=(32,)), (8.0,), (8.0,))
STRONG = {
  'classifier': LEARNS,
  'train': dataclasses.replace(
    TRAIN, losses=LEARNS.losses, optimizer=optax.adam(5e-3), local_epochs=5
  ),
}

BADNETS = attacks.badnets(height=2, width=2, margin=0, target=3, share=0.5)


def test_only_attackers_change_their_examples(data):
  drawing = Drawing(data, POPULATION, BADNETS, seed=3)
  ids, byzantine = POPULATION.sample(3, 0)
  before = data.gather(ids)
  after, client_ids, _ = drawing.read(drawing.draw(0), width=7, i=0)
  np.testing.assert_array_equal(client_ids, ids)
  changed = (after.inputs != before.inputs).any(axis=(1, 2, 3, 4))
  np.testing.assert_array_equal(changed, byzantine)
  for row in np.flatnonzero(byzantine):
    patched = (after.inputs[row, :, 6:, 6:] == 16).all(axis=(1, 2, 3))
    real = np.arange(len(patched)) < before.num_examples[row]
    assert 0.3 < patched[real].mean() < 0.7
    assert (after.labels[row][patched] == 3).all()
  honest = ~byzantine
  np.testing.assert_array_equal(after.labels[honest], before.labels[honest])


def test_the_parts_of_dba_go_to_the_attackers_in_turn(data):
  population = dataclasses.replace(
    POPULATION, num_attackers=5, num_byzantine=None, clients_per_round=12
  )
  attack = attacks.dba(width=2, gap=1, row_gap=1, share=1.0)
  drawing = Drawing(data, population, attack, seed=3)
  drawn = drawing.draw(0)
  after, ids, _ = drawing.read(drawn, width=12, i=0)
  corners = {}  # the first white pixel of each attacker
  for row in np.flatnonzero(drawn.byzantine):
    count = after.num_examples[row]
    white = (after.inputs[row, :count, ..., 0] == 16).all(axis=0)
    corners[ids[row]] = tuple(np.argwhere(white)[0])
  in_order = [corners[client] for client in sorted(corners)]
  assert in_order == [(0, 0), (0, 3), (2, 0), (2, 3), (0, 0)]


def test_the_success_rate_is_that_of_the_definition(data):
  """Measures it on two devices, over test examples of other classes."""
  sim = simulation(data, devices=2, attack=BADNETS, eval_batch_size=50)
  state = sim.init()
  measured = sim.evaluate(state)
  test = data.dataset.test
  inputs = test.inputs.copy()
  inputs[:, 6:, 6:] = 16
  logits = jax.jit(CLASSIFIER.logits)(state.variables, inputs)
  predicted = np.argmax(np.asarray(logits), axis=1)
  counted = test.labels != 3
  assert measured['attack_success_rate'] == pytest.approx(
    np.mean(predicted[counted] == 3)
  )
  assert measured['backdoor_accuracy'] == pytest.approx(
    np.mean(predicted[counted] == test.labels[counted])
  )
  assert sim.more_metrics[-2:] == ['attack_success_rate', 'backdoor_accuracy']
  names = {*simulation(data).evaluate(state)}
  assert names == {'test_loss', 'test_accuracy'}


def test_the_rate_is_nan_where_no_example_counts():
  inputs, labels = np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % 2
  one_class = datasets.from_arrays(
    (inputs, labels), (inputs, labels * 0 + 1), num_classes=10
  )
  spread = datasets.federate(
    one_class, partition='iid', num_clients=12, min_examples=1, seed=0
  )
  sim = simulation(spread, attack=attacks.badnets(height=2, width=2, target=1))
  measured = sim.evaluate(sim.init())
  assert np.isnan(measured['attack_success_rate'])
  assert np.isnan(measured['backdoor_accuracy'])


@pytest.mark.parametrize(
  ('attack', 'message'),
  [
    (attacks.dba(), 'outside of images of 8 x 8 pixels'),
    (
      attacks.badnets(target=10),
      r'target must be a class .* \[0, 10\), got 10',
    ),
    (attacks.flip_source(source=12), 'source must be a class'),
  ],
)
def test_an_attack_that_does_not_fit_the_data_is_an_error_at_once(
  data, attack, message
):
  with pytest.raises(ValueError, match=message):
    simulation(data, attack=attack)


@pytest.mark.parametrize(
  ('options', 'numbers'),
  [
    ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
    ({'first_round': 3}, [3, 4, 5, 6, 7, 8]),
    ({'last_round': 2}, [1, 2]),
    ({'first_round': 2, 'last_round': 7, 'every': 3}, [2, 5]),
    ({'rounds': (5, 1)}, [1, 5]),
  ],
)
def test_attackers_attack_in_the_rounds_of_their_schedule(options, numbers):
  always = POPULATION
  population = dataclasses.replace(always, schedule=Schedule(**options))
  attacked = []
  for round_idx in range(8):
    ids, byzantine = population.sample(3, round_idx)
    same, attackers = always.sample(3, round_idx)
    np.testing.assert_array_equal(ids, same)
    if byzantine.any():
      np.testing.assert_array_equal(byzantine, attackers)
      attacked.append(round_idx + 1)
  assert attacked == numbers


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'first_round': 0}, r'attack\.first_round must be at least 1, got 0'),
    ({'last_round': 0}, r'attack\.last_round must'),
    ({'every': 0}, r'attack\.every must'),
    ({'first_round': 5, 'last_round': 4}, r'last_round=4 comes before'),
    ({'rounds': ()}, 'must be the numbers of rounds'),
    ({'rounds': 5}, r'such as \(2, 4\), got 5'),
    ({'rounds': (0,)}, r'attack\.rounds must'),
    ({'rounds': (3,), 'every': 2}, r'rounds=\(3,\) names all rounds'),
  ],
)
def test_impossible_schedules(options, message):
  with pytest.raises(ValueError, match=message):
    Schedule(**options)


def test_a_backdoor_grows_while_it_is_trained_and_fades_afterwards(data):
  """Against the mean, by 4 of 12 clients in rounds 1 to 8."""
  population = Population(12, 12, 4, 4, schedule=Schedule(last_round=8))
  sim = simulation(
    data,
    attack=BADNETS,
    population=population,
    aggregator=lca.stateless(lca.mean),
    **STRONG,
  )
  state, rates, accuracies = sim.init(), [], []
  for round_idx in range(14):
    state, _ = sim.run_round(state, round_idx)
    tested = sim.evaluate(state)
    rates.append(tested['attack_success_rate'])
    accuracies.append(tested['test_accuracy'])
  assert rates[7] > 0.5 and min(accuracies[7:]) > 0.9
  assert rates[-1] < rates[7] / 3


def keeping_the_rows(rule):
  """Returns an aggregator whose state is a round's updates and parameters."""

  def explain_update(updates, state, *, params, **brought):
    del state, brought
    update, info = lca.explain(rule)(updates, params=params)
    return update, (updates, params), info

  def init(params):
    return jax.tree.map(lambda x: np.zeros((12, *x.shape), x.dtype), params), (
      params
    )

  return lca.Aggregator(init, ExplainedUpdate(explain_update))


@pytest.fixture(scope='module')
def defended(data):
  """Runs six rounds of FLAME against 3 attackers among 12 clients.

  Returns:
    The metrics and the tests of the rounds; each round's attackers, updates and
    parameters.
  """
  population = Population(12, 12, 3, 3)
  sim = simulation(
    data,
    attack=BADNETS,
    population=population,
    aggregator=keeping_the_rows(lca.flame),
    detection=True,
    **STRONG,
  )
  state, measured, rounds = sim.init(), [], []
  for round_idx in range(6):
    state, metrics = sim.run_round(state, round_idx)
    _, byzantine = population.sample(3, round_idx)
    measured.append(metrics | sim.evaluate(state))
    rounds.append((byzantine, *jax.device_get(state.aggregator)))
  return measured, rounds


def test_flame_stops_the_backdoor_and_finds_the_attackers(defended):
  """The same attack, against a defence that was made for it."""
  measured, _ = defended
  for metrics in measured:
    assert metrics['detection_recall'] == 1
    assert metrics['false_positive_rate'] < 0.3
    assert metrics['attack_success_rate'] < 0.1
  assert measured[-1]['test_accuracy'] > 0.9


@pytest.mark.parametrize('name', ['align_ins'])
def test_defences_against_backdoors_leave_the_attackers_out(defended, name):
  """Other defences that were made for it, on the updates of those rounds."""
  rule = getattr(lca, name)
  takes = inspect.signature(rule).parameters
  explain = jax.jit(lca.explain(rule))
  for byzantine, updates, params in defended[1]:
    brought = {'params': params} if 'params' in takes else {}
    _, info = explain(updates, **brought)
    assert not np.any(info['selected'] & byzantine)
    assert np.sum(info['selected']) >= 3


def test_deep_sight_keeps_a_backdoor_out_of_a_trained_model(data):
  """Half of the attackers' examples have the trigger and one label.

  Without this defence most triggered images get that label after four rounds.
  """
  attack = attacks.badnets(height=2, width=2, margin=0, target=3, share=0.5)
  train = dataclasses.replace(STRONG['train'], optimizer=optax.sgd(0.1))
  population = Population(12, 12, 4, 4, schedule=Schedule(first_round=26))
  mean, defence = (
    simulation(
      data,
      attack=attack,
      population=population,
      aggregator=aggregator,
      classifier=LEARNS,
      train=dataclasses.replace(train, local_epochs=2),
    )
    for aggregator in (
      lca.stateless(lca.mean),
      lca.stateless(lca.deep_sight, num_inputs=500),
    )
  )
  state = mean.init()
  for round_idx in range(25):
    state, _ = mean.run_round(state, round_idx)
  tested = []
  for sim in (mean, defence):
    after = state
    for round_idx in range(25, 29):
      after, _ = sim.run_round(after, round_idx)
    tested.append(sim.evaluate(after))
  undefended, defended = tested
  assert undefended['attack_success_rate'] > 0.5
  assert defended['attack_success_rate'] < 0.05
  assert defended['test_accuracy'] > 0.95


def _rates(data, attack, rounds, **changes):
  """Returns the success rates and accuracies of rounds with 4 of 12 clients."""
  attackers = STRONG['train'] if attack.training else None
  sim = simulation(
    data,
    attack=attack,
    attackers=attackers,
    population=Population(12, 12, 4, 4),
    **(STRONG | changes),
  )
  state, tested = sim.init(), []
  for round_idx in range(rounds):
    state, _ = sim.run_round(state, round_idx)
    tested.append(sim.evaluate(state))
  return tested


@pytest.mark.parametrize(
  'training',
  [{'keep': 0.9}, {'alpha': 0.5}, {'radius': 1.0}],
  ids=['neurotoxin', 'constrain_and_scale', 'pgd'],
)
def test_a_backdoor_with_its_own_training_grows_against_the_mean(
  data, training
):
  boost = 3.0 if 'radius' in training else 1.0
  attack = attacks.badnets(
    height=2, width=2, margin=0, target=3, share=0.5, boost=boost
  )
  tested = _rates(data, attacks.with_training(attack, **training), 5)
  assert tested[-1]['attack_success_rate'] > 0.25
  assert tested[-1]['test_accuracy'] > 0.9


def test_gradient_ascent_keeps_the_mean_from_learning(data):
  tested = _rates(data, attacks.gradient_ascent(), 3)
  assert max(test['test_accuracy'] for test in tested) < 0.3
