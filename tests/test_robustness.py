"""Searches for the worst case: against analytic ones, attacks and theory."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_cases import KEY

import lca
from lca import attacks, robustness, theory
from lca.robustness import kappa, worst_case

N, F = 11, 2
BRIEF = {'num_steps': 5, 'num_generations': 10, 'num_restarts': 4}


def tree(num, seed=0, heavy=False):
  """Returns rows about a mean, of normal or of very different lengths."""
  rng = np.random.default_rng(seed)
  lengths = np.sqrt(2 / rng.chisquare(2, num)) if heavy else np.ones(num)
  rows = {
    'kernel': rng.normal(size=(num, 2, 3)) * lengths[:, None, None],
    'bias': 1 + rng.normal(size=(num, 2)) * lengths[:, None],
  }
  return jax.tree.map(lambda x: np.asarray(x, np.float32), rows)


def flat(rows):
  leaves = [np.asarray(x, float) for x in jax.tree.leaves(rows)]
  return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def deviation(rule, rows, byzantine):
  """Returns the objective of the search, in float64."""
  update = flat(jax.tree.map(lambda x: x[None], rule(rows)))[0]
  honest = flat(rows)[~byzantine]
  mean = honest.mean(axis=0)
  variance = np.mean(np.sum((honest - mean) ** 2, axis=1))
  return np.sum((update - mean) ** 2) / variance


MEDIAN = functools.partial(lca.median)
TRIMMED = functools.partial(lca.trimmed_mean, f=F)
KRUM = functools.partial(lca.krum, f=F)


@pytest.mark.parametrize('rule', [MEDIAN, TRIMMED], ids=['median', 'trimmed'])
def test_the_worst_case_in_one_dimension(rule):
  """All Byzantine entries on one side, beyond the honest ones."""
  honest = np.random.default_rng(3).normal(size=N - F).astype(np.float32)
  both = []
  for far in (-1e3, 1e3):
    rows = np.append(honest, np.full(F, far, np.float32))
    both.append(deviation(rule, jnp.array(rows), np.arange(N) >= N - F))
  worst = worst_case(rule, honest, F, key=KEY)
  np.testing.assert_allclose(worst.value, max(both), rtol=1e-4)


def test_a_free_search_attains_the_coefficient_of_the_trimmed_mean():
  worst = worst_case(
    TRIMMED, tree(N - F), F, key=KEY, move_honest=True, **BRIEF
  )
  bound = theory.kappa_bound('trimmed_mean', N, F)
  np.testing.assert_allclose(worst.value, bound, rtol=1e-3)
  assert kappa(TRIMMED, worst.updates, F) <= bound * (1 + 1e-4)


@pytest.mark.parametrize(
  'rule',
  [KRUM, functools.partial(lca.layerwise(lca.krum), f=F)],
  ids=['plain', 'layerwise'],
)
def test_no_known_attack_does_more(rule):
  honest = tree(N - F, seed=1)
  worst = worst_case(rule, honest, F, key=KEY)
  np.testing.assert_array_equal(flat(worst.updates)[: N - F], flat(honest))
  np.testing.assert_allclose(
    worst.value, deviation(rule, worst.updates, worst.byzantine), rtol=1e-4
  )
  rows = jax.tree.map(lambda x: np.concatenate([x, x[:F]]), honest)
  known = [functools.partial(attacks.alie, z=z) for z in (0.3, 1.0, 1.5)] + [
    functools.partial(attacks.mimic, target=i) for i in range(N - F)
  ]
  harm = [
    deviation(
      rule, attack(rows, byzantine=jnp.array(worst.byzantine)), worst.byzantine
    )
    for attack in known
  ]
  assert worst.value > 1.02 * max(harm)
  assert worst.value == max(
    max(values[:2]) for values in worst.tries.values()
  ) or (worst.method == 'evolution')


def test_one_row_moves_the_mean_and_the_cosine_form_beyond_all_bounds():
  mean = worst_case(lca.mean, tree(N - F), F, key=KEY, **BRIEF)
  assert mean.value > 1e6
  # Honest rows that nearly agree: a shorter row has the same direction.
  close = jax.tree.map(lambda x: np.float32(1 + 1e-3 * x), tree(N - F))
  cosine = functools.partial(lca.cosine(lca.krum), f=F)
  assert worst_case(cosine, close, F, key=KEY, **BRIEF).value > 1e4
  assert worst_case(KRUM, close, F, key=KEY, **BRIEF).value < 10


BOUNDED = sorted({*theory.BOUNDS} - {'mean', 'cge', 'bulyan_trimmed'})
CASES = [
  pytest.param(name, f, marks=[pytest.mark.thorough] if f != F else [])
  for name, f in itertools.product(BOUNDED, range(1, 6))
  if theory.feasible(name, N, f)
]


@pytest.mark.parametrize(('name', 'f'), CASES)
def test_no_search_exceeds_the_bound(name, f):
  options = {} if name in ('median', 'medoid', 'geometric_median') else {'f': f}
  if name == 'multi_krum':
    options['m'] = 5
  rule = functools.partial(getattr(lca, name), **options)
  bound = theory.kappa_bound(name, N, f)
  for heavy in (False, True):
    worst = worst_case(rule, tree(N - f, heavy=heavy), f, key=KEY, **BRIEF)
    assert 0 < worst.value <= bound * (1 + 1e-3)
    if name != 'monna':  # whose pivot must be among the honest rows
      assert kappa(rule, worst.updates, f) <= bound * (1 + 1e-3)


def test_kappa_compares_all_sets():
  rows = tree(7, seed=2)
  rule = lca.median
  ratios = []
  for left_out in itertools.combinations(range(7), 2):
    byzantine = np.isin(np.arange(7), left_out)
    ratios.append(deviation(rule, rows, byzantine))
  np.testing.assert_allclose(kappa(rule, rows, 2), max(ratios), rtol=1e-5)


def test_kappa_of_equal_rows():
  rows = np.float32([[0.1]] * 5 + [[7.0]] * 2)
  assert kappa(lca.median, rows, 2) < 1
  assert kappa(lca.mean, rows, 2) == math.inf
  assert kappa(lambda x: jnp.full(1, jnp.nan), rows, 2) == math.inf


def test_other_calls_compile_nothing():
  traces = []

  def rule(updates):
    traces.append(1)
    return lca.median(updates)

  worst_case(rule, tree(N - F), F, key=KEY, **BRIEF)
  count = len(traces)
  other = worst_case(rule, tree(N - F, seed=4), F, key=KEY, **BRIEF)
  assert len(traces) == count <= 4
  assert {*other.tries} >= {'alie(z=1)', 'mimic(target=0)', 'far apart (1000)'}


def test_rounding_is_no_harm_but_nan_is():
  equal = jax.tree.map(lambda x: np.full_like(x, 0.1), tree(N - F))
  assert worst_case(KRUM, equal, F, key=KEY, **BRIEF).value == 0

  def lost(updates):
    return jax.tree.map(lambda x: jnp.mean(x, 0) * jnp.nan, updates)

  assert worst_case(lost, equal, F, key=KEY, **BRIEF).value == math.inf


def test_the_place_of_the_byzantine_rows():
  def first(updates):
    return jax.tree.map(lambda x: x[0], updates)

  last = worst_case(first, tree(N - F), F, key=KEY, **BRIEF)
  assert len({values[0] for values in last.tries.values()}) == 1
  ahead = worst_case(first, tree(N - F), F, key=KEY, place='first', **BRIEF)
  assert ahead.value > 1e6 * last.value
  np.testing.assert_array_equal(ahead.byzantine, np.arange(N) < F)
  np.testing.assert_array_equal(flat(ahead.updates)[F:], flat(tree(N - F)))


def test_other_objectives():
  honest = tree(N - F)
  mean = flat(honest).mean(axis=0)
  worst = worst_case(MEDIAN, honest, F, 'inner_product', key=KEY, **BRIEF)
  update = flat(jax.tree.map(lambda x: x[None], MEDIAN(worst.updates)))[0]
  np.testing.assert_allclose(
    worst.value, -update @ mean / (mean @ mean), rtol=1e-4
  )
  assert worst.value > -1

  def bias(update):
    return update['bias'][0]

  worst = worst_case(MEDIAN, honest, F, bias, key=KEY, **BRIEF)
  far = np.sort(np.append(honest['bias'][:, 0], [1e3, 1e3]))[N // 2]
  np.testing.assert_allclose(worst.value, far, rtol=1e-4)


def test_curves():
  rules = {
    'krum': lambda f: KRUM if f == F else functools.partial(lca.krum, f=f)
  }
  curves = robustness.breakdown(rules, tree(N), [2, 5], key=KEY, **BRIEF)
  worst = worst_case(
    KRUM, jax.tree.map(lambda x: x[: N - F], tree(N)), F, key=KEY, **BRIEF
  )
  np.testing.assert_allclose(curves['krum'], [math.sqrt(worst.value), np.nan])


def test_errors():
  honest = tree(4)
  with pytest.raises(ValueError, match='f must be at least 1, got 0'):
    worst_case(MEDIAN, honest, 0, key=KEY)
  with pytest.raises(ValueError, match=r"objective must be one of .* 'far'"):
    worst_case(MEDIAN, honest, 1, 'far', key=KEY)
  with pytest.raises(ValueError, match='place must be one of'):
    worst_case(MEDIAN, honest, 1, key=KEY, place='middle')
  with pytest.raises(ValueError, match="move_honest needs objective='deviat"):
    worst_case(MEDIAN, honest, 1, 'inner_product', key=KEY, move_honest=True)
  with pytest.raises(ValueError, match='population must be at least 2'):
    worst_case(MEDIAN, honest, 1, key=KEY, population=1)
  with pytest.raises(ValueError, match='must be floating-point'):
    worst_case(MEDIAN, np.arange(4), 1, key=KEY)
  with pytest.raises(ValueError, match='kappa needs n > 2f, got n=4, f=2'):
    kappa(MEDIAN, honest, 2)
  with pytest.raises(ValueError, match='more than max_subsets=3'):
    kappa(MEDIAN, honest, 1, max_subsets=3)
