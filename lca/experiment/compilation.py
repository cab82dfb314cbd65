"""Keeps compiled programs on disk for later processes.

Most of a short run is compilation, and the next run of the same shapes needs
the same programs. JAX's persistent compilation cache keeps them; this file
chooses its folder, bounds its size, and takes out what a killed process has
left.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys

import filelock
import jax
import platformdirs

MOST_BYTES = 2**30
"""The size of a folder beyond which JAX deletes the programs used longest ago.

The programs of a round take some 100 kB on CPUs, and megabytes on GPUs.
"""

MOST_PROGRAMS = 2000
"""The number of programs that a folder keeps when a process starts.

JAX looks at all of them whenever it writes one, which takes 0.07 s with so many
and 0.7 s with 10,000 (jax 0.10).
"""

_SECONDS = 10.0
"""How long a process waits for the lock of the folder."""


def keep_programs(folder: str | os.PathLike | None = None) -> None:
  """Takes compiled programs from a folder, and keeps new ones there.

  Call it before JAX compiles. Several processes may share the folder. It is a
  cache: a program that is missing or damaged is compiled again. The folder must
  belong to the user alone, because JAX executes what it finds there.

  If JAX's own settings name a folder already, as the environment variable
  JAX_COMPILATION_CACHE_DIR does, they stay as they are. If the folder cannot be
  used, a line says so, and nothing is kept.

  Args:
    folder: None stands for a folder in the user's cache directory, such as
      `~/.cache/lca/programs/x86_64-0123456789abcdef`. A program is machine code
      for one kind of processor. So each kind has a folder of its own, and
      machines of several kinds can share a home.
  """
  config = jax.config
  if config.jax_compilation_cache_dir:
    return
  try:
    folder = _user_folder() if folder is None else pathlib.Path(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # JAX takes the same lock whenever it reads or writes.
    with filelock.FileLock(folder / '.lockfile', timeout=_SECONDS):
      _tidy(folder)
  except (OSError, NotImplementedError) as error:  # a Timeout is an OSError
    print(
      f'compiled programs are not kept for later processes: {error}',
      file=sys.stderr,
      flush=True,
    )
    return
  config.update('jax_compilation_cache_dir', str(folder))
  config.update('jax_compilation_cache_max_size', MOST_BYTES)
  # Even a small program is read in less time than it takes to compile it.
  config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def keep_none() -> None:
  """Compiles everything anew and keeps nothing, whatever JAX's settings say."""
  jax.config.update('jax_enable_compilation_cache', False)


def _user_folder() -> pathlib.Path:
  """Returns the user's folder for programs of this machine's processor.

  Raises:
    OSError: the user has no home.
  """
  caches = pathlib.Path(platformdirs.user_cache_dir('lca'))
  if not caches.is_absolute():
    raise OSError('the user has no home directory; set XDG_CACHE_HOME')
  processor = [platform.machine(), platform.processor()]
  with contextlib.suppress(OSError):  # there is no such file on macOS
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    kinds = ('model name', 'flags', 'Features')
    processor += sorted({line for line in lines if line.startswith(kinds)})
  digest = hashlib.sha256('\n'.join(processor).encode()).hexdigest()
  return caches / 'programs' / f'{platform.machine()}-{digest[:16]}'


def _tidy(folder: pathlib.Path) -> None:
  """Deletes programs that are incomplete, and the oldest of too many.

  JAX writes a program into `NAME-cache` and then the time of its last use into
  `NAME-atime`. Without a time, a process was killed while it wrote the program.
  JAX would not replace it, and would write no other one (jax 0.10).
  """
  last_used = {}
  for program in folder.glob('*-cache'):
    time = program.with_name(f'{program.name.removesuffix("-cache")}-atime')
    if time.exists():
      last_used[program, time] = int.from_bytes(time.read_bytes(), 'little')
    else:
      program.unlink()
  oldest = sorted(last_used, key=last_used.__getitem__)
  for program, time in oldest[: max(0, len(oldest) - MOST_PROGRAMS)]:
    program.unlink()
    time.unlink()
