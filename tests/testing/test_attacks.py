"""Attacks with a planted fault, which `check_attack` has to find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lca
from lca import attacks, testing


def where(byzantine, new, old):
  return jax.tree.map(
    lambda x, y: jnp.where(byzantine.reshape(-1, *[1] * (y.ndim - 1)), x, y),
    new,
    old,
  )


def moves_honest_rows_by_rounding(updates, *, byzantine):
  """The mask is a factor, which turns -0 into 0 and NaN rows into others."""
  return jax.tree.map(
    lambda x: x - 2 * jnp.einsum('n,n...->n...', byzantine, x), updates
  )


def widens(updates, *, byzantine):
  rows = jax.tree.map(lambda x: -x.astype(jnp.float32), updates)
  return where(byzantine, rows, updates)


def counts_on_the_host(updates, *, byzantine):
  rows = np.flatnonzero(np.asarray(byzantine))
  return jax.tree.map(lambda x: jnp.asarray(x).at[rows].multiply(-1), updates)


def forgets_its_key(updates, *, byzantine):
  noise = np.random.default_rng().normal(size=len(byzantine))
  rows = jax.tree.map(lambda x: (x.T * noise.astype(x.dtype)).T, updates)
  return where(byzantine, rows, updates)


def looks_at_honest_rows(updates, *, byzantine):
  rows = jax.tree.map(lambda x: jnp.zeros_like(x) - x.mean(0), updates)
  return where(byzantine, rows, updates)


def copies_its_neighbour(updates, *, byzantine):
  rows = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), updates)
  return where(byzantine, rows, updates)


def forgets_to_attack(updates, *, byzantine):
  return updates


MUTANTS = {
  forgets_to_attack: 'changes',
  moves_honest_rows_by_rounding: 'honest_rows',
  widens: 'structure',
  counts_on_the_host: 'jit',
  forgets_its_key: 'pure',
  looks_at_honest_rows: 'absent',
  copies_its_neighbour: 'order',
}


@pytest.mark.parametrize('function', MUTANTS, ids=lambda x: x.__name__)
def test_a_fault_is_found_and_shown(function):
  report = testing.check_attack(function, on_failure='return')
  failed = {each.name: each for each in report.failures}
  assert MUTANTS[function] in failed, f'found {[*failed]}'
  with np.errstate(all='ignore'), pytest.raises(Exception) as error:
    exec(failed[MUTANTS[function]].code, {'attack': function})
  if function is not forgets_its_key:
    assert str(error.value).splitlines()[0] in failed[MUTANTS[function]].message


def test_knowledge_is_checked():
  attack = attacks.from_function(looks_at_honest_rows)
  with pytest.raises(testing.PropertyFailed, match='knowledge: The attackers'):
    testing.check_attack(attack, knowledge='byzantine')


def test_one_line_makes_the_tests():
  tests = testing.attack_tests(attacks.sign_flip)
  (mark,) = tests.pytestmark
  assert [each.name for each in mark.args[1]][:2] == [
    'structure',
    'honest_rows',
  ]


@pytest.mark.parametrize('wrong', [None, lca.median, attacks.badnets()])
def test_what_is_no_attack_on_updates(wrong):
  with pytest.raises(TypeError, match='check_attack takes an'):
    testing.check_attack(wrong)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'f': 11}, 'n=11, f=11'),
    ({'f': 0}, 'f must be'),
    ({'knowledge': 'some'}, "knowledge must be .*'some'"),
    ({'except_for': {'honest': ''}}, "'honest'; did you mean 'honest_rows'"),
    ({'on_failure': 'ignore'}, 'on_failure must be'),
  ],
)
def test_what_check_attack_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    testing.check_attack(attacks.sign_flip, **options)
