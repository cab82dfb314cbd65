"""Tests of settings and presets against the papers' numbers and names."""

import csv
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FieldReference

from configs import (
  celeba,
  cifar10,
  common,
  digits,
  emnist,
  fashion_mnist,
  legato_cifar10,
  legato_figures,
  legato_mnist,
  tables,
)
from configs import presets as preset_table
from lca import aggregators, attacks
from lca.data import partitions
from lca.experiment import optimizers, settings
from lca.federated.population import population_from

FORMS = ['', 'layerwise_', 'cosine_', 'layerwise_cosine_']
OPERATORS = ['krum', 'geomed', 'bulyan']


@pytest.mark.quick
def test_the_tables_rows_are_presets():
  rows = {f + o for f, o in itertools.product(FORMS, OPERATORS)}
  noclip = {f'{f}{o}_noclip' for f in FORMS[2:] for o in OPERATORS}
  assert set(common.aggregators()) >= rows | noclip | {'fedavg'}


@pytest.mark.quick
def test_every_rule_has_a_preset():
  named = {keys['name'] for keys in common.aggregators().values()}
  assert named == set(aggregators.RULES) | set(aggregators.AGGREGATORS)
  assert set(common.pre_aggregators()) == set(aggregators.PRE_AGGREGATORS)


def test_the_three_bulyans():
  presets = common.aggregators()
  for form in FORMS:
    multi_krum, trimmed, published = (
      presets[f'{form}bulyan{which}'] for which in ('', '_trimmed', '2018')
    )
    assert (multi_krum['name'], multi_krum['m']) == ('multi_krum', 5)
    assert (trimmed['name'], trimmed['m']) == ('bulyan_trimmed', 5)
    assert published['name'] == 'bulyan'
    assert multi_krum['f'] == trimmed['f'] == published['f'] == 1


# Mixtures depend on the Gram matrix, whatever the rule: Krum tries them.
MIXTURES = tuple(
  f'{name}_' for name in ('mixed', 'separating', 'rank_weighted')
)
TRIED = [
  name
  for name in common.aggregators()
  if name.endswith('_krum') or not any(mix in name for mix in MIXTURES)
]


@pytest.mark.parametrize('preset', TRIED)
def test_every_aggregator_preset_runs(preset):
  config = fashion_mnist.get_config(preset)
  if config.aggregator.name == 'sign_majority':
    config.aggregator.theta = 5
  runs(config)


def runs(config):
  """Checks that the config's rule aggregates random updates."""
  aggregator = aggregators.make(config.aggregator)
  keys = jax.random.split(jax.random.key(0))
  updates = {
    'kernel': jax.random.normal(keys[0], (11, 4, 5)),
    'bias': jax.random.normal(keys[1], (11, 5)),
  }
  one = jax.tree.map(lambda x: x[0], updates)
  predict = aggregators.Predictor(
    lambda tree, x: x @ tree['kernel'] + tree['bias'],
    jax.ShapeDtypeStruct((4,), jnp.float32),
  )

  @jax.jit
  def aggregate(updates):
    return aggregator.update(
      updates,
      aggregator.init(one),
      key=jax.random.key(1),
      weights=jnp.ones(11),
      server_update=one,
      params=one,
      client_ids=jnp.arange(11),
      predict=predict,
    )

  update, _ = aggregate(updates)
  for leaf in jax.tree.leaves(update):
    assert jnp.all(jnp.isfinite(leaf))


@pytest.mark.parametrize('before', common.pre_aggregators())
@pytest.mark.parametrize('rule', ['krum', 'layerwise_median', 'centered_clip'])
def test_every_pre_aggregator_preset_runs(before, rule):
  config = fashion_mnist.get_config(f'{rule},{before}')
  assert config.aggregator.pre == (before,)
  runs(config)


def test_pre_aggregators_keep_their_order_and_follow_the_attackers():
  config = digits.get_config('krum,bucketing,nnm,model_replacement')
  assert config.aggregator.pre == ('bucketing', 'nnm')
  config.attack.num_byzantine = 2
  assert config.aggregator.f == config.aggregator.nnm.f == 2
  config.aggregator.nnm.f = 3
  assert config.aggregator.f == config.attack.num_byzantine == 2
  config = digits.get_config('median,nnm,model_replacement')
  config.attack.num_byzantine = 2
  assert config.aggregator.nnm.f == 2
  assert 'f' not in config.aggregator


