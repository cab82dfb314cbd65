"""Most clients of every round attack, and FLANDERS finds them."""

import pytest
from simulations import simulation

import lca
from lca import attacks
from lca.federated.population import Population


@pytest.mark.parametrize(
  ('attack', 'strength'), [('gaussian', 'sigma'), ('sign_flip', 'scale')]
)
def test_nine_of_twelve_attackers_are_left_out(data, attack, strength):
  """They attack from the first round on; no other rule here takes f > n / 2."""
  sim = simulation(
    data,
    attack=attacks.from_function(getattr(attacks, attack), **{strength: 10.0}),
    population=Population(12, 12, 9, 9),
    aggregator=lca.flanders(f=9, num_clients=12),
    detection=True,
  )
  state, losses = sim.init(), []
  for round_idx in range(6):
    state, metrics = sim.run_round(state, round_idx)
    assert metrics['detection_recall'] == 1
    assert metrics['false_positive_rate'] == 0
    losses.append(sim.evaluate(state)['test_loss'])
  assert losses[-1] < losses[0]
