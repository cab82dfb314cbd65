"""Tests of `simulate`: runs of Python objects equal the runs of configs."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from networks import Normalized

import lca
import lca.data
import lca.experiment
from configs import digits
from lca import attacks
from lca.experiment import simulator, train
from lca.models import CNN


class MLP(nn.Module):
  width: int = 8
  classes: int = 10

  @nn.compact
  def __call__(self, x, keys=None):
    x = nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1)))
    return nn.Dense(self.classes)(x)


def my_rule(updates, *, f):
  """Averages all clients except the f with the largest norms."""
  norms = lca.geometry.norms(lca.gram(updates))
  weights = (jnp.argsort(jnp.argsort(norms)) < len(norms) - f) * 1.0
  return lca.mix(updates, weights / weights.sum())


def my_attack(updates, *, byzantine, scale=2.0):
  return attacks.sign_flip(updates, byzantine=byzantine, scale=scale)


SMALL = {
  'num_clients': 20,
  'clients_per_round': 6,
  'num_rounds': 4,
  'local_epochs': 1,
  'batch_size': 20,
  'parallel': {'mesh': 1},
}
ATTACK = {'attack': attacks.from_function(my_attack), 'num_byzantine': 2}


@pytest.fixture(scope='module')
def dataset():
  return lca.data.load('digits')


@pytest.fixture(scope='module')
def result(dataset):
  rule = lca.layerwise(my_rule)
  return lca.experiment.simulate(dataset, MLP(), rule, **ATTACK, **SMALL)


def same(one, two):
  """Checks that two results have the same model and metrics, bit by bit."""
  jax.tree.map(np.testing.assert_array_equal, one.variables, two.variables)
  assert one.history.keys() == two.history.keys()
  for name in one.history:
    np.testing.assert_array_equal(one.history[name], two.history[name])


def test_the_result(dataset, result):
  assert result.history['round'].tolist() == [1, 2, 3, 4]
  assert result.history['byzantine'].tolist() == [2] * 4
  logits = result.predict(dataset.test.inputs)
  assert logits.shape == (360, 10)
  accuracy = np.mean(logits.argmax(1) == dataset.test.labels)
  last = result.history['test_accuracy'][-1]
  np.testing.assert_allclose(accuracy, last, atol=1e-6)
  assert result.summary['max_test_accuracy'] == max(
    result.history['test_accuracy']
  )
  assert isinstance(jax.tree.leaves(result.variables)[0], np.ndarray)


@pytest.mark.parametrize('count', [1, 99, 101])
def test_predictions_come_in_batches(dataset, result, count):
  inputs = dataset.test.inputs[:count]
  logits = result.predict(inputs)
  assert logits.shape == (count, 10)
  assert result.predict(inputs[:0]).shape == (0, 10)
  expected = result.classifier.logits(result.variables, inputs)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  'inputs', [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 1))]
)
def test_inputs_of_another_kind(result, inputs):
  with pytest.raises(ValueError, match=r'trained on uint8 \[8, 8, 1\], got '):
    result.predict(inputs)


def test_a_round_without_a_test_is_nan(dataset):
  options = SMALL | {'num_rounds': 3, 'eval': {'every': 2}}
  result = lca.experiment.simulate(dataset, MLP(), lca.median, **options)
  tested = np.isfinite(result.history['test_loss'])
  assert tested.tolist() == [False, True, True]


@pytest.mark.parametrize(
  ('presets', 'rule', 'options'),
  [
    (
      'layerwise_cosine_krum,label_flipping',
      lca.layerwise(lca.cosine(lca.krum)),
      {'attack': attacks.label_flipping(boost=1.0, flip_fraction=1.0)},
    ),
    ('fedavg', lca.mean, {}),
    (
      'centered_clip,sign_flip',
      lca.centered_clip(threshold=10.0),
      {'attack': attacks.from_function(attacks.sign_flip, scale=1.0)},
    ),
  ],
)
def test_the_same_bits_as_a_config(dataset, tmp_path, presets, rule, options):
  config = digits.get_config(presets)
  changes = {
    'seed': 3,
    'num_rounds': 2,
    'model.features': (2, 3),
    'model.hidden': (8,),
    'client.local_epochs': 1,
    'parallel.mesh': 2,
  }
  config.update_from_flattened_dict(changes)
  summary = train.train_and_evaluate(config, tmp_path)
  result = lca.experiment.simulate(
    dataset,
    CNN(10, features=(2, 3), hidden=(8,)),
    rule,
    seed=3,
    num_clients=20,
    clients_per_round=15,
    num_rounds=2,
    local_epochs=1,
    batch_size=16,
    parallel={'mesh': 2},
    **options,
  )
  assert result.summary == summary
  experiment = train.set_up(config, tmp_path)
  initial = experiment.settings.parts().simulation().init()
  with train.checkpoints_of(experiment) as checkpoints:
    state, rows = checkpoints.restore(initial)
  jax.tree.map(np.testing.assert_array_equal, result.variables, state.variables)
  for row, number in zip(rows, range(2), strict=True):
    assert row == {k: v[number] for k, v in result.history.items()}


def test_a_directory_goes_on_in_the_same_bits(dataset, result, tmp_path):
  run = functools.partial(
    lca.experiment.simulate, dataset, MLP(), lca.layerwise(my_rule), **ATTACK
  )
  short = run(workdir=tmp_path, **SMALL | {'num_rounds': 2})
  assert len(short.history['round']) == 2
  again = run(workdir=tmp_path, **SMALL)
  same(again, result)
  for name in ('config.json', 'metrics.csv', 'summary.json'):
    assert (tmp_path / name).exists()
  before = (tmp_path / 'metrics.csv').read_bytes()
  # A finished run is read, not run again.
  same(run(workdir=tmp_path, **SMALL), result)
  assert (tmp_path / 'metrics.csv').read_bytes() == before


def test_the_config_of_a_directory_names_the_parts(dataset, tmp_path):
  def run(rule=my_rule, width=8, data=dataset, **options):
    options = SMALL | {'num_rounds': 1, 'workdir': tmp_path} | options
    return lca.experiment.simulate(data, MLP(width), rule, **options)

  run(**ATTACK)
  config = json.loads((tmp_path / 'config.json').read_text())['config']
  assert config['aggregator'] == {'name': 'my_rule', 'module': __name__, 'f': 2}
  assert config['attack'] == {
    'name': 'my_attack',
    'module': __name__,
    'scale': 2.0,
    'num_attackers': None,
    'sampled': False,
    'num_byzantine': 2,
    'first_round': 1,
    'last_round': None,
    'every': 1,
    'rounds': None,
  }
  assert config['model'] == {
    'name': 'MLP',
    'module': __name__,
    'width': 8,
    'classes': 10,
  }
  assert config['data']['name'] == 'digits'
  assert config['client']['optimizer'] == 'adam'
  other = attacks.from_function(my_attack, scale=3.0)
  with pytest.raises(ValueError, match=r'attack\.scale was 2\.0 .* is 3\.0'):
    run(**ATTACK | {'attack': other})
  with pytest.raises(ValueError, match=r'model\.width was 8 .* is 9'):
    run(width=9, **ATTACK)
  with pytest.raises(
    ValueError, match=r'aggregator\.module was .* is .lca\.agg'
  ):
    run(rule=lca.cge, **ATTACK)
  labels = dataset.train.labels.copy()
  labels[0] = (labels[0] + 1) % 10
  split = lca.data.Split(dataset.train.inputs, labels)
  changed = lca.data.Dataset(
    'digits', split, dataset.test, 10, dataset.mean, dataset.std
  )
  with pytest.raises(ValueError, match=r'data\.checksum was'):
    run(data=changed, **ATTACK)


def test_f_is_the_number_of_attackers(dataset, capsys):
  def line(rule, **options):
    options = SMALL | {'num_rounds': 1} | options
    lca.experiment.simulate(dataset, MLP(), rule, **options)
    return capsys.readouterr().out.splitlines()[0]

  assert 'my_rule (f=2)' in line(my_rule, **ATTACK)
  assert 'my_rule (f=1)' in line(my_rule)
  bound = functools.partial(my_rule, f=3)
  assert 'my_rule (f=3)' in line(bound, **ATTACK)
  assert 'krum (f=1)' in line(lca.krum, f=1, **ATTACK)


def test_everybody_attacks_where_everybody_comes(dataset):
  options = SMALL | {'clients_per_round': 20, 'num_rounds': 1}
  attack = attacks.from_function(attacks.zero)
  result = lca.experiment.simulate(
    dataset, MLP(), lca.median, attack=attack, **options
  )
  assert result.history['byzantine'].tolist() == [4]


def test_the_servers_options(dataset, result):
  """FedAdam's first step is not longer than its learning rate allows."""
  options = SMALL | {'num_rounds': 1, 'server_optimizer': 'fedadam'}
  found = [
    lca.experiment.simulate(
      dataset,
      MLP(),
      lca.mean,
      server_learning_rate=rate,
      server={'eps': 0.1, 'b1': 0.0},
      **options,
    )
    for rate in (1e-9, 1.0)
  ]
  still, moved = (jax.tree.leaves(each.variables) for each in found)
  apart = [np.abs(a - b).max() for a, b in zip(still, moved, strict=True)]
  assert 0 < max(apart) < 1.0 / 0.1


