"""Sets up all tests: CPU devices, fast compilation, and a bound on memory.

A plain `pytest` needs no environment variables. The settings here also reach
the workers, processes and notebooks that it starts. Variables that are set
already keep their values.

`-m quick` runs a cross-section of some forty CPU seconds: every rule and attack
once, a run and its restart, configs, a report. `--thorough` adds the tests
marked `thorough`: every rule at n = 100, in every scope, over 60 leaves.
"""

import ctypes
import gc
import os
import pathlib
from importlib import metadata

# The tests run thousands of small programs, and spend most of their time on
# compiling them. With jaxlib 0.10, XLA's older code generator for CPUs compiles
# faster, and faster still without LLVM's optimisations: Krum's program takes
# 0.2 s of CPU time instead of 0.8 s. The compilation cache keeps every program
# for all processes, however fast it compiled.
# jaxlib 0.11 no longer knows the flag of the older code generator, and ends a
# process that sets it without a word from pytest.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0'
  if tuple(map(int, metadata.version('jaxlib').split('.')[:2])) >= (0, 11)
  else '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false',
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

import jax
import pytest
from cases import TRACES

from lca.experiment.host import resident_bytes

jax.config.update('jax_num_cpu_devices', 8)

if not hasattr(jax, 'enable_x64'):  # JAX 0.7 has it under its former name
  from jax.experimental import enable_x64

  jax.enable_x64 = enable_x64

TESTS = pathlib.Path(__file__).parent
# A process with more bytes or more memory maps forgets its compiled programs.
MOST_BYTES = 2 * 2**30
MOST_MAPS = 20_000  # Linux allows 65,530, and each program takes a few


def forget_programs():
  """Frees the memory of all programs that this process has compiled."""
  jax.clear_caches()
  TRACES.clear()  # functions are traced again when they are called again
  gc.collect()
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'malloc_trim'):  # otherwise glibc keeps the freed memory
    libc.malloc_trim(0)
  # If little was freed, the limit grows, or every test would try again.
  _limits['bytes'] = max(MOST_BYTES, resident_bytes() + 2**29)


_limits = {'bytes': MOST_BYTES}


@pytest.fixture(scope='module', autouse=True)
def few_programs():
  """Forgets compiled programs after a module if they take many memory maps."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and len(maps.read_text().splitlines()) > MOST_MAPS:
    forget_programs()


def pytest_runtest_logfinish():
  if resident_bytes() > _limits['bytes']:
    forget_programs()


def pytest_addoption(parser):
  parser.addoption(
    '--thorough', action='store_true', help='run the wide version of the tests'
  )


def pytest_configure(config):
  config.addinivalue_line('markers', 'thorough: runs with --thorough alone')
  config.addinivalue_line('markers', 'quick: in the cross-section of -m quick')
  cache = getattr(config, 'cache', None)  # not with -p no:cacheprovider
  if cache and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    folder = str(cache.mkdir('compiled'))
    os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
    jax.config.update('jax_compilation_cache_dir', folder)


def pytest_collection_modifyitems(config, items):
  if not config.getoption('--thorough'):
    wide = [item for item in items if item.get_closest_marker('thorough')]
    config.hook.pytest_deselected(items=wide)
    items[:] = [
      item for item in items if not item.get_closest_marker('thorough')
    ]
  # Long files come first, so that parallel workers end at about the same time.
  # These are notebooks and the tests of several source files, in tests/ itself.
  items.sort(
    key=lambda item: item.path.suffix != '.ipynb' and item.path.parent != TESTS
  )
