"""Every rule decides on rows with a large common part as in float64.

Clients' models are such rows. The tests compare two weighted sums of the rows
in float64, with the rule's weights and with the oracle's, in units of the rows'
spread. They do not compare the rule's update, which has float32's rounding
errors of numbers as large as the common part.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest
from cases import RULES, SHORT, cases
from comparison import check

import lca
from lca.aggregators.base import GramRule

N, F = 11, 4
RATIOS = [1e-2, 1e-4, 1e-6]  # spread / common part
ratios = pytest.mark.parametrize('ratio', RATIOS)
# These rules compare norms, which agree in all digits of float32 here.
BY_NORM = ['cge', 'lasa']
# These rules select rows by distances, or by other functions of differences.
SELECTS = {*oracles.SCORES, *oracles.OBJECTIVES, 'bulyan', 'rflbat'} - {
  *BY_NORM
}
# These rules give every row a weight, by differences of rows.
WEIGHS = {'caf', 'geometric_median', 'foolsgold'}
DECIDES = [case for case in SHORT if case.name in SELECTS | WEIGHS]
# The other rules use coordinates, signs, or the cosine with one more row. To
# these close rows are like any others, except to sign_guard: it compares shares
# of signs, which are the same in all close rows.
OTHERS = [
  case
  for case in SHORT
  if case not in DECIDES and case.name not in ('lasa', 'sign_guard')
]


def close_rows(ratio, seed=0):
  """Returns a tree whose rows differ by `ratio` of their common part.

  The leaves have common parts of different sizes. Rows 3 and 7 lie four spreads
  away from the others, in one direction.
  """
  rng = np.random.default_rng([seed, 5])
  noise = rng.permutation(np.linspace(0.5, 1.5, N))

  def leaf(scale, *shape):
    common, off = scale * rng.normal(size=(2, *shape))
    size = noise.reshape((N,) + (1,) * len(shape))
    rows = size * scale * rng.normal(size=(N, *shape))
    rows[[3, 7]] = 0.3 * rows[[3, 7]] + 4 * off
    return np.float32(common + ratio * rows)

  return {
    'kernel': leaf(1.0, 20, 8),
    'bias': leaf(0.1, 8),
    'scale': leaf(3.0, 30),
  }


def with_extremes(tree):
  """Makes one row a million times as long, one zero and one NaN."""
  for row, value in ((2, 1e6), (5, 0.0), (8, np.nan)):
    tree = pool.replace_rows(
      tree, [row], lambda leaf, v=value: np.float32(v * leaf[0])
    )
  return tree


def scopes(tree, by):
  """Returns the rows `[n, d]` of each layer, in float64."""
  arrays = [array for _, array in oracles.leaves(tree)]
  return [
    oracles.rows_of([arrays[p] for p in positions])
    for positions in oracles.groups(tree, by)
  ]


def spread(rows):
  """Returns the median distance of the rows from their median."""
  good = rows[~oracles.rejected(rows)]
  away = np.linalg.norm(good - np.median(good, axis=0), axis=1)
  return np.median(away)


def check_point(rows, got, want):
  """Checks that two sets of weights `[n]` give one point, to 1e-3 spreads."""
  good = ~oracles.rejected(rows)
  assert not np.any(got[~good]) and not np.any(want[~good])
  between = (got - want)[good] @ (rows[good] - np.median(rows[good], axis=0))
  assert np.linalg.norm(between) <= 1e-3 * spread(rows)


def check_decision(case, tree, info):
  """Checks the rule's selection, or weights, in each layer against the oracle.

  Both are scaled to sum 1. Clip factors play no part: of close rows they differ
  from 1 by a rounding error.
  """
  weights = np.atleast_2d(
    info['weights' if case.name in WEIGHS else 'selected']
  )
  for got, rows in zip(weights, scopes(tree, case.by), strict=True):
    hyper = case.hyper(N)
    if case.name == 'bulyan':
      members = oracles.bulyan_members(rows, kind=case.kind, **hyper)
      want = oracles.equal_weights(N, members)
    else:
      want = oracles.weights_of(case.name, rows, hyper, case.kind)
    check_point(rows, got / np.sum(got, dtype=float), want)


@ratios
@cases(argvalues=DECIDES)
def test_decides_as_in_float64(case, ratio):
  tree = close_rows(ratio)
  _, info = case(tree)
  check_decision(case, tree, info)


@ratios
@cases(argvalues=OTHERS)
def test_follows_float64(case, ratio):
  tree = close_rows(ratio)
  check(case, tree, *case(tree))


# The row far away has a square 1e24 times the others'. Eigenvectors (dnc, smea,
# caf, rflbat) and logarithms (FoolsGold) beside it have no digits left in
# float32. The medoid by Euclidean distances, and multi-metrics, add the
# distances to that row to their scores.
FAR = [
  case
  for case in DECIDES
  if case.name
  not in ('dnc', 'smea', 'caf', 'foolsgold', 'multi_metrics', 'rflbat')
  and (case.name, case.kind) != ('medoid', 'euclidean')
]


@ratios
@cases(argvalues=FAR)
def test_rows_far_away_change_nothing(case, ratio):
  tree = with_extremes(close_rows(ratio))
  _, info = case(tree)
  check_decision(case, tree, info)


CHAINED = {
  'krum': {'f': 2},
  'multi_krum': {'f': 2, 'm': 3},
  'medoid': {},
  'mda': {'f': 2},
  'smea': {'f': 2},
  'monna': {'f': 2},
  'caf': {'f': 2},
  'geometric_median': {},
}
KINDS = [
  ('euclidean', 'euclidean'),
  ('euclidean', 'cosine'),
  ('cosine', 'cosine'),
]


def no_clip(name, kind):
  rule = getattr(lca, name)
  return lca.cosine(rule, clip=None) if kind == 'cosine' else rule


@pytest.mark.parametrize('by', ['model', 'leaf'])
@pytest.mark.parametrize('kinds', KINDS, ids='-'.join)
@pytest.mark.parametrize('name', CHAINED)
def test_decides_as_in_float64_after_nnm(name, kinds, by):
  first, kind = kinds
  if kind == 'cosine' and not RULES[name].cosine:
    return
  hyper = CHAINED[name]
  chain = lca.chain(no_clip('nnm', first), no_clip(name, kind))
  assert isinstance(chain, GramRule)  # it makes no mixed, rounded copy
  rule = chain if by == 'model' else lca.layerwise(chain)
  compiled = jax.jit(
    lambda tree: lca.explain(rule)(tree, **hyper | {'f': 2})[1]
  )
  for ratio in RATIOS:
    tree = close_rows(ratio)
    weights = np.atleast_2d(compiled(tree)['weights'])
    for got, rows in zip(weights, scopes(tree, by), strict=True):
      middle = np.median(rows, axis=0)
      matrix = oracles.nnm_matrix(rows, f=2, kind=first)
      mixed = matrix @ (rows - middle) + middle
      want = oracles.weights_of(name, mixed, hyper, kind) @ matrix
      check_point(rows, got, want)


@pytest.mark.parametrize('ratio', [1e-2, 1e-4])
def test_decides_as_in_float64_after_clips(ratio):
  """Omits the ratio 1e-6: clip factors are rounded like the rows' entries."""
  tree = close_rows(ratio)
  rule = lca.chain(lca.clip_to_median_norm, lca.krum)
  _, info = lca.explain(rule)(tree, f=2)
  (rows,) = scopes(tree, 'model')
  clipped = rows * oracles.clip_factors(rows)[:, None]
  want = oracles.weights_of('krum', clipped, {'f': 2})
  np.testing.assert_array_equal(np.asarray(info['weights']) > 0, want > 0)


