"""Starts processes of `main.py` quickly, for tests.

They run what a user would start, but are forked from a server that has imported
JAX already, which saves seconds each.
"""

import multiprocessing
import os
import pathlib
import resource
import runpy
import sys

import jax

ROOT = pathlib.Path(__file__).parent.parent

_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['main', 'sklearn.datasets', 'pytest'])


def start(args, out, err=None, *, cache=None, file_size=None):
  """Starts `python main.py ARGS`.

  Args:
    args: the arguments of the command line.
    out: file or named pipe that the output is appended to.
    err: file that errors are appended to; None is `out`.
    cache: folder for compiled programs, unless the environment names one.
    file_size: limit in bytes of every file that the process writes.

  Returns:
    The process.
  """
  # The server, which starts with the first process, imports `main`.
  os.environ.setdefault('PYTHONPATH', str(ROOT))
  process = _context.Process(
    target=_main, args=(args, out, err or out, cache, file_size)
  )
  process.start()
  return process


def _main(args, out, err, cache, file_size):
  """Runs main.py in this process; the arguments are those of `start`."""
  for stream, file in ((1, out), (2, err)):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
  if file_size:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
  if cache and not jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', str(cache))
  os.chdir(ROOT)
  sys.path.insert(0, str(ROOT))
  sys.argv = ['main.py', *args]
  runpy.run_path('main.py', run_name='__main__')
