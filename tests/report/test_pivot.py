"""Grids of runs that were written by hand, with means computed by hand."""

import json

import pytest
import sweep_files

from lca.report import pivot
from lca.report.requests import Request

pytestmark = pytest.mark.quick

# Final test accuracies by rule, attack, f and seed.
ACCURACIES = {
  ('krum', 'alie', 1): (0.5, 0.7),
  ('krum', 'zero', 1): (0.25, 0.25),
  ('krum', 'alie', 3): (0.4, 0.4),
  ('krum', 'zero', 3): (0.6, 0.8),
  ('median', 'alie', 1): (0.3, 0.5),
  ('median', 'zero', 1): (0.9, 0.9),
  ('median', 'alie', 3): (0.2, 0.2),
  ('median', 'zero', 3): (0.1, 0.1),
}


@pytest.fixture
def workdir(tmp_path):
  for (rule, attack, f), by_seed in ACCURACIES.items():
    for seed, accuracy in enumerate(by_seed):
      config = {'aggregator.name': rule, 'attack.name': attack}
      config |= {'aggregator.f': f, f'attack.of_{attack}': 1}
      config['data.alpha'] = 0.1
      sweep_files.write_run(
        tmp_path,
        f'f{f}-{attack}/{rule}/{seed}',
        config,
        {
          'test_accuracy': [0.99, accuracy],
          'test_loss': [0.01, 1 - accuracy],
          'train_loss': [3.0, 2.0],
        },
        {'average_test_accuracy': accuracy / 2},
      )
  return tmp_path


def unfinish(workdir, name):
  place = json.loads((workdir / 'sweep.json').read_text())[name]
  (workdir / place / 'summary.json').unlink()


def means(grid):
  return [
    [
      cell and pytest.approx(sum(cell.values.values()) / len(cell.values))
      for cell in row
    ]
    for row in grid.cells
  ]


def picked(grid):
  return [[cell.picked for cell in row] for row in grid.cells]


F_BY_ATTACK = Request('attack', 'aggregator.f', 'test_accuracy', 'aggregator')
F_BY_RULE = Request('aggregator', 'aggregator.f', 'test_accuracy')


def test_means_over_the_seeds(workdir):
  filled = pivot.make(workdir, F_BY_ATTACK)
  assert [*filled.panels] == ['krum', 'median']
  krum, median = filled.panels.values()
  assert krum.rows == ['alie', 'zero'] and krum.columns == ['1', '3']
  assert means(krum) == [[0.6, 0.4], [0.25, 0.7]]
  assert means(median) == [[0.4, 0.2], [0.9, 0.1]]
  assert krum.cells[0][0].values == {0: 0.5, 1: 0.7}
  assert (filled.seeds, filled.notes) == (2, [])


@pytest.mark.parametrize('value', ['average_test_accuracy', 'train_loss'])
def test_any_metric_is_a_value(workdir, value):
  filled = pivot.make(workdir, F_BY_ATTACK._replace(value=value))
  expected = 0.3 if value == 'average_test_accuracy' else 2.0
  assert means(filled.panels['krum'])[0][0] == expected


def test_keys_beside_the_axes_are_never_averaged(workdir):
  message = (
    r'the runs with aggregator=krum, aggregator\.f=1 differ in attack '
    r'\(alie, zero\): .*panels.*--worst-over=KEY.*--best=KEY.*--where=KEY=VALUE'
  )
  with pytest.raises(ValueError, match=message):
    pivot.make(workdir, F_BY_RULE)
  request = Request('aggregator', 'attack', 'test_accuracy')
  with pytest.raises(ValueError, match=r'differ in aggregator\.f \(1, 3\): '):
    pivot.make(workdir, request)


@pytest.mark.parametrize('value', ['test_accuracy', 'test_loss'])
def test_the_worst_attack_is_named(workdir, value):
  request = F_BY_RULE._replace(worst_over=('attack',), value=value)
  (grid,) = pivot.make(workdir, request).panels.values()
  worst = [[0.25, 0.4], [0.4, 0.1]]
  if value == 'test_loss':
    worst = [[1 - accuracy for accuracy in row] for row in worst]
  assert means(grid) == worst
  assert picked(grid) == [[('zero',), ('alie',)], [('alie',), ('zero',)]]


def test_the_best_rule_is_named(workdir):
  request = Request(
    'attack', 'aggregator.f', 'test_accuracy', best=('aggregator',)
  )
  (grid,) = pivot.make(workdir, request).panels.values()
  assert means(grid) == [[0.6, 0.4], [0.9, 0.7]]
  assert picked(grid) == [[('krum',), ('krum',)], [('median',), ('krum',)]]


def test_the_best_rule_by_its_worst_attack(workdir):
  request = Request(
    'aggregator.f',
    'data.name',
    'test_accuracy',
    worst_over=('attack',),
    best=('aggregator',),
  )
  with pytest.raises(ValueError, match=r"unknown config key 'data\.name'"):
    pivot.make(workdir, request)
  (grid,) = pivot.make(
    workdir, request._replace(columns='data.alpha')
  ).panels.values()
  # krum's worst are 0.25 and 0.4, the median's 0.4 and 0.1.
  assert means(grid) == [[0.4], [0.4]]
  assert picked(grid) == [[('median', 'alie')], [('krum', 'alie')]]


