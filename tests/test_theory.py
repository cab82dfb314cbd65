"""Upper bounds and conditions, against float64 rules on whole grids of rows."""

import functools
import itertools
import math

import jax
import numpy as np
import oracles
import pytest

import lca
from lca import theory

pytestmark = pytest.mark.quick


def oracle(name, rows, f):
  """Returns a rule's result in float64, `[d]`."""
  n = len(rows)
  if name in ('median', 'trimmed_mean', 'meamed', 'phocas'):
    rule = getattr(oracles, 'coordinate_median' if name == 'median' else name)
    return rule(rows) if name == 'median' else rule(rows, f=f)
  hyper = {
    'geometric_median': {},
    'medoid': {},
    'multi_krum': {'f': f, 'm': n - f},
    'bulyan_trimmed': {'f': f, 'm': n - f, 'trim': f},
  }.get(name, {'f': f})
  if name == 'bulyan':
    return oracles.bulyan(rows, oracles.bulyan_members(rows, f=f), f=f)
  if name == 'bulyan_trimmed':
    nearest = oracles.weights_of('multi_krum', rows, {'f': f, 'm': n - f})
    return oracles.bulyan_trimmed(rows, np.flatnonzero(nearest), **hyper)
  return oracles.weights_of(name, rows, hyper) @ rows


def proven(update, rows, f):
  """Returns the coefficient that rows prove: the largest ratio of all sets."""
  ratios = [0.0]
  for members in itertools.combinations(rows, len(rows) - f):
    mean = np.mean(members, axis=0)
    variance = np.mean(np.sum((members - mean) ** 2, axis=1))
    moved = np.sum((update - mean) ** 2)
    if moved > 1e-12:
      ratios.append(moved / variance if variance > 1e-12 else math.inf)
  return max(ratios)


def rows_of(n, seed):
  """Yields rows on few points, so that sets of equal rows are frequent."""
  rng = np.random.default_rng(seed)
  for dim in (1, 1, 2, 3) * 15:
    yield rng.choice([0.0, 1.0, 3.0, 50.0], (n, dim), p=[0.5, 0.3, 0.1, 0.1])


RULES = [x for x in theory.BOUNDS if x not in ('mean', 'cge', 'monna')]


@pytest.mark.parametrize('name', RULES)
def test_no_rows_exceed_the_bound(name):
  for n, f in ((7, 1), (7, 2), (7, 3), (8, 2)):
    options = {}
    if name == 'bulyan_trimmed':
      options = {'m': n - f, 'trim': f}
      if n - f <= 2 * f:
        continue
    if not theory.feasible(name, n, f):
      continue
    bound = theory.kappa_bound(name, n, f, **options)
    assert bound >= theory.lower_bound(n, f)
    for rows in rows_of(n, f):
      assert proven(oracle(name, rows, f), rows, f) <= bound * (1 + 1e-5)


@pytest.mark.parametrize(
  ('name', 'n', 'f'),
  [('median', n, f) for n in (5, 6, 9) for f in (1, 2)]
  + [('trimmed_mean', n, f) for n in (5, 6, 9) for f in (1, 2)]
  + [('median', 9, 4), ('trimmed_mean', 9, 4)],
)
def test_coordinate_wise_bounds_are_attained(name, n, f):
  h = n - f
  top = n // 2 + 1 - f if name == 'median' else n - 2 * f
  honest = np.where(np.arange(h) < top, 1.0, 0.0)
  rows = np.append(honest, np.full(f, 1e9))[:, None]
  moved = (oracle(name, rows, f)[0] - honest.mean()) ** 2
  bound = theory.kappa_bound(name, n, f)
  np.testing.assert_allclose(moved / honest.var(), bound)


