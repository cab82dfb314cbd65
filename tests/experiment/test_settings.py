"""Tests of settings and sections: defaults, parts, errors that name keys."""

import copy
import json

import jax
import jax.numpy as jnp
import pytest

import lca
from configs import attacks, common, digits, legato_figures, tables
from lca import data, models
from lca.aggregators import Aggregator
from lca.experiment import (
  describe,
  reading,
  sections,
  settings,
  train,
)
from lca.federated.streaming import StreamedSimulation
from lca.registry import options_of, type_of


def config(presets='krum,label_flipping', **changes):
  config = digits.get_config(presets).unlock()
  small = {
    'num_rounds': 2,
    'model.features': (2,),
    'model.hidden': (),
    'client.local_epochs': 1,
    'parallel.mesh': 1,
  }
  config.update_from_flattened_dict(small | changes)
  return config


def test_a_partition_without_its_keys_is_told_its_preset():
  for preset, partition, others in (
    ('iid', 'dirichlet', 'examples_per_client'),
    ('iid', 'natural', 'examples_per_client'),
    ('dirichlet', 'iid', 'alpha, redraw_below'),
  ):
    changed = config(preset, **{'data.partition': partition})
    said = (
      f"^data.partition='{partition}' takes no {others}: compose the preset "
    )
    with pytest.raises(TypeError, match=f'{said}{partition}, '):
      settings.from_config(changed)
    settings.from_config(config(partition))  # the remedy works


@pytest.mark.parametrize(
  ('presets', 'changes', 'message'),
  [
    ('krum', {'data.name': None}, 'data.name must be set'),
    (
      'krum,label_flipping_sampled',
      {},
      'krum needs a value for aggregator.f, got None',
    ),
    ('sign_majority', {}, 'needs a value for aggregator.theta, got None'),
    ('krum', {'aggregator.scope': 'layer'}, '^aggregator.scope: scope must be'),
    ('krum', {'eval.layers': 'layer'}, '^eval.layers: scope must be'),
  ],
)
def test_a_value_that_lacks_or_is_unknown_is_named_by_its_key(
  presets, changes, message
):
  with pytest.raises((TypeError, ValueError), match=message):
    settings.from_config(config(presets, **changes))


def test_the_defaults_are_the_bases():
  base = common.base().to_dict()
  for name, value in settings.DEFAULTS.items():
    if isinstance(value, dict):
      assert {k: value[k] for k in base[name]} == base[name]
    else:
      assert base[name] == value
  assert set(base) - set(settings.DEFAULTS) == {'model'}


def test_every_key_without_a_value_has_a_type():
  for section in sections.SECTIONS.values():
    for name, parameter in options_of(section).items():
      assert type_of(parameter) in (bool, int, float, str), name


@pytest.mark.parametrize('sweep', [attacks, tables, legato_figures])
def test_a_whole_config_is_complete_as_it_is(sweep):
  for run in sweep.get_runs().values():
    assert reading.complete(run) == run.to_dict()


def test_what_a_config_leaves_out_has_its_default():
  short = {
    'num_rounds': 3,
    'data': {'name': 'digits', 'num_clients': 20},
    'server': {'clients_per_round': 15},
    'model': common.models()['cnn'],
    'aggregator': {'name': 'median'},
    'attack': {'name': 'zero', 'num_byzantine': 2},
  }
  before = copy.deepcopy(short)
  made = settings.from_config(short)
  assert short == before
  assert made.config['client'] == settings.DEFAULTS['client']
  assert made.eval.every == 1
  population = made.parts().population
  assert (population.num_attackers, population.num_byzantine) == (4, 2)
  json.dumps(made.config)


