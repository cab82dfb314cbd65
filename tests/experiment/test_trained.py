"""Models of finished runs: their files, and loading them."""

import csv
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import linen as nn
from networks import Normalized
from run_files import config

import lca
import lca.data
import lca.experiment
from lca import models
from lca.experiment import load_run, model_files, packing, train
from lca.models import Classifier

BEST = {'data.validation': 0.2, 'checkpoint.best': 'validation_loss'}


@pytest.fixture(scope='module')
def digits():
  return lca.data.load('digits')


@pytest.fixture(scope='module')
def simulated(digits, tmp_path_factory):
  """Simulates a model with batch statistics; returns directory and result."""
  path = tmp_path_factory.mktemp('runs') / 'simulated'
  result = lca.experiment.simulate(
    digits,
    Normalized(10),
    lca.median,
    num_clients=10,
    clients_per_round=5,
    num_rounds=1,
    local_epochs=1,
    batch_stats='mean',
    parallel={'mesh': 2},
    workdir=path,
  )
  return path, result


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """Runs a config that keeps its best model; returns the directory."""
  path = tmp_path_factory.mktemp('runs') / 'straight'
  train.train_and_evaluate(config(**BEST), path)
  return path


@pytest.fixture
def copy(straight, tmp_path):
  return shutil.copytree(straight, tmp_path / 'copy')


def test_a_loaded_run_predicts_the_same_bits(simulated, digits):
  path, result = simulated
  run = load_run(path, Normalized(10))
  inputs = digits.test.inputs[:150]  # one batch and a half
  np.testing.assert_array_equal(run.predict(inputs), result.predict(inputs))
  jax.tree.map(np.testing.assert_array_equal, run.variables, result.variables)
  assert run.variables.keys() == {'params', 'batch_stats'}
  assert run.module == Normalized(10)
  assert run.summary == result.summary
  for name, column in result.history.items():
    np.testing.assert_array_equal(run.metrics[name], column)
  assert (run.round, run.chosen_by) == (1, '')
  assert (
    run.note
    in repr(run)
    == (
      f'LoadedRun({str(path)!r}, Normalized: the model after the last round, 1)'
    )
  )
  with pytest.raises(ValueError, match=r'trained on uint8 \[8, 8, 1\], got '):
    run.predict(np.zeros((2, 8, 8, 1)))


def test_other_libraries_open_the_file(simulated):
  path, result = simulated
  tensors = safetensors.numpy.load_file(path / 'model.safetensors')
  assert sorted(tensors) == [
    *(f'batch_stats/BatchNorm_0/{name}' for name in ('mean', 'var')),
    *(f'params/BatchNorm_0/{name}' for name in ('bias', 'scale')),
    'params/Dense_0/kernel',
    *(f'params/Dense_1/{name}' for name in ('bias', 'kernel')),
  ]
  for name, tensor in tensors.items():
    collection, module, leaf = name.split('/')
    np.testing.assert_array_equal(
      tensor, result.variables[collection][module][leaf]
    )


class Linear(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(10)(x.reshape(len(x), -1))


class Half(nn.Module):
  """A module with a scalar, a bfloat16 and an empty parameter."""

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, ())
    self.param('none', nn.initializers.ones, (0, 3))
    return scale * nn.Dense(3, param_dtype=jnp.bfloat16)(x)


def test_arrays_of_all_kinds_come_back(tmp_path):
  spec = jax.ShapeDtypeStruct((2,), jnp.bfloat16)
  classifier = Classifier(Half(), (0.1,), (3,))
  variables = jax.device_get(classifier.init(jax.random.key(0), spec))
  kernel = variables['params']['Dense_0']['kernel']
  # The same numbers in another order in memory.
  variables['params']['Dense_0']['kernel'] = np.asarray(kernel, order='F')
  content = model_files.to_bytes(variables, classifier, spec, 3, 7)
  (tmp_path / 'model').write_bytes(content)
  tensors, about = model_files.read(tmp_path / 'model')
  found = tensors['params/Dense_0/kernel']
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found, kernel)
  assert tensors['params/scale'].shape == ()
  assert tensors['params/none'].shape == (0, 3)
  assert about['inputs'] == {'shape': [2], 'dtype': 'bfloat16'}
  assert (about['mean'], about['std']) == ([0.1], [3.0])


def test_the_module_of_simulate_is_needed_and_must_fit(simulated):
  path, _ = simulated
  with pytest.raises(ValueError, match=r'was given a Normalized of .*give it'):
    load_run(path)
  with pytest.raises(
    ValueError,
    match=r'fit the module Normalized: params/Den.'
    r'.*bias is float32 \[10\] in the file and float32 \[11\] there',
  ):
    load_run(path, Normalized(11))
  with pytest.raises(
    ValueError, match=r'module Linear: params.Dense_0.bias is absent in'
  ):
    load_run(path, Linear())
  with pytest.raises(TypeError, match=r'flax\.linen\.Module'):
    load_run(path, Normalized)


def test_the_best_model_is_that_of_its_round(straight, digits):
  """Computes the metrics of the model on the examples that were held out."""
  run = load_run(straight, best=True)
  losses = run.metrics['validation_loss']
  assert run.round == 1 + int(np.argmin(losses))
  assert run.chosen_by == 'validation_loss'
  assert 'chosen on validation data, and not on the test data' in repr(run)
  held_out = lca.data.federate(
    digits,
    partition='iid',
    num_clients=20,
    min_examples=1,
    seed=0,
    validation=0.2,
  ).validation_indices
  logits = run.predict(digits.train.inputs[held_out]).astype(float)
  labels = digits.train.labels[held_out]
  probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
  np.testing.assert_allclose(losses.min(), loss, rtol=1e-5)
  accuracy = run.metrics['validation_accuracy'][run.round - 1]
  np.testing.assert_allclose(accuracy, np.mean(logits.argmax(1) == labels))


