"""A3FL: the trigger that attackers train, beside a plain loop over steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from simulations import CLASSIFIER, TRAIN, parts, simulation

from lca import attacks
from lca.federated.population import Population
from lca.federated.schedule import Schedule
from lca.federated.seeds import SeedsSimulation
from lca.federated.streaming import StreamedSimulation
from lca.models import CNN, Classifier

PATCH = {'height': 3, 'width': 3, 'margin': 0, 'target': 3, 'share': 0.5}
FAST = PATCH | {'trigger_epochs': 2, 'rebuild_every': 1, 'stop_at': 1.0}


def by_steps(variables, clean, *, weight, step_size, rate, epochs):
  """Trains the trigger for some epochs, each against a new second model."""
  count = int(clean.num_examples)
  low, high = 0, 16
  inputs, labels = clean.inputs[:count], clean.labels[:count]
  batches = [slice(i, min(i + 64, count)) for i in range(0, count, 64)]
  mask = np.zeros((8, 8, 1), bool)
  mask[5:, 5:] = True

  def loss(params, pixels, x, y):
    images = jnp.where(mask, low + (high - low) * pixels, jnp.float32(x))
    return jnp.mean(CLASSIFIER.losses({'params': params}, images, y)[0])

  by_params = jax.jit(jax.grad(loss))
  by_pixels = jax.jit(jax.grad(loss, argnums=1))
  params, pixels = variables['params'], np.full((8, 8, 1), 0.5, np.float32)
  for _ in range(epochs):
    other = params
    for rows in batches:  # the second model unlearns the trigger
      g = by_params(other, pixels, inputs[rows], labels[rows])
      other = jax.tree.map(lambda w, g: w - rate * g, other, g)
    cosines = []
    for name in ('Conv_0', 'Conv_1'):
      x, y = (np.ravel(m[name]['kernel']) for m in (params, other))
      cosines.append(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
    for rows in batches:
      target = np.full_like(labels[rows], 3)
      first, second = (
        by_pixels(model, pixels, inputs[rows], target)
        for model in (params, other)
      )
      downhill = np.sign(first + weight * np.mean(cosines) * second)
      pixels = np.clip(pixels - step_size * downhill, 0, 1)
  return pixels


@pytest.mark.parametrize('weight', [0.01, 5.0])
def test_the_trigger_takes_the_steps_of_the_definition(data, weight):
  """The first attacker of the round trains it; the weight of 5 matters."""
  attack = attacks.a3fl(
    **FAST, weight=weight, adversarial_epochs=1, adversarial_rate=0.5
  )
  sim = simulation(data, 2, attack=attack, attackers=TRAIN)
  start, drawn = sim.init(), sim.drawing.draw(0)
  variables = jax.device_get(start.variables)
  first = drawn.ids[np.flatnonzero(drawn.byzantine)[0]]
  clean = jax.tree.map(lambda x: x[0], data.gather([first]))
  state, _ = sim.run_round(start, 0)
  expected = by_steps(
    variables, clean, weight=weight, step_size=0.01, rate=0.5, epochs=2
  )
  trained = np.asarray(state.attack['memory'])
  np.testing.assert_allclose(trained[5:, 5:], expected[5:, 5:], atol=1e-6)
  assert (trained[5:, 5:] != 0.5).any()
  # The test puts the new trigger on the examples.
  measured = sim.evaluate(state)
  test = data.dataset.test
  inputs = test.inputs.copy()
  inputs[:, 5:, 5:] = np.round(16 * trained[5:, 5:])
  logits = jax.jit(CLASSIFIER.logits)(state.variables, inputs)
  hits = np.argmax(np.asarray(logits), axis=1)[test.labels != 3] == 3
  assert measured['attack_success_rate'] == pytest.approx(hits.mean())


def test_seeds_train_their_own_triggers(data):
  changes = {'attack': attacks.a3fl(**FAST), 'attackers': TRAIN}
  alone = [simulation(data, seed=seed, **changes) for seed in (3, 5)]
  together = SeedsSimulation(alone, **parts(data, 2, **changes))
  both, _ = together.run_round(together.init(), 0)
  for k, sim in enumerate(alone):
    state, _ = sim.run_round(sim.init(), 0)
    np.testing.assert_allclose(
      together.state_of(both, k).attack['memory'],
      state.attack['memory'],
      atol=1e-6,
    )
    measured = sim.evaluate(together.state_of(both, k, whole=False))
    assert measured == pytest.approx(sim.evaluate(state), rel=1e-4)


def test_a_round_without_attackers_leaves_the_trigger(data):
  population = Population(12, 7, 4, 2, schedule=Schedule(rounds=(1,)))
  sim = simulation(
    data,
    attack=attacks.a3fl(**FAST),
    attackers=TRAIN,
    population=population,
  )
  state, _ = sim.run_round(sim.init(), 0)
  before = np.asarray(state.attack['memory'])
  state, _ = sim.run_round(state, 1)
  np.testing.assert_array_equal(state.attack['memory'], before)


def test_the_trained_trigger_works_without_any_poison(data):
  """On a model that no attacker has touched, unlike a white patch."""
  learns = Classifier(CNN(10, features=(8, 16), hidden=(32,)), (8.0,), (8.0,))
  train = dataclasses.replace(
    TRAIN, losses=learns.losses, optimizer=optax.adam(5e-3), local_epochs=5
  )
  sim = simulation(
    data,
    attack=attacks.a3fl(**PATCH | {'height': 5, 'width': 5}),
    attackers=train,
    population=Population(12, 12, 4, 4, schedule=Schedule(first_round=4)),
    classifier=learns,
    train=train,
  )
  state = sim.init()
  for round_idx in range(3):
    state, _ = sim.run_round(state, round_idx)
  clean = state._replace(aggregator=(), momenta=())
  state, _ = sim.run_round(state, 3)
  white = {'memory': jnp.ones_like(state.attack['memory'])}
  trained = sim.evaluate(clean._replace(attack=state.attack))
  fixed = sim.evaluate(clean._replace(attack=white))
  assert trained['attack_success_rate'] > fixed['attack_success_rate'] + 0.2


def test_what_cannot_be(data):
  with pytest.raises(ValueError, match='trigger_epochs must be at least 1'):
    attacks.a3fl(trigger_epochs=0)
  with pytest.raises(ValueError, match='outside of images of 8 x 8'):
    simulation(data, attack=attacks.a3fl(height=9), attackers=TRAIN)
  with pytest.raises(ValueError, match='adapts before all clients train'):
    StreamedSimulation(
      **parts(data, attack=attacks.a3fl(**FAST), attackers=TRAIN)
    )
