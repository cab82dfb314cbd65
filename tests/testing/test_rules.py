"""Tests of rules by `lca.testing`, beside the properties themselves."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lca
from lca import testing
from lca.testing import rule_properties
from lca.testing.examples import Example
from lca.testing.shrinking import shrink


def summed(updates):
  """A sum in the place of a mean."""
  return jax.tree.map(lambda x: jnp.sum(x, axis=0), updates)


def test_the_error_shows_the_fault():
  with pytest.raises(testing.PropertyFailed) as error:
    testing.check_rule(summed, n=5)
  text = str(error.value)
  assert text.startswith("summed (n=5, f=0, promise='none'): ")
  assert 'identical: Equal updates come back unchanged.' in text
  assert 'rule_properties.identical(rule, updates)' in text


def test_exceptions_are_named():
  reason = 'it is a sum'
  with_shift = {'identical': reason, 'shifted': reason, 'finite': reason}
  report = testing.check_rule(
    summed, n=5, except_for={'identical': reason, 'shifted': reason}
  )
  statuses = {each.name: each.status for each in report.results}
  assert statuses['identical'] == statuses['shifted'] == 'excepted'
  assert statuses['scaled'] == 'held'
  assert not report.failures and '0 of' in str(report)
  # A rule may be examined under another promise with the same exceptions.
  testing.check_rule(summed, n=5, except_for=with_shift)
  stale = testing.check_rule(lca.median, n=5, except_for={'scaled': reason})
  assert 'held: scaled (though excepted)' in str(stale)


def test_one_line_makes_the_tests():
  tests = testing.rule_tests(lca.median, f=4, promise='hull')
  (mark,) = tests.pytestmark
  names = [each.name for each in mark.args[1]]
  assert 'hull' in names and 'bounded' not in names
  by_name = {each.name: each for each in mark.args[1]}
  tests(by_name['identical'])
  with pytest.raises(testing.PropertyFailed, match='identical'):
    testing.rule_tests(summed)(by_name['identical'])
  excepted = testing.rule_tests(summed, except_for={'identical': 'a sum'})
  with pytest.raises(pytest.xfail.Exception, match='a sum'):
    excepted(by_name['identical'])


def test_a_rule_may_need_what_a_round_brings():
  def about_params(updates, *, params):
    return jax.tree.map(lambda x, w: jnp.mean(x - w, 0) + w, updates, params)

  def brings(updates):
    return {'params': jax.tree.map(lambda x: jnp.zeros_like(x[0]), updates)}

  testing.check_rule(about_params, brings=brings)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'f': 6, 'n': 6}, 'n=6, f=6'),
    ({'f': 3, 'n': 6, 'promise': 'hull'}, 'f < n / 2, got n=6, f=3'),
    ({'f': -1}, 'f must be'),
    ({'promise': 'full'}, "promise='full' .* f=0"),
    ({'promise': 'some', 'f': 1}, "promise must be .*'some'"),
    ({'except_for': {'shift': ''}}, "'shift'; did you mean 'shifted'"),
    ({'on_failure': 'ignore'}, 'on_failure must be'),
  ],
)
def test_what_check_rule_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    testing.check_rule(lca.median, **options)


OWN_TESTS = """
import jax.numpy as jnp
import lca

def shrunken(updates):
  return jnp.sum(updates, axis=0) / (len(updates) + 1)

test_median = lca.testing.rule_tests(lca.median, f=4, promise='hull')

def test_shrunken(check_rule, stacked_updates, bad_updates):
  spoilt = [*bad_updates(stacked_updates(5), [2])]
  assert len(spoilt) > 9 and spoilt[0]['bias'].shape == (5, 7)
  check_rule(shrunken)
"""


def test_fixtures_serve_a_repository_of_ones_own(tmp_path):
  plugin = "pytest_plugins = ['lca.testing.fixtures']"
  (tmp_path / 'conftest.py').write_text(plugin)
  (tmp_path / 'test_own.py').write_text(OWN_TESTS)
  ended = subprocess.run(
    [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider'],
    cwd=tmp_path,
    env=os.environ
    | {'PYTHONPATH': str(pathlib.Path(lca.__file__).parents[1])}
    | {'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
  )
  assert 'PropertyFailed: shrunken (n=11' in ended.stdout, ended.stdout
  assert '1 failed, 14 passed' in ended.stdout  # among them, on 1 device


@pytest.mark.parametrize(
  'wrong', [None, 'median', lca.attacks.sign_flip, lca.stateless(lca.median)]
)
def test_what_is_no_rule(wrong):
  with pytest.raises(TypeError, match='check_rule takes a rule'):
    testing.check_rule(wrong)


def test_a_majority_may_be_tolerated():
  def trusted(updates):
    return jax.tree.map(lambda x: x[0], updates)

  told = {'permutation': 'the first client is trusted'}
  first = testing.rules.rule_subject(trusted, f=8, promise='full')
  assert first.setting.f == 8
  report = testing.check_rule(lca.median, n=5, except_for=told)
  assert 'not tested' not in str(report) or 'sharding' in str(report)


def test_a_refusal_of_the_rule_does_not_stand_for_the_fault():
  def of_ten(updates, *, f):
    n = len(jax.tree.leaves(updates)[0])
    assert n >= 10, f'needs 10 clients, got {n}'
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), updates)

  report = testing.check_rule(of_ten, f=2, promise='hull', on_failure='return')
  (fault,) = [each for each in report.failures if each.name == 'hull']
  assert 'coordinate' in fault.message and len(fault.updates) == 11


# The search for small examples ---------------------------------------------


def test_one_bad_number_is_left():
  rng = np.random.default_rng(0)
  updates = {'a': rng.normal(size=(4, 3, 5)), 'b': rng.normal(size=(4, 9))}
  updates['b'][2, 6] = np.nan

  def fails(example):
    leaves = jax.tree.leaves(example.updates)
    return any(np.isnan(x).any() for x in leaves)

  small = shrink(Example(updates), fails)
  np.testing.assert_array_equal(small.updates[:, 0] * 0, [0, 0, np.nan, 0])
  assert small.updates.shape == (4, 1) and {*small.updates[[0, 1, 3], 0]} <= {
    0,
    1,
  }


# Functions of NumPy arrays -------------------------------------------------


def test_a_numpy_rule_works_like_any_other():
  rule = testing.from_numpy(lambda rows: np.median(rows, axis=0))
  tree = {'a': np.random.default_rng(0).normal(size=(5, 2, 3)), 'b': np.ones(5)}
  tree = jax.tree.map(np.float32, tree)
  want = lca.median(tree)
  layerwise = lca.layerwise(rule, by='leaf')
  for made in (rule(tree), jax.jit(rule)(tree), jax.jit(layerwise)(tree)):
    jax.tree.map(np.testing.assert_array_equal, made, want)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
  assert {x.dtype for x in jax.tree.leaves(rule(half))} == {jnp.bfloat16.dtype}
  with pytest.raises(ValueError, match='stacked'):
    rule({'a': np.ones((3, 2)), 'b': np.ones(4)})
  rule_properties.gradient(rule, tree)  # an error says that there is none


def test_a_faulty_numpy_rule_is_found():
  def rule(rows):
    rows[np.argmax(np.linalg.norm(rows, axis=1))] = 0
    return rows.mean(axis=0)

  report = testing.check_rule(
    testing.from_numpy(rule), f=2, promise='finite', on_failure='return'
  )
  assert {'finite', 'identical'} <= {each.name for each in report.failures}
