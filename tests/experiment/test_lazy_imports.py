"""Tests that `lca.experiment` imports its public names when they are used."""

import subprocess
import sys

import pytest

import lca.experiment


def test_reading_runs_imports_no_trainer():
  code = (
    'import sys, lca.experiment.rundir; '
    'print([m for m in sys.modules if m.startswith("lca.federated") '
    'or m in ("lca.experiment.train", "lca.experiment.settings")])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'


def test_the_public_names():
  for name in lca.experiment.__all__:
    assert getattr(lca.experiment, name).__name__ == name
  with pytest.raises(AttributeError, match='simulat'):
    lca.experiment.simulat  # noqa: B018


@pytest.mark.parametrize(
  ('code', 'module'),
  [
    ('import lca; lca.models', 'lca.models'),
    ('from lca.experiment import simulate', 'lca.experiment.simulator'),
  ],
)
def test_a_missing_package_is_named_with_its_remedy(code, module):
  done = subprocess.run(
    [sys.executable, '-c', f'import sys; sys.modules["flax"] = None; {code}'],
    capture_output=True,
    text=True,
  )
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith(f'ImportError: {module} needs flax')
  assert last.endswith("pip install 'lca[all]'")
