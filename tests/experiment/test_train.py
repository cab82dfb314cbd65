"""Tests of whole runs on the digits: files, metrics, restarts, errors."""

import csv
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from run_files import config, event_steps

from configs import celeba, common, digits
from lca import data
from lca.experiment import recorder, settings, train
from lca.experiment.identity import run_id
from lca.federated.population import population_from
from lca.federated.simulation import Simulation


def rows(workdir, name='metrics'):
  with open(workdir / f'{name}.csv') as file:
    return list(csv.DictReader(file))


def test_the_line_of_a_round_shows_all_losses_and_accuracies():
  row = {
    'round': 2,
    **{'test_loss': 1.5, 'test_accuracy': 0.25},
    **{'validation_loss': 2.5, 'validation_accuracy': 0.75},
    **{'train_loss': 3.5, 'byzantine': 1},
  }
  assert recorder._line(row, num_rounds=10, seconds=0.5) == (
    'round  2/10  test loss 1.5000  test accuracy 0.2500  validation loss '
    '2.5000  validation accuracy 0.7500  train loss 3.5000  2 rounds/s  '
    '0:00:04 left'
  )


def check_same_end(workdir, reference):
  """Checks that two runs ended with the same metrics and state, bit by bit."""
  states = []
  for path in (workdir, reference):
    with ocp.StandardCheckpointer() as checkpointer:
      states.append(checkpointer.restore(path / 'checkpoints/4/state'))
  jax.tree.map(np.testing.assert_array_equal, *states)
  written = (reference / 'metrics.csv').read_bytes()
  assert (workdir / 'metrics.csv').read_bytes() == written
  assert event_steps(workdir, 'test/loss') == [1, 2, 3, 4]


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """Runs four rounds without a stop; returns directory and summary."""
  workdir = tmp_path_factory.mktemp('runs') / 'straight run'
  summary = train.train_and_evaluate(config(num_rounds=4), workdir)
  return workdir, summary


@pytest.mark.quick
def test_a_run_leaves_its_files(straight):
  workdir, summary = straight
  written = json.loads((workdir / 'config.json').read_text())
  assert written['config']['aggregator']['name'] == 'krum'
  environment = written['environments'][0]
  assert environment['packages']['jax'] and environment['devices']
  assert [row['round'] for row in rows(workdir)] == ['1', '2', '3', '4']
  assert [row['round'] for row in rows(workdir, 'times')] == list('1234')
  assert all(float(row['seconds']) > 0 for row in rows(workdir, 'times'))
  clients = rows(workdir, 'clients')
  # A fifth of the 20 clients attack; each has its share of 1,437 digits.
  assert [row['client'] for row in clients] == [str(i) for i in range(20)]
  assert sum(int(row['byzantine']) for row in clients) == 4
  assert sum(int(row['examples']) for row in clients) == 1437
  assert event_steps(workdir, 'test/loss') == [1, 2, 3, 4]
  assert json.loads((workdir / 'summary.json').read_text()) == summary


def test_the_summary_is_that_of_the_rows(straight):
  workdir, summary = straight
  losses = [float(row['test_loss']) for row in rows(workdir)]
  accuracies = [float(row['test_accuracy']) for row in rows(workdir)]
  assert summary == {
    'num_rounds': 4,
    'final_test_loss': losses[-1],
    'average_test_loss': pytest.approx(np.mean(losses)),
    'min_test_loss': min(losses),
    'average_test_accuracy': pytest.approx(np.mean(accuracies)),
    'max_test_accuracy': max(accuracies),
  }


@pytest.mark.parametrize(
  'stops', [pytest.param([1], marks=pytest.mark.quick), [2, 3]]
)
def test_a_restarted_run_ends_in_the_same_bits(straight, tmp_path, stops):
  reference, summary = straight
  for num_rounds in [*stops, 4]:
    again = train.train_and_evaluate(config(num_rounds=num_rounds), tmp_path)
  assert again == summary
  check_same_end(tmp_path, reference)


def test_a_rule_with_a_memory_restarts_in_the_same_bits(tmp_path):
  straight, again = tmp_path / 'straight', tmp_path / 'again'
  presets = 'layerwise_centered_clip,label_flipping'
  train.train_and_evaluate(config(presets, num_rounds=4), straight)
  for num_rounds in (2, 4):
    train.train_and_evaluate(config(presets, num_rounds=num_rounds), again)
  check_same_end(again, straight)