def test_where_takes_numbers_and_several_values(workdir):
  request = F_BY_ATTACK._replace(
    where={'aggregator.f': ['3.0'], 'attack': ['zero', 'alie']}
  )
  krum, _ = pivot.make(workdir, request).panels.values()
  assert krum.columns == ['3'] and krum.rows == ['alie', 'zero']
  with pytest.raises(
    ValueError,
    match=r'--where=aggregator\.f=2: no run .*; its values are 1, 3$',
  ):
    pivot.make(workdir, F_BY_ATTACK._replace(where={'aggregator.f': ['2']}))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'rows': 'atack'}, "unknown config key 'atack'; did you mean 'attack'"),
    ({'value': 'accuracy'}, "unknown metric 'accuracy'; did you mean"),
    (
      {'panels': None, 'value': 'train_lost'},
      "unknown metric 'train_lost'; did you mean 'train_loss'",
    ),
  ],
)
def test_unknown_names_are_told_what_is_near(workdir, changes, message):
  with pytest.raises(ValueError, match=message):
    pivot.make(workdir, F_BY_ATTACK._replace(**changes))


def test_worst_and_best_need_an_accuracy_or_a_loss(tmp_path):
  for attack in ('alie', 'zero'):
    sweep_files.write_run(
      tmp_path,
      f'{attack}/krum/0',
      {'attack.name': attack},
      {'test_accuracy': [0.5], 'rejected': [1]},
    )
  request = Request(
    'aggregator', 'aggregator.name', 'rejected', worst_over=('attack',)
  )
  with pytest.raises(ValueError, match='but not which rejected'):
    pivot.make(tmp_path, request)


def test_unfinished_runs_are_counted(workdir):
  unfinish(workdir, 'f1-alie/krum/1')
  for seed in (0, 1):
    unfinish(workdir, f'f3-zero/median/{seed}')
  filled = pivot.make(workdir, F_BY_ATTACK)
  krum, median = filled.panels.values()
  cell = krum.cells[0][0]
  assert cell.values == {0: 0.5}
  assert cell.number(filled.seeds).note == 'n=1 of 2'
  assert median.cells[1] == [median.cells[1][0], None]
  assert filled.notes == [
    'Empty cells, which have no finished run: 1 of 8.',
    'Cells with fewer than 2 finished seeds: 1.',
  ]
  # The worst of what is finished is marked.
  filled = pivot.make(workdir, F_BY_RULE._replace(worst_over=('attack',)))
  (grid,) = filled.panels.values()
  cell = grid.cells[1][1]
  assert cell.picked == ('alie',) and cell.incomplete
  assert cell.number(2).note == 'alie*'
  assert filled.notes == [
    'Cells with a *, which leave out values that have no finished run yet: 1.'
  ]


def test_a_worst_of_fewer_attacks_is_told(workdir):
  config = {'aggregator.name': 'caf', 'aggregator.f': 1, 'attack.name': 'alie'}
  sweep_files.write_run(workdir, 'more/caf/0', config)
  filled = pivot.make(workdir, F_BY_RULE._replace(worst_over=('attack',)))
  assert filled.notes[-1] == (
    'The best or worst is one of 1 to 2 combinations: some cells have fewer '
    'runs than others.'
  )


def test_runs_without_a_config_are_counted(workdir):
  file = workdir / 'sweep.json'
  names = json.loads(file.read_text())
  file.write_text(json.dumps(names | {'f5/krum/0': 'not_begun'}))
  (note,) = pivot.make(workdir, F_BY_ATTACK).notes
  assert note.startswith('1 runs of the sweep have no config yet')
  assert 'f5/krum/0' in note


def test_a_rule_without_the_key_has_a_column_of_its_own(workdir):
  for attack in ('alie', 'zero'):
    config = {'aggregator.name': 'mean', 'attack.name': attack}
    config[f'attack.of_{attack}'] = 1
    sweep_files.write_run(workdir, f'{attack}/fedavg/0', config)
  panels = pivot.make(workdir, F_BY_ATTACK).panels
  assert [*panels] == ['fedavg', 'krum', 'median']
  assert panels['fedavg'].columns == ['None']
  assert panels['krum'].columns == ['1', '3']


def test_a_nan_is_worst_and_never_best(tmp_path):
  for rule, loss in (('krum', 'nan'), ('median', 5.0), ('caf', 9.0)):
    sweep_files.write_run(
      tmp_path,
      f'g/{rule}/0',
      {'aggregator.name': rule},
      {'test_accuracy': [0.5], 'test_loss': [loss]},
    )
  request = Request('attack', 'attack.name', 'test_loss')
  for changes, rule in (
    ({'best': ('aggregator',)}, 'median'),
    ({'worst_over': ('aggregator',)}, 'krum'),
  ):
    (grid,) = pivot.make(tmp_path, request._replace(**changes)).panels.values()
    assert grid.cells[0][0].picked == (rule,)


def test_one_seed_twice_is_an_error(tmp_path):
  for group in ('a', 'b'):
    sweep_files.write_run(tmp_path, f'{group}/krum/0')
  with pytest.raises(
    ValueError, match='a/krum/0 and b/krum/0 are the same run'
  ):
    pivot.make(tmp_path, Request('aggregator', 'attack', 'test_accuracy'))


def test_keys_that_change_no_result_may_differ(tmp_path):
  for seed in (0, 1):
    sweep_files.write_run(
      tmp_path,
      f'g/krum/{seed}',
      {'parallel.mesh': seed, 'eval.batch_size': seed},
    )
  (grid,) = pivot.make(
    tmp_path, Request('aggregator', 'attack', 'test_accuracy')
  ).panels.values()
  assert grid.cells[0][0].values == {0: 0.5, 1: 0.5}
