"""Tests of classifiers of features, tokens and images, with users' modules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import lca
from lca import data as datasets
from lca.federated.clients import LocalTraining
from lca.federated.placement import Placement, clients_mesh
from lca.federated.population import Population
from lca.federated.randomness import Purpose, key_for
from lca.federated.server import Server
from lca.federated.simulation import Simulation
from lca.models import CNN, Classifier

KEY = key_for(0, Purpose.INIT)
BATCH = 6
KEYS = jax.random.split(jax.random.key(1), BATCH)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class MLP(nn.Module):
  """A module as written by a user who does not know lca."""

  num_classes: int = 3

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.num_classes)(nn.relu(nn.Dense(16)(x)))


class Embedding(nn.Module):
  """A module that takes tokens `[batch, length]`."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(jnp.mean(nn.Embed(20, 8)(x), axis=1))


class Ordinary(nn.Module):
  """A usual Flax module: batch normalisation and dropout under a flag."""

  rate: float = 0.5

  @nn.compact
  def __call__(self, x, train: bool):
    x = nn.Dense(16)(x)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
    return nn.Dense(3)(x)


def features(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def tokens(*shape):
  return np.random.default_rng(0).integers(0, 20, shape).astype(np.int32)


def spec_of(inputs):
  return jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)


def started(classifier, inputs):
  return classifier.init(KEY, spec_of(inputs))


def equal(a, b):
  np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# Inputs.


@pytest.mark.parametrize(
  ('module', 'inputs'),
  [(MLP(), features(BATCH, 5)), (Embedding(), tokens(BATCH, 7))],
  ids=['features', 'tokens'],
)
def test_inputs_pass_as_they_are(module, inputs):
  classifier = Classifier(module)
  variables = started(classifier, inputs)
  equal(classifier.logits(variables, inputs), module.apply(variables, inputs))
  losses, updated = classifier.losses(variables, inputs, LABELS, KEYS)
  assert losses.shape == (BATCH,) and updated == {}


def test_the_cnn_without_convolutions_takes_features():
  inputs = features(BATCH, 5)
  classifier = Classifier(CNN(3, features=(), hidden=(4,)))
  variables = started(classifier, inputs)
  assert classifier.logits(variables, inputs).shape == (BATCH, 3)


def test_features_are_normalised_if_asked():
  inputs = features(BATCH, 2)
  classifier = Classifier(MLP(), (1.0, 2.0), (4.0,))
  variables = started(classifier, inputs)
  wanted = MLP().apply(variables, (inputs - np.float32([1, 2])) / 4)
  equal(classifier.logits(variables, inputs), wanted)


def test_images_are_scaled_and_dropout_has_the_keys():
  images = np.random.default_rng(0).integers(0, 256, (BATCH, 8, 8, 1), np.uint8)
  module = CNN(3, features=(2, 2), hidden=(4,), dropout=(0.5, 0.5))
  classifier = Classifier(module, (127.5,), (127.5,))
  variables = started(classifier, images)
  half = jnp.array((127.5,))
  pixels = (jnp.asarray(images).astype(jnp.float32) - half) / half
  equal(classifier.logits(variables, images), module.apply(variables, pixels))
  losses, _ = classifier.losses(variables, images, LABELS, KEYS)
  logits = module.apply(variables, pixels, KEYS)
  equal(losses, optax.softmax_cross_entropy_with_integer_labels(logits, LABELS))


class ItemSize(nn.Module):
  """Returns as many logits as its input's dtype has bytes."""

  @nn.compact
  def __call__(self, x):
    return jnp.zeros((len(x), x.dtype.itemsize))


@pytest.mark.parametrize(
  ('inputs', 'mean', 'in_training', 'in_test'),
  [
    (np.ones((BATCH, 5), np.uint8), None, 1, 1),  # bytes as tokens
    (tokens(BATCH, 5), None, 4, 4),
    (tokens(BATCH, 5), (1.0,), 2, 4),
    (np.ones((BATCH, 4, 4, 1), np.uint8), (1.0,), 2, 4),
    (features(BATCH, 5), None, 2, 4),
    (features(BATCH, 5).astype(np.float16), None, 2, 4),
  ],
)
def test_bfloat16_is_of_floats_alone(inputs, mean, in_training, in_test):
  classifier = Classifier(ItemSize(), mean, mean, dtype='bfloat16')
  assert classifier.logits({}, inputs).shape == (BATCH, in_test)
  item_sizes = []

  class Spy(ItemSize):
    def __call__(self, x):
      item_sizes.append(x.dtype.itemsize)
      return nn.Dense(3, name='out')(jnp.zeros((len(x), 1)))

    __call__ = nn.compact(__call__)

  spying = Classifier(Spy(), mean, mean, dtype='bfloat16')
  variables = started(spying, inputs)
  spying.losses(variables, inputs, LABELS, KEYS)
  assert item_sizes[-1] == in_training