@pytest.mark.parametrize(
  ('options', 'error', 'message'),
  [
    (
      {'num_round': 3},
      TypeError,
      r"no num_round; did you mean 'num_rounds'",
    ),
    ({'attak': None}, TypeError, r"no attak; did you mean 'attack'"),
    (
      {'eval': {'evry': 2}},
      TypeError,
      r"no evry; did you mean 'every'",
    ),
    ({'crp': 2}, TypeError, r"no crp; did you mean 'crop'"),
    ({'crop': 9}, ValueError, r'are smaller than model\.crop=9'),
    ({'num_byzantine': 2}, ValueError, 'num_byzantine=2, but attack=None'),
    ({'f': 9}, ValueError, 'krum needs .* got n=6, f=9'),
    ({'f': 1, 'aggregator': {'f': 1}}, TypeError, 'f is given twice'),
    ({'g': 1}, TypeError, 'takes no g'),
    ({'learning_rate': 0.0}, ValueError, r'^client\.learning_rate must be'),
    ({'server_learning_rate': 0.0}, ValueError, r'^server\.learning_rate must'),
    (
      {'learning_rate': 0.1, 'client': {'learning_rate': 0.2}},
      TypeError,
      'learning_rate is given twice',
    ),
    ({'data': {'name': 'mnist'}}, TypeError, r"data=\['name'\] does not apply"),
    ({'partition': 'idd'}, ValueError, "unknown partition 'idd'"),
    ({'clients_per_round': 21}, ValueError, 'clients_per_round=21'),
    ({'attack': my_attack}, TypeError, 'must be an lca.attacks.Attack'),
    (
      ATTACK | {'sampled': True, 'num_byzantine': 2},
      ValueError,
      'krum needs f: with sampled=True the number of attackers varies',
    ),
    ({'num_rounds': 0}, ValueError, 'num_rounds must be at least 1'),
    ({'validation': 1.0}, ValueError, r'data\.validation, a share .*got 1\.0'),
    ({'validation': 1e-4}, ValueError, 'validation=0.0001 of 1437 .* is 0: at'),
    (
      {'validation': 0.1, 'checkpoint': {'best': 'test'}},
      ValueError,
      r"checkpoint\.best must be one of \['', 'test_.*\], got 'test'",
    ),
    (
      {'checkpoint': {'best': 'validation_accuracy'}},
      ValueError,
      r"best='validation_accuracy' needs .* data\.validation is 0",
    ),
  ],
)
def test_wrong_options(dataset, tmp_path, options, error, message):
  options = SMALL | options
  with pytest.raises(error, match=message):
    lca.experiment.simulate(
      dataset, MLP(), lca.krum, workdir=tmp_path / 'run', **options
    )
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('parts', 'error', 'message'),
  [
    ({'model': MLP}, TypeError, 'flax.linen.Module, .* got the class MLP'),
    (
      {'model': MLP(classes=9)},
      ValueError,
      'MLP returns 9 logits, but the data',
    ),
    ({'rule': 'krum'}, TypeError, "function of stacked updates .* got 'krum'"),
    ({'rule': lambda u: u}, ValueError, 'must return one update'),
    ({'rule': lca.fltrust}, TypeError, r'data\.root_examples'),
    ({'dataset': 'digits'}, TypeError, 'must be a data set'),
  ],
)
def test_wrong_parts(dataset, parts, error, message):
  parts = {'dataset': dataset, 'model': MLP(), 'rule': lca.krum} | parts
  with pytest.raises(error, match=message):
    lca.experiment.simulate(*parts.values(), **SMALL)