@pytest.mark.parametrize(
  ('key', 'near'),
  [
    ('num_round', 'num_rounds'),
    ('evall', 'eval'),
    ('eval.evry', 'every'),
    ('train.on_nonfinit', 'on_nonfinite'),
    ('parallel.chunksize', 'chunk_size'),
    ('checkpoint.kep', 'keep'),
    ('client.local_epoch', 'local_epochs'),
    ('server.client_per_round', 'clients_per_round'),
    ('server.momentun', 'momentum'),
    ('data.min_example', 'min_examples'),
    ('data.archivedir', 'archive_dir'),
    ('data.example_per_client', 'examples_per_client'),
  ],
)
def test_an_unknown_key_names_the_nearest(key, near, monkeypatch):
  wrong = config()
  wrong.update_from_flattened_dict({})
  *path, last = key.split('.')
  section = wrong[path[0]] if path else wrong
  section[last] = 1
  message = f"takes no {last}; did you mean '{near}'"
  with pytest.raises(TypeError, match=message):
    settings.from_config(wrong)
  with pytest.raises(TypeError, match=message):
    settings.from_config(wrong.to_dict())


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'client.learning_rate': -1.0}, r'^client\.learning_rate must be positiv'),
    ({'server.learning_rate': 0.0}, r'^server\.learning_rate must be positive'),
    ({'client.optimizer': 'adaam'}, "'adaam'; did you mean 'adam'"),
    ({'server.optimizer': 'fedadan'}, "did you mean 'fedadam'"),
    ({'client.batch_size': 0}, r'^client\.batch_size must be at least 1'),
  ],
)
def test_errors_say_whose(changes, message):
  with pytest.raises(ValueError, match=message):
    settings.from_config(config(**changes))


def test_keys_of_the_other_mode():
  wrong = config()
  common.federated_sgd(wrong, batch_size=4)
  settings.from_config(wrong)
  wrong.client.local_epochs = 2
  with pytest.raises(
    ValueError, match='does not go with the keys local_epochs'
  ):
    settings.from_config(wrong)


def test_a_rule_that_needs_the_server_names_the_key():
  wrong = config('fltrust')
  assert wrong.data.root_examples == 100
  settings.from_config(wrong)
  wrong.data.root_examples = 0
  with pytest.raises(TypeError, match=r'server_update.* data\.root_examples'):
    settings.from_config(wrong)


def test_the_hint_on_weights_is_for_those_who_have_not_set_them():
  changes = {'client.drop_rate': 0.2, 'num_rounds': 3}
  with pytest.raises(
    ValueError, match=r"client\.drop_rate or aggregator\.weights='examples'"
  ):
    settings.from_config(config('fedavg', **changes))
  weighed = config('fedavg', **changes, **{'aggregator.weights': 'examples'})
  settings.from_config(weighed)
  # The hint is for the mean alone, not for other rules that fail.
  changes['aggregator.f'] = 4
  with pytest.raises(ValueError) as info:
    settings.from_config(config('monna', **changes))
  assert 'monna returns an aggregate that is not finite' in str(info.value)
  assert 'weights' not in str(info.value)


def test_clients_that_were_dropped_are_the_cause():
  skewed = config('median,dirichlet', **{'data.alpha': 0.1})
  made = settings.from_config(skewed)
  found = made.parts().data.num_clients
  assert found < 20
  skewed.server.clients_per_round = found + 1
  message = (
    f'clients_per_round={found + 1} must lie .* population of {found} clients: '
    rf'data\.min_examples=30 dropped {20 - found} of the data\.num_clients=20'
  )
  with pytest.raises(ValueError, match=message):
    settings.from_config(skewed).parts()


def test_a_part_is_built_once(monkeypatch):
  calls = {'rule': 0, 'attack': 0, 'optimizer': 0, 'classifier': 0}

  def counted(name, function):
    def counting(*args, **options):
      calls[name] += 1
      return function(*args, **options)

    return counting

  for name, module, attribute in (
    ('rule', settings.aggregators, 'make'),
    ('attack', settings.attacks, 'make'),
    ('optimizer', settings.optimizers, 'make'),
    ('classifier', models, 'Classifier'),
  ):
    function = counted(name, getattr(module, attribute))
    monkeypatch.setattr(module, attribute, function)
  settings.from_config(config()).parts()
  # The two optimisers are the clients' and the server's.
  assert calls == {'rule': 1, 'attack': 1, 'optimizer': 2, 'classifier': 1}