@pytest.mark.parametrize('rule', ['centered_clip', 'clipped_clustering'])
def test_options_of_one_name_stand_beside_each_other(rule):
  alone = digits.get_config(rule).aggregator.threshold
  for presets in (f'static_clip,{rule}', f'layerwise_{rule},nnm,static_clip'):
    config = digits.get_config(presets).aggregator
    assert (config.threshold, config.static_clip.threshold) == (alone, 1.0)
    aggregators.make(config)


@pytest.mark.parametrize('scope', ['model', 'leaf'])
def test_each_clip_has_its_own_threshold(scope):
  updates = jnp.array([[3.0, 4.0], [0.0, 0.5]])
  config = {'name': 'centered_clip', 'threshold': 2.0, 'scope': scope}
  config |= {'pre': ('static_clip',), 'static_clip': {'threshold': 1.0}}
  aggregator = aggregators.make(config)
  update, _ = aggregator.update(updates, aggregator.init(updates[0]))
  # The first clip cuts the first row to length 1. The second allows 2.
  np.testing.assert_allclose(update, [0.3, 0.65], rtol=1e-6)


def test_a_key_of_one_meaning_is_shared():
  config = digits.get_config('cosine_krum,clip_to_median_norm')
  assert config.aggregator.median == 'interpolated'
  assert config.aggregator.clip_to_median_norm.median == 'interpolated'
  aggregators.make(config.aggregator)


def test_f_follows_the_attack_and_not_the_other_way():
  config = digits.get_config('trimmed_mean,label_flipping')
  assert config.aggregator.f == 1
  config.attack.num_byzantine = 3
  assert config.aggregator.f == 3
  config.aggregator.f = 2
  assert config.attack.num_byzantine == 3


def test_the_attack_on_krum_knows_its_f():
  config = legato_mnist.get_config('krum,fang_krum')
  config.attack.num_byzantine = 4
  assert config.aggregator.f == config.attack.f == 4
  config.attack.f = 2
  assert config.aggregator.f == 4
  assert legato_mnist.get_config('median,fang_krum').attack.f == 1


@pytest.mark.parametrize('rule', ['legato', 'krum', 'nnm,median'])
def test_all_attackers_come_where_everybody_does(rule):
  config = legato_mnist.get_config(f'gaussian,{rule}')
  population_from(config.server, config.attack, 25)
  assert config.attack.num_attackers == config.attack.num_byzantine == 5
  assert config.aggregator.get('f', 5) == 5
  config.attack.num_attackers = 3
  assert config.attack.num_byzantine == 3
  config.server.clients_per_round = 20
  assert config.attack.num_byzantine == 1


def test_one_attacker_comes_where_clients_are_drawn():
  for presets in ('krum,gaussian', 'krum,gaussian,fedadam'):
    config = digits.get_config(presets)
    assert config.attack.num_byzantine == 1
    config.data.num_clients = 15
    assert config.attack.num_byzantine == config.attack.num_attackers == 3
    config.data.num_clients = 0
    assert config.attack.num_byzantine == 1
  config = celeba.get_config('krum,non_iid,gaussian')
  assert config.attack.num_byzantine == 1


def test_f_must_be_set_where_the_draw_decides():
  config = digits.get_config('trimmed_mean,label_flipping_sampled')
  with pytest.raises(TypeError, match=r'needs a value for aggregator.f, '):
    aggregators.make(config.aggregator)
  config.aggregator.f = 2
  aggregators.make(config.aggregator)


@pytest.mark.parametrize(
  'make',
  [
    preset_table.aggregators,
    preset_table.pre_aggregators,
    preset_table.partitions,
    preset_table.models,
    preset_table.servers,
  ],
  ids=lambda make: make.__name__,
)
def test_configs_share_no_value_that_is_to_be_set(make):
  def references(options):
    return {
      id(value): (value, name)  # the value, so that no other takes its id
      for name, keys in options.items()
      for value in keys.values()
      if isinstance(value, FieldReference)
    }

  one, two = references(make()), references(make())
  assert not one.keys() & two.keys()


def test_fltrust_holds_examples_out():
  assert digits.get_config('layerwise_fltrust').data.root_examples == 100
  assert digits.get_config('krum').data.root_examples == 0


@pytest.mark.parametrize('preset', common.attacks(common.base()))
def test_every_attack_preset_builds(preset):
  config = fashion_mnist.get_config(f'krum,{preset}')
  if preset.endswith('_sampled'):  # f has no value: the draw decides
    config.aggregator.f = 2
  attacks.make(config.attack)
  assert config.attack.num_attackers == 40
  assert ('num_byzantine' in config.attack) != preset.endswith('_sampled')


