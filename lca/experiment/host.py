"""What a process sets before it uses its devices, and when it is to end."""

import os
import signal
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

_GPU_SHARES = 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'


def use_all_cores(job: int = 0, jobs: int = 1) -> None:
  """Makes one virtual CPU device per core; call it before anything runs.

  XLA runs a small convolution on one core. Where there is a GPU or a TPU, or
  XLA_FLAGS say how many devices there are, no device is made.

  Args:
    job: which of the processes that share the machine this is, from 0.
    jobs: how many they are. Each keeps to its own cores, where the system has
      a say in that, and to its part of what XLA takes of a GPU's memory.
  """
  if jobs > 1 and hasattr(os, 'sched_setaffinity'):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[job::jobs] or cores)
  if jobs > 1 and not any(map(os.getenv, _GPU_SHARES)):
    os.environ[_GPU_SHARES[0]] = str(0.75 / jobs)  # XLA takes 0.75 by itself
  if 'xla_force_host_platform_device_count' not in os.getenv('XLA_FLAGS', ''):
    jax.config.update('jax_num_cpu_devices', _num_cores())


def _num_cores() -> int:
  """Those that this process may use, where the system tells."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


_SLURM_TASKS, _TPU_WORKERS = 'SLURM_STEP_NUM_TASKS', 'TPU_WORKER_HOSTNAMES'


def join_processes(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Makes this process one of several; call it before anything runs.

  On TPU pods and under SLURM's srun nothing need be said, and a process on its
  own stays so.

  Args:
    coordinator: `HOST:PORT` of the first process, the same in each. None finds
      out; `'auto'` leaves that to JAX, which knows more kinds of clusters.
    num_processes: of them all.
    process_id: in [0, num_processes), of its own in each.

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
  elif coordinator == 'auto' or _of_several():
    jax.distributed.initialize()


def _of_several() -> bool:
  tasks = int(os.getenv(_SLURM_TASKS, '1'))
  workers = os.getenv(_TPU_WORKERS, '').split(',')
  return tasks > 1 or len(workers) > 1


STOPPED = 128 + signal.SIGTERM
"""The exit code of a process that SIGTERM has stopped.

It is what a shell makes of that end. Schedulers start such a job again, and
start nothing that waits for its success; 0 would tell them that it is done.
"""


def stopped_by_sigterm() -> Callable[[], bool]:
  """Takes SIGTERM, which comes before a preemption, for a wish.

  Returns:
    Says whether it has come. It then is up to the caller to end, with the code
    `STOPPED`.
  """
  came = threading.Event()
  signal.signal(signal.SIGTERM, lambda *_: came.set())
  return came.is_set


def say(message: object) -> None:
  """Prints a line, in the first process of the run alone."""
  if jax.process_index() == 0:
    print(message, flush=True)


def any_process(yes: bool) -> bool:
  """Whether it is so for any process of the run, all of which ask."""
  if jax.process_count() == 1:
    return yes
  return bool(np.any(multihost_utils.process_allgather(np.array(yes))))
