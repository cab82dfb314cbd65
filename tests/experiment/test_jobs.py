"""The processes of a sweep: outcomes, retries, and what is said of them."""

import json
import multiprocessing
import os
import re
import signal
import threading
import time

import pytest
from run_files import PATIENCE, tiny

from lca.experiment import host, index, jobs, sweep, workers
from lca.experiment.rundir import RunDirectory
from lca.experiment.trained import load_run

RUNS = {
  'a/krum': tiny('krum'),
  'a/median': tiny('median'),
  'b/krum': tiny('krum'),
  'b/wrong': tiny('krum', **{'data.min_examples': 10_000}),
}


def test_a_sweep_runs_what_is_missing_and_says_what_failed(tmp_path, capfd):
  runs = sweep.choose(RUNS)
  failed = jobs.run_all(runs, tmp_path, jobs=2)
  logs = [path.read_text() for path in tmp_path.glob('*.log')]
  assert failed == ['b/wrong/0'], logs
  places = json.loads((tmp_path / 'sweep.json').read_text())
  assert places['a/krum/0'] == places['b/krum/0'] != places['a/median/0']
  (log,) = tmp_path.glob('*.log')
  assert log.stem == places['b/wrong/0']
  assert log.read_text().count('\nValueError: ') == 1  # not tried again
  printed = capfd.readouterr().out
  said = re.findall(r'FAILED: b/wrong/0 \((.*)\): ValueError: (.*)', printed)
  assert len(said) == 1 and said[0][0] == log.stem
  assert 'min_examples=10000' in said[0][1] and f'(see {log})' in said[0][1]
  assert '\n3 runs: 2 finished now, 1 failed\n  b/wrong/0: ' in printed
  finished = sorted(path.parent for path in tmp_path.glob('*/summary.json'))
  assert len(finished) == 2
  assert not list(tmp_path.glob('*/checkpoints'))
  cores = len(os.sched_getaffinity(0))
  for path in finished:  # two runs at a time share the cores
    (where,) = json.loads((path / 'config.json').read_text())['environments']
    assert len(where['devices']) in (max(1, cores // 2), (cores + 1) // 2)
    # The model stays, although the checkpoints are gone.
    kernel = load_run(path).variables['params']['Conv_0']['kernel']
    assert kernel.shape == (3, 3, 1, 2)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.glob('*/*')}
  assert jobs.run_all(sweep.choose(RUNS, ['a']), tmp_path) == []
  printed = capfd.readouterr().out
  assert printed == '2 of 2 runs are finished already; nothing left\n'
  assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob('*/*')}
  assert index.names(tmp_path) == places


def write_run(path, config):
  """Writes the files of a finished run of one round in half a second."""
  with RunDirectory(path, config) as directory:
    directory.open()
    directory.start([{'round': 1, 'test_accuracy': 0.75}])
    directory.finish({'num_rounds': 1, 'average_test_accuracy': 0.75})
  row = '1,2026-01-01T00:00:00+00:00,0.5\n'
  (path / 'times.csv').write_text(f'round,finished,seconds\n{row}')


@pytest.fixture
def ends(monkeypatch):
  """Replaces the processes of runs; returns the exit codes of each, in order.

  The codes are lists by rule. A run without a list is finished.
  """
  codes = {}

  def run(worker, configs, stopping):
    if stopping():
      return None
    ended = {}
    for path, config in configs.items():
      left = codes.get(config['aggregator']['name'], [])
      ended[path] = left.pop(0) if left else 0
      if not ended[path]:
        write_run(path, config)
    worker.groups.append([config['seed'] for config in configs.values()])
    return ended

  monkeypatch.setattr(workers.Worker, 'run', run)
  monkeypatch.setattr(workers.Worker, 'groups', [], raising=False)
  return codes


def without_times(text):
  """Returns printed lines without the runs' ids and the seconds they took."""
  text = re.sub(r' \([0-9a-f]{16}\)', '', text)
  return re.sub(r'finished in \d s', 'finished', text).splitlines()


FOUR = sweep.choose(
  {f'a/{name}': tiny(name) for name in ('krum', 'median', 'caf', 'cge')}
)


def test_each_end_is_counted(tmp_path, capsys, ends):
  places = index.record(FOUR, tmp_path)
  write_run(places['a/median/0'], FOUR['a/median/0'].to_dict())
  ends['krum'] = [1, 0]
  ends['caf'] = [-signal.SIGKILL] * 2
  assert jobs.run_all(FOUR, tmp_path) == ['a/caf/0']
  killed = 'SIGKILL ended its process, as when memory runs out'
  logs = {name: f'(see {path}.log)' for name, path in places.items()}
  assert without_times(capsys.readouterr().out) == [
    '1 of 4 runs are finished already; 2 s left',
    f'[1/4] FAILED, to be tried again: a/krum/0: exit code 1'
    f' {logs["a/krum/0"]}',
    f'[1/4] FAILED, to be tried again: a/caf/0: {killed} {logs["a/caf/0"]}',
    '[2/4] finished: a/cge/0 average test accuracy 0.750; 0 s left',
    '[3/4] finished: a/krum/0 average test accuracy 0.750; 0 s left',
    f'[4/4] FAILED: a/caf/0: {killed} {logs["a/caf/0"]}',
    '4 runs: 2 finished now, 1 finished before, 1 failed',
    f'  a/caf/0: {killed} {logs["a/caf/0"]}',
  ]


