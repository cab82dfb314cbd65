"""Rows and data frames of runs that were written by hand."""

import math
import subprocess
import sys

import processes
import pytest
import sweep_files

import lca.report
from configs import presets
from lca.experiment import packing
from lca.report import frames

pytestmark = pytest.mark.quick


@pytest.fixture
def workdir(tmp_path):
  workdir = tmp_path / 'runs'
  workdir.mkdir()
  sweep_files.write_run(
    workdir,
    'group/line/3',
    {'data.alpha': 0.1, 'aggregator.f': 2},
    {
      'test_loss': [1.5, '', 'nan', ''],
      'test_accuracy': [0.25, '', 0.75, ''],
      'train_loss': [4, 3, 2, 1],
    },
    {'num_rounds': 4, 'final_test_loss': None, 'max_test_accuracy': 0.75},
  )
  sweep_files.write_run(workdir, 'group/line/4', finished=False)
  return workdir


def test_one_row_for_each_finished_run(workdir):
  (row,) = lca.report.rows(workdir)
  assert math.isnan(row.pop('final_test_loss'))
  assert math.isnan(row.pop('test_loss'))
  assert row == {
    'name': 'group/line/3',
    'run': f'{0:016x}',
    'aggregator': 'krum',
    'attack': 'none',
    'seed': 3,
    'data.alpha': 0.1,
    'aggregator.name': 'krum',
    'aggregator.f': 2,
    'attack.name': 'none',
    'max_test_accuracy': 0.75,
    'test_accuracy': 0.75,
    'train_loss': 2,  # of the round that was evaluated last
  }


def test_one_row_for_each_round(workdir):
  rows = lca.report.rows(workdir, rounds=True)
  assert [row['round'] for row in rows] == [1, 2, 3, 4]
  assert [row['train_loss'] for row in rows] == [4, 3, 2, 1]
  assert math.isnan(rows[1]['test_accuracy'])
  assert {row['data.alpha'] for row in rows} == {0.1}
  assert 'max_test_accuracy' not in rows[0]


def test_a_packed_sweep_has_the_same_frame(workdir, tmp_path):
  packed = tmp_path / 'packed.zip'
  packing.pack(workdir, packed)
  pandas = pytest.importorskip('pandas')
  for rounds in (False, True):
    pandas.testing.assert_frame_equal(
      lca.report.frame(packed, rounds=rounds),
      lca.report.frame(workdir, rounds=rounds),
    )
  frame = lca.report.frame(packed)
  assert frame['data.alpha'].tolist() == [0.1]
  assert frame.groupby('aggregator')['test_accuracy'].mean()['krum'] == 0.75


def test_without_pandas_the_error_says_what_to_install(workdir):
  code = (
    "import sys; sys.modules['pandas'] = None; import lca.report; "
    f'lca.report.frame({str(workdir)!r})'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
  )
  *_, last = done.stderr.splitlines()
  assert last.startswith('ImportError: lca.report.frame needs pandas')
  assert 'pip install pandas' in last


def test_directories_without_an_index(workdir):
  (workdir / 'sweep.json').unlink()
  (row,) = lca.report.rows(workdir)
  assert row['name'] == row['run'] == f'{0:016x}'


def test_two_names_of_one_run_are_one_row(workdir):
  index = workdir / 'sweep.json'
  index.write_text(f'{{"a/x/3": "{0:016x}", "b/x/3": "{0:016x}"}}')
  (row,) = lca.report.rows(workdir)
  assert row['name'] == 'a/x/3 | b/x/3'


def test_no_finished_run_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='no finished run'):
    lca.report.rows(tmp_path)


@pytest.mark.parametrize(
  ('section', 'name'),
  [
    ({'name': 'mean'}, 'fedavg'),
    ({'name': 'krum', 'distance': 'euclidean', 'scope': 'model'}, 'krum'),
    (
      {'name': 'krum', 'distance': 'cosine', 'clip': 'median', 'scope': 'leaf'},
      'layerwise_cosine_krum',
    ),
    (
      {'name': 'krum', 'distance': 'cosine', 'clip': None, 'scope': 'leaf'},
      'layerwise_cosine_krum_noclip',
    ),
    ({'name': 'median', 'scope': 'block'}, 'blockwise_median'),
    ({'name': 'trimmed_mean', 'pre': ['nnm']}, 'nnm+trimmed_mean'),
    ({'name': 'mean', 'pre': ['static_clip', 'arc']}, 'static_clip+arc+fedavg'),
    (
      {'name': 'mean', 'pre': ['static_clip'], 'sigma': 0.0},
      'static_clip+fedavg',
    ),
    ({'name': 'mean', 'pre': ['static_clip'], 'sigma': 0.1}, 'norm_clipping'),
    ({'name': 'adaptive_clip', 'rate': 0.2}, 'adaptive_clip'),
    (
      {'name': 'adaptive_clip', 'rate': 0.0, 'scope': 'leaf'},
      'layerwise_dp_fedavg',
    ),
    ({'name': 'legato', 'scope': 'leaf'}, 'legato'),
    ({}, None),
  ],
)
def test_names_of_rules(section, name):
  assert frames.rule_name(section) == name


def test_names_of_rules_are_those_of_their_presets():
  presets_of_rules = presets.aggregators()
  assert {n: frames.rule_name(x) for n, x in presets_of_rules.items()} == {
    n: n for n in presets_of_rules
  }


def test_names_of_attacks():
  assert frames.attack_name({}) == 'none'
  flips = {'name': 'label_flipping', 'boost': 1.0}
  assert frames.attack_name(flips) == 'label_flipping'
  assert frames.attack_name(flips | {'boost': 'replace'}) == 'model_replacement'
  carried = {'name': 'badnets', 'boost': 'replace'}
  assert frames.attack_name(carried) == 'badnets_replacement'


def test_an_option_of_a_pre_aggregator_is_also_one_of_the_rule(tmp_path):
  config = {'aggregator.pre': ['nnm'], 'aggregator.nnm.f': 3}
  sweep_files.write_run(tmp_path, 'g/l/0', config)
  (row,) = lca.report.rows(tmp_path)
  assert row['aggregator.nnm.f'] == row['aggregator.f'] == 3
