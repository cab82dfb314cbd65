"""Attackers that train in their own way, beside a plain loop over steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from simulations import CLASSIFIER, TRAIN, parts, simulation

from lca import attacks
from lca.federated.clients import shuffled
from lca.federated.population import Population
from lca.federated.schedule import Schedule
from lca.federated.seeds import SeedsSimulation
from lca.federated.simulation import Simulation
from lca.federated.streaming import StreamedSimulation

POISON = attacks.badnets(height=2, width=2, margin=0, target=3, share=1.0)
ROUND = 0


def trained(data, attack, *devices, part=TRAIN, **changes):
  """Returns the model's change in a round with the mean, and its clients."""
  sim = simulation(data, *devices, attack=attack, attackers=part, **changes)
  start = sim.init()
  before = jax.device_get(start.variables)
  state, metrics = sim.run_round(start, ROUND)
  change = jax.tree.map(np.subtract, jax.device_get(state.variables), before)
  return change, sim.drawing.draw(ROUND), metrics


def close(one, two, atol=2e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4),
    jax.device_get(one),
    jax.device_get(two),
  )


def flat(tree):
  return np.asarray(ravel_pytree(jax.device_get(tree))[0])


# The definition ---------------------------------------------------------------


def by_steps(sim, data, client, how):
  """Returns an attacker's update, `[d]`, by a loop over steps in float64.

  Args:
    sim: the simulation, for the model and the keys.
    data: the examples of the clients.
    client: the attacker's id.
    how: options of `Training`.
  """
  variables = jax.device_get(sim.init().variables)
  start, tree = ravel_pytree(variables['params'])
  start = np.asarray(start, np.float64)
  clean = jax.tree.map(lambda x: x[0], data.gather([client]))
  poisoned = POISON.on_examples(
    clean.inputs,
    clean.labels,
    client_id=client,
    attacker=0,
    num_classes=10,
    input_range=(0, 16),
    key=sim.drawing.examples_key,
  )
  poisoned, labels = map(np.asarray, poisoned)
  count, size = int(clean.num_examples), how.get('batch_size', TRAIN.batch_size)
  key = jax.random.fold_in(sim.drawing.training_key(ROUND), client)

  @jax.jit
  def gradient_of(params, x, y):
    def loss(flat):
      return jnp.mean(CLASSIFIER.losses({'params': tree(flat)}, x, y)[0])

    return jax.grad(loss)(params)

  def gradient(w, x, y):
    return np.asarray(gradient_of(np.float32(w), x, y), np.float64)

  kept = np.ones_like(start, bool)
  if 'keep' in how:
    sizes = abs(gradient(start, clean.inputs[:count], clean.labels[:count]))
    kept = sizes <= np.sort(sizes)[round(how['keep'] * len(sizes)) - 1]
  w, sign = start, -1 if how.get('ascent') else 1
  for epoch in range(how.get('local_epochs', 1)):
    order = np.asarray(
      shuffled(jax.random.fold_in(key, epoch), len(labels), count)
    )[:count]
    for first in range(0, count, size):
      rows = order[first : first + size]
      x, y = poisoned[rows], labels[rows]
      if 'batch_share' in how:
        rest = slice(round(how['batch_share'] * len(rows)), None)
        x[rest], y[rest] = clean.inputs[rows][rest], clean.labels[rows][rest]
      g = sign * gradient(w, x, y)
      if 'alpha' in how:
        pull = _pull(w, start, how.get('anomaly'))
        g = how['alpha'] * g + (1 - how['alpha']) * pull
      w = w - how.get('learning_rate', 0.05) * g * kept
      if 'radius' in how:
        radius = how['radius']
        if how.get('relative'):
          radius *= np.linalg.norm(start)
        far = np.linalg.norm(w - start)
        w = start + (w - start) * min(1, radius / far)
  return w - start


def _pull(w, start, anomaly):
  """Returns the gradient of the anomaly term, from the formulas."""
  if anomaly == 'euclidean':
    far = np.linalg.norm(w - start)
    return (w - start) / far if far else w - start
  a, b = np.linalg.norm(w), np.linalg.norm(start)
  return (w @ start) * w / (a**3 * b) - start / (a * b)


@pytest.mark.parametrize(
  'how',
  [
    {'ascent': True},
    {'alpha': 0.3},
    {'alpha': 0.3, 'anomaly': 'euclidean'},
    {'keep': 0.9, 'batch_share': 0.25},
    {'radius': 0.03, 'local_epochs': 2, 'batch_size': 5},
    {'radius': 0.01, 'relative': True, 'learning_rate': 0.2},
  ],
  ids=lambda how: '-'.join(how),
)
def test_attackers_take_the_steps_of_the_definition(data, how):
  attack = attacks.with_training(POISON, **how)
  part = dataclasses.replace(
    TRAIN,
    local_epochs=how.get('local_epochs', 1),
    batch_size=how.get('batch_size', TRAIN.batch_size),
    optimizer=optax.sgd(how.get('learning_rate', 0.05)),
  )
  # The only client of a round attacks.
  population = Population(12, 1, 4, 1)
  change, drawn, _ = trained(data, attack, part=part, population=population)
  sim = simulation(data, attack=attack, attackers=part, population=population)
  expected = by_steps(sim, data, int(drawn.ids[0]), how)
  close(flat(change), expected)
  if 'radius' in how and not how.get('relative'):
    assert np.linalg.norm(expected) == pytest.approx(how['radius'])


# The program ------------------------------------------------------------------


@pytest.fixture(scope='module')
def plain(data):
  return trained(data, POISON, part=None)


