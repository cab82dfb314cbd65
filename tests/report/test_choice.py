"""Hyper-parameters that are chosen by the validation accuracy, by hand."""

import json

import pytest
import sweep_files

from lca.report import pivot
from lca.report.requests import Request

pytestmark = pytest.mark.quick

# By rule, learning rate and attack: two seeds' validation accuracies of two
# rounds, and a final test accuracy that would mislead a choice.
CURVES = {
  # The mean over the seeds is 0.8 and 0.7: the highest is 0.8.
  ('krum', 0.1, 'alie'): ([0.7, 0.6], [0.9, 0.8], 0.3),
  ('krum', 0.1, 'zero'): ([0.4, 0.5], [0.6, 0.5], 0.4),  # 0.5 at most
  ('krum', 0.2, 'alie'): ([0.6, 0.1], [0.6, 0.1], 0.8),  # 0.6, in round 1
  ('krum', 0.2, 'zero'): ([0.7, 0.9], [0.7, 0.9], 0.9),
  ('median', 0.1, 'alie'): ([0.5, 0.5], [0.5, 0.5], 0.1),
  ('median', 0.1, 'zero'): ([0.5, 0.5], [0.5, 0.5], 0.2),
  # Each seed reaches 1, in different rounds, so that their mean reaches 0.5.
  ('median', 0.2, 'alie'): ([1.0, 0.0], [0.0, 1.0], 0.9),
  ('median', 0.2, 'zero'): ([0.4, 0.4], [0.4, 0.4], 0.9),
}
REQUEST = Request(
  'aggregator', 'attack', 'test_accuracy', choose=('client.learning_rate',)
)


@pytest.fixture
def workdir(tmp_path):
  for (rule, rate, attack), (*curves, test) in CURVES.items():
    for seed, curve in enumerate(curves):
      sweep_files.write_run(
        tmp_path,
        f'{attack}-{rate}/{rule}/{seed}',
        {
          'aggregator.name': rule,
          'client.learning_rate': rate,
          'attack.name': attack,
        },
        {'validation_accuracy': curve, 'test_accuracy': [0.0, test]},
      )
  return tmp_path


def test_the_choice_is_that_of_the_worst_attack(workdir):
  filled = pivot.make(workdir, REQUEST)
  (grid,) = filled.panels.values()
  values = [[[*cell.values.values()] for cell in row] for row in grid.cells]
  assert grid.rows == ['krum', 'median'] and grid.columns == ['alie', 'zero']
  # krum: 0.2, since min(0.6, 0.9) > min(0.8, 0.5). The choice is the same for
  # both attacks. median: 0.1, since min(0.5, 0.5) > min(0.5, 0.4).
  assert values == [[[0.8] * 2, [0.9] * 2], [[0.1] * 2, [0.2] * 2]]
  assert filled.notes == [
    'Chosen by the validation accuracy under the worst attack, the highest of '
    'any round of the mean over the seeds, which is in brackets, for each '
    'aggregator:',
    'client.learning_rate=0.1 for median (0.500).',
    'client.learning_rate=0.2 for krum (0.600).',
  ]


def test_a_cell_of_the_worst_attack_has_the_chosen_value(workdir):
  request = REQUEST._replace(
    columns='attack.num_byzantine', worst_over=('attack',)
  )
  with pytest.raises(ValueError, match=r"unknown config key 'attack\.num_by"):
    pivot.make(workdir, request)
  request = request._replace(columns='aggregator.name')
  (grid,) = pivot.make(workdir, request).panels.values()
  krum, median = grid.cells[0][0], grid.cells[1][1]
  assert (krum.picked, krum.values) == (('alie',), {0: 0.8, 1: 0.8})
  assert (median.picked, median.values) == (('alie',), {0: 0.1, 1: 0.1})


def test_the_test_set_is_not_looked_at(workdir):
  for file in workdir.glob('*/metrics.csv'):
    header, *rows = file.read_text().splitlines()
    rows = [f'{row.rpartition(",")[0]},0.123' for row in rows]
    file.write_text('\n'.join([header, *rows]) + '\n')
  assert header.endswith(',test_accuracy')
  *_, note = pivot.make(workdir, REQUEST).notes
  assert note == 'client.learning_rate=0.2 for krum (0.600).'


def test_a_value_with_an_unfinished_run_is_not_chosen(workdir):
  place = json.loads((workdir / 'sweep.json').read_text())['zero-0.2/krum/1']
  (workdir / place / 'summary.json').unlink()
  _, chosen, left_out = pivot.make(workdir, REQUEST).notes
  assert chosen == 'client.learning_rate=0.1 for krum (0.500); median (0.500).'
  assert left_out == (
    'Not chosen from, because runs of them are missing or not finished: '
    'client.learning_rate=0.2 where aggregator=krum.'
  )


def test_a_sweep_without_a_validation_split_cannot_choose(tmp_path):
  config = {'client.learning_rate': 0.1}
  sweep_files.write_run(tmp_path, 'g/krum/0', config)
  with pytest.raises(ValueError, match=r'such as g/krum/0: set data\.validat'):
    pivot.make(tmp_path, REQUEST)


def test_nothing_to_choose_from_is_an_error(workdir):
  for file in workdir.glob('*/summary.json'):
    if json.loads((file.parent / 'config.json').read_text())['config']['seed']:
      file.unlink()
  with pytest.raises(
    ValueError, match=r'nothing to choose\. Not chosen from, be'
  ):
    pivot.make(workdir, REQUEST)


def test_other_keys_must_be_named(workdir):
  config = {'client.learning_rate': 0.1, 'attack.name': 'alie', 'num_rounds': 9}
  columns = {'validation_accuracy': [1.0], 'test_accuracy': [1.0]}
  sweep_files.write_run(workdir, 'more/krum/2', config, columns)
  with pytest.raises(
    ValueError, match=r'aggregator=krum, client\.learning_rate=0\.1, attack='
  ):
    pivot.make(workdir, REQUEST)
