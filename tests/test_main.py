"""The command line: one clear error, and nothing left behind."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def main(*args, cwd=ROOT):
  return subprocess.run(
    [sys.executable, str(ROOT / 'main.py'), *args],
    cwd=cwd,
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--config.agregator=krum'], 'agregator'),
    (['--config=configs/digits.py:krun'], "unknown preset 'krun'"),
    (['--config=configs/digit.py'], 'digit.py'),
    (['--config.aggregator.f=7'], 'got n=15, f=7'),
    (['--config.attack.num_attackers=30'], 'num_attackers=30'),
    (['--config.data.min_examples=0'], 'empty client'),
    (['--config.parallel.mesh=0'], 'a mesh of 0 devices'),
    (
      [
        '--config=configs/digits.py:krum',
        '--config.aggregator.distance=cosine',
      ],
      'power',
    ),
    (['--config.num_rounds=many'], 'num_rounds'),
    (['train'], 'train'),
    (
      [
        '--config=configs/fashion_mnist.py',
        '--config.data.archive_dir=/no/such/folder',
        '--config.data.data_dir=/no/such/data',
      ],
      '/no/such/folder',
    ),
  ],
)
def test_one_clear_error(args, message, tmp_path):
  workdir = tmp_path / 'run'
  done = main(*args, f'--workdir={workdir}')
  assert done.returncode != 0
  assert done.stdout == ''
  assert done.stderr.startswith('main.py: error: ')
  assert message in done.stderr and 'Traceback' not in done.stderr
  assert not workdir.exists()


def test_a_new_run_is_named_by_its_config_and_time():
  code = (
    'import main; main._parse_flags(["main.py", '
    '"--config=configs/digits.py:krum,label_flipping"]); '
    'print(main._new_workdir())'
  )
  command = [sys.executable, '-c', code]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert re.fullmatch(
    r'runs/digits-krum-label_flipping-\d{8}T\d{6}Z', done.stdout.strip()
  )


def test_a_run_then_another_config_then_the_same_again(tmp_path):
  small = [
    '--config.num_rounds=1',
    '--config.client.local_epochs=1',
    f'--workdir={tmp_path / "with space"}',
  ]
  first = main(*small)
  assert first.returncode == 0, first.stderr
  for said in ('each device holds', 'round 1/1', 'max test accuracy'):
    assert said in first.stdout
  other = main(*small, '--config.seed=1')
  assert other.returncode != 0
  assert 'seed was 0 there and is 1 now' in other.stderr
  again = main(*small)
  assert again.returncode == 0
  assert again.stdout.splitlines()[-5:] == first.stdout.splitlines()[-5:]
