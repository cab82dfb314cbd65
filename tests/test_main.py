"""Tests of `main.py`: one clear error, and no files left behind."""

import os
import re
import subprocess
import sys

import processes
import pytest


@pytest.fixture
def main(tmp_path):
  """Returns a function that runs main.py: `(exit code, output, errors)`."""
  files = tmp_path / 'out', tmp_path / 'err'

  def main(*args):
    for file in files:
      file.write_text('')
    process = processes.start(args, *files)
    process.join()
    return process.exitcode, *(file.read_text() for file in files)

  return main


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--config.agregator=krum'], 'agregator'),
    (['--config=configs/digits.py:krun'], "unknown preset 'krun'"),
    (['--config=configs/digit.py'], 'digit.py'),
    (['--config.aggregator.f=7'], 'got n=15, f=7'),
    (['--config.attack.num_attackers=30'], 'num_attackers=30'),
    (['--config.attack.num_attackers=0'], 'num_attackers=0'),
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
def test_one_clear_error(args, message, main, tmp_path):
  workdir = tmp_path / 'run'
  code, output, errors = main(*args, f'--workdir={workdir}')
  assert code != 0
  assert output == 'starting ...\n'
  assert errors.startswith('main.py: error: ')
  assert message in errors and 'Traceback' not in errors
  assert not workdir.exists()


def test_a_new_run_is_named_by_its_config_and_time(tmp_path):
  config = processes.ROOT / 'configs' / 'digits.py:krum,label_flipping'
  code = (
    f'import main; main._parse_flags(["main.py", "--config={config}"]); '
    '[print(main._new_workdir()) for _ in range(20)]'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(processes.ROOT)},
    capture_output=True,
    text=True,
  )
  names = done.stdout.split()
  start = r'runs/digits-krum-label_flipping-\d{8}T\d{6}Z'
  assert re.fullmatch(start, names[0])
  assert all(re.fullmatch(rf'{start}(-\d+)?', name) for name in names)
  # Most of the 20 are made in the same second.
  assert len({*names}) == 20
  assert all((tmp_path / name).is_dir() for name in names)


def test_a_new_run_that_cannot_start_leaves_no_directory(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, processes.ROOT / 'main.py'),
      f'--config={processes.ROOT / "configs" / "digits.py"}',
      *('--config.aggregator.f=7', '--quiet'),
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert 'got n=15, f=7' in done.stderr
  assert not done.stdout
  assert not list(tmp_path.iterdir())


def test_a_run_then_another_config_then_the_same_again(main, tmp_path):
  small = [
    '--config.num_rounds=1',
    '--config.client.local_epochs=1',
    '--config.model.features=(2,)',
    '--config.model.hidden=()',
    f'--workdir={tmp_path / "with space"}',
  ]
  code, first, errors = main(*small)
  assert code == 0, errors
  for text in ('each device holds', 'round 1/1', 'max test accuracy'):
    assert text in first
  code, _, errors = main(*small, '--config.seed=1')
  assert code != 0
  assert 'seed was 0 there and is 1 now' in errors
  code, again, _ = main(*small)
  assert code == 0
  assert again.splitlines()[-5:] == first.splitlines()[-5:]
