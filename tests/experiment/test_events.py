"""Tests of what TensorBoard reads: tags in groups, and hyper-parameters."""

import pytest
from run_files import event_steps, events
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from lca.experiment.events import Events, tag_of

CONFIG = {
  'num_rounds': 2,
  'aggregator': {'name': 'krum', 'f': 1},
  'model': {'features': (2, 3), 'resize': None},
  'data': {'alpha': 0.5, 'data_dir': 'somewhere'},
  'parallel': {'mesh': 2},
}


@pytest.fixture
def written(tmp_path):
  """Writes two rounds and the end of a run; returns its directory."""
  run = Events(tmp_path, CONFIG)
  run.add({'round': 1, 'train_loss': 2.0, 'norm/params/bias': 0.5})
  run.add({'round': 2, 'train_loss': 1.0, 'test_loss': 3.0, 'byzantine': 1})
  run.finish()
  run.close()
  return tmp_path


def test_tags_stand_in_groups(written):
  assert event_steps(written, 'train/loss') == [1, 2]
  assert event_steps(written, 'test/loss') == [2]
  assert event_steps(written, 'clients/byzantine') == [2]
  assert event_steps(written, 'layers/norm/params/bias') == [1]
  assert tag_of('my_metric') == 'metrics/my_metric'


def test_hyper_parameters_are_the_keys_that_change_results(written):
  found = {
    value.tag: HParamsPluginData.FromString(value.metadata.plugin_data.content)
    for event in events(written)
    for value in event.summary.value
    if value.metadata.plugin_data.plugin_name == 'hparams'
  }
  keys = found['_hparams_/session_start_info'].session_start_info.hparams
  assert {*keys} == {
    'num_rounds',
    'aggregator.name',
    'aggregator.f',
    'model.features',
    'data.alpha',
  }
  assert keys['aggregator.name'].string_value == 'krum'
  assert keys['data.alpha'].number_value == 0.5
  assert keys['model.features'].string_value == '(2, 3)'
  shown = found['_hparams_/experiment'].experiment.metric_infos
  assert 'test/accuracy' in [metric.name.tag for metric in shown]
  assert found['_hparams_/session_end_info'].session_end_info.status == 1
