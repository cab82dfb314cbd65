"""The recipes of docs/extending.md, run as they stand there."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import processes
import pytest

PAGE = processes.ROOT / 'docs' / 'extending.md'
BLOCKS = re.findall(r'^```(\w+)\n(.*?)^```$', PAGE.read_text(), re.M | re.S)

# By the path in the first line.
FILES = {
  text.split('\n', 1)[0].removeprefix('# '): text.split('\n', 1)[1]
  for language, text in BLOCKS
  if language == 'python'
}
IN_PACKAGE = {name: text for name, text in FILES.items() if '/' in name}
OWN = {name: text for name, text in FILES.items() if '/' not in name}
COMMANDS = [text.strip() for language, text in BLOCKS if language == 'bash']
LOADING = [command for command in COMMANDS if 'my_' in command]
IN_A_COPY = [command for command in COMMANDS if 'my_' not in command]

SMALL = ['--config.num_rounds=1', '--config.client.local_epochs=1']


def write(files, folder):
  for name, text in files.items():
    path = folder / name
    assert not path.exists()
    path.write_text(text)


def apply(patch, folder):
  """Applies a diff block, each of whose hunks must fit one place alone."""
  head, *hunks = re.split(r'^@@\n', patch, flags=re.M)
  file = folder / head.strip().removeprefix('--- ')
  for hunk in hunks:
    lines = hunk.splitlines()
    old = [line[1:] for line in lines if line[0] != '+']
    new = [line[1:] for line in lines if line[0] != '-']
    # The first words are enough to find a row of a table.
    rows = [row for row in file.read_text().splitlines() if row.startswith('|')]
    for i, line in enumerate(old):
      if line.startswith('|'):
        (row,) = (row for row in rows if row.startswith(line))
        new[new.index(line)] = old[i] = row
    text = file.read_text()
    before, after = ('\n'.join(part) + '\n' for part in (old, new))
    assert text.count(before) == 1, f'{file.name} has no one place for\n{hunk}'
    file.write_text(text.replace(before, after))


def run(command, folder, *more):
  """Runs a command of the page with this Python."""
  python, *arguments = shlex.split(command)
  assert python == 'python'
  return subprocess.run(
    [sys.executable, *arguments, *more],
    cwd=folder,
    env=os.environ | {'PYTHONPATH': f'{folder}{os.pathsep}{processes.ROOT}'},
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def own(tmp_path_factory):
  """A folder of a user's own files."""
  folder = tmp_path_factory.mktemp('own')
  write(OWN, folder)
  return folder


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
  """A checkout in which all recipes for the package have been followed."""
  folder = tmp_path_factory.mktemp('checkout')
  for part in ('lca', 'configs', 'tests', 'docs'):
    shutil.copytree(
      processes.ROOT / part,
      folder / part,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  for file in ('main.py', 'pyproject.toml'):
    shutil.copy(processes.ROOT / file, folder)
  write(IN_PACKAGE, folder)
  for language, text in BLOCKS:
    if language == 'diff':
      apply(text, folder)
  return folder


def test_every_recipe_is_here():
  kinds = 'rule', 'distance', 'aggregator', 'attack', 'model', 'data', 'metric'
  assert [*OWN] == [f'my_{kind}.py' for kind in kinds] + ['my_session.py']
  assert len(LOADING) == len(kinds)


@pytest.mark.parametrize('command', LOADING, ids=lambda c: c.split('=')[1])
def test_a_file_of_ones_own(command, own, tmp_path):
  # The commands name files of the user's; lca lies elsewhere.
  arguments = [
    argument.replace('my_', f'{own}/my_') for argument in command.split()
  ]
  out = tmp_path / 'out'
  process = processes.start(
    [*arguments[2:], *SMALL, f'--workdir={tmp_path / "run"}'], out
  )
  process.join()
  assert process.exitcode == 0, out.read_text()
  header = (tmp_path / 'run' / 'metrics.csv').read_text().split('\n')[0]
  if 'my_metric' in command:
    assert header.endswith(',update_norm,byzantine_selected')


def test_a_session_of_python(own):
  done = run('python my_session.py', own, *())
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-2].count('[') == 2


@pytest.mark.parametrize('command', IN_A_COPY, ids=lambda c: c.split()[-1])
def test_in_the_package(command, copy, tmp_path):
  if 'main.py' in command:
    done = run(command, copy, *SMALL, f'--workdir={tmp_path / "run"}')
    assert done.returncode == 0, done.stdout + done.stderr
    header = (tmp_path / 'run' / 'metrics.csv').read_text().split('\n')[0]
    assert header.endswith(',update_norm')
  else:
    done = run(command, copy, '-p', 'no:cacheprovider')
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_in_the_package_is_exported(copy):
  code = (
    'import lca, lca.models; from configs import digits; '
    'lca.nearest, lca.attacks.reverse_copy; '
    'lca.geometry.DISTANCES.find("angle"); '
    'print(lca.__file__, digits.get_config("layerwise_cosine_nearest,mlp"))'
  )
  done = run(f"python -c '{code}'", copy)
  assert done.returncode == 0, done.stderr
  assert pathlib.Path(done.stdout.split()[0]).is_relative_to(copy)
