"""Whole processes that are killed, asked to stop, or have no room to write."""

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import processes
import pytest
from run_files import PATIENCE, checkpoints, event_steps, last_row, read

# The setting with the most to lose: workers' momentum, Adadelta's averages and
# LEGATO's window are all carried from round to round.
SETTING = """
from configs import common, digits

def get_config():
  config = digits.get_config('legato,gaussian').unlock()
  common.federated_sgd(config, batch_size=16)
  config.server = common.servers()['adadelta']
  config.update_from_flattened_dict({
    'num_rounds': 30,
    'data.num_clients': 6,
    'server.clients_per_round': 5,
    'model.features': (2,),
    'model.hidden': (),
    'client.momentum': 0.5,
    'aggregator.window': 3,
    'eval.layers': 'leaf',
    'checkpoint.every': 1,
  })
  return config.lock()
"""


class Runs:
  """Starts processes on a setting."""

  def __init__(self, folder):
    self.setting = folder / 'setting.py'
    self.setting.write_text(SETTING)
    self._logs = (folder / f'{number}.log' for number in itertools.count())
    self._cache = folder / 'cache'

  def start(self, workdir, *args, setting=None, file_size=None):
    setting = setting or self.setting
    args = [f'--config={setting}', f'--workdir={workdir}', *args]
    log = next(self._logs)  # not where the run's disk may be full
    if file_size:
      os.mkfifo(log)  # so that the limit does not cut what is said about it
    process = processes.start(args, log, cache=self._cache, file_size=file_size)
    process.log = log
    return process

  def finish(self, workdir, *args, **options):
    """Returns the exit code and what was written."""
    process = self.start(workdir, *args, **options)
    deadline = threading.Timer(PATIENCE, process.kill)
    deadline.start()
    if not process.log.is_fifo():
      process.join()
    written = process.log.read_text()  # of a pipe: until its other end is shut
    process.join()
    deadline.cancel()
    return process.exitcode, written


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  return Runs(tmp_path_factory.mktemp('settings'))


@pytest.fixture(scope='module')
def straight(runs, tmp_path_factory):
  """30 rounds in one go."""
  workdir = tmp_path_factory.mktemp('runs') / 'straight'
  code, written = runs.finish(workdir)
  assert code == 0, written
  return workdir


def wait_for(condition, process):
  """Looks every millisecond; the process must still be there."""
  deadline = time.monotonic() + PATIENCE
  while not (found := condition()):
    assert process.is_alive(), process.log.read_text()
    assert time.monotonic() < deadline
    time.sleep(0.001)
  return found


def rounds_of(process):
  """The rounds that a process has said it ran."""
  return [
    int(n) for n in re.findall(r'^round +(\d+)/', read(process.log), re.M)
  ]


def check_same_end(workdir, straight):
  """The same bits: rows, summary, events, and all that the server carries."""
  for name in ('metrics.csv', 'summary.json'):
    assert (workdir / name).read_bytes() == (straight / name).read_bytes()
  for tag in ('test_loss', 'byzantine', 'factor/params/Conv_0/bias'):
    assert event_steps(workdir, tag) == list(range(1, 31))
  states = []
  for path in (workdir, straight):
    assert checkpoints(path)[0][-1] == 30
    with ocp.StandardCheckpointer() as checkpointer:
      states.append(checkpointer.restore(path / 'checkpoints/30/state'))
  # Of each leaf the model, its optimiser's two averages, everyone's momentum
  # and LEGATO's window; and its norms, factors and count.
  assert len(jax.tree.leaves(states[0])) == 4 * (1 + 2 + 1 + 1) + 3
  jax.tree.map(np.testing.assert_array_equal, *states)


def random_moment(kind, targets, chance, workdir, process):
  """Waits for it, and says which it was."""
  if kind == 'start':  # imports, data, compilation, restoring, first files
    stop = time.monotonic() + chance.uniform(0, 3)
    wait_for(lambda: time.monotonic() > stop or rounds_of(process), process)
    return 'before its first round'
  seconds = chance.uniform(0, 0.03)
  number = max(targets.pop(0), max(checkpoints(workdir)[0], default=0) + 1)
  if kind == 'round':
    wait_for(lambda: number in rounds_of(process), process)
  else:
    begun = f'{number}.orbax-checkpoint-tmp'
    left = begun in checkpoints(workdir)[1]  # by a process killed before
    wait_for(lambda: not left or rounds_of(process), process)
    wait_for(lambda: begun in checkpoints(workdir)[1], process)
  time.sleep(seconds)
  where = {'round': 'after round', 'checkpoint': 'into checkpoint'}[kind]
  return f'{1000 * seconds:.0f} ms {where} {number}'