def test_no_data_are_read_before_the_parts(monkeypatch):
  reads = []
  load = data.load
  monkeypatch.setattr(
    data, 'load', lambda *args, **options: reads.append(1) or load(*args)
  )
  made = settings.from_config(config())
  assert not reads
  parts = made.parts()
  assert reads == [1]
  assert parts.classifier.module.num_classes == 10
  assert parts.train.losses == parts.classifier.losses


def test_a_rule_that_returns_no_update(monkeypatch):
  monkeypatch.setattr(
    settings.aggregators,
    'make',
    lambda keys: Aggregator(lambda p: (), lambda u, s, **_: (u, s)),
  )
  with pytest.raises(ValueError, match='must return one update'):
    settings.from_config(config())


def lines_of(config):
  made = settings.from_config(config)
  return list(describe.lines(made.config, made.parts()))


def test_a_line_of_what_runs():
  (line,) = lines_of(config('layerwise_cosine_krum,label_flipping'))
  assert line == (
    'krum of each leaf (clip=median, clip_by=scope, distance=cosine, f=1, '
    'median=interpolated); label_flipping (boost=1.0, flip_fraction=1.0) by 4 '
    'clients, 1 in a round; cnn on digits, iid; 15 of 20 clients a round'
  )
  (line,) = lines_of(config('nnm,median,dirichlet'))
  assert line.startswith('nnm (f=1), then median of the model (median=')
  assert 'no attack; cnn on digits, dirichlet (alpha=0.5)' in line


@pytest.mark.parametrize(
  'update',
  [
    lambda updates, state: (lca.median(updates), state),
    lambda updates, state, *, params, client_ids, weights: (
      jax.tree.map(
        lambda x, w: w * 0 + x[jnp.argmax(weights * client_ids)],
        updates,
        params,
      ),
      state,
    ),
  ],
  ids=['names none', 'needs some'],
)
def test_an_aggregator_is_given_what_it_names(update, monkeypatch):
  aggregator = Aggregator(lambda params: (), update)
  monkeypatch.setitem(lca.aggregators.AGGREGATORS, 'own', lambda: aggregator)
  changes = {'aggregator': {'name': 'own'}, 'client.drop_rate': 0.1}
  parts = settings.from_config(config(**changes)).parts()
  simulation = parts.simulation()
  _, metrics = simulation.run_round(simulation.init(), 0)
  assert metrics['byzantine'] == 1


def test_an_f_below_the_attackers_is_said():
  few = config('krum,zero', **{'attack.num_byzantine': 3, 'aggregator.f': 1})
  _, note = lines_of(few)
  assert note == 'note: aggregator.f=1 is less than the 3 attackers of a round'
  few.aggregator.f = 3
  assert len(lines_of(few)) == 1
  drawn = config('krum,zero_sampled', **{'aggregator.f': 2})
  assert 'is less than the 3 attackers' in lines_of(drawn)[1]


@pytest.mark.parametrize('clients', [14, 15])
def test_an_attack_that_is_none_is_said(clients):
  weak = config('median,alie', **{'server.clients_per_round': clients})
  _, note = lines_of(weak)
  assert 'sends the mean of the honest updates' in note
  assert 'set attack.z' in note
  weak.attack.z = 1.5
  assert len(lines_of(weak)) == 1
  weak.attack.z = None
  weak.attack.num_byzantine = 4
  assert len(lines_of(weak)) == 1


def test_an_attacker_that_knows_itself_alone_is_said():
  own = config('median,min_max', **{'attack.knowledge': 'byzantine'})
  _, note = lines_of(own)
  assert 'min_max of one attacker that knows its own update alone' in note
  own.attack.num_byzantine = 2
  assert len(lines_of(own)) == 1
  falls = {'attack.knowledge': 'byzantine', 'attack.epsilon': 1.0}
  assert len(lines_of(config('median,fall_of_empires', **falls))) == 1


def test_attackers_that_train_in_their_own_way_are_said():
  (line,) = lines_of(config('median,pgd'))
  assert '1 in a round, trained in their own way (radius=0.25); cnn' in line