# Rules of a user's own --------------------------------------------------------


def by_hand(updates, f):
  """Computes layerwise cosine Krum as the README's ten lines do."""

  def one_layer(layer):
    gram = lca.gram(layer)
    d = lca.distances(gram, 'cosine')
    d = jnp.where(jnp.eye(len(gram)), jnp.inf, d)
    s = jnp.sort(d)[:, : len(gram) - f - 2].sum(1)
    clip = lca.geometry.clip_factors(gram)
    return lca.mix(layer, clip * jax.nn.one_hot(s.argmin(), len(gram)))

  return jax.tree.map(one_layer, updates)


@ratios
def test_layerwise_cosine_krum_by_hand_has_the_same_bits(ratio):
  tree = jax.tree.map(jnp.asarray, close_rows(ratio))
  want = lca.layerwise(lca.cosine(lca.krum))(tree, f=F)
  jax.tree.map(np.testing.assert_array_equal, by_hand(tree, F), want)


@ratios
@pytest.mark.parametrize('kind', ['euclidean', 'cosine'])
def test_a_rule_of_ones_own_profits(kind, ratio):
  @lca.gram_rule
  def nearest(gram, *, distance='euclidean'):
    scores = jnp.median(lca.distances(gram, distance), axis=1)
    return lca.Verdict(jax.nn.one_hot(jnp.argmin(scores), len(gram)), scores)

  tree = close_rows(ratio)
  for by in ('model', 'leaf'):
    rule = lca.layerwise(nearest, by=by)
    _, info = lca.explain(rule)(tree, distance=kind)
    for got, rows in zip(info['scores'], scopes(tree, by), strict=True):
      want = np.median(oracles.distance_matrix(rows, kind), axis=1)
      np.testing.assert_allclose(got, want, rtol=2e-3)


def test_krum_of_the_report():
  rows = jnp.array(
    [[10001.0], [10000], *([10000 + i / 100] for i in range(1, 8))]
  )
  assert 10000.02 < lca.krum(rows, f=1)[0] < 10000.05
  assert 10000.02 < lca.medoid(rows)[0] < 10000.06
