"""The package's import directions, and the size of its files.

An import counts wherever it stands, inside a function as well. Imports under
`if TYPE_CHECKING:` do not count, because they load nothing.
"""

import ast
import functools
import graphlib
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.quick

ROOT = pathlib.Path(__file__).parents[1]
FILES = {
  '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix(
    '.__init__'
  ): path
  for path in ROOT.glob('lca/**/*.py')
}
WORDS = ('lca.typing', 'lca.options', 'lca.registry')
RULES = (*WORDS, 'lca.stacked', 'lca.aggregators')
ENGINE = (*RULES, 'lca.attacks', 'lca.models', 'lca.data', 'lca.federated')

# The parts of lca that each room (a package or a module) may import. The first
# room that contains a module counts.
ROOMS = {
  'lca.typing': (),
  'lca.options': WORDS,
  'lca.registry': WORDS,
  'lca.version': (),
  'lca.geometry': ('lca.stacked',),
  'lca.stacked': (*WORDS, 'lca.stacked'),
  'lca.aggregators.verdict': (*WORDS, 'lca.stacked'),
  'lca.aggregators.brought': WORDS,
  'lca.aggregators.base': (
    *WORDS,
    'lca.stacked',
    'lca.aggregators.brought',
    'lca.aggregators.verdict',
  ),
  'lca.aggregators.forms': (
    *WORDS,
    'lca.stacked',
    'lca.aggregators.base',
    'lca.aggregators.brought',
    'lca.aggregators.verdict',
    'lca.aggregators.forms',
  ),
  'lca.aggregators.rules': (
    *WORDS,
    'lca.stacked',
    'lca.aggregators.base',
    'lca.aggregators.brought',
    'lca.aggregators.verdict',
    'lca.aggregators.rules',
  ),
  'lca.aggregators': RULES,
  'lca.attacks': (*RULES, 'lca.attacks'),
  'lca.models': (*WORDS, 'lca.stacked', 'lca.models'),
  'lca.testing': (*RULES, 'lca.attacks', 'lca.testing'),
  'lca.privacy': WORDS,
  'lca.certificates': (*WORDS, 'lca.stacked'),
  'lca.theory': (*WORDS, 'lca.theory'),
  'lca.robustness': (*RULES, 'lca.attacks', 'lca.robustness'),
  'lca.progress': (),
  'lca.data': (*WORDS, 'lca.progress', 'lca.data'),
  'lca.federated': ENGINE,
  'lca.experiment': (
    *ENGINE,
    'lca.privacy',
    'lca.progress',
    'lca.experiment',
    'lca.version',
  ),
  'lca.sweep': ('lca.experiment',),
  'lca.report': (
    *WORDS,
    'lca.experiment.command_line',
    'lca.experiment.extensions',
    'lca.experiment.forensics',
    'lca.experiment.identity',
    'lca.experiment.index',
    'lca.experiment.packing',
    'lca.experiment.rundir',
    'lca.experiment.summary',
    'lca.models',
    'lca.report',
    'lca.stacked.trees',
  ),
  'lca': ('lca',),  # the public names
}


def within(module, rooms):
  """Returns True if the module is one of `rooms` or lies inside one."""
  return any(f'{module}.'.startswith(f'{room}.') for room in rooms)


@functools.cache
def imports(module):
  """Returns the full names of the modules that a module imports."""
  imported = set()

  def visit(node):
    if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
      return
    if isinstance(node, ast.Import):
      imported.update(alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
      assert not node.level, f'{module} has a relative import'
      # `from a import b` imports the module a.b, or the name b from module a.
      names = {f'{node.module}.{alias.name}' for alias in node.names}
      imported.update(names & FILES.keys() or {node.module})
      imported.update({node.module} if names - FILES.keys() else ())
    for child in ast.iter_child_nodes(node):
      visit(child)

  visit(ast.parse(FILES[module].read_text()))
  return imported


def test_what_counts_as_an_import():
  """Counts imports of modules and of names, also inside functions."""
  assert 'lca.aggregators.base' in imports('lca.aggregators.rules.krum')
  assert 'lca.experiment.train' in imports('lca.experiment.workers')


def test_rooms_import_downwards_alone():
  for module in FILES:
    allowed = next(ROOMS[room] for room in ROOMS if within(module, [room]))
    internal = {x for x in imports(module) if within(x, ['lca', 'configs'])}
    assert not {x for x in internal if not within(x, allowed)}, module


@pytest.mark.parametrize(
  'room', ['stacked', 'aggregators', 'attacks', 'robustness', 'theory']
)
def test_rules_and_attacks_need_jax_and_numpy_alone(room):
  allowed = ('lca', 'jax', 'numpy', '__future__', *sys.stdlib_module_names)
  for module in FILES:
    if within(module, [f'lca.{room}']):
      assert not {x for x in imports(module) if not within(x, allowed)}, module


def test_no_module_imports_itself_in_the_end():
  graph = {module: imports(module) & FILES.keys() for module in FILES}
  list(graphlib.TopologicalSorter(graph).static_order())  # raises on a cycle


def loaded_by(statement):
  """Returns the modules that a new Python process has loaded after it."""
  code = f'import sys; {statement}; print(*sys.modules)'
  return subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  ).stdout.split()


def test_import_brings_no_training_libraries():
  unwanted = ['tensorflow', 'tensorflow_datasets', 'flax', 'optax', 'lca.data']
  loaded = loaded_by('import lca')
  assert 'lca.aggregators' in loaded
  assert not {name for name in loaded if within(name, unwanted)}


def test_reading_runs_brings_no_trainer():
  loaded = loaded_by('import lca.report.runs')
  assert 'lca.experiment.rundir' in loaded
  assert not {x for x in loaded if within(x, ['lca.federated', 'optax'])}


def test_no_file_is_longer_than_four_hundred_lines():
  sizes = {x: len(FILES[x].read_text().splitlines()) for x in FILES}
  assert not {x: size for x, size in sizes.items() if size > 400}