@pytest.mark.parametrize(
  ('at_once', 'groups'),
  [
    (1, [[0], [1], [2], [0], [1], [2]]),
    (2, [[0, 1], [2], [0, 1], [2], [0], [1]]),
    (None, [[0, 1, 2], [0, 1, 2], [0], [1]]),
  ],
)
def test_seeds_of_a_line_share_a_process(tmp_path, ends, at_once, groups):
  """Those that fail are tried again one by one."""
  both = {name: FOUR[f'{name}/0'] for name in ('a/krum', 'a/caf')}
  runs = sweep.choose(both, seeds=range(3))
  if at_once != 1:
    ends['caf'] = [1, 1]
  assert jobs.run_all(runs, tmp_path, seeds_at_once=at_once) == []
  assert workers.Worker.groups == groups


def test_what_would_fail_again_is_not_tried_again(tmp_path, capsys, ends):
  ends['caf'] = [workers.FAILS_AGAIN, 0]
  assert jobs.run_all(FOUR, tmp_path) == ['a/caf/0']
  assert capsys.readouterr().out.count('FAILED: a/caf/0') == 1
  assert ends['caf'] == [0]


def test_runs_that_never_began_are_not_stopped(tmp_path, capsys, ends):
  told, seen = threading.Event(), threading.Event()

  def stopping():
    if threading.current_thread() is threading.main_thread() and told.is_set():
      seen.set()
    return told.is_set()

  class Stops(list):
    """The process of a run that is under way when the sweep is stopped."""

    def pop(self, _):
      told.set()
      assert seen.wait(PATIENCE)
      time.sleep(0.2)  # until the line is printed
      return host.STOPPED

  ends['median'] = Stops([host.STOPPED])
  assert jobs.run_all(FOUR, tmp_path, stopping=stopping) == []
  printed = without_times(capsys.readouterr().out)
  assert printed[1].startswith('[1/4] finished: a/krum/0')
  assert printed[2:] == [
    'runs under way, which end after their round: 1; not started: 2; the same'
    ' command goes on with all of them',
    '[1/4] stopped: a/median/0: to do',
    '4 runs: 1 finished now, 1 stopped, 2 to do',
  ]


def test_processes_that_cannot_start_fail_alone(tmp_path, capfd, monkeypatch):
  class NoMore:
    def __init__(self, **_):
      pass

    def start(self):
      raise OSError('no more processes')

  context = multiprocessing.get_context('spawn')
  monkeypatch.setattr(context, 'Process', NoMore)
  runs = sweep.choose(RUNS, ['a'])
  assert jobs.run_all(runs, tmp_path) == ['a/krum/0', 'a/median/0']
  lines = capfd.readouterr().out.splitlines()
  why = [line for line in lines if line.endswith(': no more processes')]
  assert len(why) == 2 + 2 + 2  # twice, and once at the end


def test_a_directory_that_is_no_run_fails_alone(tmp_path, capsys):
  runs = sweep.choose(RUNS, ['a'])
  places = index.record(runs, tmp_path)
  for place in places.values():
    place.mkdir()
    (place / 'notes.txt').touch()
  assert jobs.run_all(runs, tmp_path) == list(places)
  printed = capsys.readouterr().out
  for name, place in places.items():
    assert printed.count(f'FAILED: {name} ({place.name}): {place} has') == 1


def test_impossible_configs_are_found_without_data(tmp_path):
  """The file registers a rule, which the check's process has to know."""
  rule = tmp_path / 'rule.py'
  rule.write_text(
    'from lca.aggregators import RULES\n'
    'RULES.register(lambda updates: updates, name="no_rule")\n'
  )
  unknown = tiny('median')
  unknown.aggregator = {'name': 'no_rule', 'pre': (), 'scope': 'model'}
  f = tiny('bulyan2018')
  f.aggregator.f = 4  # of 15 clients
  runs = {**RUNS, 'c/f': f, 'c/rule': unknown}
  wrong, backend = jobs.check(sweep.choose(runs, seeds=[0, 1]), [rule])
  assert backend == 'cpu'
  assert list(wrong) == ['c/f/0', 'c/f/1', 'c/rule/0', 'c/rule/1']
  assert wrong['c/f/0'] == wrong['c/f/1']
  assert 'got n=15, f=4' in wrong['c/f/0']
  assert 'must return one update' in wrong['c/rule/0']
