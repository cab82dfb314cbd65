"""Tests of user files: they run once, and errors in them name the line."""

import dataclasses
import subprocess
import sys

import processes
import pytest

from lca.experiment import extensions


def written(tmp_path, text, name='mine.py'):
  """Writes a file and returns its path."""
  file = tmp_path / name
  file.write_text(text)
  return file


def test_a_file_is_executed_once(tmp_path):
  log = tmp_path / 'log'
  file = written(tmp_path, f'open({str(log)!r}, "a").write("once")\nA = 1\n')
  module = extensions.load_file(file)
  extensions.load_files([file, str(file), tmp_path / '..' / file])
  assert module.A == 1 and log.read_text() == 'once'


def test_a_file_may_hold_dataclasses(tmp_path):
  text = """
from __future__ import annotations
import dataclasses
import typing

@dataclasses.dataclass
class A:
  b: typing.ClassVar[int] = 1
  c: int = 2
"""
  module = extensions.load_file(written(tmp_path, text))
  assert dataclasses.asdict(module.A()) == {'c': 2}


def test_a_path_may_begin_with_the_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  file = written(tmp_path, 'A = 1\n')
  assert extensions.load_file('~/mine.py') is extensions.load_file(file)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('\n1 / 0\n', 'line 2: ZeroDivisionError: division by zero'),
    ('def f():\n  raise KeyError("k")\nf()\n', "line 2: KeyError: 'k'"),
    ('import json\njson.loads("")\n', 'line 2: JSONDecodeError'),
    ('a = (\n', 'line 1: SyntaxError'),
    ('import nosuch_package\n', 'line 1: ModuleNotFoundError'),
  ],
)
def test_an_error_of_a_file_says_where(tmp_path, text, message):
  file = written(tmp_path, text)
  for _ in range(2):  # a file that failed does not count as loaded
    with pytest.raises(ValueError, match=message) as info:
      extensions.load_file(file)
    assert str(info.value).startswith(f'{file}, line')
    assert '\n' not in str(info.value)


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(ValueError, match=f'no file {tmp_path}/none.py'):
    extensions.load_file(tmp_path / 'none.py')


RULE = """
import jax
from lca.aggregators import RULES

def {name}(updates):
  return jax.tree.map(lambda x: x[{row}], updates)

RULES[{name!r}] = {name}
"""

SWEEP = """
from configs import digits

def get_runs():
  runs = {}
  for name in ('first_row', 'last_row'):
    runs[name] = config = digits.get_config('median').unlock()
    config.aggregator = {'name': name, 'pre': (), 'scope': 'model'}
    config.update_from_flattened_dict({
      'num_rounds': 1,
      'model.features': (2,),
      'model.hidden': (),
      'client.local_epochs': 1,
    })
  return runs
"""


def test_a_sweep_s_processes_know_what_its_files_register(tmp_path):
  rule = written(tmp_path, RULE.format(name='first_row', row=0))
  sweep = RULE.format(name='last_row', row=-1) + SWEEP
  sweep = written(tmp_path, sweep, 'sweep.py')
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'lca.sweep', f'--config={sweep}'),
      *(f'--load={rule}', f'--workdir={tmp_path}/runs', '--only=.*_row'),
      *('--only=first.*|last.*', '--set=client.batch_size=32'),
    ],
    cwd=processes.ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count('] finished in ') == 2