@pytest.mark.quick
def test_every_attack_has_a_preset():
  presets = common.attacks(common.base()).values()
  assert {keys['name'] for keys in presets} == set(attacks.ATTACKS)


def test_model_replacement_is_boosted_label_flipping():
  config = fashion_mnist.get_config('krum,model_replacement')
  assert config.attack.boost == 'replace'
  assert config.attack.name == 'label_flipping'
  assert fashion_mnist.get_config('krum,label_flipping').attack.boost == 1.0


@pytest.mark.quick
def test_a_boost_may_be_a_number_or_a_name():
  """Both can be set on the command line."""
  config = digits.get_config('krum,badnets')
  assert config.attack.boost == 1.0
  for boost in ('replace', 'n', 3.5):
    config.attack.boost = boost
    attacks.make(config.attack)


@pytest.mark.parametrize(
  'schedule', [{'first_round': 11}, {'rounds': (12, 14)}]
)
def test_an_attack_in_no_round_is_an_error(schedule):
  config = digits.get_config('krum,badnets')
  config.num_rounds = 10
  config.attack.update(schedule)
  with pytest.raises(ValueError, match='nobody attacks in rounds 1 to'):
    settings.from_config(config)


def test_fashion_mnist_is_the_papers():
  config = fashion_mnist.get_config('layerwise_cosine_bulyan')
  assert config.data.num_clients == 200
  assert config.server.to_dict() == {
    'clients_per_round': 100,
    'optimizer': 'sgd',
    'learning_rate': 1.0,
  }
  assert config.client.to_dict() == {
    'mode': 'training',
    'optimizer': 'adam',
    'learning_rate': 1e-3,
    'batch_size': 256,
    'local_epochs': 10,
    'drop_rate': 0.0,
    'dtype': 'float32',
    'update_dtype': 'float32',
  }
  assert config.num_rounds == 100
  assert (config.aggregator.name, config.aggregator.m) == ('multi_krum', 5)
  assert config.aggregator.f == 1
  assert config.attack.to_dict() == {'name': 'none'}


def test_presets_in_any_order_and_the_default():
  one = digits.get_config('krum,model_replacement')
  other = digits.get_config('model_replacement,krum')
  assert one.to_dict() == other.to_dict()
  assert fashion_mnist.get_config('').aggregator.distance == 'cosine'


def test_a_fifth_of_the_population_attacks():
  config = digits.get_config('krum,label_flipping')
  config.data.num_clients = 50
  assert config.attack.num_attackers == 10
  config.attack.num_attackers = 3
  assert config.data.num_clients == 50


@pytest.mark.quick
@pytest.mark.parametrize(
  ('presets', 'message'),
  [
    ('krun', r"(?s)unknown preset 'krun'; did you mean 'krum'\? .*zero"),
    ('krum,geomed', 'two presets of the aggregator'),
    ('label_flipping,model_replacement', 'two presets of the attack'),
    ('iid,dirichlet', 'two presets of the partition'),
    ('sgd,fedadam', 'two presets of the server'),
  ],
)
def test_wrong_presets(presets, message):
  with pytest.raises(ValueError, match=message):
    digits.get_config(presets)


@pytest.mark.parametrize('second', ['fig6_none', 'fig5'])
def test_two_shorthands(second):
  message = f"two shorthands, 'fig5' and '{second}'"
  with pytest.raises(ValueError, match=message):
    legato_mnist.get_config(f'fig5,krum,{second}')


def test_a_locked_config_takes_no_other_key():
  config = digits.get_config('krum')
  with pytest.raises(AttributeError):
    config.aggregator.m = 5
  with pytest.raises(AttributeError):
    config.attack.boost = 3.0


def test_a_partition_brings_its_keys():
  config = digits.get_config('krum,dirichlet')
  assert (config.data.partition, config.data.alpha) == ('dirichlet', 0.5)
  assert 'examples_per_client' not in config.data
  config = digits.get_config('krum')
  assert config.data.partition == 'iid'
  assert config.data.examples_per_client is None


@pytest.mark.quick
def test_every_partition_has_a_preset():
  named = {keys['partition'] for keys in common.partitions().values()}
  assert named == set(partitions.PARTITIONS)


