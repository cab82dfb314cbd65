"""Tests of an installation, and of the files that describe the project."""

import itertools
import pathlib
import re
import subprocess
import tomllib

import pytest
import yaml

import lca
from lca.experiment import environment

ROOT = pathlib.Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
PROJECT = PYPROJECT['project']


def listed(name):
  """Returns the requirements of a file, without its comments."""
  lines = (ROOT / name).read_text().splitlines()
  return sorted(filter(None, (x.partition('#')[0].strip() for x in lines)))


def test_requirements_are_all_that_the_extras_bring():
  extras = dict(PROJECT['optional-dependencies'])
  development, (everything,) = extras.pop('dev'), extras.pop('all')
  assert set(extras.pop('privacy')) <= set(development)
  assert everything == f'lca[{",".join(extras)}]'
  brought = itertools.chain(PROJECT['dependencies'], *extras.values())
  assert sorted(brought) == listed('requirements.txt')
  assert sorted(development) == listed('tests/requirements.txt')


def test_one_version():
  """The file that pyproject.toml names says the version, and no other does."""
  assert 'version' in PROJECT['dynamic']
  attribute = PYPROJECT['tool']['setuptools']['dynamic']['version']['attr']
  module, _, name = attribute.rpartition('.')
  file = ROOT.joinpath(*module.split('.')).with_suffix('.py')
  assigned = {
    path: value
    for path in ROOT.glob('lca/**/*.py')
    for value in re.findall(rf"^{name} = '(.*)'$", path.read_text(), re.M)
  }
  assert assigned == {file: lca.__version__}
  assert re.fullmatch(r'\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?', lca.__version__)
  assert environment.describe()['packages']['lca'] == lca.__version__
  headings = re.findall(
    r'^## \[(.*?)\]', (ROOT / 'CHANGELOG.md').read_text(), re.M
  )
  assert headings[0] in (lca.__version__, 'Unreleased')


def test_a_wheel_holds_all_files_of_the_package():
  """Package data covers whatever in lca/ is not a module."""
  patterns = PYPROJECT['tool']['setuptools']['package-data']['lca']
  covered = {path for each in patterns for path in ROOT.glob(f'lca/{each}')}
  files = {path for path in ROOT.glob('lca/**/*') if path.is_file()}
  others = {x for x in files if x.suffix not in ('.py', '.pyc')}
  assert others == covered
  # A folder without __init__.py would be left out of the wheel.
  modules = {path.parent for path in files if path.suffix == '.py'}
  assert all((folder / '__init__.py').exists() for folder in modules)


def test_the_citation_names_both_papers():
  citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
  assert citation['type'] == 'software'
  assert citation['license'] == PROJECT['license']
  assert [a['name'] for a in citation['authors']] == [
    a['name'] for a in PROJECT['authors']
  ]
  assert 'version' not in citation  # lca/version.py has it
  papers = {
    paper['url']: [author['family-names'] for author in paper['authors']]
    for paper in citation['references']
  }
  assert papers == {
    'https://arxiv.org/abs/2503.21244': [
      'García-Márquez',
      'Rodríguez-Barroso',
      'Luzón',
      'Herrera',
    ],
    'https://arxiv.org/abs/2107.12490': ['Varma', 'Zhou', 'Baracaldo', 'Anwar'],
  }


def test_the_workflow_covers_the_oldest_and_the_newest_python():
  text = (ROOT / '.github' / 'workflows' / 'ci.yml').read_text()
  jobs = yaml.safe_load(text)['jobs']
  versions = [
    name.rpartition(' ')[2]
    for name in PROJECT['classifiers']
    if re.search(r':: 3\.\d+$', name)
  ]
  oldest = PROJECT['requires-python'].removeprefix('>=')
  assert versions[0] == oldest
  matrix = jobs['newest']['strategy']['matrix']['python']
  assert matrix == [oldest, versions[-1]]
  assert any(step.get('run') == '.ci/run' for step in jobs['newest']['steps'])
  python = [
    x.get('with', {}).get('python-version') for x in jobs['oldest']['steps']
  ]
  assert oldest in python


def test_the_repository_s_address_stands_in_one_line():
  if not (ROOT / '.git').exists():
    pytest.skip('not a checkout of git')
  address = PROJECT['urls']['Repository']
  owner = address.split('/')[-2]  # also a part of addresses of notebooks
  found = subprocess.run(
    ['git', 'grep', '-I', '-n', '--fixed-strings', f'/{owner}/'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  ).stdout.splitlines()
  assert [line.partition(':')[0] for line in found] == ['pyproject.toml']
  assert found[0].endswith(f':Repository = "{address}"')
