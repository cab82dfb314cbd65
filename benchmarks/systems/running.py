"""Makes the systems' environments, and runs adapters in them."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.systems import common
from benchmarks.systems.catalogue import System

ROOT = pathlib.Path(__file__).resolve().parents[2]

_INSTALLED = 'requirements.json'
_QUIET = {
  'FLWR_TELEMETRY_ENABLED': '0',
  'RAY_USAGE_STATS_ENABLED': '0',
  'PYTHONWARNINGS': 'ignore',
}


class Failure(Exception):
  """An environment or a run failed; the message is a line for the table."""


def python_of(system: System, environments: pathlib.Path) -> str:
  """Returns the Python of a system, and makes its environment if need be.

  An environment that was made from the same requirements is used again.

  Args:
    system: whose environment is wanted.
    environments: the folder of all environments.

  Raises:
    Failure: pip could not install the requirements.
  """
  if not system.environment:
    return sys.executable
  folder = environments / system.environment
  python, stamp = folder / 'bin' / 'python', folder / _INSTALLED
  wanted = json.dumps(system.requirements)
  if not stamp.exists() or stamp.read_text() != wanted:
    make = [sys.executable, '-m', 'venv', '--clear', str(folder)]
    subprocess.run(make, check=True)
    install = [str(python), '-m', 'pip', 'install', '-q', *system.requirements]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
      raise Failure(f'pip: {last_line(done.stderr)}')
    stamp.write_text(wanted)
  return str(python)


def run(system: System, python: str, task: pathlib.Path, rule: str) -> dict:
  """Runs an adapter once, and returns what it has measured.

  Args:
    system: whose adapter runs.
    python: of its environment.
    task: the file of the task.
    rule: `'fedavg'` or `'krum'`.

  Returns:
    The numbers of `common.report`, where `peak_mb` includes worker processes;
    `accuracy`; and `elsewhere`, how many cores other programs kept busy.

  Raises:
    Failure: the adapter failed.
  """
  with tempfile.TemporaryDirectory() as folder:
    result = pathlib.Path(folder) / 'result.npz'
    words = [str(task), rule, str(result), *system.words]
    environment = {**os.environ, **_QUIET, 'SYSTEMS_TASK': str(task)}
    environment |= {
      'PYTHONPATH': str(ROOT),
      'SYSTEMS_STARTED': str(time.time()),
    }
    process = subprocess.Popen(
      [python, '-m', f'benchmarks.systems.{system.module}', *words],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    with watched(process.pid) as seen:
      output, errors = process.communicate()
    if process.returncode:
      raise Failure(last_line(errors) or f'exit code {process.returncode}')
    measured = json.loads(output.strip().splitlines()[-1])
    # The adapter knows the exact peak of one process. Samples see all of them.
    measured['peak_mb'] = max(measured['peak_mb'], seen.peak_mb)
    measured['elsewhere'] = seen.elsewhere
    with np.load(result) as weights:
      measured['accuracy'] = common.accuracy(dict(weights), common.load(task))
  return measured


class Seen:
  """Memory and processor time, as `watched` sees them.

  Attributes:
    peak_mb: the largest memory of all processes together, in megabytes. Memory
      that they share counts once (Linux's proportional set size).
    elsewhere: how many cores other programs kept busy, on average.
  """

  def __init__(self):
    self.peak_mb = self.elsewhere = 0.0


@contextlib.contextmanager
def watched(pid: int, seconds: float = 0.5) -> Iterator[Seen]:
  """Watches a process and its descendants while they run.

  Args:
    pid: of the process.
    seconds: between two looks.

  Yields:
    The result, which is complete after the context.
  """
  seen, own, stopped = Seen(), {}, threading.Event()
  start, busy = time.perf_counter(), busy_seconds()

  def watch():
    while not stopped.wait(seconds):
      found = descendants(pid)
      own.update({x: max(own.get(x, 0), cpu_seconds(x)) for x in found})
      memory = sum(map(proportional_kb, found)) / 1000
      seen.peak_mb = max(seen.peak_mb, memory)

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield seen
  finally:
    stopped.set()
    thread.join()
    others = busy_seconds() - busy - sum(own.values())
    seen.elsewhere = max(0.0, others / (time.perf_counter() - start))


def wait_until_quiet(patience: float, cores: float = 0.2) -> None:
  """Waits until other programs keep less than `cores` busy, for two seconds.

  Args:
    patience: the longest time to wait, in seconds.
    cores: how much counts as quiet.
  """
  end = time.perf_counter() + patience
  while time.perf_counter() < end:
    before = busy_seconds()
    time.sleep(2)
    if busy_seconds() - before < 2 * cores:
      return


_TICKS = os.sysconf('SC_CLK_TCK')


def busy_seconds() -> float:
  """Returns the seconds that all cores together have been busy since boot."""
  line = pathlib.Path('/proc/stat').read_text().splitlines()[0]
  user, nice, system, _, _, *interrupts = map(int, line.split()[1:8])
  return (user + nice + system + sum(interrupts)) / _TICKS


def cpu_seconds(pid: int) -> float:
  """Returns the processor time of a process; 0 if it has ended."""
  with contextlib.suppress(OSError):
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    fields = stat.rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
  return 0.0


def descendants(pid: int) -> list[int]:
  """Returns the ids of a process and of all that it has started."""
  children: dict[int, list[int]] = {}
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError):
      # The process's name stands in brackets, and may hold anything.
      parent = int(stat.read_text().rpartition(')')[2].split()[1])
      children.setdefault(parent, []).append(int(stat.parent.name))
  found = [pid]
  for each in found:
    found += children.get(each, [])
  return found


def proportional_kb(pid: int) -> int:
  """Returns the proportional set size of a process; 0 if it has ended."""
  with contextlib.suppress(OSError):
    for line in pathlib.Path(f'/proc/{pid}/smaps_rollup').open():
      if line.startswith('Pss:'):
        return int(line.split()[1])
  return 0


def last_line(text: str) -> str:
  """Returns the last line of a text that is not empty."""
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return lines[-1] if lines else ''