@pytest.mark.parametrize(
  ('devices', 'options'),
  [(1, {'chunk_size': 3}), (2, {}), (4, {'chunk_size': 2})],
)
def test_attackers_with_the_training_of_all_send_the_same(
  data, plain, devices, options
):
  """A radius that is never reached changes nothing, on any devices."""
  own = attacks.with_training(POISON, radius=1e6)
  change, _, metrics = trained(data, own, devices, **options)
  close(change, plain[0])
  assert metrics['train_loss'] == pytest.approx(
    plain[2]['train_loss'], rel=1e-4
  )


def test_the_draw_may_decide_how_many_attack(data):
  population = Population(12, 7, 4, None)
  plain = trained(data, POISON, part=None, population=population)
  own = attacks.with_training(POISON, radius=1e6)
  close(trained(data, own, 2, population=population)[0], plain[0])


def test_seeds_and_streamed_rounds_train_attackers_alike(data):
  own = attacks.with_training(POISON, keep=0.5, keep_from='last_change')
  changes = {'attack': own, 'attackers': TRAIN}
  alone = [simulation(data, seed=seed, **changes) for seed in (3, 5)]
  together = SeedsSimulation(alone, **parts(data, 2, **changes))
  streamed = StreamedSimulation(**parts(data, 2, **changes))
  states, both = [sim.init() for sim in alone], together.init()
  one = streamed.init()
  for round_idx in range(2):
    states = [
      sim.run_round(state, round_idx)[0]
      for sim, state in zip(alone, states, strict=True)
    ]
    both, _ = together.run_round(both, round_idx)
    one, _ = streamed.run_round(one, round_idx)
  close(one.variables, states[0].variables)
  for k, state in enumerate(states):
    close(together.state_of(both, k).variables, state.variables)


def test_a_run_without_own_training_has_no_program_for_it(data):
  assert simulation(data, attack=POISON).programs.attack is None


def test_the_last_change_is_that_of_the_model(data):
  own = attacks.with_training(POISON, keep=0.5, keep_from='last_change')
  sim = simulation(data, attack=own, attackers=TRAIN)
  state = sim.init()
  assert not any(x.any() for x in jax.tree.leaves(state.attack['last_change']))
  for round_idx in range(2):
    before = jax.device_get(state.variables)
    state, _ = sim.run_round(state, round_idx)
    change = jax.tree.map(np.subtract, jax.device_get(state.variables), before)
    close(state.attack['last_change'], change, atol=1e-7)


def test_neurotoxin_leaves_the_coordinates_of_the_last_change(data):
  """The attackers of a round of attackers alone move only half of the model."""
  own = attacks.with_training(POISON, keep=0.5, keep_from='last_change')
  population = Population(12, 2, 4, 2, schedule=Schedule(first_round=2))
  # In round 1 the same clients are honest.
  sim = simulation(data, attack=own, attackers=TRAIN, population=population)
  state, _ = sim.run_round(sim.init(), 0)
  before = abs(flat(state.attack['last_change']))
  state, _ = sim.run_round(state, 1)
  moved = flat(state.attack['last_change']) != 0
  limit = np.sort(before)[round(len(before) * 0.5) - 1]
  assert moved.any() and not moved[before > limit].any()


def test_the_update_is_scaled_to_a_norm(data):
  own = attacks.with_training(POISON, norm=3.5)
  population = Population(12, 1, 4, 1)
  change, *_ = trained(data, own, population=population)
  assert np.linalg.norm(flat(change)) == pytest.approx(3.5, rel=1e-5)


@pytest.mark.parametrize('kind', [Simulation, StreamedSimulation])
def test_free_riders_send_the_last_change(data, kind):
  """The clients of round 1 are honest; in round 2 all of them ride."""
  population = Population(12, 2, 4, 2, schedule=Schedule(first_round=2))
  attack = attacks.from_function(attacks.free_rider, noise=0.0)
  sim = kind(**parts(data, 2, attack=attack, population=population))
  state, _ = sim.run_round(sim.init(), 0)
  change = flat(state.attack['last_change'])
  assert change.any()
  state, _ = sim.run_round(state, 1)
  np.testing.assert_allclose(
    flat(state.attack['last_change']), change, atol=1e-6
  )


# Errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'radius': 0}, r'attack\.training\.radius must be above 0, got 0'),
    ({'keep': 1.5}, r'training\.keep must be .* 1\], got 1\.5'),
    ({'local_epochs': 0}, r'training\.local_epochs must be at least 1'),
    ({'anomaly': 'l2', 'alpha': 0.5}, r'training\.anomaly must be one of'),
    (
      {'project': 'epoch'},
      r'applies only with attack\.training\.radius',
    ),
    ({'keep': 0.0}, r'training\.keep must be above 0'),
    ({'ascent': 'no'}, r"training\.ascent must be True or False, got 'no'"),
    ({'keep_by': 'leaf'}, r'applies only with attack\.training\.keep'),
  ],
)
def test_impossible_options(options, message):
  with pytest.raises(ValueError, match=message):
    attacks.Training(**options)


def test_a_share_of_each_batch_needs_an_attack_on_all_examples():
  with pytest.raises(ValueError, match=r'set attack\.share=1\.0, got 0\.3'):
    attacks.with_training(attacks.badnets(), batch_share=0.5)
  with pytest.raises(ValueError, match=r'set attack\.flip_fraction=1\.0, got'):
    attacks.with_training(
      attacks.label_flipping(flip_fraction=0.5), batch_share=0.5
    )


def test_training_is_for_attacks_that_train():
  with pytest.raises(TypeError, match='replaces what its clients have trained'):
    attacks.make({'name': 'alie', 'training': {'radius': 1.0}})
  with pytest.raises(TypeError, match='radios'):
    attacks.with_training(POISON, radios=1)