@pytest.mark.parametrize('options', [{'resize': 4}, {'crop': 2}])
@pytest.mark.parametrize(
  'inputs',
  [features(BATCH, 5), tokens(BATCH, 4, 4, 1), np.ones((6, 4, 4), np.uint8)],
)
def test_only_images_are_resized_and_cropped(options, inputs):
  with pytest.raises(ValueError, match=r'model\.resize=.* are for images'):
    started(Classifier(MLP(), **options), inputs)


def test_float_images_are_resized_beyond_the_range_of_pixels():
  image = np.array([[0.0, 0.0, 1000.0, 1000.0]] * 4, np.float32)[
    None, ..., None
  ]

  class Middle(nn.Module):
    def __call__(self, x):
      return x[:, 4, :, 0]

  (row,) = Classifier(Middle(), resize=8).logits({}, image)
  assert row.max() > 1000 and row.min() < 0  # a cubic overshoots both ends
  pixels = np.minimum(image, 255).astype(np.uint8)
  (row,) = Classifier(Middle(), (0.0,), (1.0,), resize=8).logits({}, pixels)
  assert row.max() == 255 and row.min() == 0


# Arguments.


def naming(*names):
  """Returns a module with these parameters, and the list of its arguments."""
  given = []
  body = f'def __call__(self, x, {", ".join(names)}):\n'
  body += f'  given.append(({", ".join(names)},))\n'
  body += '  return nn.Dense(3)(x)\n'
  scope = {'given': given, 'nn': nn}
  exec(body, scope)
  call = nn.compact(scope['__call__'])
  return type('Naming', (nn.Module,), {'__call__': call})(), given


@pytest.mark.parametrize(
  ('name', 'in_training', 'in_test'),
  [
    ('train', True, False),
    ('training', True, False),
    ('deterministic', False, True),
    ('use_running_average', False, True),
  ],
)
def test_flags_tell_training_from_testing(name, in_training, in_test):
  module, given = naming(name)
  classifier = Classifier(module)
  x = features(BATCH, 5)
  variables = started(classifier, x)
  assert given[-1] == (in_test,)
  classifier.losses(variables, x, LABELS, KEYS)
  assert given[-1] == (in_training,)
  classifier.logits(variables, x)
  assert given[-1] == (in_test,)
  classifier.losses(variables, x, LABELS)
  assert given[-1] == (in_test,)


def test_keys_and_mask_are_given_to_those_that_name_them():
  module, given = naming('keys', 'mask')
  classifier = Classifier(module)
  x = features(BATCH, 5)
  variables = started(classifier, x)
  assert given[-1] == (None, None)
  mask = np.arange(BATCH) < 4
  classifier.losses(variables, x, LABELS, KEYS, mask)
  keys, got = given[-1]
  equal(got, mask)
  equal(jax.random.key_data(keys), jax.random.key_data(KEYS))


# Ordinary modules.


def test_an_ordinary_module_trains_and_tests():
  x = features(BATCH, 5)
  classifier = Classifier(Ordinary())
  variables = started(classifier, x)
  assert set(variables) == {'params', 'batch_stats'}
  logits = classifier.logits(variables, x)
  equal(logits, Ordinary().apply(variables, x, train=False))

  def losses(keys):
    return classifier.losses(variables, x, LABELS, keys)

  once, updated = losses(KEYS)
  equal(once, losses(KEYS)[0])
  assert np.any(once != losses(jax.random.split(jax.random.key(2), BATCH))[0])
  hidden = x @ variables['params']['Dense_0']['kernel']
  np.testing.assert_allclose(
    updated['batch_stats']['BatchNorm_0']['mean'],
    0.1 * np.mean(hidden, axis=0),
    rtol=1e-4,
    atol=1e-6,
  )


def test_padding_does_not_count_in_the_statistics():
  classifier = Classifier(Ordinary(rate=0.0))
  x = features(BATCH, 5)
  variables = started(classifier, x)
  alone, want = classifier.losses(variables, x[:4], LABELS[:4], KEYS[:4])
  padded = np.concatenate([x[:4], np.full((2, 5), 100, np.float32)])
  mask = np.arange(BATCH) < 4
  losses, got = classifier.losses(variables, padded, LABELS, KEYS, mask)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
  close(losses[:4], alone)
  jax.tree.map(close, got, want)
  _, without = classifier.losses(variables, padded, LABELS, KEYS)
  difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), without, want)
  assert max(jax.tree.leaves(difference)) > 1