def test_impossible_trainings_of_attackers():
  few = {'attack.training.batch_share': 0.001}
  with pytest.raises(ValueError, match=r'of a batch of .* is no example'):
    settings.from_config(config('median,flip_source', **few))
  with pytest.raises(ValueError, match=r'set attack\.share=1\.0, got 0\.3125'):
    settings.from_config(config('median,badnets', **few))
  gradients = config('median,a3fl')
  common.federated_sgd(gradients, batch_size=4)
  with pytest.raises(ValueError, match=r"a3fl.* needs client\.mode='training'"):
    settings.from_config(gradients)


def broken(**changes):
  changes = {'eval.every': 2} | changes
  return config('fedavg,constant', **{'attack.value': 1e30} | changes)


def test_a_test_loss_that_is_not_finite_stops_its_round(tmp_path):
  """Aggregate and model are finite, and the model's test loss is not."""
  with pytest.raises(FloatingPointError) as info:
    train.train_and_evaluate(broken(**{'eval.every': 1}), tmp_path)
  assert 'in round 1 ' in str(info.value)
  assert not (tmp_path / 'summary.json').exists()
  changes = {'eval.every': 1, 'train.on_nonfinite': 'continue'}
  summary = train.train_and_evaluate(broken(**changes), tmp_path)
  assert summary['num_rounds'] == 2


def test_the_attackers_of_the_round_are_named(tmp_path):
  experiment = train.set_up(broken(**{'eval.every': 1}), tmp_path)
  (attacker,) = experiment.simulation.drawing.attackers(0)
  with pytest.raises(FloatingPointError, match=rf'clients \[{attacker}\]'):
    train.run(experiment)


def test_a_finished_experiment_runs_once(tmp_path, capsys):
  experiment = train.set_up(config(), tmp_path)
  said = capsys.readouterr().out.splitlines()
  assert said[0].startswith('krum of the model') and said[-1] == 'compiling ...'
  summary = train.run(experiment)
  assert capsys.readouterr().out.count('round ') == 2
  assert train.run(experiment) == summary
  assert 'round ' not in capsys.readouterr().out


def test_an_experiment_that_was_stopped_goes_on(tmp_path):
  experiment = train.set_up(config(), tmp_path)
  assert train.run(experiment, stopping=lambda: True) is None
  assert train.run(experiment)['num_rounds'] == 2


def test_two_experiments_of_one_directory(tmp_path):
  first = train.set_up(config(), tmp_path)
  with pytest.raises(OSError, match='this process has set up a run in'):
    train.set_up(config(), tmp_path)
  summary = train.run(first)
  assert train.run(train.set_up(config(), tmp_path)) == summary


def test_without_jit_one_line_says_what_to_use(tmp_path):
  with (
    jax.disable_jit(),
    pytest.raises(ValueError, match=r'JAX_DISABLE_JIT.*jax\.debug\.print'),
  ):
    train.set_up(config(), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  with jax.disable_jit():  # rules run on their own, as the message says
    assert lca.krum(jnp.array([[0.0], [1.0], [1.0], [1.0], [9.0]]), f=1) == 1


def test_parallel_stream_makes_streamed_rounds(tmp_path):
  streamed = config(
    **{'parallel.stream': True, 'parallel.stream_dir': str(tmp_path)}
  )
  simulation = settings.from_config(streamed).parts().simulation()
  assert isinstance(simulation, StreamedSimulation)
  with pytest.raises(ValueError, match=r'stream_dir=.* only with parallel.str'):
    settings.from_config(config(**{'parallel.stream_dir': str(tmp_path)}))
  with pytest.raises(ValueError, match=r'parallel.stream=True .* with a state'):
    settings.from_config(config('legato', **{'parallel.stream': True}))


def test_detection_needs_a_rule_that_leaves_clients_out(tmp_path):
  changes = {'eval.detection': True}
  with pytest.raises(ValueError, match=r'eval\.detection=True measures whom'):
    settings.from_config(config('median', **changes))
  train.train_and_evaluate(config('krum,zero', **changes), tmp_path)
  header, *rows = (tmp_path / 'metrics.csv').read_text().splitlines()
  assert header.endswith(
    'detection_precision,detection_recall,detection_f1,false_positive_rate'
  )
  assert len(rows) == 2
