"""Tests of a classifier's losses, resizing and cropping."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from lca.federated.randomness import Purpose, key_for
from lca.models import CNN, Classifier


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
    # The sizes of CelebA and CIFAR-10 under torchvision's transforms for B0.
    # CelebA has 256 * 218 / 178 = 313.5 rows, of which 44 to 268 are kept.
    ((218, 178), 256, 224),
    ((32, 32), 256, 224),
    # Here the images are made smaller, which averages over several pixels.
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

  class Identity(nn.Module):
    @nn.compact
    def __call__(self, x, keys=None, mask=None):
      return x

  classifier = Classifier(Identity(), (0.0,), (1.0,), resize, crop)
  (got,) = jax.jit(classifier.logits)({}, np.asarray(image)[None])
  # Pillow rounds pixels to integers after scaling each direction.
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
  with pytest.raises(ValueError, match=r'\(28, 20\) are smaller .*crop=24'):
    classifier.init(
      jax.random.key(0), jax.ShapeDtypeStruct((28, 20, 1), 'uint8')
    )