def test_a_norm_over_merged_axes_says_that_it_needs_the_mask():
  class Merged(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      y = nn.BatchNorm(use_running_average=not train)(x.reshape(-1, 1))
      return nn.Dense(3)(y.reshape(x.shape))

  classifier = Classifier(Merged())
  x = features(BATCH, 5)
  variables = started(classifier, x)
  with pytest.raises(ValueError, match=r'receives \[30, 1\] .* name `mask`'):
    classifier.losses(variables, x, LABELS, KEYS, np.ones(BATCH, bool))


def test_a_module_may_hold_arrays():
  class Fixed(nn.Module):
    table: jax.Array

    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(self.table[x].mean(1))

  classifier = Classifier(Fixed(jnp.ones((20, 4))))
  assert started(classifier, tokens(BATCH, 7))['params']['Dense_0']


# What cannot work.


def test_images_too_small_for_the_network():
  classifier = Classifier(
    CNN(3, features=(8,) * 4, pool='each'), (8.0,), (8.0,)
  )
  with pytest.raises(
    ValueError, match='8 x 8 are too small: no pixel is left after convolution'
  ):
    started(classifier, np.zeros((1, 8, 8, 1), np.uint8))
  deep = Classifier(CNN(3, features=(8,) * 3, pool='each'), (8.0,), (8.0,))
  assert started(deep, np.zeros((1, 8, 8, 1), np.uint8))
  unpadded = CNN(3, features=(8,) * 4, padding='VALID')
  # Each 3 x 3 convolution makes the sides 2 shorter: 8, 6, 4, 2, 0.
  with pytest.raises(
    ValueError, match=r'8 x 8 are too small: .* convolution 4 .*VA'
  ):
    started(Classifier(unpadded, (8.0,), (8.0,)), np.zeros((1, 8, 8, 1), 'u1'))


class Odd(nn.Module):
  """A module with a collection that is not trained."""

  @nn.compact
  def __call__(self, x):
    self.variable('cache', 'last', lambda: x)
    return nn.Dense(3)(x)


class Vector(nn.Module):
  """A module whose outputs lack the batch axis."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x)[0]


@pytest.mark.parametrize(
  ('module', 'inputs', 'message'),
  [
    (Odd(), features(2, 5), r"Odd has the collections \['cache'\] beside"),
    (Vector(), features(2, 5), r'Vector must return logits .* \(3,\)'),
    (
      Embedding(),
      features(2, 5),
      'Embedding cannot take an input of 5 float32',
    ),
    (CNN(3), features(2, 5), 'CNN cannot take .* take images'),
  ],
)
def test_modules_and_inputs_that_do_not_go_together(module, inputs, message):
  with pytest.raises(ValueError, match=message):
    started(Classifier(module), inputs)


def test_what_is_no_module():
  with pytest.raises(TypeError, match=r'such as MLP.., got the class'):
    Classifier(MLP)
  with pytest.raises(TypeError, match='got the object'):
    Classifier(lambda x: x)
  with pytest.raises(ValueError, match='mean and std go together'):
    Classifier(MLP(), mean=(1.0,))


def test_fewer_logits_than_classes():
  classifier = Classifier(MLP(num_classes=2))
  x = features(2, 5)
  variables = started(classifier, x)
  classifier.check_classes(variables, spec_of(x), 2)
  with pytest.raises(ValueError, match=r'MLP returns 2 logits, .* 3 classes'):
    classifier.check_classes(variables, spec_of(x), 3)


# Through the simulator.


@pytest.mark.parametrize(
  ('module', 'draw', 'options'),
  [
    (MLP(), features, {}),
    (Embedding(), tokens, {}),
    (Embedding(), tokens, {'dtype': 'bfloat16'}),
    (Ordinary(rate=0.1), features, {}),
  ],
  ids=['features', 'tokens', 'bfloat16 tokens', 'ordinary'],
)
def test_clients_learn_from_any_inputs(module, draw, options):
  inputs = draw(400, 6)
  # The three classes are the thirds of the inputs, sorted by their sums.
  sums = inputs.sum(axis=1)
  labels = np.digitize(sums, np.quantile(sums, [1 / 3, 2 / 3]))
  data = datasets.from_arrays(
    (inputs[:300], labels[:300]), (inputs[300:], labels[300:])
  )
  clients = datasets.federate(
    data, partition='iid', num_clients=8, min_examples=1, seed=0
  )
  classifier = Classifier(module, data.mean, data.std, **options)
  simulation = Simulation(
    data=clients,
    population=Population(8, 8),
    classifier=classifier,
    train=LocalTraining(
      losses=classifier.losses,
      optimizer=optax.adam(0.02),
      batch_size=10,
      local_epochs=3,
    ),
    server=Server(
      aggregator=lca.stateless(lca.mean, weights=None),
      optimizer=optax.sgd(1.0),
    ),
    seed=0,
    placement=Placement(clients_mesh(1), 1, 50),
  )
  state = simulation.init()
  before = simulation.evaluate(state)['test_loss']
  for round_idx in range(3):
    state, _ = simulation.run_round(state, round_idx)
  assert simulation.evaluate(state)['test_loss'] < before - 0.05
