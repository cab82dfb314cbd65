"""Runs that start from the models that other runs have kept."""

import shutil

import jax
import numpy as np
import pytest
from run_files import tiny

from lca.experiment import load_run, settings, train


def config(**changes):
  return tiny('krum,label_flipping', num_rounds=2, **changes)


def test_a_run_starts_from_the_model_of_another(tmp_path):
  first, second = tmp_path / 'first', tmp_path / 'second'
  train.train_and_evaluate(config(), first)
  warm = config(seed=1, init_from=str(first))
  parts = settings.from_config(warm).parts()
  model = load_run(first).variables
  jax.tree.map(
    np.testing.assert_array_equal, parts.simulation().init().variables, model
  )
  train.train_and_evaluate(warm, second)
  assert train.train_and_evaluate(warm, second)['num_rounds'] == 2
  with pytest.raises(ValueError, match=r"init_from was '.*first' there"):
    train.set_up(config(seed=1), second)
  # A run that has begun does not need the other one any more.
  shutil.rmtree(first)
  warm.num_rounds = 3
  assert train.train_and_evaluate(warm, second)['num_rounds'] == 3


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'model.features': (3,)},
      r'params/Conv_0/bias is float32 \[2\] in the file and .* \[3\]',
    ),
    ({'init_from': 'no/such/run'}, 'no/such/run holds no run'),
    ({'model.pretrained': 'x'}, 'leave out one of them'),
  ],
)
def test_a_model_to_start_from_must_fit(tmp_path, changes, message):
  train.train_and_evaluate(config(), tmp_path / 'first')
  warm = config(**{'init_from': str(tmp_path / 'first')} | changes)
  with pytest.raises(ValueError, match=message):
    train.set_up(warm, tmp_path / 'second')
  assert not (tmp_path / 'second').exists()
