"""Eight virtual devices; a cache of compilations where one is asked for.

With JAX_COMPILATION_CACHE_DIR set, short compilations stay as well. With
--thorough, the tests marked so run too: every rule at n = 100, in every scope,
over 60 leaves.
"""

import os
import pathlib

os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)


@pytest.fixture(scope='module', autouse=True)
def few_programs():
  """Each compiled program takes memory maps, of which Linux allows 65,530."""
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and len(maps.read_text().splitlines()) > 20_000:
    jax.clear_caches()


def pytest_addoption(parser):
  parser.addoption(
    '--thorough', action='store_true', help='run the wide version of the tests'
  )


def pytest_configure(config):
  config.addinivalue_line('markers', 'thorough: runs with --thorough alone')


def pytest_collection_modifyitems(config, items):
  if not config.getoption('--thorough'):
    wide = [item for item in items if item.get_closest_marker('thorough')]
    config.hook.pytest_deselected(items=wide)
    items[:] = [item for item in items if item not in wide]
