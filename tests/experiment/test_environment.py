"""Tests of the environment that a run records."""

import subprocess

import pytest

from lca.experiment import environment


@pytest.mark.parametrize('inside', ['.', '.venv/lib/site-packages'])
def test_a_commit_is_of_our_own_checkout(tmp_path, monkeypatch, inside):
  git = ['git', '-c', 'user.name=a', '-c', 'user.email=b', '-C', tmp_path]
  for command in (['init'], ['commit', '--allow-empty', '--message=c']):
    subprocess.run([*git, *command], check=True, capture_output=True)
  head = subprocess.check_output([*git, 'rev-parse', 'HEAD'], text=True)
  package = tmp_path / inside / 'lca'
  package.mkdir(parents=True)
  monkeypatch.setattr(
    environment, '__file__', str(package / 'experiment' / 'environment.py')
  )
  ours = inside == '.'
  assert environment.describe()['commit'] == (head.strip() if ours else None)
