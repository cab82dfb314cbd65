"""Tests that a directory a run cannot use is refused at the start."""

import os

import pytest

from lca.experiment import index
from lca.experiment.prepared import Nowhere
from lca.experiment.rundir import ReadOnlyRunDirectory, RunDirectory
from lca.models import find_pretrained

CONFIG = {'num_rounds': 1, 'seed': 0}


def test_a_place_that_cannot_be_written_to(tmp_path):
  for path in ('/proc/x/y', '/proc/x'):
    with pytest.raises(OSError, match=r'cannot write into /proc .*--workdir'):
      RunDirectory(path, CONFIG)
  (tmp_path / 'file').touch()
  with pytest.raises(OSError, match=f'cannot write into {tmp_path}/file'):
    RunDirectory(tmp_path / 'file' / 'run', CONFIG)


def test_a_check_leaves_no_trace(tmp_path):
  RunDirectory(tmp_path / 'a' / 'b', CONFIG)
  RunDirectory(tmp_path, CONFIG)
  assert not list(tmp_path.iterdir())


def test_a_directory_of_another_process_is_refused_at_once(tmp_path):
  with RunDirectory(tmp_path, CONFIG) as first:
    first.open()
    with pytest.raises(OSError, match=f'running in {tmp_path}'):
      RunDirectory(tmp_path, CONFIG)
    # Another process of the same run may read it.
    ReadOnlyRunDirectory(tmp_path, CONFIG).open()
  RunDirectory(tmp_path, CONFIG)


def test_a_finished_run_is_read_where_nothing_can_be_written(tmp_path):
  with RunDirectory(tmp_path, CONFIG) as directory:
    directory.open()
    directory.start([{'round': 1}])
    directory.finish({'num_rounds': 1})
    assert RunDirectory(tmp_path, CONFIG).summary() == {'num_rounds': 1}


def test_paths_begin_with_the_home(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  assert RunDirectory('~/run', CONFIG).path == tmp_path.resolve() / 'run'
  index.record({}, '~/sweep')
  assert (tmp_path / 'sweep' / 'sweep.json').exists()
  assert index.names('~/sweep') == {} and index.by_line('~/sweep') == {}
  weights = tmp_path / 'weights.pth'
  weights.touch()
  assert find_pretrained('~/weights.pth') == weights
  assert not os.path.lexists('~')


@pytest.mark.parametrize('nowhere', [False, True])
def test_what_keeps_nothing_writes_nothing(tmp_path, monkeypatch, nowhere):
  monkeypatch.chdir(tmp_path)
  directory = Nowhere() if nowhere else ReadOnlyRunDirectory('.', CONFIG)
  with directory:
    directory.open()
    directory.start([], ['dropped'])
    directory.add({'round': 1}, 0.5)
    directory.finish({'num_rounds': 1})
  assert not list(tmp_path.iterdir())
  assert directory.summary() is None and not directory.finished(0)
