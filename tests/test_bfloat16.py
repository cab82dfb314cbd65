"""Training in bfloat16, and updates that are stored in it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

import lca
from lca import data as datasets
from lca.federated.clients import LocalTraining, with_momentum
from lca.federated.placement import Placement, clients_mesh
from lca.federated.population import Population
from lca.federated.randomness import Purpose, key_for
from lca.federated.server import Server
from lca.federated.simulation import Simulation
from lca.models import CNN, Classifier, EfficientNet
from lca.models.networks.efficientnet import Stage

# The largest relative error of rounding to bfloat16's 8 bits.
ROUNDOFF = 2.0**-8

BLOCKS = (Stage(1, 3, 1, 8, 1), Stage(6, 5, 2, 8, 2))
MODULES = {
  'cnn': CNN(10, features=(4, 8), hidden=()),
  'efficientnet': EfficientNet(10, stages=BLOCKS),
}


def classifier(module=MODULES['cnn'], dtype='bfloat16'):
  return Classifier(module, (8.0,), (8.0,), dtype=dtype)


def local(**changes):
  """Returns one client's training, with some of its settings changed."""
  parts = {
    'losses': classifier(dtype=None).losses,
    'optimizer': optax.adam(3e-3),
    'batch_size': 16,
    'local_epochs': 3,
  }
  return LocalTraining(**(parts | changes))


@pytest.fixture(scope='module')
def data():
  return datasets.federate(
    datasets.load('digits'),
    partition='iid',
    num_clients=20,
    min_examples=1,
    seed=0,
  )


def operands(jaxpr):
  """Yields the two factors of each product in a jaxpr and its inner jaxprs."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in ('dot_general', 'conv_general_dilated'):
      yield tuple(factor.aval for factor in equation.invars)
    for inner in jax.tree.leaves(
      equation.params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)
    ):
      if isinstance(inner, Jaxpr | ClosedJaxpr):
        yield from operands(getattr(inner, 'jaxpr', inner))


@pytest.mark.parametrize('name', MODULES)
def test_products_are_of_bfloat16_and_results_float32(name):
  model = classifier(MODULES[name])
  shape = {'cnn': (8, 8, 1), 'efficientnet': (8, 8, 3)}[name]
  spec = jax.ShapeDtypeStruct(shape, jnp.uint8)
  variables = jax.eval_shape(
    lambda key: model.init(key, spec), jax.random.key(0)
  )

  def loss(params, images, labels, keys):
    losses, updated = model.losses(
      variables_of(params), images, labels, keys, labels >= 0
    )
    return jnp.mean(losses), (losses, updated)

  def variables_of(params):
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
    return {**zeros, 'params': params}

  args = (
    variables['params'],
    jax.ShapeDtypeStruct((5, *shape), jnp.uint8),
    jax.ShapeDtypeStruct((5,), jnp.int32),
    jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 5)),
  )
  step = jax.value_and_grad(loss, has_aux=True)
  results = jax.eval_shape(step, *args)
  assert {x.dtype.name for x in jax.tree.leaves(results)} == {'float32'}
  products = list(operands(jax.make_jaxpr(step)(*args).jaxpr))
  # A depthwise kernel's gradient is summed by a product with a row of ones.
  products = [pair for pair in products if pair[0].ndim > 1]
  assert len(products) >= 3 * 3  # three layers, forward and two gradients
  assert {x.dtype.name for pair in products for x in pair} == {'bfloat16'}


def test_rounds_in_bfloat16_learn(data):
  """Trains in bfloat16 while the model and the server's steps stay float32."""
  model = classifier()
  simulation = Simulation(
    data=data,
    population=Population(20, 20),
    classifier=model,
    train=local(losses=model.losses, update_dtype='bfloat16'),
    server=Server(
      aggregator=lca.legato(window=2, by='model'),
      optimizer=optax.sgd(1.0, momentum=0.5),
    ),
    seed=0,
    placement=Placement(clients_mesh(1), chunk_size=1, eval_batch_size=90),
  )
  state = simulation.init()
  dtypes = jax.tree.map(jnp.result_type, state)
  for round_idx in range(4):
    state, _ = simulation.run_round(state, round_idx)
  # Equal dtypes mean that no round recompiles and that a checkpoint fits.
  assert jax.tree.map(jnp.result_type, state) == dtypes
  for tree, name in (
    ((state.variables, state.opt_state), 'float32'),
    (state.aggregator.past, 'bfloat16'),  # the updates that LEGATO remembers
  ):
    assert {x.dtype.name for x in jax.tree.leaves(tree)} == {name}
  # The accuracy is 0.833 in float32, and 0.1 before training.
  assert simulation.evaluate(state)['test_accuracy'] > 0.8