def test_nearest_neighbour_mixing_keeps_its_bound():
  for n, f in ((7, 1), (7, 2), (9, 4)):
    bound = theory.kappa_bound('median', n, f, pre=['nnm'])
    assert bound == 8 * f / (n - f) * (theory.kappa_bound('median', n, f) + 1)
    for rows in rows_of(n, f):
      mixed = oracles.nnm_matrix(rows, f=f) @ rows
      update = oracles.coordinate_median(mixed)
      assert proven(update, rows, f) <= bound * (1 + 1e-9)


def test_pre_aggregators_apply_in_order():
  kappa = theory.kappa_bound('median', 11, 2)
  clipped = kappa + 4 / 7
  assert theory.kappa_bound('median', 11, 2, pre=['arc']) == clipped
  assert theory.kappa_bound('median', 11, 2, pre=['nnm', 'arc']) == (
    16 / 9 * (clipped + 1)
  )


def test_no_bound_where_one_row_moves_the_rule():
  assert theory.kappa_bound('mean', 11, 1) == math.inf
  assert theory.kappa_bound('cge', 11, 1) == math.inf
  assert theory.kappa_bound('mean', 11, 0) == 0
  equal = np.array([[4.0]] * 5 + [[0.0], [1.0]])
  weights = oracles.weights_of('cge', equal, {'f': 2})
  assert proven(weights @ equal, equal, 2) == math.inf


def test_the_conditions_are_those_of_the_rules():
  """At the smallest n for f = 2, and one below."""
  for name in theory.CONDITIONS:
    if name in ('mean', 'cge', 'medoid', 'median', 'geometric_median'):
      continue  # these accept every n, with the same f or without one
    options = {'f': 2}
    if name == 'multi_krum':
      options['m'] = 1
    if name == 'bulyan_trimmed':
      options |= {'m': 1, 'trim': 0}
    rule = functools.partial(getattr(lca, name), **options)
    n = min(n for n in range(1, 20) if theory.feasible(name, n, 2))
    jax.eval_shape(rule, np.zeros((n, 1), np.float32))
    with pytest.raises(ValueError, match=f'n={n - 1}, f=2'):
      jax.eval_shape(rule, np.zeros((n - 1, 1), np.float32))


def test_breakdown_points():
  assert theory.breakdown_point('mean', 10) == 0.1
  assert theory.breakdown_point('median', 10) == 0.5
  assert theory.breakdown_point('median', 11) == 6 / 11
  assert theory.largest_f('krum', 11) == 4
  assert theory.largest_f('bulyan', 11) == 2


def test_krums_constant():
  """By hand for n = 5, f = 1: 2 (4 + (2 + 3) / 1)."""
  assert theory.krum_eta(5, 1) == pytest.approx(math.sqrt(18))
  sine = theory.krum_sine(5, 1, num_parameters=4, sigma=0.1, norm=2.0)
  assert sine == pytest.approx(math.sqrt(18) * 0.1)


def test_errors():
  with pytest.raises(ValueError, match=r'krum needs n > 2f \+ 2, got n=6, f=2'):
    theory.kappa_bound('krum', 6, 2)
  with pytest.raises(ValueError, match='krum needs'):
    theory.krum_eta(6, 2)
  with pytest.raises(ValueError, match="unknown bound 'krom'; did you mean"):
    theory.kappa_bound('krom', 11, 2)
  with pytest.raises(ValueError, match="unknown condition 'foolsgold'"):
    theory.feasible('foolsgold', 11, 2)
  with pytest.raises(ValueError, match="unknown bound 'bucketing'"):
    theory.kappa_bound('krum', 11, 2, pre=['bucketing'])
  with pytest.raises(TypeError, match='takes no m'):
    theory.kappa_bound('krum', 11, 2, m=3)
  with pytest.raises(ValueError, match='f <= trim'):
    theory.kappa_bound('bulyan_trimmed', 11, 2, m=9, trim=1)
  with pytest.raises(ValueError, match='n > 2f, got n=4, f=2'):
    theory.lower_bound(4, 2)
  with pytest.raises(ValueError, match='f must be at least 0'):
    theory.feasible('krum', 11, -1)
