"""Runs in which the rule is given the model's function."""

import numpy as np
from flax import linen as nn

import lca
import lca.data
from lca.experiment import simulate


class Normalized(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
    return nn.Dense(3)(x)


def test_batch_statistics_that_the_rule_does_not_see():
  """The dry run and the rounds complete the model that they evaluate."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(120, 5)).astype(np.float32)
  y = rng.integers(0, 3, 120)
  result = simulate(
    lca.data.from_arrays((x, y), (x, y), num_classes=3),
    Normalized(),
    lca.deep_sight,
    num_clients=6,
    clients_per_round=6,
    num_rounds=1,
    min_examples=1,
    batch_stats='mean',
    aggregator={'num_inputs': 20},
  )
  assert np.all(np.isfinite(result.history['test_loss']))