def test_the_columns_of_validation_are_the_last(straight):
  with open(straight / 'metrics.csv') as file:
    header, *rows = csv.reader(file)
  assert header[-3:] == ['nonfinite', 'validation_loss', 'validation_accuracy']
  assert len(rows) == 3 and all(map(len, rows))


def test_the_final_model_and_its_confusion_matrix(straight, digits):
  run = load_run(str(straight))
  predicted = run.predict(digits.test.inputs).argmax(1)
  expected = np.zeros((10, 10), int)
  np.add.at(expected, (digits.test.labels, predicted), 1)
  counts = np.loadtxt(straight / 'confusion.csv', int, delimiter=',')
  np.testing.assert_array_equal(counts, expected)
  assert run.config['data']['validation'] == 0.2
  assert (run.round, run.chosen_by) == (3, '')


def test_a_run_that_goes_on_keeps_the_same_models(straight, tmp_path):
  """A file that is ahead of the checkpoint, as after a kill, is no harm."""
  names = ('model.safetensors', 'best.safetensors', 'confusion.csv')
  workdir = tmp_path / 'run'
  stopped = train.set_up(config(**BEST), workdir)
  assert train.run(stopped, lambda: True) is None  # after the first round
  assert not (workdir / 'model.safetensors').exists()
  with pytest.raises(ValueError, match=f'{workdir} is not finished: '):
    load_run(workdir)
  best = workdir / 'best.safetensors'
  assert b'after round 1' in best.read_bytes()
  shutil.copy(straight / 'best.safetensors', best)
  train.train_and_evaluate(config(**BEST), workdir)
  for name in names:
    assert (workdir / name).read_bytes() == (straight / name).read_bytes()
  # This is what the error for a damaged model advises.
  (workdir / 'model.safetensors').write_bytes(b'')
  (workdir / 'summary.json').unlink()
  train.train_and_evaluate(config(**BEST), workdir)
  for name in names:
    assert (workdir / name).read_bytes() == (straight / name).read_bytes()


def test_another_metric_is_another_run(straight):
  changes = BEST | {'checkpoint.best': 'test_loss'}
  message = r"checkpoint\.best was 'validation_loss' there and is 'test_loss'"
  with pytest.raises(ValueError, match=message):
    train.set_up(config(**changes), straight)


def test_a_registered_model(copy, monkeypatch):
  about = json.loads((copy / 'config.json').read_text())
  # The weights that training started from are not needed.
  keys = {'name': 'mine', 'width': 2, 'crop': 0, 'pretrained': 'gone.pth'}
  about['config']['model'] = keys
  (copy / 'config.json').write_text(json.dumps(about))

  def mine(num_classes, width):
    return models.CNN(num_classes, features=(width, 3), hidden=(8,))

  with pytest.raises(ValueError, match=r"'mine' of .* not registered.*--load"):
    load_run(copy)
  module = mine(10, 2)
  assert load_run(copy, module).module == module
  monkeypatch.setitem(models.MODELS, 'mine', mine)
  assert load_run(copy).module == module


def test_damaged_models(copy):
  file = copy / 'model.safetensors'
  content = file.read_bytes()
  damaged = [content[:size] for size in (0, 7, 100, len(content) - 1)]
  for place in (0, 20, 400, 800, len(content) // 2, len(content) - 1):
    changed = bytes([content[place] ^ 1])
    damaged.append(content[:place] + changed + content[place + 1 :])
  # A file of another program has no entry of ours.
  damaged.append(safetensors.numpy.save({'x': np.zeros(2)}))
  for number, wrong in enumerate(damaged):
    file.write_bytes(wrong)
    with pytest.raises(ValueError, match='is damaged') as info:
      load_run(copy)
      pytest.fail(f'damage {number} was not noticed')
    assert f'delete {copy}/summary.json, and the same' in str(info.value)


def test_models_that_are_not_there(copy, tmp_path):
  (copy / 'model.safetensors').unlink()
  with pytest.raises(
    ValueError, match=r'has no model\.safe.* \(older versions'
  ):
    load_run(copy)
  (copy / 'best.safetensors').unlink()
  with pytest.raises(ValueError, match=r'maybe validation_loss was NaN.* anew'):
    load_run(copy, best=True)
  about = json.loads((copy / 'config.json').read_text())
  about['config']['checkpoint'] = {'model': False, 'best': ''}
  (copy / 'config.json').write_text(json.dumps(about))
  with pytest.raises(
    ValueError, match=r'checkpoint\.model was False\): set it'
  ):
    load_run(copy)
  with pytest.raises(ValueError, match=r'checkpoint\.best was not set'):
    load_run(copy, best=True)
  with pytest.raises(ValueError, match=r'holds no run .*sweep\.json'):
    load_run(tmp_path)


def test_packed_runs_have_no_model(straight, tmp_path):
  packing.pack(straight.parent, tmp_path / 'runs.zip')
  packing.unpack(tmp_path / 'runs.zip', tmp_path / 'out')
  (run,) = (tmp_path / 'out').iterdir()
  assert (run / 'confusion.csv').read_bytes() == (
    straight / 'confusion.csv'
  ).read_bytes()
  with pytest.raises(ValueError, match=r'packed sweeps hold none'):
    load_run(run)
