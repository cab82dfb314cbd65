"""Tests of the networks of the two papers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import legato_cifar10, legato_mnist
from lca import models
from lca.federated.randomness import Purpose, key_for
from lca.models import CNN, Classifier
from lca.models.kernels.convolution import dropout


def sizes(variables):
  leaves = jax.tree.leaves_with_path(variables['params'])
  return {jax.tree_util.keystr(path): leaf.size for path, leaf in leaves}


def test_cnn_has_the_papers_parameters():
  variables = jax.eval_shape(
    CNN(10).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 28, 28, 1), 'f4')
  )
  by_layer = sizes(variables)
  assert sorted(by_layer.values()) == sorted(
    [3 * 3 * 32, 32, 3 * 3 * 32 * 64, 64, 12544 * 128, 128, 128 * 10, 10]
  )
  assert sum(by_layer.values()) == 1_625_866


def counts(module, image):
  image = jax.ShapeDtypeStruct((1, *image), 'f4')
  variables = jax.eval_shape(module.init, jax.random.key(0), image)
  return list(sizes(variables).values())


def test_legatos_mnist_network_has_the_counts_of_its_table():
  config = legato_mnist.get_config('fig5')
  module = models.make(config.model, 10)
  # Biases come before kernels in the tree.
  assert counts(module, (28, 28, 1)) == [
    *(32, 288),
    *(64, 18432),
    *(128, 1179648),
    *(10, 1280),
  ]


def test_legatos_other_networks():
  module = models.make(legato_mnist.get_config('fig7').model, 10)
  convolutions = [(1, 32)] + [(32, 32)] * 3 + [(32, 64)] + [(64, 64)] * 3
  expected = [n for i, o in convolutions for n in (o, 9 * i * o)]
  assert counts(module, (28, 28, 1)) == [
    *expected,
    *(128, 6 * 6 * 64 * 128),
    *(10, 1280),
  ]
  module = models.make(legato_cifar10.get_config('fig5').model, 10)
  assert counts(module, (32, 32, 3)) == [
    *(32, 9 * 3 * 32),
    *(64, 9 * 32 * 64),
    *(128, 9 * 64 * 128),
    *(256, 4 * 4 * 128 * 256),
    *(128, 256 * 128),
    *(10, 1280),
  ]


def test_dropout_has_a_mask_for_each_key():
  x = jnp.ones((6, 5, 400))
  keys = jax.random.split(jax.random.key(0), 6)
  out = np.asarray(dropout(x, 0.25, keys, 0))
  assert set(np.unique(out)) == {0, np.float32(1 / 0.75)}
  # Of the 2000 entries of an example, the share that is kept has a standard
  # deviation of 0.01.
  np.testing.assert_allclose((out > 0).mean((1, 2)), 0.75, atol=0.05)
  assert np.any(out[0] != out[1])
  np.testing.assert_array_equal(dropout(x[:2], 0.25, keys[:2], 0), out[:2])
  assert np.any(np.asarray(dropout(x, 0.25, keys, 1)) != out)
  np.testing.assert_array_equal(dropout(x, 0.25, None, 0), x)
  np.testing.assert_array_equal(dropout(x, 0.0, keys, 0), x)


def test_a_test_drops_nothing_out():
  module = CNN(3, features=(2, 2), hidden=(4,), dropout=(0.5, 0.5))
  plain = CNN(3, features=(2, 2), hidden=(4,))
  images = np.ones((2, 8, 8, 1), np.float32)
  variables = module.init(key_for(0, Purpose.INIT), images)
  np.testing.assert_array_equal(
    module.apply(variables, images), plain.apply(variables, images)
  )
  keys = jax.random.split(jax.random.key(1), 2)
  assert np.any(
    module.apply(variables, images, keys) != plain.apply(variables, images)
  )


def test_the_gradient_exports_for_gpu_and_tpu():
  classifier = Classifier(CNN(10), (127.5,), (127.5,))
  image = jax.ShapeDtypeStruct((4, 28, 28, 1), 'uint8')
  label = jax.ShapeDtypeStruct((4,), 'int32')
  variables = jax.eval_shape(
    lambda: classifier.init(
      jax.random.key(0), jax.ShapeDtypeStruct((28, 28, 1), 'uint8')
    )
  )

  def step(variables, images, labels):
    grads = jax.grad(lambda v: classifier.losses(v, images, labels)[0].mean())(
      variables
    )
    return optax.apply_updates(variables, grads)

  exported = jax.export.export(jax.jit(step), platforms=('cpu', 'cuda', 'tpu'))(
    variables, image, label
  )
  assert exported.platforms == ('cpu', 'cuda', 'tpu')
