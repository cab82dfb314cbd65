"""The process of a run: its devices, its companions, and how it is stopped."""

import os
import signal
import socket
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

_GPU_SHARES = 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'


def use_all_cores(job: int = 0, jobs: int = 1) -> None:
  """Makes one virtual CPU device per core; call it before JAX computes.

  XLA runs a small convolution on one core, so that a single device would leave
  the other cores idle. No device is made where there is a GPU or a TPU, or
  where XLA_FLAGS say how many devices there are.

  Args:
    job: the number of this process among those that share the machine, from 0.
    jobs: how many processes share the machine. Each keeps to its own cores, if
      the system allows that, and to its share of the memory that XLA takes of
      a GPU.
  """
  if jobs > 1 and hasattr(os, 'sched_setaffinity'):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[job::jobs] or cores)
  if jobs > 1 and not any(map(os.getenv, _GPU_SHARES)):
    os.environ[_GPU_SHARES[0]] = str(0.75 / jobs)  # XLA takes 0.75 by itself
  if 'xla_force_host_platform_device_count' not in os.getenv('XLA_FLAGS', ''):
    # This process may be kept to some of the cores. Not every system tells.
    if hasattr(os, 'sched_getaffinity'):
      num_cores = len(os.sched_getaffinity(0))
    else:
      num_cores = os.cpu_count() or 1
    jax.config.update('jax_num_cpu_devices', num_cores)


_SLURM_TASKS, _TPU_WORKERS = 'SLURM_STEP_NUM_TASKS', 'TPU_WORKER_HOSTNAMES'


def join_processes(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Makes this process one of several; call it before JAX computes.

  On TPU pods and under SLURM's srun the arguments are not needed. A process
  that is alone stays alone.

  Args:
    coordinator: `HOST:PORT` of the first process, the same in each. With None
      the environment is looked at; `'auto'` leaves that to JAX, which knows
      more kinds of clusters.
    num_processes: how many processes make the run.
    process_id: the number of this process, in [0, num_processes).

  Raises:
    ValueError: an incomplete or impossible set of these.
  """
  numbers = num_processes, process_id
  if coordinator not in (None, 'auto'):
    if None in numbers:
      raise ValueError(
        'coordinator, num_processes and process_id go together, got '
        f'{coordinator!r}, {num_processes} and {process_id}'
      )
    if not 0 <= process_id < num_processes:
      raise ValueError(
        f'process_id={process_id} must lie in [0, {num_processes})'
      )
    jax.distributed.initialize(coordinator, num_processes, process_id)
  elif numbers != (None, None):
    raise ValueError(
      f'num_processes={num_processes} and process_id={process_id} need the '
      'coordinator'
    )
  elif (
    coordinator == 'auto'
    or int(os.getenv(_SLURM_TASKS, '1')) > 1
    or ',' in os.getenv(_TPU_WORKERS, '')  # which lists them all
  ):
    jax.distributed.initialize()


STOPPED = 128 + signal.SIGTERM
"""The exit code of a process that was told to stop, and stopped.

A shell gives the same code to a process that SIGTERM has ended. Schedulers
start such a job again, and start nothing that waits for its success; 0 would
tell them that the job is done.
"""

GRACE = 300.0
"""Seconds that a process has to stop, unless it is said otherwise."""


class Stopping:
  """Knows whether this process was told to stop; call it to ask.

  The first SIGTERM, which comes before a preemption, or SIGINT (Ctrl-C) asks
  the process to stop after its round. A second one ends it at once, and so does
  the end of the grace period: then the last checkpoint stands. Both exit with
  the code `STOPPED`.

  A thread acts on the signals, because Python's own handlers wait while XLA
  runs a long round.

  Args:
    grace: seconds between the first signal and the end.
  """

  def __init__(self, grace: float = GRACE):
    self._grace = grace
    self._asked = threading.Event()

  def __call__(self) -> bool:
    """Returns True once the process was told to stop."""
    return self._asked.is_set()

  def take_signals(self) -> 'Stopping':
    """Takes SIGTERM and SIGINT from now on; the main thread must call it."""
    reader, self._writer = socket.socketpair()
    self._writer.setblocking(False)
    signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, lambda *_: None)
    threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
    return self

  def _watch(self, reader: socket.socket) -> None:
    while True:
      (number,) = reader.recv(1)
      if number in (signal.SIGTERM, signal.SIGINT):
        self.stop(again=self())

  def stop(self, again: bool = False) -> None:
    """Asks the process to stop, as the first signal does.

    Args:
      again: ends the process at once, as the second signal does.
    """
    if again:
      os._exit(STOPPED)
    if not self():
      print(
        'stopping after this round; a second signal ends it at once, and so '
        f'do {self._grace:g} seconds',
        flush=True,
      )
      self._asked.set()  # only now: the process may end right after
      end = threading.Timer(self._grace, os._exit, (STOPPED,))
      end.daemon = True
      end.start()


def say(message: object) -> None:
  """Prints a line, in the first process of a run only."""
  if jax.process_index() == 0:
    print(message, flush=True)


def any_process(yes: bool) -> bool:
  """Returns True if `yes` is True in any process of the run.

  All processes of the run must call it.
  """
  if jax.process_count() == 1:
    return yes
  return bool(np.any(multihost_utils.process_allgather(np.array(yes))))
