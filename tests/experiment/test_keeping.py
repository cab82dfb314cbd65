"""The best model is chosen by its round's metrics."""

import math
import types

import numpy as np
import pytest

import lca.data
from lca.experiment import checks, model_files
from lca.experiment.keeping import Keeping
from lca.experiment.sections import Checkpoint
from lca.models import CNN, Classifier

pytestmark = pytest.mark.quick

A = 'test_accuracy'
L = 'validation_loss'


def keep(tmp_path, key, values, before=()):
  """Offers rounds with these values; returns those whose model was written.

  Args:
    tmp_path: folder for the file.
    key: of `checkpoint.best`.
    values: of the metric in each round; None for a round without a test.
    before: values of the rounds before a restart.
  """
  written = []

  class Directory:
    path = tmp_path

    def keep(self, name, content):
      (tmp_path / name).write_bytes(content)
      _, about = model_files.read(tmp_path / name)
      assert (name, about['chosen_by']) == ('best.safetensors', key)
      written.append(about['round'])

  dataset = lca.data.from_arrays(*[(np.zeros((4, 2)), np.arange(4) % 2)] * 2)
  simulation = types.SimpleNamespace(
    data=types.SimpleNamespace(dataset=dataset),
    classifier=Classifier(CNN(2)),
    everywhere=lambda state: {'params': np.zeros(2)},
  )

  def row(number, value):
    return {'round': number} | ({} if value is None else {key or A: value})

  rows = [row(i, x) for i, x in enumerate([*before, *values], 1)]
  first = len(before)
  keeping = Keeping(Checkpoint(best=key), simulation, Directory(), rows[:first])
  for each in rows[first:]:
    keeping.after_round(lambda whole: None, each)
  return written


@pytest.mark.parametrize(
  ('key', 'values', 'before', 'written'),
  [
    (A, [0.5, 0.7, 0.7, 0.6, 0.8], [], [1, 2, 5]),
    (L, [2.0, 2.5, 1.0, 1.0], [], [1, 3]),
    (A, [None, 0.0, None, 0.1], [], [2, 4]),
    (L, [math.nan, math.inf, 3.0, math.nan], [], [3]),
    (A, [0.7, 0.9], [0.8, None, 0.5], [5]),  # after a restart
  ],
)
def test_the_best_round_so_far(tmp_path, key, values, before, written):
  assert keep(tmp_path, key, values, before) == written


def test_no_best_model_is_asked_for(tmp_path):
  assert keep(tmp_path, '', [1.0, 2.0]) == []


def test_the_note_says_what_it_was_chosen_on(tmp_path):
  keep(tmp_path, A, [0.5])
  _, about = model_files.read(tmp_path / 'best.safetensors')
  assert about['note'] == (
    'the model after round 1, the first one with the best test_accuracy; it '
    'was chosen on the test data, so that its test metrics are optimistic'
  )


def test_wrong_choices():
  with pytest.raises(
    ValueError, match=r"checkpoint\.best must be one of \['', 'test"
  ):
    Checkpoint(best='accuracy')
  with pytest.raises(ValueError, match=r'data\.validation is 0: set it'):
    checks.check_best('validation_loss', 0.0)
  checks.check_best('validation_loss', 0.1)
  checks.check_best('test_loss', 0.0)
