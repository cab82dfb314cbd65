"""A run's directory: what it refuses, and what it writes."""

import json
import math
import subprocess

import pytest

from lca.experiment import environment
from lca.experiment.rundir import RunDirectory
from lca.experiment.summary import read_summary

ROW = {'round': 1, 'test_loss': 0.5, 'test_accuracy': 0.75}
CONFIG = {'num_rounds': 1, 'seed': 0}


def finished(path, summary=None):
  """What a run of one round leaves, but its checkpoints."""
  with RunDirectory(path, CONFIG) as directory:
    directory.open()
    directory.start([ROW])
    directory.finish(summary or {'num_rounds': 1, 'final_test_loss': 0.5})


def contents(path):
  return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_finished_run_without_checkpoints_does_not_grow(tmp_path):
  finished(tmp_path)
  before = contents(tmp_path)
  with pytest.raises(ValueError, match=rf'{tmp_path} .*1 rounds.*num_rounds=2'):
    RunDirectory(tmp_path, CONFIG | {'num_rounds': 2})
  assert contents(tmp_path) == before
  RunDirectory(tmp_path, CONFIG)
  (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
  RunDirectory(tmp_path, CONFIG | {'num_rounds': 2})


def test_a_run_may_lose_its_checkpoints_before_it_opens(tmp_path):
  finished(tmp_path)
  checkpoint = tmp_path / 'checkpoints' / '1'
  checkpoint.mkdir(parents=True)
  late = RunDirectory(tmp_path, CONFIG | {'num_rounds': 2})
  checkpoint.rmdir()
  with late, pytest.raises(ValueError, match='no checkpoint'):
    late.open()


def test_a_summary_is_json(tmp_path):
  summary = {'num_rounds': 1, 'final_test_loss': math.nan}
  finished(tmp_path, summary | {'average_test_loss': math.inf})

  def refuse(token):
    raise AssertionError(token)

  text = (tmp_path / 'summary.json').read_text()
  assert json.loads(text, parse_constant=refuse) == {
    'num_rounds': 1,
    'final_test_loss': None,
    'average_test_loss': None,
  }
  for read in (
    RunDirectory(tmp_path, CONFIG).summary(),
    read_summary(tmp_path),
  ):
    assert read['num_rounds'] == 1
    assert math.isnan(read['final_test_loss'])
    assert math.isnan(read['average_test_loss'])


def test_a_summary_from_before_is_read(tmp_path):
  finished(tmp_path)
  (tmp_path / 'summary.json').write_text('{"a": NaN, "b": Infinity, "c": 1}')
  summary = read_summary(tmp_path)
  assert math.isnan(summary['a'])
  assert (summary['b'], summary['c']) == (math.inf, 1)


@pytest.mark.parametrize('inside', ['.', '.venv/lib/site-packages'])
def test_a_commit_is_of_our_own_checkout(tmp_path, monkeypatch, inside):
  git = ['git', '-c', 'user.name=a', '-c', 'user.email=b', '-C', tmp_path]
  for command in (['init'], ['commit', '--allow-empty', '--message=c']):
    subprocess.run([*git, *command], check=True, capture_output=True)
  head = subprocess.check_output([*git, 'rev-parse', 'HEAD'], text=True)
  package = tmp_path / inside / 'lca'
  package.mkdir(parents=True)
  monkeypatch.setattr(
    environment,
    '__file__',
    str(package / 'experiment' / 'environment.py'),
  )
  ours = inside == '.'
  assert environment._commit() == (head.strip() if ours else None)
