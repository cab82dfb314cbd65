"""The process of a run: its CPU devices, other processes, and signals."""

import os
import pathlib
import signal
import socket
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from lca import progress

_GPU_SHARES = 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'


def use_all_cores(job: int = 0, jobs: int = 1) -> None:
  """Makes one virtual CPU device per core; call it before JAX computes.

  XLA runs a small convolution on one core, so that a single device would leave
  the other cores idle. The setting does not affect GPUs and TPUs. If XLA_FLAGS
  set the number of devices, that number stays.

  Args:
    job: the number of this process among those that share the machine, from 0.
    jobs: how many processes share the machine. Each is bound to cores of its
      own, if the system can do that, and reserves its share of the memory that
      XLA would reserve on a GPU.
  """
  if jobs > 1 and hasattr(os, 'sched_setaffinity'):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[job::jobs] or cores)
  if jobs > 1 and not any(map(os.getenv, _GPU_SHARES)):
    # Without this setting XLA reserves 0.75 of the memory.
    os.environ[_GPU_SHARES[0]] = str(0.75 / jobs)
  if 'xla_force_host_platform_device_count' not in os.getenv('XLA_FLAGS', ''):
    # This process may be bound to some of the machine's cores. Not every
    # system can say to which (macOS cannot).
    if hasattr(os, 'sched_getaffinity'):
      num_cores = len(os.sched_getaffinity(0))
    else:
      num_cores = os.cpu_count() or 1
    jax.config.update('jax_num_cpu_devices', num_cores)


def resident_bytes() -> int:
  """Returns the memory of this process; 0 where the system has no /proc."""
  statm = pathlib.Path('/proc/self/statm')
  if not statm.exists():
    return 0
  return int(statm.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


_SLURM_TASKS, _TPU_WORKERS = 'SLURM_STEP_NUM_TASKS', 'TPU_WORKER_HOSTNAMES'


def join_processes(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins this process to a run of several; call it before JAX computes.

  On TPU pods and under SLURM's srun no argument is needed: the environment says
  which processes make the run. Elsewhere the three arguments say this. If
  neither does, this process alone makes the run.

  Args:
    coordinator: `HOST:PORT` of the first process, the same for all processes.
      None looks for a TPU pod or srun in the environment. `'auto'` lets JAX
      detect the cluster; JAX knows more kinds of clusters.
    num_processes: how many processes make the run.
    process_id: the number of this process, in [0, num_processes).

  Raises:
    ValueError: some of the arguments are missing or impossible.
  """
  numbers = num_processes, process_id
  if coordinator not in (None, 'auto'):
    if None in numbers:
      raise ValueError(
        f'coordinator={coordinator!r} needs num_processes and process_id, too, '
        f'got num_processes={num_processes} and process_id={process_id}'
      )
    if not 0 <= process_id < num_processes:
      raise ValueError(
        f'process_id={process_id} must lie in [0, {num_processes})'
      )
    jax.distributed.initialize(coordinator, num_processes, process_id)
  elif numbers != (None, None):
    raise ValueError(
      f'num_processes={num_processes} and process_id={process_id} need a '
      'coordinator, HOST:PORT of the first process'
    )
  elif (
    coordinator == 'auto'
    or int(os.getenv(_SLURM_TASKS, '1')) > 1
    or ',' in os.getenv(_TPU_WORKERS, '')  # a list of all hosts of a pod
  ):
    jax.distributed.initialize()
  if jax.process_index() > 0:
    progress.hide()


STOPPED = 128 + signal.SIGTERM
"""The exit code of a process that a signal has stopped: 143.

A shell reports the same code for a process that SIGTERM has ended. Schedulers
start such a job again, and hold back jobs that wait for its success. The code 0
would tell them that the job is done.
"""

GRACE = 300.0
"""The default of the grace period: seconds from the first signal to the end."""


class Stopping:
  """A flag that signals set: calling it returns True once the run is to stop.

  The first SIGTERM, which comes before a preemption, or SIGINT (Ctrl-C) asks
  the process to stop after its round. A second signal ends the process at once,
  and so does the end of the grace period. The run can then go on from its last
  checkpoint. In all these cases the exit code is `STOPPED`.

  A thread acts on the signals, because Python's own handlers wait while XLA
  runs a long round.

  Attributes:
    in_rounds: False raises a KeyboardInterrupt in the main thread at the first
      signal, for a process that has no round to finish yet.

  Args:
    grace: seconds between the first signal and the end of the process.
    in_rounds: see the attribute.
  """

  def __init__(self, grace: float = GRACE, in_rounds: bool = True):
    self.in_rounds = in_rounds
    self._grace = grace
    self._asked = threading.Event()

  def __call__(self) -> bool:
    """Returns True once the process was told to stop."""
    return self._asked.is_set()

  def take_signals(self) -> 'Stopping':
    """Handles SIGTERM and SIGINT from now on; call it in the main thread.

    Returns:
      This object.
    """
    # Python writes each signal's number into the socket at once, even while the
    # main thread is inside XLA, and a thread reads it there.
    reader, self._writer = socket.socketpair()
    self._writer.setblocking(False)
    signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._interrupt)
    threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
    return self

  def _interrupt(self, number: int, frame: object) -> None:
    """Raises a KeyboardInterrupt unless rounds run, which end by themselves."""
    if not self.in_rounds:
      raise KeyboardInterrupt

  def _watch(self, reader: socket.socket) -> None:
    """Reads signals from the socket and acts on them, without end."""
    while True:
      (number,) = reader.recv(1)
      if number in (signal.SIGTERM, signal.SIGINT):
        self.stop(again=self())

  def stop(self, again: bool = False) -> None:
    """Asks the process to stop after its round, as the first signal does.

    Args:
      again: True ends the process at once, as the second signal does.
    """
    if again:
      os._exit(STOPPED)
    if not self():
      print(
        f'stopping{" after this round" if self.in_rounds else ""}; a second '
        'signal ends the run at once, and so does the end of '
        f'{self._grace:g} seconds',
        flush=True,
      )
      # Set after printing: the process may end as soon as the flag is set.
      self._asked.set()
      end = threading.Timer(self._grace, os._exit, (STOPPED,))
      end.daemon = True
      end.start()


def say(message: object) -> None:
  """Prints a line, in the first of a run's processes only."""
  if jax.process_index() == 0:
    print(message, flush=True)


def detail(message: object) -> None:
  """Prints a line as `say` does, unless the process hides its progress."""
  if not progress.hidden():
    say(message)


def any_process(yes: bool) -> bool:
  """Returns True if `yes` is True in at least one process of the run.

  All processes of the run must call it: the call waits for all of them.
  """
  if jax.process_count() == 1:
    return yes
  return bool(np.any(multihost_utils.process_allgather(np.array(yes))))
