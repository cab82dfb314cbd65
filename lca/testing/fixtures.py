"""Fixtures for pytest, of which one line in a conftest.py makes use:

pytest_plugins = ['lca.testing.fixtures']
"""

from collections.abc import Callable, Iterator

import pytest

from lca import testing
from lca.testing import examples
from lca.typing import Updates


@pytest.fixture
def check_rule() -> Callable[..., testing.Report]:
  """`lca.testing.check_rule`."""
  return testing.check_rule


@pytest.fixture
def check_attack() -> Callable[..., testing.Report]:
  """`lca.testing.check_attack`."""
  return testing.check_attack


@pytest.fixture
def stacked_updates() -> Callable[..., Updates]:
  """A function `(n, seed=0)` that returns updates of a dense layer."""
  return examples.layers


@pytest.fixture
def bad_updates() -> Callable[..., Iterator[Updates]]:
  """A function `(updates, rows)` that yields every kind of bad rows."""
  return examples.bad_rows
