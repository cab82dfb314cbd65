"""The comparison of rounds with other systems: its own parts, and lca's row."""

import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks.systems import catalogue, common, running, table, tasks
from lca import models

pytestmark = pytest.mark.quick


@pytest.fixture(scope='module')
def task():
  """Returns a task of five clients with eight random images each."""
  rng = np.random.default_rng(0)
  return common.Task(
    rule='fedavg',
    f=1,
    rounds=2,
    epochs=1,
    batch_size=4,
    learning_rate=1e-3,
    mean=127.5,
    std=127.5,
    images=rng.integers(0, 256, (5, 8, 28, 28), dtype=np.uint8),
    labels=rng.integers(0, 10, (5, 8)),
    test_images=rng.integers(0, 256, (6, 28, 28), dtype=np.uint8),
    test_labels=rng.integers(0, 10, 6),
    weights=tasks.initial_weights(),
  )


def test_judge_computes_the_papers_cnn(task):
  assert sum(x.size for x in task.weights.values()) == 1_625_866
  params = {}
  for name, array in task.weights.items():
    layer, leaf = name.split('/')
    params.setdefault(layer, {})[leaf] = array
  x = task.inputs()[0][..., None]
  expected = models.CNN(10).apply({'params': params}, x)
  np.testing.assert_allclose(
    common.logits(task.weights, x), expected, rtol=1e-4, atol=1e-4
  )


def test_accuracy_is_the_share_of_right_answers(task):
  x = (task.test_images[..., None] - np.float32(127.5)) / 127.5
  found = common.logits(task.weights, x).argmax(1)
  labels = np.where(np.arange(6) < 4, found, (found + 1) % 10)
  judged = task._replace(test_labels=labels)
  assert common.accuracy(task.weights, judged, block=4) == pytest.approx(4 / 6)


def test_task_survives_its_file(task, tmp_path):
  task.save(tmp_path / 'task.npz')
  read = common.load(tmp_path / 'task.npz', 'krum')
  assert (read.rule, read.f, read.batch_size) == ('krum', 1, 4)
  assert (read.num_clients, read.num_batches) == (5, 2)
  jax.tree.map(
    np.testing.assert_array_equal, read._replace(rule='fedavg'), task
  )


def test_lca_runs_the_task(task, tmp_path):
  task.save(tmp_path / 'task.npz')
  lca = catalogue.SYSTEMS['lca']
  python = running.python_of(lca, tmp_path)
  assert python == sys.executable
  measured = running.run(lca, python, tmp_path / 'task.npz', 'krum')
  assert len(measured['rounds']) == 2
  assert all(0 < x['training'] < x['total'] for x in measured['rounds'])
  assert measured['startup'] > 0 and measured['peak_mb'] > 50
  assert 0 <= measured['accuracy'] <= 1


def test_failed_adapter_says_why(task, tmp_path):
  task.save(tmp_path / 'task.npz')
  absent = catalogue.System('absent', 'no_such_adapter')
  with pytest.raises(running.Failure, match='no_such_adapter'):
    running.run(absent, sys.executable, tmp_path / 'task.npz', 'krum')


def test_memory_counts_descendants():
  command = 'import subprocess, sys; subprocess.run([sys.executable, "-c", '
  command += '"print(1, flush=True); input()"])'
  child = subprocess.Popen(
    [sys.executable, '-c', command],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  child.stdout.readline()  # the grandchild runs
  found = running.descendants(child.pid)
  assert found[0] == child.pid and len(found) == 2
  assert os.getpid() not in found
  assert all(running.proportional_kb(pid) > 0 for pid in found)
  with running.watched(child.pid, seconds=0.01) as seen:
    time.sleep(0.2)
  assert seen.peak_mb > 1 and seen.elsewhere >= 0
  child.communicate(b'\n')


def run_of(system, rule, seconds, elsewhere=0.0):
  """Returns a run whose later rounds take `seconds`, a tenth for the rule."""
  later = {'total': seconds, 'training': 0.9 * seconds}
  return {
    'elsewhere': elsewhere,
    'system': system,
    'rule': rule,
    'startup': 2.0,
    'rounds': [{'total': 50.0, 'training': None}, later, later],
    'peak_mb': 1234.0,
    'accuracy': 0.5,
  }


def test_table_and_goals():
  runs = [
    run_of('lca', 'fedavg', 2.0),
    run_of('lca', 'fedavg', 4.0, elsewhere=1.5),  # does not count
    run_of('lca', 'krum', 2.0),
    run_of('pytorch', 'fedavg', 6.0),
    run_of('pytorch', 'fedavg', 8.0),
    run_of('pytorch', 'krum', 5.0, elsewhere=1.5),  # counts, as the only one
    {'system': 'pfl', 'rule': 'krum', 'failure': 'pip: no pfl'},
  ]
  record = {'runs': runs}
  assert table.ratio(record, 'pytorch', 'fedavg') == 3.5
  assert table.round_seconds(record, 'lca', 'krum', 'training') == 1.8
  assert table.ratio(record, 'flower', 'krum') is None
  text = table.markdown(record)
  assert (
    '| PyTorch (others kept 1.5 cores busy) | 7.00 | 5.00 | 6.30, 4.50 | 0.70, '
    '0.50 |'
  ) in text
  assert '| pfl | pip: no pfl |' in text
  line = '3 times as fast as plain PyTorch: fedavg 3.5, met; krum not judged'
  assert line in text
  assert "the paper's stack: fedavg not judged; krum not judged" in text
