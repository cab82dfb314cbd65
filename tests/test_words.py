"""Rules of style that a program can check."""

import ast
import re

import processes
import pytest

FILES = [
  file
  for part in ('lca', 'configs', 'benchmarks', 'colab', 'docs', 'tests')
  for file in sorted((processes.ROOT / part).rglob('*.py'))
] + [processes.ROOT / 'main.py']

# A summary line that begins so is no sentence on what a function does.
RIDDLES = re.compile(r'(What|Whether|Of|Who|That)\b')


@pytest.mark.quick
def test_docstrings_say_what_is_returned_or_done():
  found = []
  for file in FILES:
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
        text = ast.get_docstring(node) or ''
        if RIDDLES.match(text):
          found.append(f'{file.name}: {text.splitlines()[0]}')
  assert len(FILES) > 300
  assert not found


def test_the_results_are_few_files():
  results = processes.ROOT / 'benchmarks' / 'results'
  assert sum(path.is_file() for path in results.rglob('*')) <= 100