def test_rounds_after_the_last_checkpoint_are_run_again(
  straight, tmp_path, monkeypatch
):
  run_round = Simulation.run_round

  def killed(self, state, round_idx, last, report):
    if round_idx == 3:
      raise KeyboardInterrupt
    return run_round(self, state, round_idx, last, report)

  monkeypatch.setattr(Simulation, 'run_round', killed)
  with pytest.raises(KeyboardInterrupt) as info:
    train.train_and_evaluate(config(num_rounds=4), tmp_path)
  assert f'checkpoint in {tmp_path}, if the same' in info.value.__notes__[0]
  assert len(rows(tmp_path)) == 3  # one more than in the last checkpoint
  assert not (tmp_path / 'summary.json').exists()
  monkeypatch.undo()
  # The process may have been killed while it wrote a line, or between files.
  with open(tmp_path / 'metrics.csv', 'a') as file:
    file.write('4,2.2')
  for events in tmp_path.glob('events.*'):
    events.unlink()
  train.train_and_evaluate(config(num_rounds=4), tmp_path)
  reference, _ = straight
  check_same_end(tmp_path, reference)


def test_a_finished_run_is_not_run_again(straight):
  workdir, summary = straight
  experiment = train.set_up(config(num_rounds=4), workdir)
  assert experiment.simulation is None
  assert train.run(experiment) == summary


def test_another_configs_workdir_is_refused(straight):
  workdir, _ = straight
  with pytest.raises(ValueError, match=r'client\.batch_size was 16 .* is 8'):
    train.set_up(config(num_rounds=4, **{'client.batch_size': 8}), workdir)
  with pytest.raises(ValueError, match=r'num_rounds was 4 .* is 3'):
    train.set_up(config(num_rounds=3), workdir)
  with pytest.raises(ValueError, match=r'aggregator\.clip was .median'):
    train.set_up(config('krum,label_flipping', num_rounds=4), workdir)


def test_how_and_where_it_runs_may_change(straight):
  workdir, _ = straight
  free = {
    'parallel.chunk_size': 2,
    'checkpoint.keep': 5,
    'eval.batch_size': 100,
    'train.on_nonfinite': 'continue',
  }
  train.set_up(config(num_rounds=4, **free), workdir)


def test_a_run_older_than_a_key_goes_on(straight, tmp_path):
  workdir, summary = straight
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  about = json.loads((workdir / 'config.json').read_text())
  now = about['config']
  before = now | {'client': now['client'].copy()}
  assert before['client'].pop('update_dtype') == 'float32'
  assert run_id(before) == run_id(now)
  about['config'] = before
  (tmp_path / 'config.json').write_text(json.dumps(about))
  assert train.train_and_evaluate(config(num_rounds=4), tmp_path) == summary
  changed = config(num_rounds=4, **{'client.update_dtype': 'bfloat16'})
  assert run_id(changed.to_dict()) != run_id(now)
  with pytest.raises(ValueError, match=r"update_dtype was 'float32' .* 'bfl"):
    train.set_up(changed, tmp_path)


def test_a_directory_with_other_files_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(ValueError, match='no run'):
    train.set_up(config(), tmp_path)


def test_a_round_that_is_not_finite_stops_the_run(tmp_path):
  changes = {'attack.num_byzantine': 2, 'num_rounds': 2}
  broken = config('fedavg,non_finite', **changes)
  experiment = train.set_up(broken, tmp_path)
  size = sum(x.size for x in jax.tree.leaves(experiment.simulation.init()))
  population = population_from(broken.server, broken.attack, 20)
  ids, byzantine = population.sample(0, 0)
  attackers = str(sorted(ids[byzantine].tolist()))
  assert attackers.count(',') == 1
  with pytest.raises(FloatingPointError) as info:
    train.run(experiment)
  message = f'model after it, has {size} entries that are not finite'
  assert message in str(info.value) and attackers in str(info.value)
  (row,) = rows(tmp_path)
  assert (row['rejected'], row['nonfinite']) == ('2', str(size))
  assert event_steps(tmp_path, 'health/nonfinite') == [1]
  assert not (tmp_path / 'summary.json').exists()

  changes['train.on_nonfinite'] = 'continue'
  again = config('fedavg,non_finite', **changes)
  summary = train.train_and_evaluate(again, tmp_path)
  assert np.isnan(summary['final_test_loss'])
  # In round 2 all clients train a model of NaN, and send NaN.
  assert [row['rejected'] for row in rows(tmp_path)] == ['2', '15']


