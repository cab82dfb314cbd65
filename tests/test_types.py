"""Pyright accepts right calls to the library and refuses wrong ones.

One run of Pyright checks all snippets, with the settings in pyproject.toml. A
step of `.ci/run` checks the packages themselves.
"""

import ast
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PRELUDE = """
import functools
import jax
import jax.numpy as jnp
import lca
from lca import attacks
x = jnp.zeros((9, 2))
key = jax.random.key(0)
mask = jnp.zeros(9, bool)

@lca.gram_rule
def bare(gram: jax.Array, *, size: int = 2) -> lca.Verdict:
  return lca.Verdict(gram[0])

@lca.gram_rule(needs='norms')
def optioned(gram: jax.Array, *, size: int = 2) -> lca.Verdict:
  return lca.Verdict(gram[0])

def plain(updates: jax.Array, *, f: int) -> jax.Array:
  return updates[f]
"""
GOOD = [
  'lca.krum(x, f=2)',
  "lca.krum(x, f=2, distance='cosine')",
  'lca.multi_krum(x, f=1, m=2)',
  'lca.mean(x)',
  "lca.median(x, median='lower')",
  'lca.fltrust(x, server_update=x[0])',
  'lca.align_ins(x, params=x[0], lambda_s=2.0)',
  'lca.flame(x, params=x[0], noise=0.1, key=key)',
  'lca.multi_metrics(x, fraction=0.5)',
  'lca.rflbat(x, max_clusters=3)',
  'lca.bucketing(x, key=key)',
  'lca.layerwise(lca.krum)(x, f=2)',
  "lca.layerwise(lca.cosine(lca.krum), by='module')(x, f=2)",
  'lca.layerwise(plain)(x, f=2)',
  'update, info = lca.explain(lca.layerwise(lca.krum))(x, f=2)',
  'lca.chain(lca.nnm, lca.krum)(x, f=2)',
  'lca.noisy(lca.krum, sigma=0.1)(x, f=2, key=key)',
  'lca.noisy(lca.legato(), sigma=0.1).init(x[0])',
  'lca.chain(functools.partial(lca.nnm, f=2), lca.legato()).init(x[0])',
  'lca.stateless(lca.krum, f=1).update(x, (), key=key, params=x[0])',
  'lca.layerwise(lca.centered_clip(threshold=1.0)).init(x[0])',
  'update, state, info = lca.explain(lca.legato())(x, ())',
  'bare(x, size=3), optioned(x, size=3)',
  'attacks.sign_flip(x, byzantine=mask, scale=2.0)',
  'lca.median(lca.stack([x[0], x[1]]))',
]
BAD = {
  'lca.krum(x, g=2)': 'No parameter named "g"',
  "lca.krum(x, f='a')": '"Literal[\'a\']" is not assignable to "int"',
  'lca.krum(x)': 'Argument missing for parameter "f"',
  'lca.multi_krum(x, f=1)': 'Argument missing for parameter "m"',
  "lca.median(x, median='middle')": "Literal['middle']",
  'lca.trimmed_mean(x, g=2)': 'No parameter named "g"',
  'lca.deep_sight(x, params=x[0], key=key)': 'for parameter "predict"',
  'lca.fltrust(x)': 'Argument missing for parameter "server_update"',
  'lca.layerwise(lca.krum)(x, g=2)': 'No parameter named "g"',
  "lca.layerwise(lca.krum, by='leafs')": 'No overloads for "layerwise"',
  'lca.layerwise(lca.cosine(lca.krum))(x, g=2)': 'No parameter named "g"',
  'lca.layerwise(plain)(x, g=2)': 'No parameter named "g"',
  'lca.explain(lca.krum)(x, g=2)': 'No parameter named "g"',
  'lca.cosine(lca.median)': 'is not assignable to "GramRule',
  'lca.chain(lca.legato(), lca.krum)': 'No overloads for "chain"',
  'lca.chain(lca.nnm, lca.legato())(x)': '__call__',
  'lca.legato().update(x, (), kye=key)': 'No parameter named "kye"',
  'bare(x, sizes=3)': 'No parameter named "sizes"',
  'optioned(x, sizes=3)': 'No parameter named "sizes"',
  'attacks.sign_flip(x, byzantine=mask, scal=2.0)': 'No parameter named "scal"',
}


@pytest.fixture(scope='module')
def messages(tmp_path_factory):
  """Returns Pyright's error messages for each snippet."""
  if importlib.util.find_spec('pyright') is None:
    pytest.skip('Pyright is not installed (tests/requirements.txt)')
  snippets = [*GOOD, *BAD]
  file = tmp_path_factory.mktemp('types') / 'snippets.py'
  file.write_text('\n'.join([PRELUDE, *snippets]))
  first = len(PRELUDE.split('\n'))
  python = ['--pythonpath', sys.executable]
  done = subprocess.run(
    [sys.executable, '-m', 'pyright', *python, '--outputjson', file],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  errors = {snippet: [] for snippet in ['', *snippets]}  # '' is the prelude
  for diagnostic in json.loads(done.stdout)['generalDiagnostics']:
    if diagnostic['severity'] == 'error':
      place = diagnostic['range']['start']['line'] - first
      snippet = snippets[place] if place >= 0 else ''
      errors[snippet].append(diagnostic['message'])
  assert not errors.pop('')
  return errors


@pytest.mark.parametrize('snippet', GOOD)
def test_passes(snippet, messages):
  assert not messages[snippet]


@pytest.mark.parametrize(('snippet', 'message'), BAD.items())
def test_is_refused(snippet, message, messages):
  assert message in '\n'.join(messages[snippet])


def signatures(body, prefix=''):
  """Yields the public functions and methods of parsed source, with names."""
  for node in body:
    hidden = node.name.startswith('_') if hasattr(node, 'name') else True
    if isinstance(node, ast.ClassDef) and not hidden:
      yield from signatures(node.body, f'{prefix}{node.name}.')
    elif isinstance(node, ast.FunctionDef):
      if not hidden or node.name in ('__init__', '__call__'):
        yield f'{prefix}{node.name}', node


@pytest.mark.parametrize('package', ['stacked', 'aggregators', 'attacks'])
def test_public_signatures_are_annotated(package):
  bare, count = [], 0
  for file in (ROOT / 'lca' / package).rglob('*.py'):
    for name, node in signatures(ast.parse(file.read_text()).body):
      several = node.args.posonlyargs, node.args.args, node.args.kwonlyargs
      arguments = [a for group in several for a in group if a.arg != 'self']
      annotations = [a.annotation for a in arguments]
      annotations.append(node.returns or name.endswith('__init__'))
      count += len(annotations)
      if not all(annotations):
        bare.append(f'{file.name}: {name}')
  assert not bare
  assert count > 50
