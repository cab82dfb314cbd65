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
