"""What a process sets before it uses its devices."""

import os

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
