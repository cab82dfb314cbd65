"""Processes of `main.py`, forked from a server that has imported JAX already.

They are what a user starts, less the seconds of the imports.
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
    args: of the command line.
    out: file or named pipe that its output is added to.
    err: file for its errors; by default the same.
    cache: folder of compiled programs, where the environment names none.
    file_size: bytes that no file it writes can grow beyond.
  """
  os.environ.setdefault('PYTHONPATH', str(ROOT))  # for the server, at its start
  process = _context.Process(
    target=_main, args=(args, out, err or out, cache, file_size)
  )
  process.start()
  return process


def _main(args, out, err, cache, file_size):
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
