"""Tables of any sweep, with tests of significance that are checked by hand."""

import pytest
import sweep_files

from lca.report import formats, pivot, pivot_tables
from lca.report.requests import Request

pytestmark = pytest.mark.quick

REQUEST = Request('aggregator', 'attack', 'test_accuracy')
# Differences to the median, the best, by seed: krum's are 0.1, 0.05 and 0.03,
# with a mean of 0.06 and a deviation of 0.036, so that t = 2.88. That of caf is
# 0.02 on average with a deviation of 0.001, so that t = 34.6. At 5 %, two-sided
# and with 2 degrees of freedom, t must exceed 4.303.
ACCURACIES = {
  'median': (0.9, 0.7, 0.5),
  'krum': (0.8, 0.65, 0.47),
  'caf': (0.88, 0.679, 0.481),
}


def write(workdir, seeds=3):
  for rule, values in ACCURACIES.items():
    for seed, accuracy in enumerate(values[:seeds]):
      sweep_files.write_run(
        workdir,
        f'g/{rule}/{seed}',
        {'aggregator.name': rule, 'attack.name': 'alie'},
        {'test_accuracy': [accuracy], 'test_loss': [1 - accuracy]},
      )


def make(workdir, request=REQUEST):
  return pivot_tables.make(pivot.make(workdir, request), request)


def marks(table):
  return {row[0]: (row[1].best, row[1].tied) for row in table.rows}


@pytest.mark.parametrize('value', ['test_accuracy', 'test_loss'])
def test_the_best_and_what_does_not_differ_from_it(tmp_path, value):
  write(tmp_path)
  table = make(tmp_path, REQUEST._replace(value=value))
  assert marks(table) == {
    'caf': (False, False),
    'krum': (False, True),
    'median': (True, False),
  }


def test_a_single_seed_is_not_tested(tmp_path):
  write(tmp_path, seeds=1)
  table = make(tmp_path)
  assert marks(table) == {
    'caf': (False, False),
    'krum': (False, False),
    'median': (True, False),
  }
  assert 'A single seed allows no test of significance' in table.notes[0]


def test_values_are_paired_by_seed():
  differ = pivot_tables.significantly_differ
  one = {0: 0.5, 1: 0.6, 2: 0.9}
  # The differences are 0.10, 0.11 and 0.09, so that t = 17.3.
  assert differ(one, {2: 0.81, 1: 0.49, 0: 0.4, 7: 9.0}) is True
  assert differ(one, dict(one)) is False
  assert differ(one, {0: 0.1}) is None
  assert differ(one, {0: 0.1, 1: float('nan')}) is None


def test_equal_differences_are_tested_by_their_sign():
  """Two seeds in which a rule is better by 4 test examples prove nothing."""

  def differ(seeds):
    one = {seed: (200 + 10 * seed) / 360 for seed in range(seeds)}
    other = {seed: (204 + 10 * seed) / 360 for seed in range(seeds)}
    return pivot_tables.significantly_differ(one, other)

  # Six seeds of one sign have a probability of 2 / 2**6 = 3.1 %.
  assert [differ(seeds) for seeds in (2, 5, 6)] == [False, False, True]


def test_the_formats(tmp_path):
  write(tmp_path)
  sweep_files.write_run(
    tmp_path,
    'g/geomed/0',
    {'aggregator.name': 'medoid', 'attack.name': 'alie'},
    {'test_accuracy': [0.25]},
  )
  table = make(tmp_path)
  markdown = formats.to_markdown(table)
  assert '| median | **0.700 ± 0.200** |' in markdown
  assert '| krum | *0.640 ± 0.165* |' in markdown
  assert '| geomed | 0.250 (n=1 of 3) |' in markdown
  latex = formats.to_latex(table)
  assert r'krum & \underline{0.640 $\pm$ 0.165} \\' in latex
  assert r'\label{tab:test-accuracy-by-aggregator-attack}' in latex
  assert latex.index(r'\toprule') < latex.index(r'\midrule')
  assert latex.index(r'\midrule') < latex.index(r'\bottomrule')
  header, *_, last = formats.to_csv(table).splitlines()
  assert header == 'aggregator_/_attack,alie,alie_deviation,alie_note'
  assert formats.to_csv(table).count('paper') == 0
  assert 'geomed,0.25,,n=1 of 3' in formats.to_csv(table)
  assert last.startswith('median')


def test_the_worst_attack_and_the_conditions_are_named(tmp_path):
  for attack, accuracy in (('alie', 0.5), ('label_flipping', 0.25)):
    sweep_files.write_run(
      tmp_path,
      f'{attack}/krum/0',
      {'attack.name': attack},
      {'test_accuracy': [accuracy]},
    )
  request = Request(
    'aggregator',
    'aggregator.name',
    'test_accuracy',
    worst_over=('attack',),
    where={'aggregator': ['krum']},
  )
  table = make(tmp_path, request)
  assert '0.250 (label_flipping)' in formats.to_markdown(table)
  assert r'0.250 (label\_flipping)' in formats.to_latex(table)
  assert 'Each cell is of, and names, the worst attack.' in table.notes
  assert 'Only runs with aggregator=krum.' in table.notes


def test_a_metric_without_a_best_is_not_marked(tmp_path):
  for rule in ('krum', 'median'):
    sweep_files.write_run(
      tmp_path,
      f'g/{rule}/0',
      {'aggregator.name': rule},
      {'test_accuracy': [0.5], 'rejected': [len(rule)]},
    )
  table = make(tmp_path, REQUEST._replace(value='rejected'))
  assert [row[1].best for row in table.rows] == [False, False]
  assert 'bold' not in ' '.join(table.notes)


def test_a_bar_in_a_name_ends_no_cell_of_markdown():
  rows = [('rule', 'accuracy'), ('a | b', '0.5')]
  assert formats.markdown(rows).splitlines()[-1] == r'| a \| b | 0.5 |'