@pytest.mark.parametrize('setting', [celeba, cifar10, emnist, fashion_mnist])
def test_every_preset_goes_with_every_setting_of_the_tables(setting):
  kinds = (
    common.aggregators(),
    common.attacks(common.base()),
    common.partitions(),
    common.models(),
    common.servers(),
    common.pre_aggregators(),
  )
  for preset in itertools.chain(*kinds):
    assert setting.get_config(preset).is_locked


def test_a_model_brings_its_keys():
  assert cifar10.get_config().model.to_dict() == {
    'name': 'efficientnet_b0',
    'dropout': 0.2,
    'stochastic_depth': 0.2,
    'pretrained': 'efficientnet_b0',
    'batch_stats': 'rule',
    'resize': 256,
    'crop': 224,
  }
  cnn = cifar10.get_config('krum,cnn').model
  assert cnn.to_dict() == emnist.get_config().model.to_dict()
  assert (cnn.features, cnn.hidden) == ((32, 64), (128,))


def test_natural_clients_are_found_in_the_data():
  config = celeba.get_config('krum,non_iid,model_replacement')
  assert config.data.partition == 'natural'
  assert (config.data.num_clients, config.data.min_examples) == (None, 31)
  assert config.attack.num_attackers is None
  found = population_from(config.server, config.attack, 1807)
  assert found.num_attackers == 361  # a fifth
  config.attack.num_attackers = 3
  found = population_from(config.server, config.attack, 1807)
  assert found.num_attackers == 3
  config = emnist.get_config('krum,non_iid')
  assert config.data.partition == 'natural'
  assert (config.data.num_clients, config.data.min_examples) == (None, 30)


def test_iid_is_over_200_clients():
  for setting in (celeba, emnist):
    for presets in ('krum', 'krum,iid'):
      data = setting.get_config(presets).data
      assert (data.partition, data.num_clients) == ('iid', 200)


# By the paper's name of a row: data set, partition and model of its run.
ROW_DATA = {
  'cifar10': ('cifar10', 'iid', 'efficientnet_b0'),
  'celeba_s': ('celeba', 'iid', 'efficientnet_b0'),
  'celeba_s_non_iid': ('celeba', 'natural', 'efficientnet_b0'),
  'emnist': ('emnist', 'iid', 'cnn'),
  'emnist_non_iid': ('emnist', 'natural', 'cnn'),
  'fashion_mnist': ('fashion_mnist', 'iid', 'cnn'),
}
# By the paper's name of an operator: the rule of its runs.
ROW_RULE = {'krum': 'krum', 'geomed': 'medoid', 'bulyan': 'multi_krum'}
PRINTED = (
  pathlib.Path(__file__).parents[1] / 'lca/report/layerwise_cosine_tables.csv'
)


def test_the_tables_rows_are_the_sweeps_runs_one_to_one():
  left = tables.get_runs()
  with open(PRINTED) as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(left) == 144
  for row in rows:
    config = left.pop(f'table{row["table"]}/{row["dataset"]}/{row["variant"]}')
    data, rule = config.data, config.aggregator
    found = (data.name, data.partition, config.model.name)
    assert found == ROW_DATA[row['dataset']]
    assert data.num_clients == (None if data.partition == 'natural' else 200)
    assert rule.name == ROW_RULE[row['operator']]
    assert rule.scope == ('leaf' if 'layerwise' in row['variant'] else 'model')
    assert rule.distance == (
      'cosine' if 'cosine' in row['variant'] else 'euclidean'
    )
    if rule.distance == 'cosine':
      assert rule.clip == 'median'
    assert config.attack.name == row['attack']
    if row['attack'] == 'label_flipping':
      assert config.attack.boost == 'replace'
      assert config.attack.num_byzantine == 1
    assert config.num_rounds == 100
    assert config.server.clients_per_round == 100
    assert (config.client.batch_size, config.client.local_epochs) == (256, 10)


def test_the_reduced_runs():
  runs_of = tables.get_runs('reduced')
  full = {
    f'reduced/{name}' for name in tables.get_runs() if '/fashion_mnist/' in name
  }
  assert len(full) == 24 and len(runs_of) == 40 and full < set(runs_of)
  for name, config in runs_of.items():
    assert (config.num_rounds, config.client.local_epochs) == (30, 1)
    assert config.server.clients_per_round == 20
    assert config.data.num_clients == 200
    aggregators.make(config.aggregator)
    attacks.make(config.attack)
    rule = name.split('/')[-1]
    if name not in full:
      expected = fashion_mnist.get_config(rule).aggregator.to_dict()
      assert config.aggregator.to_dict() == expected
      assert name.split('/')[1] == 'beyond_' + (
        'model_replacement' if 'boost' in config.attack else 'none'
      )
  with pytest.raises(ValueError, match="unknown scale 'half'"):
    tables.get_runs('half')