def test_a_best_model_needs_a_directory(dataset):
  with pytest.raises(ValueError, match=r"best='test_loss' keeps .* workdir"):
    lca.experiment.simulate(
      dataset, MLP(), lca.krum, checkpoint={'best': 'test_loss'}, **SMALL
    )


def test_an_aggregator_has_its_arguments(dataset):
  bound = lca.stateless(lca.krum, f=1)
  with pytest.raises(TypeError, match='f must be bound when the Aggregator'):
    lca.experiment.simulate(dataset, MLP(), bound, f=1, **SMALL)
  options = SMALL | {'num_rounds': 1}
  one = lca.experiment.simulate(dataset, MLP(), bound, **options)
  two = lca.experiment.simulate(dataset, MLP(), lca.krum, f=1, **options)
  same(one, two)


def test_a_rule_that_looks_at_the_models_layers(dataset):
  def by_name(updates):
    return updates | {
      'params': {
        'Dense_0': lca.median(updates['params']['Dense_0']),
        'Dense_1': lca.mean(updates['params']['Dense_1']),
      }
    }

  options = SMALL | {'num_rounds': 1}
  result = lca.experiment.simulate(dataset, MLP(), by_name, **options)
  assert result.history['nonfinite'].tolist() == [0]


def test_a_model_with_batch_statistics(dataset):
  options = SMALL | {'num_rounds': 2, 'batch_stats': 'mean'}
  model = Normalized(num_classes=10)
  result = lca.experiment.simulate(dataset, model, lca.krum, **options)
  assert result.history['floored'].tolist() == [0, 0]
  (moved,) = jax.tree.leaves(result.variables['batch_stats'])[:1]
  assert np.abs(moved).max() > 0


def test_the_weights_of_clients(dataset):
  """The mean weighs clients equally, or by their examples if told to."""
  uneven = SMALL | {
    'num_rounds': 1,
    'partition': 'dirichlet',
    'data': {'alpha': 1.0},
    'min_examples': 5,
  }
  run = functools.partial(
    lca.experiment.simulate, dataset, MLP(), lca.mean, **uneven
  )
  plain, weighed = run(), run(aggregator={'weights': 'examples'})
  same(plain, run(aggregator={'weights': 'uniform'}))
  kernels = [
    each.variables['params']['Dense_0']['kernel'] for each in (plain, weighed)
  ]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-5


def test_every_option_is_a_key_of_its_section():
  from lca.experiment import sections

  for name, key in simulator._KEYS.items():
    section, _, last = key.rpartition('.')
    if name in simulator._SECTIONS or section in ('attack', 'model'):
      continue
    keys = sections.DEFAULTS[section] if section else sections.DEFAULTS
    assert last in keys, name
