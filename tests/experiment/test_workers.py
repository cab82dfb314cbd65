"""The processes of a sweep stay for one run after another."""

import signal

import pytest
from run_files import tiny

from lca.experiment.summary import is_finished
from lca.experiment.workers import FAILS_AGAIN, Worker, reason

KILLS = """
import os, signal
from lca.aggregators import RULES

@RULES.register
def kills(updates):
  os.kill(os.getpid(), signal.SIGKILL)
"""

HOLDS_MUCH = """
from lca.experiment import workers
workers.MOST_BYTES = 1
"""


@pytest.fixture
def make(tmp_path):
  """Returns a function that makes workers which have executed a file."""
  workers = []

  def make(code):
    file = tmp_path / 'file.py'
    file.write_text(code)
    workers.append(Worker((0, 1), load=[file]))
    return workers[-1]

  yield make
  for worker in workers:
    worker.close()


def finishes(worker, config, path):
  """Runs a config and returns True if its run is finished."""
  return worker.run({path: config.to_dict()}) == {path: 0}


def test_a_process_stays_unless_a_run_fails(make, tmp_path):
  worker = make(KILLS)
  kills = tiny('median')
  kills.aggregator = {'name': 'kills', 'pre': (), 'scope': 'model'}
  processes = []

  def run(number, config):
    path = tmp_path / f'{number}'
    code = worker.run({path: config.to_dict()})[path]
    assert is_finished(path) == (code == 0)
    assert path.with_suffix('.log').exists() == (code != 0)
    processes.append(worker._process and worker._process.pid)
    return code

  assert run(0, tiny('krum')) == 0
  assert run(1, tiny('median')) == 0
  assert run(2, tiny('krum', **{'data.min_examples': 10_000})) == FAILS_AGAIN
  assert run(3, kills) == -signal.SIGKILL
  assert run(4, tiny('krum', seed=1)) == 0
  first, second, *none, last = processes
  assert first == second and none == [None, None]
  assert last not in (None, first)


def test_a_process_that_held_much_memory_ends(make, tmp_path):
  worker = make(HOLDS_MUCH)
  for number in range(2):
    assert finishes(worker, tiny('krum'), tmp_path / f'{number}')
    assert worker._process is None


def test_no_run_starts_while_the_sweep_stops(make, tmp_path):
  worker = make('')
  assert worker.run({tmp_path / 'run': {}}, lambda: True) is None
  assert worker._process is None


def test_a_file_that_is_saved_during_a_sweep_is_not_executed_again(
  make, tmp_path
):
  """It would register its rule a second time."""
  worker = make(KILLS)
  assert finishes(worker, tiny('krum'), tmp_path / '0')
  (tmp_path / 'file.py').write_text('raise ValueError')
  assert finishes(worker, tiny('median'), tmp_path / '1')


def test_a_process_that_was_killed_between_runs_is_replaced(make, tmp_path):
  worker = make('')
  assert finishes(worker, tiny('krum'), tmp_path / '0')
  worker._process.kill()
  worker._process.join()
  assert finishes(worker, tiny('median'), tmp_path / '1')


STOPPED_LATE = """
import shutil, signal, time
from lca.experiment import workers

def rmtree(path):
  signal.raise_signal(signal.SIGTERM)
  time.sleep(1)
  original(path)

original, shutil.rmtree = shutil.rmtree, rmtree
"""


def test_a_run_that_is_stopped_after_its_last_round_is_finished(make, tmp_path):
  """It leaves no checkpoints, and its process ends."""
  worker, path = make(STOPPED_LATE), tmp_path / '0'
  assert finishes(worker, tiny('krum'), path)
  assert is_finished(path) and not (path / 'checkpoints').exists()
  assert not path.with_suffix('.log').exists()
  assert worker._process is None


def test_seeds_of_one_config_share_a_process(make, tmp_path):
  """One of them fails, and its error is in a log of its own."""
  worker = make('')
  runs = {
    tmp_path / f'{seed}': tiny(
      'krum', seed=seed, **{'data.min_examples': least}
    ).to_dict()
    for seed, least in enumerate([1, 1, 10_000])
  }
  codes = worker.run(runs)
  assert [*codes.values()] == [0, 0, FAILS_AGAIN]
  assert all(is_finished(path) == (code == 0) for path, code in codes.items())
  logs = [path.with_suffix('.log') for path in runs]
  assert [log.exists() for log in logs] == [False, False, True]
  assert reason(FAILS_AGAIN, logs[2]).startswith('ValueError: ')
  assert worker._process is None