@pytest.mark.parametrize('preset', common.servers())
def test_every_server_preset_builds(preset):
  config = digits.get_config(f'krum,{preset}')
  assert config.server.clients_per_round == 15
  keys = config.server.to_dict()
  del keys['clients_per_round']
  optimizers.make(keys.pop('optimizer'), **keys).init({'w': jnp.zeros(2)})


def test_legatos_experiments_are_the_papers():
  config = legato_mnist.get_config('fig5,krum')
  assert config.data.num_clients == config.server.clients_per_round == 25
  assert config.data.examples_per_client == 1000
  assert config.client.to_dict() == {
    'mode': 'gradient',
    'batch_size': 50,
    'momentum': 0.0,
    'drop_rate': 0.0,
    'dtype': 'float32',
    'update_dtype': 'float32',
  }
  assert config.server.to_dict() == {
    'optimizer': 'adadelta',
    'learning_rate': 0.05,
    'rho': 0.9,
    'eps': 1e-6,
    'clients_per_round': 25,
  }
  assert config.attack.name == 'fall_of_empires'
  assert config.attack.epsilon == 0.001
  assert config.attack.num_byzantine == config.aggregator.f == 11
  config = legato_mnist.get_config('fig6_sigma100')
  assert config.aggregator.name == 'legato'
  assert (config.aggregator.window, config.aggregator.scope) == (10, 'leaf')
  assert config.server.learning_rate == 0.03
  assert (config.data.partition, config.attack.sigma) == ('one_class', 100.0)
  assert config.attack.num_byzantine == config.attack.num_attackers == 4
  config = legato_mnist.get_config('fig4_sigma200,fedavg')
  assert config.data.num_clients == config.server.clients_per_round == 10
  assert config.attack.num_byzantine == 2
  config = legato_cifar10.get_config('fig5')
  assert config.data.examples_per_client == 2000
  assert config.client.batch_size == 1000
  assert config.server.learning_rate == 0.01


def test_the_other_half_of_legatos_fig_5():
  runs = legato_figures.get_runs('cifar10')
  assert list(runs) == [f'cifar10/fig5/{rule}' for rule in legato_figures.RULES]
  for name, config in runs.items():
    rule = name.split('/')[2]
    assert config.aggregator.name == {'fedavg': 'mean'}.get(rule, rule)
    assert (config.data.name, config.attack.num_byzantine) == ('cifar10', 11)
  with pytest.raises(ValueError, match="unknown scale 'emnist'"):
    legato_figures.get_runs('emnist')


@pytest.mark.parametrize('name', legato_figures.get_runs())
def test_every_run_of_legatos_figures_can_be_made(name):
  config = legato_figures.get_runs()[name]
  aggregators.make(config.aggregator)
  attacks.make(config.attack)
  figure, line = name.split('/')
  of = figure.split('_')[0]
  rule = {'fig2': 'fedavg', 'fig9': 'legato'}.get(of, line.split(',')[0])
  assert config.aggregator.name == {'fedavg': 'mean'}.get(rule, rule)
  if of == 'fig9':
    assert config.aggregator.window == int(line.removeprefix('window='))
  elif rule == 'legato':
    assert config.aggregator.window == 10
  one_class = of in ('fig6', 'fig9') or figure == 'fig3_non_iid'
  assert (config.data.partition == 'one_class') == one_class
  rate = 0.03 if of in ('fig6', 'fig9') else 0.05
  assert config.server.learning_rate == rate
  if 'none' in name.replace('/', '_').split('_'):
    assert config.attack.name == 'none'
  elif of == 'fig5':
    assert config.attack.name == 'fall_of_empires'
    assert (config.attack.epsilon, config.attack.num_byzantine) == (0.001, 11)
  else:
    sigma = re.search(r'sigma=?(\d+)', name)
    assert config.attack.name == 'gaussian'
    assert config.attack.sigma == float(sigma[1] if sigma else 20)
    assert config.attack.num_byzantine == (2 if of == 'fig4' else 4)
  deep = '8 convolutions' in line
  assert len(config.model.features) == (8 if deep else 2)
  assert config.model.padding == 'VALID'
