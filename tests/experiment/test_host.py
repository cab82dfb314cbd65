"""Tests of signals: the first lets a process finish, a second one ends it."""

import signal
import subprocess
import sys
import time

import processes
import pytest

from lca import progress
from lca.experiment import host

WAITING = """
import sys, time
from lca.experiment import host

stopping = host.Stopping({grace}).take_signals()
print('ready', flush=True)
while not stopping():
  time.sleep(0.01)
print('saved')
sys.exit(host.STOPPED)
"""

# The second lock blocks for ever in C, so that Python's own signal handlers
# never run, as during a long round in XLA.
STUCK = """
import ctypes
from lca.experiment import host

host.Stopping({grace}).take_signals()
print('ready', flush=True)
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_lock(mutex)
"""


NO_ROUND_YET = """
import time
from lca.experiment import host

stopping = host.Stopping({grace}, in_rounds=False).take_signals()
try:
  print('ready', flush=True)
  time.sleep(60)
except KeyboardInterrupt:
  print('cleaned up')
"""


def start(code, grace):
  """Starts a process with this code, and waits until it handles signals."""
  process = subprocess.Popen(
    [sys.executable, '-c', code.format(grace=grace)],
    cwd=processes.ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  return process


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_process_finishes_what_it_does(number):
  with start(WAITING, grace=600) as process:
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
  assert process.returncode == 143
  first, last = output.splitlines()
  assert 'stopping after this round' in first and '600 seconds' in first
  assert last == 'saved'


def test_a_signal_interrupts_what_comes_before_the_rounds():
  with start(NO_ROUND_YET, grace=600) as process:
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=50)
  assert 'cleaned up' in output
  assert 'after this round' not in output


def test_a_second_signal_ends_a_process_at_once():
  with start(STUCK, grace=600) as process:
    process.send_signal(signal.SIGINT)
    assert 'stopping after' in process.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
      process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 143


def test_the_grace_period_ends_a_process():
  with start(STUCK, grace=1.5) as process:
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert time.monotonic() - begun > 1.4


def test_details_are_hidden_with_progress(monkeypatch, capsys):
  host.detail('round 1')
  monkeypatch.setitem(progress._state, 'hidden', True)
  host.detail('round 2')
  host.say('the results')
  assert capsys.readouterr().out == 'round 1\nthe results\n'