def test_momenta_stay_float32():
  updates = jnp.array([[1.0, 2.0]], jnp.bfloat16)
  momenta, sent = with_momentum(
    jnp.ones((3, 2)), updates, jnp.array([1]), 0.999
  )
  assert sent.dtype == jnp.bfloat16
  # In bfloat16 the second step, 0.001, would be lost beside 1.
  np.testing.assert_allclose(momenta[1], [1, 1.001], atol=1e-5)


RULES = {
  'krum': lca.krum,
  'layerwise cosine krum': lca.layerwise(lca.cosine(lca.krum)),
}
F = 2
DRAWS = 40  # rounds
N = 11  # of 20 clients


@pytest.fixture(scope='module')
def rounds(data):
  """Returns real updates of one local epoch each, leaves `[DRAWS, N, ...]`."""
  model, spec = classifier(dtype=None), data.dataset.train.input_spec
  clients = jax.vmap(local(local_epochs=1), (None, 0, 0))
  keys = jax.random.split(jax.random.key(1), 20)
  variables = model.init(key_for(0, Purpose.INIT), spec)
  updates, _ = jax.jit(clients)(variables, data.gather(range(20)), keys)
  rng = np.random.default_rng(0)
  ids = np.stack([rng.permutation(20)[:N] for _ in range(DRAWS)])
  return jax.tree.map(lambda u: u[ids], updates)


def explained(rule, rounds):
  """Returns the scores and selections of a rule, `[DRAWS, layers, N]`."""
  explain = jax.vmap(lambda updates: lca.explain(rule)(updates, f=F))
  _, info = jax.jit(explain)(rounds)
  each = (DRAWS, -1, N)
  return info['scores'].reshape(each), info['selected'].reshape(each)


def bounds(rounds, layerwise):
  """Returns the most that rounding can move a score, `[DRAWS, layers]`.

  A row moves by at most ROUNDOFF times its norm. A distance d moves by at most
  e, the sum of its two rows' moves, and the squared distance by 2 d e + e^2. A
  unit vector moves at most twice as far as its row, relative to the row's norm.
  The cosine distance is half a squared distance of unit vectors. A score, the
  sum of a row's k smallest distances, moves by at most k times the largest
  move of one distance.
  """
  leaves = [
    np.asarray(x, float).reshape(DRAWS, N, -1) for x in jax.tree.leaves(rounds)
  ]
  rows = leaves if layerwise else [np.concatenate(leaves, axis=-1)]
  most = []
  for x in rows:
    lengths = np.linalg.norm(x, axis=-1)
    if layerwise:
      x, lengths = x / lengths[..., None], np.full(lengths.shape, 2.0)
    d = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)
    e = ROUNDOFF * (lengths[:, :, None] + lengths[:, None])
    squared = (2 * d * e + e**2) / (2 if layerwise else 1)
    most.append((N - F - 2) * squared.max((1, 2)))
  return np.stack(most, axis=1)


@pytest.mark.parametrize('name', RULES)
def test_the_error_in_selection(rounds, name, capsys):
  """Scores move far less than rounding allows, and choices only where close."""
  stored = jax.tree.map(lambda x: x.astype(jnp.bfloat16), rounds)
  scores, chosen = explained(RULES[name], rounds)
  rounded_scores, rounded_chosen = explained(RULES[name], stored)
  assert np.all(chosen.sum(-1) == 1) and np.all(rounded_chosen.sum(-1) == 1)
  most = bounds(rounds, layerwise='layerwise' in name)
  error = np.max(np.abs(rounded_scores - scores), axis=-1)
  # By how much the choice from rounded updates exceeds the least exact score.
  loss = np.sum(np.where(rounded_chosen, scores, 0), -1) - np.min(scores, -1)
  other = np.any(chosen != rounded_chosen, axis=-1)
  relative, gap = error / np.min(scores, -1), loss / np.min(scores, -1)
  with capsys.disabled():
    print(
      f'\n{name}: scores differ by {np.median(relative):.1e} (median) to '
      f'{np.max(relative):.1e} of the smallest, {np.max(error / most):.2f} of '
      f'the bound; {other.sum()} of {other.size} choices differ, at scores '
      f'that are {np.max(gap):.1e} larger at most'
    )
  assert np.all(error <= most)
  # The chosen row has the least rounded score, so that its exact score exceeds
  # the least exact score by two errors at most.
  assert np.all(loss <= 2 * error + 1e-6 * np.min(scores, -1))
