"""The white box in a simulation, against the loss of the next model."""

import jax
import numpy as np
import optax
import pytest
from simulations import CLASSIFIER, simulation

from lca import attacks
from lca.federated import round as one_round


def with_objective(objective):
  return attacks.from_function(
    attacks.white_box, objective=objective, num_steps=5
  )


def test_the_loss_is_that_of_the_first_attackers_true_examples(data):
  sim = simulation(data, attack=with_objective('loss'))
  state, drawn = sim.init(), sim.drawing.draw(0)
  first = int(drawn.ids[drawn.byzantine][0])
  own = data.client_indices[first]
  train = data.dataset.train
  inputs, labels = train.inputs[own], np.asarray(train.labels)[own]

  update = jax.tree.map(
    lambda x: 0.1 * np.ones_like(x, np.float32), state.variables
  )
  moved = jax.tree.map(lambda x, u: x + u, state.variables, update)
  logits = np.asarray(CLASSIFIER.logits(moved, inputs), np.float64)
  shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  want = -np.mean(np.log(shares[np.arange(len(labels)), labels]))

  known = one_round.known_to_attackers(sim._server, state, drawn)
  assert known['loss'](update) == pytest.approx(want, rel=1e-4)


def test_it_raises_the_loss_more_than_the_other_objectives(data):
  """In the first round, on the data that the attackers know."""
  losses = {}
  for objective in ('loss', 'deviation', 'inner_product'):
    sim = simulation(data, attack=with_objective(objective))
    state, drawn = sim.init(), sim.drawing.draw(0)
    # The loss of each run's next model on the same attacker's examples.
    examples = simulation(data, attack=with_objective('loss')).drawing.draw(0)
    after, _ = sim.run_round(state, 0, last=True)
    assert np.array_equal(examples.ids, drawn.ids)
    logits = sim.classifier.logits(after.variables, examples.attacker.inputs)
    each = optax.softmax_cross_entropy_with_integer_labels(
      logits, examples.attacker.labels
    )
    losses[objective] = float(np.mean(each[: examples.attacker.num_examples]))
  assert losses['loss'] > max(losses['deviation'], losses['inner_product'])


def test_nobody_attacks(data):
  """A round without attackers has no examples for the loss."""
  attack = with_objective('loss')
  sim = simulation(data, attack=attack)
  drawn = sim.drawing.draw(0)._replace(byzantine=np.zeros(7, bool))
  nobody = jax.tree.map(np.zeros_like, drawn.attacker)
  state = sim.init()
  known = one_round.known_to_attackers(
    sim._server, state, drawn._replace(attacker=nobody)
  )
  zeros = jax.tree.map(lambda x: 0 * x, state.variables)
  assert known['loss'](zeros) == 0
