"""Tests of EfficientNet: counts by hand, training and randomness."""

import functools

import jax
import numpy as np
import pytest
from efficientnets import KEYS, shapes, tiny_images
from flax import linen as nn

from lca import models
from lca.aggregators import layer_names
from lca.models import Classifier, EfficientNet, EfficientNetLite0
from lca.models.networks.efficientnet import Stage

TINY = EfficientNet(3, stages=(Stage(1, 3, 1, 32, 1), Stage(2, 5, 2, 8, 2)))


# Table 1 of the paper: input and output channels, expansion, kernel, blocks.
TABLE = [
  (32, 16, 1, 3, 1),
  (16, 24, 6, 3, 2),
  (24, 40, 6, 5, 2),
  (40, 80, 6, 3, 3),
  (80, 112, 6, 5, 3),
  (112, 192, 6, 5, 4),
  (192, 320, 6, 3, 1),
]


@functools.cache
def tiny():
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    if path[-1].key in ('scale', 'var'):
      return np.ones(leaf.shape, leaf.dtype)
    fan_in = max(1, leaf.size // leaf.shape[-1])
    return rng.normal(size=leaf.shape).astype(leaf.dtype) / np.sqrt(fan_in)

  return jax.tree.map_with_path(draw, shapes(TINY))


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def by_hand(squeeze):
  """Counts parameters and running statistics from the paper's table.

  Returns:
    The number of parameters without the output layer, and the number of running
    means and variances.
  """
  params, normed = 3 * 3 * 3 * 32, 32
  for first, out, times, kernel, blocks in TABLE:
    for features in [first] + [out] * (blocks - 1):
      wide = features * times
      if times > 1:
        params, normed = params + features * wide, normed + wide
      params, normed = params + kernel * kernel * wide, normed + wide
      if squeeze:
        hidden = features // 4
        params += wide * hidden + hidden + hidden * wide + wide
      params, normed = params + wide * out, normed + out
  params, normed = params + 320 * 1280, normed + 1280
  return params + 2 * normed, 2 * normed  # scale and bias; mean and variance


@pytest.mark.parametrize(
  ('module', 'squeeze', 'total'),
  [
    (EfficientNet(1000), True, 5_288_548),
    (EfficientNetLite0(1000), False, 4_652_008),
  ],
)
def test_the_parameters_are_the_papers(module, squeeze, total):
  params, statistics = by_hand(squeeze)
  assert params + 1280 * 1000 + 1000 == total
  variables = shapes(module)
  assert sorted(variables) == ['batch_stats', 'params']
  assert count(variables['params']) == total
  assert count(variables['batch_stats']) == statistics == 42_016


def test_layers_are_torchs_tensors():
  variables = shapes(EfficientNet(10))
  assert len(jax.tree.leaves(variables['params'])) == 213
  assert len(jax.tree.leaves(variables['batch_stats'])) == 2 * 49
  blocks = [
    f'block{s}_{i}'
    for s, (*_, blocks) in enumerate(TABLE, start=1)
    for i in range(blocks)
  ]
  groups = layer_names(variables, 'block')
  assert groups == [*blocks, 'head', 'stem', 'classifier']
  modules = layer_names(variables, 'module')
  # There are 49 convolutions, as many normalisations, 2 layers in each of 16
  # squeeze-and-excitations, and the output layer.
  assert len(modules) == 49 + 49 + 2 * 16 + 1


@pytest.mark.parametrize('padding', ['symmetric', 'same'])
def test_any_image_size_has_logits(padding):
  module = TINY.clone(padding=padding)
  for size in ((33, 65), (1, 1)):
    x = jax.ShapeDtypeStruct((2, *size, 3), 'float32')
    out = jax.eval_shape(module.apply, shapes(module), x)
    assert out.shape == (2, 3)


@pytest.mark.parametrize(
  'wrong', [{'activation': 'gelu'}, {'padding': 'SAME'}, {'padding': 'valid'}]
)
def test_unknown_variants_are_errors(wrong):
  [(name, value)] = wrong.items()
  with pytest.raises(ValueError, match=f"{name} must be .*, got '{value}'"):
    shapes(EfficientNet(3, **wrong))


def test_models_make_them_by_name():
  rates = {'dropout': 0.1, 'stochastic_depth': 0.0}
  module = models.make({'name': 'efficientnet_b0', **rates}, 10)
  assert module == EfficientNet(10, **rates)
  module = models.make({'name': 'efficientnet_lite0', **rates}, 5)
  assert module == EfficientNetLite0(5, **rates)
  with pytest.raises(ValueError, match=r'model.stochastic_depth.*got 1'):
    models.make(
      {'name': 'efficientnet_b0', 'dropout': 0.1, 'stochastic_depth': 1}, 10
    )


# Training.


def train(x, keys=KEYS, mask=None, **options):
  return trained(tuple(options.items()))(x, keys, mask)


@functools.cache
def trained(options):
  module = TINY.clone(**dict(options))

  @jax.jit
  def apply(x, keys, mask):
    return module.apply(tiny(), x, keys, mask, mutable=['batch_stats'])

  return apply


def test_training_moves_the_running_statistics_by_a_tenth():
  x = tiny_images()
  _, updated = train(x)
  kernel = tiny()['params']['stem']['conv']['kernel']
  out = jax.lax.conv_general_dilated(
    x,
    kernel,
    (2, 2),
    ((1, 1), (1, 1)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  out = np.asarray(out, np.float64).reshape(-1, 32)
  moved = updated['batch_stats']['stem']['norm']
  start = tiny()['batch_stats']['stem']['norm']['mean']
  mean = 0.9 * start + 0.1 * out.mean(0)
  np.testing.assert_allclose(moved['mean'], mean, atol=1e-6)
  np.testing.assert_allclose(moved['var'], 0.9 + 0.1 * out.var(0), atol=1e-6)


def test_rows_outside_the_mask_do_not_count():
  x = tiny_images(6)
  x[4:] = 1e3
  mask = np.arange(6) < 4
  keys = jax.random.split(jax.random.key(1), 6)
  masked, statistics = train(x, keys, mask)
  alone, expected = train(x[:4], keys[:4])
  np.testing.assert_allclose(masked[:4], alone, rtol=1e-4, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    statistics,
    expected,
  )
  all_of_them, _ = train(x, keys, np.ones(6, bool))
  assert not np.allclose(all_of_them[:4], alone, rtol=0.1)


def test_testing_takes_the_running_statistics_and_drops_nothing():
  x = tiny_images()
  apply = jax.jit(TINY.apply)
  logits = apply(tiny(), x)
  x[1:] = 1e3
  np.testing.assert_allclose(
    apply(tiny(), x)[:1], logits[:1], rtol=1e-5, atol=1e-6
  )
  plain = TINY.clone(dropout=0.0, stochastic_depth=0.0)
  assert str(jax.make_jaxpr(plain.apply)(tiny(), x)) == str(
    jax.make_jaxpr(TINY.apply)(tiny(), x)
  )


def test_what_is_random_belongs_to_an_images_key():
  x = np.repeat(tiny_images(1), 4, axis=0)
  keys = KEYS[np.array([0, 1, 0, 2])]
  for rates in (
    {'dropout': 0.5, 'stochastic_depth': 0.0},
    {'dropout': 0.0, 'stochastic_depth': 0.9},
  ):
    logits, _ = train(x, keys, **rates)
    np.testing.assert_allclose(logits[0], logits[2], rtol=1e-5, atol=1e-6)
    others, _ = train(x, KEYS[np.full(4, 3)], **rates)
    rows = np.stack([*logits, others[0]])
    assert not np.allclose(rows, rows[:1], rtol=1e-3)


def test_stochastic_depth_skips_blocks_and_scales_the_others():
  # Of the three blocks only the last one has a shortcut. It is skipped with
  # 2 / 3 of the module's rate.
  x = np.repeat(tiny_images(1), 200, axis=0)
  keys = jax.random.split(jax.random.key(8), 200)

  @functools.partial(jax.jit, static_argnums=0)
  def into_the_head(rate):
    head_inputs = []

    def spy(method, args, kwargs, context):
      if context.module.name == 'head' and context.method_name == '__call__':
        head_inputs.append(args[0])
      return method(*args, **kwargs)

    module = TINY.clone(dropout=0.0, stochastic_depth=rate)
    with nn.intercept_methods(spy):
      module.apply(tiny(), x, keys, mutable=['batch_stats'])
    return head_inputs[0]

  dropped, full = (np.asarray(into_the_head(rate)) for rate in (0.6, 0.0))
  np.testing.assert_allclose(full, full[:1].repeat(200, 0), rtol=1e-5)
  # `full` is x + y. `dropped` is x if the block is skipped, else x + y / 0.6.
  distances = np.abs(dropped - full).max(axis=(1, 2, 3))
  skipped = distances > distances.mean()
  y = (full - dropped)[skipped][0]
  np.testing.assert_allclose(
    dropped[~skipped][0], full[0] + y * (1 / 0.6 - 1), rtol=1e-3, atol=1e-4
  )
  # The share of 200 draws at rate 0.4 has a standard deviation of 0.035.
  np.testing.assert_allclose(skipped.mean(), 0.4, atol=0.14)


def test_the_gradient_exports_for_gpu_and_tpu():
  classifier = Classifier(TINY, (127.5,) * 3, (50.0,) * 3)

  def step(variables, images, labels, keys):
    def loss(params):
      losses, updated = classifier.losses(
        {**variables, 'params': params}, images, labels, keys
      )
      return losses.mean(), updated

    return jax.grad(loss, has_aux=True)(variables['params'])

  exported = jax.export.export(jax.jit(step), platforms=('cpu', 'cuda', 'tpu'))(
    tiny(),
    jax.ShapeDtypeStruct((4, 9, 9, 3), 'uint8'),
    jax.ShapeDtypeStruct((4,), 'int32'),
    KEYS,
  )
  assert exported.platforms == ('cpu', 'cuda', 'tpu')
