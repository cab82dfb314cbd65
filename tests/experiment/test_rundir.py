"""Tests of a run's directory: what it refuses and what it writes."""

import datetime
import errno
import fcntl

import numpy as np
import pytest
from run_files import CONFIG, ROW, finished

from lca.experiment.rundir import RunDirectory


def test_a_directory_is_one_process_s_at_a_time(tmp_path):
  first, second = (RunDirectory(tmp_path, {'seed': 0}) for _ in range(2))
  with first:
    first.open()
    with second, pytest.raises(OSError, match=f'running in {tmp_path}'):
      second.open()
  with second:
    second.open()
  with pytest.raises(ValueError, match='seed was 0 there and is 1 now'):
    RunDirectory(tmp_path, {'seed': 1})


def test_a_run_that_came_first_is_not_overwritten(tmp_path):
  late = RunDirectory(tmp_path, {'seed': 1})
  with RunDirectory(tmp_path, {'seed': 0}) as first:
    first.open()
  with late, pytest.raises(ValueError, match='seed was 0 there and is 1 now'):
    late.open()


def test_what_a_killed_process_has_opened_is_no_strangers(tmp_path):
  for name in ('lock', 'config.json.tmp'):
    (tmp_path / name).touch()
  with RunDirectory(tmp_path, {'seed': 0}) as directory:
    directory.open()
  assert (tmp_path / 'config.json').exists()


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
  def flock(file, operation):
    raise OSError(errno.ENOSYS, 'Function not implemented')

  monkeypatch.setattr(fcntl, 'flock', flock)
  with RunDirectory(tmp_path, {'seed': 0}) as directory:
    directory.open()
  assert f'run no second process in {tmp_path}' in capsys.readouterr().out


def contents(path):
  """Returns the bytes of all files in a folder by name."""
  return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_finished_run_without_checkpoints_does_not_grow(tmp_path):
  finished(tmp_path)
  before = contents(tmp_path)
  with pytest.raises(ValueError, match=rf'{tmp_path} .*1 rounds.*num_rounds=2'):
    RunDirectory(tmp_path, CONFIG | {'num_rounds': 2})
  assert contents(tmp_path) == before
  RunDirectory(tmp_path, CONFIG)
  (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
  RunDirectory(tmp_path, CONFIG | {'num_rounds': 2})


def test_a_run_may_lose_its_checkpoints_before_it_opens(tmp_path):
  finished(tmp_path)
  checkpoint = tmp_path / 'checkpoints' / '1'
  checkpoint.mkdir(parents=True)
  late = RunDirectory(tmp_path, CONFIG | {'num_rounds': 2})
  checkpoint.rmdir()
  with late, pytest.raises(ValueError, match='no checkpoint'):
    late.open()


def test_what_the_end_of_a_run_left_goes_when_it_goes_on(tmp_path):
  ends = {'summary.json', 'confusion.csv', 'model.safetensors'}
  with RunDirectory(tmp_path, CONFIG) as directory:
    directory.open()
    directory.start([ROW])
    for name in [*ends, 'best.safetensors']:
      directory.keep(name, b'bytes')
    assert (tmp_path / 'confusion.csv').read_bytes() == b'bytes'
    directory.start([ROW])
    assert not ends & contents(tmp_path).keys()
    assert (tmp_path / 'best.safetensors').exists()


def test_who_holds_what(tmp_path):
  with RunDirectory(tmp_path, CONFIG) as directory:
    directory.open()
    directory.write_clients(
      np.array([False, True]), np.array([[3, 0, 4], [0, 5, 0]])
    )
  assert (tmp_path / 'clients.csv').read_text() == (
    'client,byzantine,examples,class_0,class_1,class_2\n'
    '0,0,7,3,0,4\n'
    '1,1,5,0,5,0\n'
  )


def times(path):
  """Returns the rows of times.csv as lists of texts."""
  return [x.split(',') for x in (path / 'times.csv').read_text().splitlines()]


def test_the_times_of_lost_rounds_are_cut(tmp_path):
  begun = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
  with RunDirectory(tmp_path, CONFIG) as directory:
    directory.open()
    directory.start([])
    for number in range(1, 12):
      directory.add({'round': number}, number / 8)
  header, first, *_, last = before = times(tmp_path)
  assert header == ['round', 'finished', 'seconds']
  assert first[::2] == ['1', '0.125'] and last[::2] == ['11', '1.375']
  now = datetime.datetime.now(datetime.UTC)
  assert begun <= datetime.datetime.fromisoformat(last[1]) <= now
  # A killed process has left a part of round 12's line, which looks like
  # round 1's. The last checkpoint is that of round 10.
  with open(tmp_path / 'times.csv', 'a') as file:
    file.write('1')
  with RunDirectory(tmp_path, CONFIG) as directory:
    directory.open()
    directory.start([{'round': number} for number in range(1, 11)])
  assert times(tmp_path) == before[:11]
