"""The models' parameters, counted by hand from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from PIL import Image

from configs import digits, legato_cifar10, legato_mnist
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
  # 2000 draws an example: a deviation of 0.01 of the share kept.
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


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('hidden', (0,)),
    ('features', (8, 0)),
    ('pool', 'first'),
    ('padding', 'same'),
    ('dropout', (0.5, 1.0)),
    ('dropout', (0.5,)),
  ],
)
def test_impossible_options(key, value):
  config = digits.get_config('krum').model.to_dict() | {key: value}
  with pytest.raises(ValueError, match=rf'model\.{key} must be'):
    models.make(config, 10)


def test_classifier_normalises_and_scores():
  classifier = Classifier(CNN(3, features=(2, 2), hidden=(4,)), (8.0,), (4.0,))
  variables = classifier.init(
    key_for(0, Purpose.INIT), jax.ShapeDtypeStruct((8, 8, 1), 'uint8')
  )
  rng = np.random.default_rng(0)
  images = rng.integers(0, 17, (5, 8, 8, 1)).astype(np.uint8)
  labels = rng.integers(0, 3, 5)
  logits = classifier.module.apply(variables, (images - 8.0) / 4.0)
  np.testing.assert_allclose(
    classifier.logits(variables, images), logits, rtol=1e-6, atol=1e-6
  )
  losses = -np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), labels[:, None], 1
  )[:, 0]
  np.testing.assert_allclose(
    classifier.losses(variables, images, labels)[0], losses, rtol=1e-5
  )
  weights = np.array([1, 1, 0, 1, 0], np.float32)
  loss, correct = classifier.test(variables, images, labels, weights)
  np.testing.assert_allclose(loss, np.sum(weights * losses), rtol=1e-5)
  hits = np.asarray(logits).argmax(-1) == labels
  assert correct == np.sum(weights * hits)


@pytest.mark.parametrize(
  ('shape', 'resize', 'crop'),
  [
    # CelebA's, and CIFAR-10's, under torchvision's transforms for B0; by hand:
    # 256 * 218 / 178 = 313.5 rows, of which 44 to 268 are kept.
    ((218, 178), 256, 224),
    ((32, 32), 256, 224),
    # Made smaller, with what falls between its pixels averaged.
    ((90, 120), 40, 33),
    ((50, 40), 20, 0),
    ((30, 41), 0, 24),
  ],
)
def test_images_are_resized_and_cropped_as_by_pillow(shape, resize, crop):
  rng = np.random.default_rng(0)
  smooth = rng.integers(0, 256, (6, 5, 3)).astype(np.uint8)
  bicubic = Image.Resampling.BICUBIC
  image = Image.fromarray(smooth).resize(shape[::-1], bicubic)
  want = image
  if resize:
    short = min(shape)
    size = [int(resize * side / short) for side in shape]
    want = image.resize(size[::-1], bicubic)
  if crop:
    top, left = (round((side - crop) / 2) for side in want.size[::-1])
    want = want.crop((left, top, left + crop, top + crop))

  class Seen(nn.Module):
    @nn.compact
    def __call__(self, x, keys=None, mask=None):
      return x

  classifier = Classifier(Seen(), (0.0,), (1.0,), resize, crop)
  (got,) = jax.jit(classifier.logits)({}, np.asarray(image)[None])
  # Pillow rounds to whole levels after each direction.
  np.testing.assert_allclose(got, np.asarray(want), atol=1.6)
  assert np.abs(got - np.asarray(want)).mean() < 0.5


@pytest.mark.parametrize(
  ('resize', 'crop', 'message'),
  [
    (-1, 0, r'model\.resize must be at least 0'),
    (0, -1, r'model\.crop must be at least 0'),
    (20, 24, r'model\.crop=24 is larger than model\.resize=20'),
  ],
)
def test_impossible_transforms(resize, crop, message):
  with pytest.raises(ValueError, match=message):
    Classifier(CNN(10), (0.0,), (1.0,), resize, crop)


def test_images_smaller_than_the_crop():
  classifier = Classifier(CNN(10), (0.0,), (1.0,), crop=24)
  with pytest.raises(ValueError, match=r'\(28, 20\) have no middle .*crop=24'):
    classifier.init(
      jax.random.key(0), jax.ShapeDtypeStruct((28, 20, 1), 'uint8')
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


def test_unknown_model():
  with pytest.raises(ValueError, match=r"unknown model 'mlp'.*cnn"):
    models.make({'name': 'mlp'}, 10)
