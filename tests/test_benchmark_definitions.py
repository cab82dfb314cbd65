"""The tables of calls that give other systems' numbers: this side of them."""

import numpy as np
import pytest

from benchmarks import attack_definitions, definitions


@pytest.mark.quick
def test_system_that_is_absent_says_so():
  absent = definitions.System('no_such_module', dict, [])
  lines, surprises = definitions.compare({'absent': absent}, [])
  assert lines[-1] == '| absent | | | not installed | |' and not surprises


def compared(theirs, **options):
  """Returns the last line of a table whose call here is x, and the surprises.

  Their call sees x = 1, 2 and an infinity.
  """
  trial = {'x': np.array([1.0, 2.0, np.inf])}
  pair = definitions.Pair(theirs, 'x', **options)
  system = definitions.System('numpy', dict, [pair])
  lines, surprises = definitions.compare({'it': system}, [(trial, trial)])
  return lines[-1], surprises


@pytest.mark.quick
def test_differences():
  assert compared('x') == ('| it | `x` | `x` | 0.0e+00 |  |', 0)
  assert compared('-x')[1] == 1
  line, surprises = compared('-x', equal=False, remark='a sign')
  assert 'not equal: a sign' in line and not surprises
  assert 'UNEXPECTED. not equal' in compared('x', equal=False)[0]


@pytest.mark.quick
def test_random_results_are_compared_by_their_distribution():
  line, surprises = compared('x[::-1]', random=True)
  assert 'in distribution' in line and not surprises
  assert compared('x + 1', random=True)[1] == 1


def test_calls_of_attacks_run():
  trial = attack_definitions.make_trial(12, 3, seed=0)
  names = attack_definitions.our_names(trial)
  calls = {
    pair.ours
    for system in attack_definitions.SYSTEMS.values()
    for pair in system.pairs
  }
  assert len(calls) > 30
  for call in sorted(calls):
    assert definitions.flat(eval(call, names)).size
