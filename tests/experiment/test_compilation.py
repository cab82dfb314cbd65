"""Compiled programs are kept for later processes in a folder of the user."""

import multiprocessing.pool
import os
import pathlib
import subprocess
import sys

import filelock
import pytest
from run_files import PATIENCE

PROGRAM = """
import os, sys
import jax, jax.numpy as jnp
from lca.experiment import compilation
compilation._SECONDS = float(os.getenv('SECONDS', '10'))
compilation.MOST_PROGRAMS = int(os.getenv('PROGRAMS', '2000'))
if os.getenv('NONE'):
  compilation.keep_none()
else:
  compilation.keep_programs()
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
double = jax.jit(lambda x: jnp.cumsum(x) * 2)
for size in map(int, sys.argv[1:]):
  print(double(jnp.arange(size, dtype=jnp.float32)).sum())
print('hits', sum(event.endswith('/cache_hits') for event in events))
"""


def run(caches, *sizes, **variables):
  """Compiles programs in a process of its own.

  Returns the folder of the programs, the results, the number of programs that
  were found, and what the process wrote to standard error.
  """
  kept = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, *map(str, sizes)],
    env={**kept, 'XDG_CACHE_HOME': str(caches), **variables},
    capture_output=True,
    text=True,
    timeout=PATIENCE,
    check=True,
  )
  *results, hits = done.stdout.splitlines()
  folders = list(pathlib.Path(caches).glob('lca/programs/*'))
  folder = folders[0] if folders else None
  return folder, results, int(hits.split()[1]), done.stderr


def test_the_next_process_finds_the_programs(tmp_path):
  folder, results, hits, errors = run(tmp_path, 8)
  assert (hits, results, errors) == (0, ['168.0'], '')
  assert folder.stat().st_mode & 0o077 == 0  # nobody else can write programs
  written = {p.name for p in folder.glob('*-cache')}
  assert len(written) >= 2
  _, results, hits, errors = run(tmp_path, 8)
  assert (hits, results, errors) == (len(written), ['168.0'], '')
  assert {p.name for p in folder.glob('*-cache')} == written


def test_a_program_that_was_not_written_to_its_end_is_written_again(tmp_path):
  folder, results, _, _ = run(tmp_path, 8)
  programs = sorted(folder.glob('*-cache'))
  for program in programs:  # as a process leaves it that is killed meanwhile
    program.write_bytes(program.read_bytes()[:100])
    program.with_name(program.name.replace('-cache', '-atime')).unlink()
  _, again, hits, errors = run(tmp_path, 8)
  assert (again, hits, errors) == (results, 0, '')
  _, again, hits, _ = run(tmp_path, 8)
  assert (again, hits) == (results, len(programs))


@pytest.mark.parametrize('damage', [b'', b'\x00' * 1000])
def test_damaged_programs_are_compiled_anew(tmp_path, damage):
  folder, results, _, _ = run(tmp_path, 8)
  for program in folder.glob('*-cache'):
    program.write_bytes(damage)
  _, again, hits, errors = run(tmp_path, 8)
  assert (again, hits) == (results, 0)
  assert 'Error reading persistent compilation cache' in errors


def test_processes_may_share_the_folder(tmp_path):
  with multiprocessing.pool.ThreadPool(4) as pool:
    found = pool.map(lambda _: run(tmp_path, 8, 9, 10), range(4))
  for _, results, _, errors in found:
    assert (results, errors) == (['168.0', '240.0', '330.0'], '')
  _, _, hits, errors = run(tmp_path, 8, 9, 10)
  assert hits >= 4 and errors == ''


def test_a_folder_that_cannot_be_used_is_said(tmp_path):
  (tmp_path / 'file').touch()
  _, results, _, errors = run(tmp_path / 'file', 8)
  assert results == ['168.0']
  assert errors.startswith('compiled programs are not kept for later processes')
  assert 'Not a directory' in errors


def test_a_folder_that_stays_locked_is_said(tmp_path):
  folder, _, _, _ = run(tmp_path, 8)
  with filelock.FileLock(folder / '.lockfile'):
    _, results, hits, errors = run(tmp_path, 8, SECONDS='0.1')
  assert (results, hits) == (['168.0'], 0)
  assert errors.startswith('compiled programs are not kept for later processes')
  assert '.lockfile' in errors


def test_jaxs_own_settings_stay(tmp_path):
  own = tmp_path / 'own'
  folder, _, _, _ = run(tmp_path, 8, JAX_COMPILATION_CACHE_DIR=str(own))
  assert folder is None
  folder, _, hits, _ = run(tmp_path, 8, JAX_ENABLE_COMPILATION_CACHE='0')
  assert hits == 0 and not list(folder.glob('*-cache'))


def test_nothing_is_kept_if_that_is_asked_for(tmp_path):
  folder, *_ = run(
    tmp_path, 8, NONE='1', JAX_COMPILATION_CACHE_DIR=str(tmp_path)
  )
  assert folder is None and not list(tmp_path.rglob('*-cache'))


def test_the_programs_used_longest_ago_are_deleted(tmp_path):
  folder, _, _, _ = run(tmp_path, 8)
  old = {program.name for program in folder.glob('*-cache')}
  run(tmp_path, 9)
  new = {program.name for program in folder.glob('*-cache')} - old
  _, _, hits, _ = run(tmp_path, 9, PROGRAMS=str(len(new)))
  kept = {program.name for program in folder.glob('*-cache')}
  assert new and new <= kept and hits >= len(new)
  _, _, hits, _ = run(tmp_path, 8, PROGRAMS='0')
  assert hits == 0