def test_a_robust_rule_reports_whom_it_rejected(tmp_path):
  robust = config('layerwise_cosine_krum,non_finite', num_rounds=1)
  train.train_and_evaluate(robust, tmp_path)
  (row,) = rows(tmp_path)
  assert (row['byzantine'], row['rejected'], row['nonfinite']) == (
    '1',
    '1',
    '0',
  )


def test_clients_that_do_not_answer_are_counted_apart(tmp_path):
  changes = {'client.drop_rate': 0.2, 'aggregator.f': 6, 'parallel.mesh': 3}
  train.train_and_evaluate(config('krum,non_finite', **changes), tmp_path)
  found = rows(tmp_path)
  assert [row['rejected'] for row in found] == ['1', '1', '1']
  assert [row['nonfinite'] for row in found] == ['0', '0', '0']
  assert 0 < sum(int(row['dropped']) for row in found) < 18


@pytest.mark.parametrize(
  ('presets', 'f', 'message'),
  [
    ('krum', 3, r'f=3 is too small .* clients of round 3, 4 do not answer;'),
    ('krum,sign_flip', 4, r'of the 15 .* 3, 4 do .* and 1 attack; .* least 5$'),
    ('krum,zero_sampled', 3, r'f=3 is .* of round 3, 4 do not answer; .* 4$'),
    (
      'fedavg',
      None,
      r"mean .* 4 of 15 clients do .* in round 3; .*'examples'$",
    ),
    ('monna', 4, 'monna .* 4 of 15 clients do not answer, .* another rule$'),
  ],
)
def test_rules_that_need_every_answer(tmp_path, presets, f, message):
  changes = {'client.drop_rate': 0.2} | ({'aggregator.f': f} if f else {})
  with pytest.raises(ValueError, match=message):
    train.set_up(config(presets, **changes), tmp_path)


def test_a_run_killed_before_its_first_round_can_start_again(
  straight, tmp_path, monkeypatch
):
  def killed(self):
    raise KeyboardInterrupt

  monkeypatch.setattr(Simulation, 'init', killed)
  with pytest.raises(KeyboardInterrupt):
    train.train_and_evaluate(config(num_rounds=4), tmp_path)
  monkeypatch.undo()
  _, summary = straight
  assert train.train_and_evaluate(config(num_rounds=4), tmp_path) == summary


@pytest.mark.parametrize('content', ['{"model_type": "bert"}', '{"conf'])
def test_a_config_of_something_else_is_refused(tmp_path, content):
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(ValueError, match=r'config\.json is not the config'):
    train.set_up(config(), tmp_path)


def test_evaluation_in_some_rounds(tmp_path):
  train.train_and_evaluate(config(**{'eval.every': 2}), tmp_path)
  assert [bool(row['test_loss']) for row in rows(tmp_path)] == [
    False,
    True,
    True,
  ]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'num_rounds': 0}, 'num_rounds must be at least 1'),
    ({'aggregator.f': 7}, r'krum needs .* n > 2f \+ 2, got n=15, f=7'),
    ({'attack.num_attackers': 21}, 'num_attackers=21'),
    ({'attack.num_byzantine': 5}, 'num_byzantine=5'),
    ({'server.clients_per_round': 21}, 'clients_per_round=21'),
    ({'attack.sampled': True}, r'either attack\.sampled'),
    ({'seed': -1}, r'seed must lie in'),
    ({'model.hidden': (0,)}, r'model\.hidden must be at least 1'),
    ({'data.min_examples': 0}, 'empty client'),
    ({'data.min_examples': 100}, 'min_examples=100'),
    ({'client.learning_rate': 0.0}, 'learning_rate must be positive'),
    ({'client.mode': 'gradient'}, r"client\.mode='gradient' does not go"),
    ({'client.mode': 'sgd'}, r'client\.mode must be one of'),
    ({'client.dtype': 'float16'}, r"client\.dtype must .* got 'float16'"),
    ({'client.update_dtype': ''}, r"client\.update_dtype must .* got ''"),
    ({'train.on_nonfinite': 'ignore'}, r"one of \['stop', .*, got 'ig"),
    ({'checkpoint.every': 0}, r'checkpoint\.every must be at least 1'),
    ({'aggregator.scope': 'layer'}, "scope must be one of .*'layer'"),
  ],
)
def test_wrong_configs_are_errors_before_the_training(
  tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    train.set_up(config(**changes), tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def no_data(*args, **options):
  raise AssertionError('the data were read')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'client.optimizer': 'adaam'}, "unknown optimizer 'adaam'"),
    ({'client.batch_size': 0}, 'batch_size must be at least 1'),
    ({'client.local_epochs': 0}, 'local_epochs must be at least 1'),
    ({'parallel.microbatch_size': 0}, 'microbatch_size must be at least 1'),
    ({'parallel.chunk_size': 0}, 'chunk_size must be at least 1'),
    ({'model.name': 'resnet'}, "unknown model 'resnet'"),
    ({'model.pool': 'first'}, r"model\.pool must be one of .*'first'"),
    ({'data.partition': 'idd'}, "unknown partition 'idd'"),
    ({'eval.layers': 'layer'}, "scope must be one of .*'layer'"),
  ],
)
def test_typos_cost_no_data(tmp_path, monkeypatch, changes, message):
  monkeypatch.setattr(data, 'load', no_data)
  with pytest.raises(ValueError, match=message):
    train.set_up(config(**changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'crop': 300}, r'model\.crop=300 is larger than model\.resize=256'),
    ({'batch_stats': 'means'}, r"model\.batch_stats must be .* got 'means'"),
    ({'batch_stats': 'server'}, r"='server' needs .*data\.root_examples"),
  ],
)
def test_a_models_typos_cost_no_data(tmp_path, monkeypatch, changes, message):
  monkeypatch.setattr(data, 'load', no_data)
  wrong = digits.get_config('krum,efficientnet_b0')
  wrong.model.update({'pretrained': ''} | changes)
  with pytest.raises(ValueError, match=message):
    train.set_up(wrong, tmp_path / 'run')


