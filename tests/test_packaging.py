"""The lists of packages that an installation brings."""

import itertools
import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parents[1]


def test_requirements_are_all_that_the_extras_bring():
  lines = (ROOT / 'requirements.txt').read_text().splitlines()
  listed = [line.partition('#')[0].strip() for line in lines]
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  extras = project['optional-dependencies']
  (whole,) = extras.pop('all')
  assert whole == f'lca[{",".join(extras)}]'
  brought = itertools.chain(project['dependencies'], *extras.values())
  assert sorted(filter(None, listed)) == sorted(brought)
