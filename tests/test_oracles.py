"""Every rule against its oracle: plain, cosine, and in every scope."""

import numpy as np
import oracles
import pool
import pytest
from cases import BYZANTINE, ONCE, SHORT, Case, cases, cases_of, thorough
from comparison import check
from pool import at_random, worst_case

# Rules that represent the others in tests where the rule matters little.
FEW = ('mean', 'krum', 'median')
TYPICAL = (*FEW, 'bulyan', 'geometric_median', 'fltrust', 'lasa')
DEEP = Case('krum', 'cosine', 'leaf')


def quickly(name, case):
  """Adds `-m quick` to each plain rule on the smaller tree."""
  quick = (name, case.kind, case.by) == ('edge', 'euclidean', 'model')
  marks = [pytest.mark.quick] if quick else []
  return pytest.param(name, case, id=f'{name}-{case}', marks=marks)


@pytest.mark.parametrize(
  ('name', 'case'),
  [quickly(name, case) for case in SHORT for name in ('cnn', 'edge')],
)
def test_follows_the_oracle(name, case):
  tree = pool.stack(name, 11)
  check(case, tree, *case(tree))


@cases(argvalues=thorough(cases_of('module', 'block'), except_for=FEW))
def test_follows_the_oracle_over_batch_statistics(case):
  tree = pool.stack('stats', 11)
  check(case, tree, *case(tree))


@cases(argvalues=ONCE)
@pytest.mark.parametrize('n', [4, 25])
def test_follows_the_oracle_at_every_n(case, n):
  tree = pool.stack('pair', n)
  check(case, tree, *case(tree))


# One hundred clients take long to compile and long in the oracles.
@cases(argvalues=thorough(SHORT, except_for=FEW))
def test_follows_the_oracle_at_one_hundred(case):
  tree = pool.stack('pair', 100)
  check(case, tree, *case(tree))


@cases(argvalues=thorough(cases_of('model'), except_for=TYPICAL))
def test_follows_the_oracle_over_many_columns(case):
  tree = pool.stack('wide', 11)
  check(case, tree, *case(tree))


# Sixty layers take ten times as long to compile as six.
@cases(argvalues=[DEEP, *thorough(case for case in SHORT if case != DEEP)])
def test_follows_the_oracle_over_many_leaves(case):
  tree = pool.stack('deep', 11)
  check(case, tree, *case(tree))


@cases(argvalues=SHORT)
@pytest.mark.parametrize('scale', [10, 1000])
def test_follows_the_oracle_under_attack(case, scale):
  tree = pool.stack('cnn', 11)
  attacked = worst_case(tree, at_random(11, BYZANTINE[11]), scale)
  check(case, attacked, *case(attacked))


@cases(argvalues=ONCE)
@pytest.mark.parametrize('scale', [10, 1000])
def test_follows_the_oracle_under_a_large_attack(case, scale):
  tree = pool.stack('pair', 25)
  attacked = worst_case(tree, at_random(25, BYZANTINE[25]), scale)
  check(case, attacked, *case(attacked))


def test_the_pool_has_no_ties():
  """Checks that scores differ, so that the oracle fixes who is selected."""
  for name, n in [('pair', 4), ('cnn', 11), ('pair', 25), ('pair', 100)]:
    tree = pool.stack(name, n)
    rows = oracles.rows_of([array for _, array in oracles.leaves(tree)])
    for case in cases_of('model'):
      if case.name in oracles.SCORES:
        scores, m = oracles.scores_of(case.name, rows, case.hyper(n), case.kind)
        ordered = np.sort(scores)
        if m < n:  # twice the slack of `check_selection`
          assert ordered[m] - ordered[m - 1] > 2e-5 * np.median(scores), n
