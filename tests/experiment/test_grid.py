"""Grids: their text, their combinations, and what they refuse."""

import pytest

import main
from configs import digits
from lca.experiment import grid, identity


def expand(text, presets=None):
  return grid.expand(text, digits.get_config, presets, 'digits')


def test_axes_and_their_entries():
  axes = grid.parse(' nnm+krum,median x\n data.alpha=.1,1 x model.hidden=() ')
  assert axes == [
    ('', ('nnm+krum', 'median')),
    ('data.alpha', ('.1', '1')),
    ('model.hidden', ('()',)),
  ]
  (axis,) = grid.parse('model.features=(4, 8), (4,),8')
  assert axis.entries == ('(4, 8)', '(4,)', '8')
  assert grid.parse('data.archive_dir=/a=b') == [
    ('data.archive_dir', ('/a=b',))
  ]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('krum,,median', "empty entry in 'krum,,median'"),
    ('krum x  x alie', "empty entry in ''"),
    ('', "empty entry in ''"),
    ('krum x data.alpha=', "empty entry in 'data.alpha='"),
    ('krum x seed=0,1', 'set it with --seeds'),
    ('attack.z=1 x krum x attack.z=2', r'two axes of the grid set attack\.z'),
    ('krum,median,krum', 'has krum twice'),
    ('krum x aggregator.f=1,01', 'has krum/aggregator.f=1 twice'),
  ],
)
def test_what_is_no_grid(text, message):
  with pytest.raises(ValueError, match=message):
    expand(text)


def test_the_last_axis_changes_fastest():
  runs, notes = expand('krum,median x none,alie x client.learning_rate=1,.10')
  assert list(runs) == [
    'digits/krum/none/client.learning_rate=1.0',
    'digits/krum/none/client.learning_rate=0.1',
    'digits/krum/alie/client.learning_rate=1.0',
    'digits/krum/alie/client.learning_rate=0.1',
    'digits/median/none/client.learning_rate=1.0',
    'digits/median/none/client.learning_rate=0.1',
    'digits/median/alie/client.learning_rate=1.0',
    'digits/median/alie/client.learning_rate=0.1',
  ]
  assert notes == []
  config = runs['digits/median/alie/client.learning_rate=0.1']
  assert (config.aggregator.name, config.attack.name) == ('median', 'alie')
  assert config.client.learning_rate == 0.1
  assert runs['digits/krum/none/client.learning_rate=1.0'].attack.name == 'none'


@pytest.mark.parametrize(
  ('text', 'presets', 'source', 'keys'),
  [
    (
      'nnm+trimmed_mean x alie x aggregator.f=2 x data.alpha=.1',
      'dirichlet',
      'dirichlet,nnm,trimmed_mean,alie',
      {'aggregator.f': 2, 'data.alpha': 0.1},
    ),
    # f and nnm.f follow the attackers.
    (
      'attack.num_byzantine=3 x nnm+krum x alie',
      None,
      'nnm,krum,alie',
      {'attack.num_byzantine': 3},
    ),
    ('krum x none', None, 'krum', {}),
    ('none', None, '', {}),
    ('num_rounds=4', '', '', {'num_rounds': 4}),
    ('num_rounds=4', None, None, {'num_rounds': 4}),
    ('model.hidden=(3,2)', None, None, {'model.hidden': '(3,2)'}),
  ],
)
def test_a_run_is_that_of_main(text, presets, source, keys):
  (config,) = expand(text, presets)[0].values()
  file = str(main._CONFIGS / 'digits.py')
  same = main._config(
    file if source is None else f'{file}:{source}',
    [f'--config.{key}={value}' for key, value in keys.items()],
  )
  assert config.to_dict() == same.to_dict()
  assert identity.run_id(config.to_dict()) == identity.run_id(same.to_dict())


def test_a_key_that_some_combinations_lack():
  runs, notes = expand(
    'krum,median,nnm+median x none,alie,sign_flip x aggregator.f=1,2,3 '
    'x attack.num_byzantine=1,2 x attack.z=1'
  )
  # Krum has f: 3 runs without an attack, and 3 * 2 with each of two. The two
  # others have none: 1 run without an attack, and 2 with each.
  assert len(runs) == (3 + 2 * 6) + 2 * (1 + 2 * 2)
  assert notes == [
    'median, nnm+median have no aggregator.f: one run instead of 3',
    'none has no attack.num_byzantine: one run instead of 2',
    'none, sign_flip have no attack.z: it is not set',
  ]
  assert 'digits/median/none' in runs
  assert 'digits/krum/none/aggregator.f=3' in runs
  name = 'digits/median/alie/attack.num_byzantine=2/attack.z=1.0'
  assert runs[name].attack.num_byzantine == 2
  assert len({identity.run_id(c.to_dict()) for c in runs.values()}) == len(runs)


def test_a_key_that_single_combinations_lack():
  _, notes = expand('none,nnm x krum,nnm+median x aggregator.nnm.f=1,2')
  assert notes == ['none/krum has no aggregator.nnm.f: one run instead of 2']


def test_a_key_that_no_combination_has():
  with pytest.raises(ValueError, match=r'has data\.alpha: .*: dirichlet$'):
    expand('krum x data.alpha=0.1,1')
  with pytest.raises(ValueError, match=r'did you mean aggregator\.f\?'):
    expand('median,krum x aggregator.ff=1')
  with pytest.raises(ValueError, match=r'has attack\.z: .*with this key: alie'):
    expand('krum x none,sign_flip x attack.z=1')


def test_all_wrong_entries_are_named():
  with pytest.raises(ValueError) as info:
    expand('krom,krum,medain x none,alie')
  assert str(info.value).splitlines() == [
    'the grid has presets that fail:',
    "  unknown preset 'krom'; did you mean 'krum'?",
    '    digits/krom/none',
    '    digits/krom/alie',
    "  unknown preset 'medain'; did you mean 'median'?",
    '    digits/medain/none',
    '    digits/medain/alie',
  ]
  with pytest.raises(ValueError) as info:
    expand('krum,median x aggregator.f=1,many x num_rounds=1,2.5')
  assert str(info.value).splitlines() == [
    'the grid has values that fail:',
    "  num_rounds must be of type int, got '2.5'",
    '    digits/krum/aggregator.f=1/num_rounds=2.5',
    '    digits/median/num_rounds=2.5',
    "  aggregator.f must be of type int, got 'many'",
    '    digits/krum/aggregator.f=many/num_rounds=1',
    '    digits/krum/aggregator.f=many/num_rounds=2.5',
  ]
