"""Tests of config keys on command lines: values, and errors that name keys."""

import itertools

import pytest
from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

import main
from lca.experiment import command_line


def config():
  return ConfigDict(
    {
      'num_rounds': 3,
      'parallel': {'chunk_size': placeholder(int), 'name': placeholder(str)},
      'aggregator': {'name': 'median', 'scope': 'model'},
      'model': {'features': (1, 2)},
      'attack': {'sampled': True},
    }
  ).lock()


def test_values_are_set_and_the_rest_is_returned():
  one = config()
  rest = command_line.override(
    one,
    [
      *('--config.num_rounds', '5', '--workdir=x', '--config.model.features'),
      *('(4,)', '--noconfig.attack.sampled', '--config.parallel.name=a b'),
      'more',
    ],
  )
  assert rest == ['--workdir=x', 'more']
  assert one.num_rounds == 5 and one.model.features == (4,)
  assert one.attack.sampled is False and one.parallel.name == 'a b'
  assert command_line.override(one, []) == []


@pytest.mark.parametrize('key', ['chunk_size', 'name'])
def test_a_placeholder_may_be_none(key):
  one = config()
  assert command_line.override(one, [f'--config.parallel.{key}=None']) == []
  assert one.parallel[key] is None
  twice = [f'--config.parallel.{key}=7', f'--config.parallel.{key}=None']
  assert command_line.override(one, twice) == []
  assert one.parallel[key] is None
  command_line.override(one, twice[::-1])
  assert str(one.parallel[key]) == '7'


def test_other_keys_are_not_none():
  with pytest.raises(ValueError, match=r'config\.num_rounds=None.*int'):
    command_line.override(config(), ['--config.num_rounds=None'])
  with pytest.raises(
    ValueError, match="num_rounds must be of type int, got 'None'"
  ):
    command_line.set_key(config(), 'num_rounds', 'None')


@pytest.mark.parametrize(
  ('key', 'rest'),
  [
    ('agregator.scope', '; did you mean aggregator.scope? there are: aggreg'),
    ('aggregator.f', '; the chosen presets give aggregator the keys: name, sc'),
    ('aggregator.scop', '; did you mean aggregator.scope? the chosen presets'),
    ('model.chunk_size', '; did you mean parallel.chunk_size? the chosen'),
    ('num_round', '; did you mean num_rounds? there are: aggregator, '),
    ('num_rounds.a', ': num_rounds is a value'),
    ('nosuch', '; there are: aggregator, attack, model, num_rounds, par'),
  ],
)
def test_an_unknown_key_is_named_whole(key, rest):
  for call in (
    lambda: command_line.override(config(), [f'--config.{key}=1']),
    lambda: command_line.set_key(config(), key, '1'),
  ):
    with pytest.raises(ValueError, match=f'no config key {key}') as info:
      call()
    assert f'no config key {key}{rest}' in str(info.value)


def test_a_flag_that_is_a_key_is_said_to_be_one(tmp_path):
  (tmp_path / 'setting.py').write_text(
    'from ml_collections import ConfigDict\n'
    "def get_config(): return ConfigDict({'num_rounds': 1, 'a': {'f': 2}})\n"
  )
  source = f'{tmp_path}/setting.py'
  for name, meant in (('num_rounds', 'num_rounds'), ('f', 'a.f')):
    with pytest.raises(ValueError, match=rf'mean --config.{meant}\?'):
      main._config(source, [f'--{name}=3'])
  with pytest.raises(ValueError, match=r'unknown flag --other$'):
    main._config(source, ['--other=3'])
  with pytest.raises(ValueError, match=r"unexpected arguments \['more'\]"):
    main._config(source, ['more'])
  assert main._config(source, ['--config.a.f=4']).a.f == 4


def test_a_setting_that_is_not_there(tmp_path):
  with pytest.raises(ValueError, match=r'no setting .*, digits, .*') as info:
    main._config('nowhere/digits.py:krum', [])
  message = str(info.value)
  assert str(main._CONFIGS) in message
  for other in ('common', 'tables', 'legato_figures'):  # they are no settings
    assert f' {other}' not in message
  with pytest.raises(ValueError, match='it is a sweep'):
    main._config(str(main._CONFIGS / 'tables.py'), [])
  (tmp_path / 'setting.py').write_text('def get_config():\n  return 1 / 0\n')
  with pytest.raises(ValueError, match=r'setting.py, line 2: ZeroDivision'):
    main._config(f'{tmp_path}/setting.py', [])


def test_flags_that_may_be_repeated_all_count():
  values = flags.FlagValues()
  command_line.define_list('parts', ['0'], 'Parts.', values)
  values(['', '--parts=a,b', '--parts=c'])
  assert [*itertools.chain(*values.parts)] == ['a', 'b', 'c']
  values['parts'].unparse()
  values([''])
  assert [*itertools.chain(*values.parts)] == ['0']


def test_an_error_names_the_preset_that_a_key_asks_for():
  with (
    pytest.raises(ValueError, match=r'^takes no a\. Set data\.partition by a'),
    main._hint_at_presets(['--config.data.partition=x', '--config.seed=1']),
  ):
    raise TypeError('takes no a')
  with (
    pytest.raises(TypeError, match=r'^takes no a$'),
    main._hint_at_presets(['--config.seed=1']),
  ):
    raise TypeError('takes no a')
