"""Tests of the summaries of runs."""

import json
import math

import numpy as np
import pytest
from run_files import CONFIG, finished

from lca.experiment.rundir import RunDirectory
from lca.experiment.summary import as_text, read_summary, summarize


@pytest.mark.parametrize('losses', [[np.nan, 1, 0.5], [1, np.nan, 0.5]])
def test_the_lowest_loss_is_a_number_if_any_is(losses):
  run = [{'test_loss': loss, 'test_accuracy': 0.5} for loss in losses]
  assert summarize(run)['min_test_loss'] == 0.5


def test_the_averages_run_over_the_last_ten_evaluations():
  run = [{'round': i + 1, 'train_loss': 0.0} for i in range(30)]
  for i in range(1, 30, 2):
    run[i] |= {'test_loss': float(30 - i), 'test_accuracy': i / 30}
  summary = summarize(run)
  assert summary['final_test_loss'] == 1.0
  assert summary['average_test_loss'] == np.mean(np.arange(1, 20, 2))
  assert summary['max_test_accuracy'] == 29 / 30
  assert '1.0000' in as_text({'num_rounds': 30, **summary})


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
