"""Tests that errors about damaged files name the file and a remedy."""

import json

import pytest

from lca.experiment import index, rundir, summary
from lca.experiment.rundir import RunDirectory

CONFIG = {'num_rounds': 2, 'seed': 0}
ROWS = [{'round': r, 'test_loss': 0.5, 'test_accuracy': 0.75} for r in (1, 2)]


@pytest.fixture
def run(tmp_path):
  with RunDirectory(tmp_path, CONFIG) as directory:
    directory.open()
    directory.start(ROWS)
    directory.finish({'num_rounds': 2, 'final_test_loss': 0.5})
  return tmp_path


def check(file, text, read, remedy):
  """Checks the error of reading a file with this text.

  Args:
    file: is overwritten.
    text: the damaged contents.
    read: a function that reads the file.
    remedy: regular expression that the message must match.
  """
  file.write_text(text)
  with pytest.raises(ValueError, match=remedy) as info:
    read()
  message = str(info.value)
  assert str(file) in message and '\n' not in message


@pytest.mark.parametrize('text', ['', '{', '[]', '{"num_rounds": "two"}'])
def test_a_summary(run, text):
  file = run / 'summary.json'
  for read in (
    lambda: summary.read_summary(run),
    lambda: summary.read_metrics(run),
    lambda: RunDirectory(run, CONFIG),
  ):
    check(file, text, read, 'delete it, and the same command goes on')
  file.unlink()
  RunDirectory(run, CONFIG)  # the remedy works


def test_a_summary_without_its_rounds(run):
  file = run / 'summary.json'
  check(file, '{}', lambda: RunDirectory(run, CONFIG), 'no num_rounds.*delete')


@pytest.mark.parametrize(
  'text',
  [
    *('', 'round\n', 'round,a\n1,2\n2\n', 'round,a\n1,2\n2,3,4\n'),
    *('round\n1\n', 'round\n1\nx\n', 'round,a\n1,2\n2,"3\n'),
  ],
)
def test_metrics(run, text):
  assert summary.read_metrics(run)['test_loss'].tolist() == [0.5, 0.5]
  file = run / 'metrics.csv'
  check(file, text, lambda: summary.read_metrics(run), f'directory {run}, and')


def test_metrics_that_are_gone(run):
  (run / 'metrics.csv').unlink()
  with pytest.raises(ValueError, match=f'{run}/metrics.csv .*delete'):
    summary.read_metrics(run)


@pytest.mark.parametrize('text', ['', '{', '[]', '{"config": 1}'])
def test_a_config(run, text):
  for read in (
    lambda: rundir.read_config(run),
    lambda: RunDirectory(run, CONFIG),
  ):
    check(run / 'config.json', text, read, 'delete the directory')


@pytest.mark.parametrize('text', ['', '[]', '{"a/b/0": 1}'])
def test_an_index(tmp_path, text):
  (tmp_path / 'sweep.json').write_text(json.dumps({'a/b/0': '0123'}))
  assert index.by_line(tmp_path) == {'a/b': [tmp_path / '0123']}
  file = tmp_path / 'sweep.json'
  for read in (
    lambda: index.names(tmp_path),
    lambda: index.by_line(tmp_path),
    lambda: index.record({}, tmp_path),
  ):
    check(file, text, read, 'delete it, and the same sweep')