def test_weights_that_are_not_there_cost_no_data(tmp_path):
  wrong = celeba.get_config('krum')
  wrong.model.pretrained = str(tmp_path / 'typo.pth')
  wrong.data.archive_dir = str(tmp_path / 'no archives')
  with pytest.raises(ValueError, match=r'no file .*typo\.pth'):
    train.set_up(wrong, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_model_sees_pixels_as_its_weights_do():
  config_b0 = digits.get_config('krum,efficientnet_b0').unlock()
  config_b0.model.name = 'efficientnet_lite0'
  config_b0.model.pretrained = ''
  classifier = settings.from_config(config_b0).parts().classifier
  assert (classifier.mean, classifier.std) == ((127.0,), (128.0,))
  classifier = settings.from_config(config()).parts().classifier
  assert (classifier.mean, classifier.std) == ((8.0,), (8.0,))


def gradient(presets='legato,gaussian', **changes):
  config = digits.get_config(presets).unlock()
  common.federated_sgd(config, batch_size=16)
  config.server = common.servers()['adadelta']
  small = {
    'num_rounds': 4,
    'server.clients_per_round': 15,
    'model.features': (2, 3),
    'model.hidden': (8,),
    'client.momentum': 0.5,
    'eval.layers': 'leaf',
    'checkpoint.every': 2,
  }
  config.update_from_flattened_dict(small | changes)
  return config.lock()


def test_federated_sgd_restarts_in_the_same_bits(tmp_path):
  """Checkpoints keep the states of optimiser, aggregator and workers."""
  straight, again = tmp_path / 'straight', tmp_path / 'again'
  summary = train.train_and_evaluate(gradient(), straight)
  for num_rounds in (2, 4):
    last = train.train_and_evaluate(gradient(num_rounds=num_rounds), again)
  assert last == summary
  check_same_end(again, straight)
  assert float(rows(straight)[3]['factor/params/Conv_0/bias']) > 0
  assert event_steps(straight, 'layers/norm/params/Conv_0/bias') == [1, 2, 3, 4]


@pytest.mark.parametrize(
  ('changes', 'error', 'message'),
  [
    ({'client.momentum': 1.0}, ValueError, r'momentum must lie in \[0, 1\)'),
    ({'eval.layers': 'module'}, ValueError, r'the same as aggregator\.scope'),
    ({'server.optimizer': 'adam'}, TypeError, r"='adam'\) takes no rho"),
    ({'aggregator.window': 0}, ValueError, 'window=0'),
  ],
)
def test_wrong_federated_sgd(tmp_path, changes, error, message):
  with pytest.raises(error, match=message):
    train.set_up(gradient(**changes), tmp_path / 'new')
  assert not (tmp_path / 'new').exists()
