"""Runs resume in the same bits after kills, signals and full disks."""

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

# This setting has the largest state to restore: the clients' momenta, the
# averages of Adadelta and the window of LEGATO.
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
    'eval.forensics': True,
    'checkpoint.every': 1,
  })
  return config.lock()
"""


class Runs:
  """Starts processes that run a setting, with a common compilation cache."""

  def __init__(self, folder):
    self.setting = folder / 'setting.py'
    self.setting.write_text(SETTING)
    self._logs = (folder / f'{number}.log' for number in itertools.count())
    self._cache = folder / 'cache'

  def start(self, workdir, *args, setting=None, file_size=None):
    setting = setting or self.setting
    args = [f'--config={setting}', f'--workdir={workdir}', *args]
    log = next(self._logs)  # outside the workdir, whose disk may be full
    if file_size:
      # A pipe is not subject to the limit, which would cut the error message.
      os.mkfifo(log)
    process = processes.start(args, log, cache=self._cache, file_size=file_size)
    process.log = log
    return process

  def finish(self, workdir, *args, **options):
    """Runs a process to its end; returns its exit code and its output."""
    process = self.start(workdir, *args, **options)
    deadline = threading.Timer(PATIENCE, process.kill)
    deadline.start()
    if not process.log.is_fifo():
      process.join()
    written = process.log.read_text()  # reads a pipe until the process ends
    process.join()
    deadline.cancel()
    return process.exitcode, written


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  return Runs(tmp_path_factory.mktemp('settings'))


@pytest.fixture(scope='module')
def straight(runs, tmp_path_factory):
  """Runs 30 rounds without interruption; returns the workdir."""
  workdir = tmp_path_factory.mktemp('runs') / 'straight'
  code, written = runs.finish(workdir)
  assert code == 0, written
  return workdir


def wait_for(condition, process):
  """Waits until a condition holds, while the process must be alive."""
  deadline = time.monotonic() + PATIENCE
  while not (result := condition()):
    assert process.is_alive(), process.log.read_text()
    assert time.monotonic() < deadline
    time.sleep(0.001)
  return result


def rounds_of(process):
  """Returns the rounds that a process has printed so far."""
  return [
    int(n) for n in re.findall(r'^round +(\d+)/', read(process.log), re.M)
  ]


FILES = ('metrics.csv', 'summary.json', 'forensics.json', 'forensics.bin')


def check_same_end(workdir, straight):
  """Checks that two runs have the same files, events and state."""
  for name in FILES:
    assert (workdir / name).read_bytes() == (straight / name).read_bytes()
  for tag in (
    'test/loss',
    'clients/byzantine',
    'layers/factor/params/Conv_0/bias',
  ):
    assert event_steps(workdir, tag) == list(range(1, 31))
  states = []
  for path in (workdir, straight):
    assert checkpoints(path)[0][-1] == 30
    with ocp.StandardCheckpointer() as checkpointer:
      states.append(checkpointer.restore(path / 'checkpoints/30/state'))
  # For each of 4 leaves: the model, the optimiser's two averages, the clients'
  # momenta and LEGATO's window. And LEGATO's norms, factors and count.
  assert len(jax.tree.leaves(states[0])) == 4 * (1 + 2 + 1 + 1) + 3
  jax.tree.map(np.testing.assert_array_equal, *states)


def random_moment(kind, targets, chance, workdir, process):
  """Waits for a random moment to kill a process.

  Args:
    kind: `'start'` for a moment before the first round, `'round'` for one soon
      after a round, `'checkpoint'` for one soon after a checkpoint is begun.
    targets: the rounds to wait for, sorted; the first one is removed.
    chance: source of random numbers.
    workdir: workdir of the run.
    process: the process.

  Returns:
    A description of the moment.
  """
  if kind == 'start':  # during imports, data, compilation or restoring
    stop = time.monotonic() + chance.uniform(0, 3)
    wait_for(lambda: time.monotonic() > stop or rounds_of(process), process)
    return 'before its first round'
  seconds = chance.uniform(0, 0.03)
  number = max(targets.pop(0), max(checkpoints(workdir)[0], default=0) + 1)
  if kind == 'round':
    wait_for(lambda: number in rounds_of(process), process)
  else:
    begun = f'{number}.orbax-checkpoint-tmp'
    # An earlier process may have left this checkpoint unfinished.
    left = begun in checkpoints(workdir)[1]
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
  assert torn >= 3  # at least 3 of 8 kills hit a checkpoint being written
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
  link.symlink_to(workdir)  # another path to the same workdir
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
  wait_for(lambda: rounds_of(again), again)  # the lock ended with the process
  again.kill()


def check_one_error(code, written, *parts):
  """Checks that a process failed with one error line and no traceback.

  Threads of TensorStore may print messages of their own around the error line,
  and before it in the same line.

  Args:
    code: exit code of the process.
    written: output of the process.
    *parts: texts that the error line contains.
  """
  assert code == 1, written
  assert 'main.py", line' not in written
  _, error = written.split('main.py: error: ')
  error = error.splitlines()[0]
  for part in parts:
    assert part in error


@pytest.fixture(scope='module')
def killed(runs, tmp_path_factory):
  """Returns the workdir of a run that was killed after a checkpoint."""
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
  """A limit on the size of files stands in for a full disk."""
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
  """Mounts a disk of 4 MiB."""
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
    place = '/proc/run'  # where not even root can make a directory
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