def test_killed_at_twenty_random_moments(runs, straight, tmp_path):
  workdir, chance = tmp_path / 'killed', random.Random(0)
  kinds = ['start'] * 5 + ['round'] * 7 + ['checkpoint'] * 8
  chance.shuffle(kinds)
  targets = sorted(chance.sample(range(1, 29), 15))
  torn, saved = 0, 0
  for number, kind in enumerate(kinds, 1):
    began = time.monotonic()
    process = runs.start(workdir)
    moment = random_moment(kind, targets, chance, workdir, process)
    process.kill()
    process.join()
    lived = time.monotonic() - began
    assert process.exitcode == -signal.SIGKILL, read(process.log)
    assert 'damaged' not in read(process.log)
    if ran := rounds_of(process):
      assert ran == list(range(saved + 1, saved + 1 + len(ran)))
    whole, under_way = checkpoints(workdir)
    torn, saved = torn + bool(under_way), max(whole, default=0)
    print(
      f'kill {number:2}: after {lived:4.1f} s, {moment}; metrics.csv at round '
      f'{last_row(workdir)}, the last whole checkpoint {saved}'
      + ', a torn one beside it'
      * bool(under_way)
    )
  code, written = runs.finish(workdir)
  assert code == 0, written
  assert torn >= 3  # of eight attempts
  assert checkpoints(workdir) == ([29, 30], [])
  check_same_end(workdir, straight)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(runs, straight, tmp_path, number):
  workdir = tmp_path / 'preempted'
  process = runs.start(workdir, '--config.checkpoint.every=1000')
  wait_for(lambda: len(rounds_of(process)) >= 3, process)
  os.kill(process.pid, number)
  process.join(PATIENCE)
  assert process.exitcode == 143
  assert read(process.log).splitlines()[-1].startswith('stopped; the same ')
  ran = rounds_of(process)
  assert 3 <= len(ran) < 30
  assert checkpoints(workdir) == ([last_row(workdir)], [])
  assert last_row(workdir) == ran[-1]
  code, written = runs.finish(workdir)
  assert code == 0 and f'round {ran[-1] + 1:2}/30' in written, written
  check_same_end(workdir, straight)


def test_two_processes_on_one_workdir(runs, tmp_path):
  workdir, link = tmp_path / 'shared', tmp_path / 'link'
  long = '--config.num_rounds=1000'
  first = runs.start(workdir, long)
  wait_for(lambda: (workdir / 'config.json').exists(), first)
  link.symlink_to(workdir)  # a second name changes nothing
  code, written = runs.finish(link, long)
  assert first.is_alive()
  assert code == 1
  (error,) = (
    line for line in written.splitlines() if line.startswith('main.py: error: ')
  )
  assert error.startswith(
    f'main.py: error: another process is running in {workdir}'
  )
  first.kill()
  first.join()
  again = runs.start(workdir, long)
  wait_for(lambda: rounds_of(again), again)
  again.kill()


def check_one_error(code, written, *parts):
  """It ends with one line of ours, and no traceback of ours.

  TensorStore's threads may print their own around it, and before it in the same
  line, which nobody can catch.
  """
  assert code == 1, written
  assert 'main.py", line' not in written
  _, error = written.split('main.py: error: ')
  error = error.splitlines()[0]
  for part in parts:
    assert part in error


@pytest.fixture(scope='module')
def killed(runs, tmp_path_factory):
  """A run that was killed, with a good checkpoint."""
  workdir = tmp_path_factory.mktemp('runs') / 'killed'
  process = runs.start(workdir)
  wait_for(lambda: checkpoints(workdir)[0], process)
  process.kill()
  process.join()
  return workdir


@pytest.mark.parametrize(
  ('every', 'size', 'part'),
  [
    (1, 10_000, 'cannot write a checkpoint'),
    pytest.param(1000, 6_000, 'File too large', marks=pytest.mark.thorough),
  ],
  ids=['checkpoints', 'metrics'],
)
def test_files_that_cannot_grow(
  runs, straight, killed, tmp_path, every, size, part
):
  """A limit on the size of files needs no disk that is full."""
  workdir = shutil.copytree(killed, tmp_path / 'limited')
  good = max(checkpoints(workdir)[0])
  every = f'--config.checkpoint.every={every}'
  code, written = runs.finish(workdir, every, file_size=size)
  check_one_error(code, written, part, str(workdir))
  last = checkpoints(workdir)[0][-1]
  assert last >= good
  code, written = runs.finish(workdir)
  assert code == 0 and f'round {last + 1:2}/30' in written, written
  check_same_end(workdir, straight)


@pytest.fixture
def disk(tmp_path):
  """A disk of 4 MiB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'none', str(folder)]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('may not mount a disk of its own')
  yield folder
  subprocess.run(['umount', '--lazy', str(folder)], check=True)


def test_a_full_disk(runs, straight, killed, disk):
  workdir = shutil.copytree(killed, disk / 'run')
  good = max(checkpoints(workdir)[0])
  left = shutil.disk_usage(disk).free
  (disk / 'ballast').write_bytes(bytes(left - 65_536))
  code, written = runs.finish(workdir)
  check_one_error(code, written, str(workdir))
  (disk / 'ballast').unlink()
  assert checkpoints(workdir)[0][-1] >= good
  code, written = runs.finish(workdir)
  assert code == 0, written
  check_same_end(workdir, straight)


@pytest.mark.parametrize('place', ['file/run', 'folder/run'])
def test_a_workdir_that_cannot_be_made(runs, tmp_path, place):
  (tmp_path / 'file').touch()
  (tmp_path / 'folder').mkdir(mode=0o555)
  if place.startswith('folder') and os.access(tmp_path / 'folder', os.W_OK):
    place = '/proc/run'  # not even root makes one there
  process = runs.start(tmp_path / 'x', f'--workdir={tmp_path / place}')
  process.join(PATIENCE)
  check_one_error(process.exitcode, read(process.log), place)


def test_a_run_that_breaks_says_so(runs, tmp_path):
  code, written = runs.finish(
    tmp_path / 'broken',
    '--config.model.features=(2,)',
    '--config.client.local_epochs=1',
    '--config.server.clients_per_round=3',
    setting='configs/digits.py:fedavg,non_finite',
  )
  check_one_error(code, written, 'in round 1 ', 'train.on_nonfinite=continue')
