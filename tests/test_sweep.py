"""Sweeps: which runs, where, and what is left to do."""

import json
import os

import pytest

from configs import digits
from lca import sweep


def tiny(rule, **changes):
  config = digits.get_config(rule).unlock()
  small = {
    'num_rounds': 1,
    'model.features': (2,),
    'model.hidden': (4,),
    'client.local_epochs': 1,
  }
  config.update_from_flattened_dict(small | changes)
  return config


RUNS = {
  'a/krum': tiny('krum'),
  'a/median': tiny('median'),
  'b/krum': tiny('krum'),
  'b/wrong': tiny('krum', **{'data.min_examples': 10_000}),
}


def test_choosing_by_parts_and_seeds():
  assert list(sweep.choose(RUNS)) == [f'{name}/0' for name in RUNS]
  chosen = sweep.choose(RUNS, ['a', 'kr.*|median'], [3, 4])
  assert list(chosen) == [
    *('a/krum/3', 'a/krum/4'),
    *('a/median/3', 'a/median/4'),
  ]
  assert [config.seed for config in chosen.values()] == [3, 4, 3, 4]
  assert list(sweep.choose(RUNS, ['wrong|median', 'b'])) == ['b/wrong/0']
  with pytest.raises(ValueError, match='no run has parts like'):
    sweep.choose(RUNS, ['kru'])
  assert RUNS['a/krum'].seed == 0  # as it was


def test_values_are_of_their_keys_type():
  values = {'client.learning_rate': '0.5', 'data.name': 'other'}
  config = sweep.choose(RUNS, ['median'], values=values)['a/median/0']
  assert config.client.learning_rate == 0.5
  assert config.data.name == 'other'
  with pytest.raises(ValueError, match=r"num_rounds is a int, got 'many'"):
    sweep.choose(RUNS, values={'num_rounds': 'many'})
  values = {'attack.sampled': 'False', 'model.features': '(4, 8)'}
  config = sweep.choose({'a': tiny('krum,zero')}, values=values)['a/0']
  assert config.attack.sampled is False
  assert config.model.features == (4, 8)
  with pytest.raises(ValueError, match=r"num_rounds is a int, got '0\.5'"):
    sweep.choose(RUNS, values={'num_rounds': '0.5'})
  with pytest.raises((KeyError, AttributeError), match='rounds'):
    sweep.choose(RUNS, values={'rounds': '3'})


def test_a_sweep_runs_what_is_missing_and_says_what_failed(tmp_path, capfd):
  runs = sweep.choose(RUNS)
  failed = sweep.run_all(runs, tmp_path, jobs=2)
  logs = [path.read_text() for path in tmp_path.glob('*.log')]
  assert failed == ['b/wrong/0'], logs
  places = json.loads((tmp_path / 'sweep.json').read_text())
  assert places['a/krum/0'] == places['b/krum/0'] != places['a/median/0']
  (log,) = tmp_path.glob('*.log')
  assert log.stem == places['b/wrong/0']
  assert log.read_text().count('min_examples=10000') >= 2  # tried twice
  finished = sorted(path.parent for path in tmp_path.glob('*/summary.json'))
  assert len(finished) == 2
  assert not list(tmp_path.glob('*/checkpoints'))
  cores = len(os.sched_getaffinity(0))
  for path in finished:  # two runs at a time share the cores
    (where,) = json.loads((path / 'config.json').read_text())['environments']
    assert len(where['devices']) in (max(1, cores // 2), (cores + 1) // 2)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.glob('*/*')}
  assert sweep.run_all(sweep.choose(RUNS, ['a']), tmp_path) == []
  assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob('*/*')}
  assert sweep.names(tmp_path) == places


def test_what_is_no_sweep(tmp_path):
  with pytest.raises(ValueError, match='no sweep'):
    sweep.load(tmp_path / 'none.py')
  (tmp_path / 'empty.py').touch()
  with pytest.raises(ValueError, match='no get_runs'):
    sweep.load(tmp_path / 'empty.py')
  assert 'fig5/krum' in sweep.load('configs/legato_figures.py')


def test_a_scale_is_of_those_that_have_several():
  tables, legato = 'configs/tables.py', 'configs/legato_figures.py'
  assert len(sweep.load(tables)) == len(sweep.load(tables, 'full')) == 144
  assert 'reduced/table1/fashion_mnist/plain' in sweep.load(tables, 'reduced')
  with pytest.raises(ValueError, match="unknown scale 'half'"):
    sweep.load(tables, 'half')
  with pytest.raises(ValueError, match="one scale only, got 'full'"):
    sweep.load(legato, 'full')
  chosen = sweep.choose(sweep.load(tables), ['table1', 'fashion_mnist'])
  assert [name.split('/')[2] for name in chosen] == [
    *('plain', 'layerwise', 'cosine', 'layerwise_cosine')
  ]
