"""The models' parameters, counted by hand from the papers."""

import jax
import numpy as np
import optax
import pytest

from lca import models
from lca.models import CNN, Classifier


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


def test_classifier_normalises_and_scores():
  classifier = Classifier(CNN(3, features=(2, 2), hidden=4), (8.0,), (4.0,))
  variables = classifier.init(jax.random.key(0), (8, 8, 1))
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
    classifier.losses(variables, images, labels), losses, rtol=1e-5
  )
  weights = np.array([1, 1, 0, 1, 0], np.float32)
  loss, correct = classifier.test(variables, images, labels, weights)
  np.testing.assert_allclose(loss, np.sum(weights * losses), rtol=1e-5)
  hits = np.asarray(logits).argmax(-1) == labels
  assert correct == np.sum(weights * hits)


def test_the_gradient_exports_for_gpu_and_tpu():
  classifier = Classifier(CNN(10), (127.5,), (127.5,))
  image = jax.ShapeDtypeStruct((4, 28, 28, 1), 'uint8')
  label = jax.ShapeDtypeStruct((4,), 'int32')
  variables = jax.eval_shape(
    lambda: classifier.init(jax.random.key(0), (28, 28, 1))
  )

  def step(variables, images, labels):
    grads = jax.grad(lambda v: classifier.losses(v, images, labels).mean())(
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
