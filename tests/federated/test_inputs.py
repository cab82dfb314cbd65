"""Training and evaluation work on inputs of any shape and dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lca
from lca import data as datasets
from lca.federated import evaluation, plan
from lca.federated.clients import LocalTraining
from lca.federated.placement import Placement, clients_mesh
from lca.federated.population import Population
from lca.federated.server import Server
from lca.federated.simulation import Simulation

CLASSES = 3
SIZE, TESTED = 40, 13


class Linear:
  """A linear classifier that checks that inputs have the shape of `spec`."""

  def __init__(self, spec):
    self.spec = spec

  def init(self, key, input_spec):
    assert input_spec == self.spec
    width = int(np.prod(self.spec.shape))
    return {'params': jax.random.normal(key, (width, CLASSES))}

  def check_classes(self, variables, input_spec, num_classes):
    assert (input_spec, num_classes) == (self.spec, CLASSES)

  def logits(self, variables, inputs):
    assert inputs.shape[1:] == self.spec.shape
    assert inputs.dtype == self.spec.dtype
    rows = inputs.reshape(len(inputs), -1).astype(jnp.float32)
    return rows @ variables['params']

  def losses(self, variables, inputs, labels, keys, mask):
    del keys, mask
    return cross_entropies(self.logits(variables, inputs), labels), {}

  def test(self, variables, inputs, labels, weights):
    logits = self.logits(variables, inputs)
    correct = jnp.argmax(logits, axis=-1) == labels
    losses = cross_entropies(logits, labels)
    return jnp.sum(weights * losses), jnp.sum(weights * correct)


cross_entropies = optax.softmax_cross_entropy_with_integer_labels


def examples(rng, size, inputs):
  return datasets.Split(inputs, rng.integers(0, CLASSES, size))


INPUTS = {
  'features': lambda rng, n: rng.normal(size=(n, 5)).astype(np.float32),
  'tokens': lambda rng, n: rng.integers(-3, 300, (n, 4)).astype(np.int32),
  'signal': lambda rng, n: rng.normal(size=(n, 6, 2)).astype(np.float16),
}


@pytest.mark.parametrize('kind', INPUTS)
def test_inputs_come_to_the_model_as_they_are(kind):
  rng = np.random.default_rng(0)
  train, test = (examples(rng, n, INPUTS[kind](rng, n)) for n in (SIZE, TESTED))
  spec = jax.ShapeDtypeStruct(train.inputs.shape[1:], train.inputs.dtype)
  model = Linear(spec)
  dataset = datasets.Dataset('any', train, test, CLASSES, (0.0,), (1.0,))
  sim = Simulation(
    data=datasets.FederatedDataset(dataset, np.split(np.arange(SIZE), 4)),
    population=Population(4, 4),
    classifier=model,
    train=LocalTraining(
      losses=model.losses,
      optimizer=optax.sgd(1.0),
      batch_size=SIZE,
      local_epochs=1,
    ),
    server=Server(aggregator=lca.stateless(lca.mean), optimizer=optax.sgd(1.0)),
    seed=0,
    placement=Placement(clients_mesh(2), chunk_size=1, eval_batch_size=4),
  )
  state = sim.init()
  before = state.variables['params']
  state, _ = sim.run_round(state, 0, last=True)

  def loss(matrix):
    logits = model.logits({'params': matrix}, train.inputs)
    return jnp.mean(cross_entropies(logits, train.labels))

  # All clients hold the same number of examples and take one step on them.
  np.testing.assert_allclose(
    state.variables['params'],
    before - jax.grad(loss)(before),
    rtol=1e-4,
    atol=1e-4 * float(jnp.max(jnp.abs(jax.grad(loss)(before)))),
  )
  logits = np.asarray(model.logits(state.variables, jnp.asarray(test.inputs)))
  accuracy = np.mean(logits.argmax(1) == test.labels)
  assert sim.evaluate(state)['test_accuracy'] == pytest.approx(accuracy)

  itemsize = train.inputs.dtype.itemsize
  one = int(np.prod(spec.shape)) * itemsize + 4  # bytes of an example
  # Two rounds of two clients on each device, and half of the test set.
  expected = 2 * 2 * (SIZE // 4) * one + TESTED * one // 2
  assert plan.of(sim).examples == expected


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_blocks_are_cut_by_bytes(dtype, monkeypatch):
  split = datasets.Split(np.zeros((60, 5), dtype), np.zeros(60, int))
  each = 5 * np.dtype(dtype).itemsize
  monkeypatch.setattr(evaluation, 'BLOCK_BYTES', 20 * each)
  blocks = evaluation.make_blocks(split, np.arange(60), clients_mesh(2), 5)
  shapes = [block()[0].shape for block in blocks]
  assert shapes == [(4, 5, 5)] * 3
