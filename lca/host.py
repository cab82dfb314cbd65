"""What a process sets before it uses its devices, and when it is to end."""

import os
import signal
import threading
from collections.abc import Callable

import jax


def use_all_cores() -> None:
  """Makes one virtual CPU device per core; call it before anything runs.

  XLA runs a small convolution on one core. Where there is a GPU or a TPU, or
  XLA_FLAGS say how many devices there are, this has no effect.
  """
  if 'xla_force_host_platform_device_count' not in os.getenv('XLA_FLAGS', ''):
    jax.config.update('jax_num_cpu_devices', _num_cores())


def _num_cores() -> int:
  """Those that this process may use, where the system tells."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


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
