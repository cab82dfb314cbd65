"""Promises of the rules about arbitrary rows: see `cases.Spec.promise`."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest
from cases import (
  FULL,
  ROBUST,
  RULES,
  Case,
  cases,
  cases_of,
  mostly_once,
  server_update,
)
from comparison import check
from hypothesis import given, settings
from hypothesis import strategies as st
from pool import ACCEPTED, REJECTED, at_random, with_rows

import lca

KINDS = [*REJECTED, *ACCEPTED, 'copies']
# If fewer rows are left than these rules select, they average those.
AVERAGES_THE_FEW = [
  case
  for case in ROBUST
  if case.name in ('multi_krum', 'cge', 'mda', 'smea', 'dnc', 'caf', 'bulyan')
  or case.name in ('bulyan_trimmed', 'multi_metrics')
]
# These rules follow the float64 oracle for rows up to 1e3 times the others'
# norm. Beyond that, only the bounds below are tested.
CONTINUOUS = ('geometric_median', 'caf', 'dnc', 'multi_metrics', 'rflbat')
HULL = cases_of('model', names=['median', 'trimmed_mean'])
NEAREST = cases_of('model', names=['meamed', 'phocas'])


def leaves_of(tree):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


# Full promises -------------------------------------------------------------


@cases(argvalues=mostly_once(ROBUST))
@pytest.mark.parametrize('kind', KINDS)
def test_any_rows_are_survived(case, kind):
  tree = pool.stack('cnn', 11)
  for count in range(1, case.bad_rows(11) + 1):
    rows = at_random(11, count)
    changed = with_rows(tree, rows, kind)
    out, info = case(changed)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves_of(out))
    if case.spec.promise == 'full':
      assert_bounded_by_the_honest(case, out, changed, rows)
    if 'rejected' in info:
      rejected = np.asarray(info['rejected'])[..., rows]
      assert np.all(rejected == (kind in REJECTED))
    if kind in ('1e4', '1e10') and case.name in CONTINUOUS:
      continue
    # XLA may flush subnormal numbers to zero, and the test accepts both.
    if kind == '1e-40':
      changed = with_rows(tree, rows, 'zeros')
      out = jax.tree.map(lambda x: np.where(np.abs(x) < 1e-37, 0, x), out)
    check(case, changed, out, info)


@cases(argvalues=[case for case in FULL if case.by == 'model'])
@pytest.mark.parametrize('size', [1e3, 1e7, 1e10, 1e14])
def test_a_row_as_long_as_may_be_hides_no_other(case, size):
  """One row is nearly rejected; the other bad rows have other directions."""
  x = pool.stack('leaf', 11)
  rows = np.arange(case.bad_rows(11))
  x[rows] = 0
  x[rows, rows] = [*[size] * (len(rows) - 1), 4e18]
  out, _ = case(x)
  assert_bounded_by_the_honest(case, out, x, rows)


def assert_bounded_by_the_honest(case, out, updates, rows):
  """Checks that each layer is at most 4 n times as long as honest ones.

  The bounds that can be proved lie between 1 (cge) and 2 n (medoid).
  """
  honest = np.setdiff1d(np.arange(11), rows)
  arrays = [array for _, array in oracles.leaves(updates)]
  outs = leaves_of(out)
  for positions in oracles.groups(updates, case.by):
    sent = oracles.rows_of([arrays[p] for p in positions])[honest]
    made = np.concatenate([outs[p].ravel().astype(float) for p in positions])
    longest = np.max(np.linalg.norm(sent, axis=1))
    if case.name == 'fltrust':
      server = jax.tree.leaves(case.extra(updates)['server_update'])
      own = np.concatenate([np.ravel(server[p]) for p in positions])
      longest = np.linalg.norm(own.astype(float))
    assert np.linalg.norm(made) <= 4 * 11 * longest


@cases(argvalues=mostly_once(ROBUST))
def test_how_a_row_is_bad_makes_no_difference(case):
  tree = pool.stack('cnn', 11)
  rows = at_random(11, case.bad_rows(11))
  extra = case.extra(tree)
  answers = []
  for kind in REJECTED:
    changed = with_rows(tree, rows, kind)
    answers.append(case(changed, **extra))
  for answer in answers[1:]:
    jax.tree.map(np.testing.assert_array_equal, answer, answers[0])


@cases(argvalues=mostly_once(ROBUST))
def test_one_bad_entry_rejects_its_scope_alone(case):
  tree = pool.stack('cnn', 11)
  tree['params']['layer_1']['bias'][3, 2] = np.nan
  out, info = case(tree)
  if 'rejected' in info:
    bad = np.asarray(info['rejected'])
    if case.name == 'lasa':  # its info has one row per leaf
      bad = bad if case.by == 'leaf' else np.any(bad, axis=0)
    assert np.sum(bad) == 1  # over all layers
  check(case, tree, out, info)


@cases(argvalues=mostly_once(ROBUST))
def test_nothing_left_is_nan(case):
  tree = pool.stack('cnn', 11)
  extra = case.extra(tree)
  for kind in REJECTED:
    out, info = case(with_rows(tree, np.arange(11), kind), **extra)
    assert all(np.all(np.isnan(leaf)) for leaf in leaves_of(out))
    assert np.all(info.get('rejected', True))
    assert not np.any(info.get('selected', False))


@cases(argvalues=mostly_once(AVERAGES_THE_FEW))
def test_too_few_left_are_averaged(case):
  tree = pool.stack('cnn', 11)
  left = [2, 3, 8]
  bad = np.setdiff1d(np.arange(11), left)
  tree = with_rows(tree, bad, 'nan')
  out, info = case(tree)
  np.testing.assert_array_equal(
    np.atleast_2d(info['selected']).all(axis=0).nonzero()[0], left
  )
  check(case, tree, out, info)


@cases(argvalues=mostly_once(ROBUST))
def test_one_left_is_the_answer(case):
  tree = pool.stack('cnn', 11)
  extra = case.extra(tree)
  tree = with_rows(tree, np.arange(10), 'inf')
  out, info = case(tree, **extra)
  check(case, tree, out, info, **extra)
  assert np.all(np.asarray(info.get('selected', np.ones(11)))[..., 10])


@settings(max_examples=20, deadline=None)
@given(data=st.data())
@cases(argvalues=mostly_once(ROBUST))
def test_the_answer_is_made_of_acceptable_rows(case, data):
  """The result mixes rows that are not rejected, whatever f rows hold."""
  tree, rows = draw_updates(case, data)
  out, info = case(tree)
  if case.spec.promise == 'full':
    assert_bounded_by_the_honest(case, out, tree, rows)
  # The rows that may be mixed: the selected ones, or those not rejected.
  selected = np.reshape(
    info.get('selected', acceptable(tree, case.by)), (-1, 11)
  )
  leaves = leaves_of(tree)
  for i, leaf in enumerate(leaves_of(out)):
    took = selected[i if len(selected) > 1 else 0]
    chosen = leaves[i][took].astype(np.float64)
    assert np.all(np.isfinite(chosen)) and np.all(np.isfinite(leaf))
    if case.name == 'align_ins' and not np.any(took):
      assert not np.any(leaf)  # as documented, where its filters leave nobody
      continue
    assert np.sum(took) >= 1
    if case.exact:
      assert np.sum(took) == 1
      np.testing.assert_allclose(leaf, chosen[0], rtol=0, atol=1e-37)
    elif case.name != 'fltrust':  # fltrust may lengthen rows: see below
      # Clips shrink rows towards 0, and averages lie between rows.
      slack = 1e-5 * np.max(np.abs(chosen), axis=0) + 1e-37
      chosen = np.concatenate([chosen, 0 * chosen[:1]])
      assert np.all(leaf <= np.max(chosen, axis=0) + slack)
      assert np.all(leaf >= np.min(chosen, axis=0) - slack)


def acceptable(tree, by):
  """Returns the `[layers, n]` mask of the rows that are not rejected."""
  arrays = [array for _, array in oracles.leaves(tree)]
  scopes = [[arrays[p] for p in group] for group in oracles.groups(tree, by)]
  return np.array([~oracles.rejected(oracles.rows_of(x)) for x in scopes])


def draw_updates(case, data):
  """Draws updates with arbitrary rows, at most as many as a rule tolerates."""
  n = 11
  f = data.draw(st.integers(1, case.bad_rows(n)), 'f')
  rows = data.draw(st.permutations(range(n)), 'rows')[:f]
  tree = pool.stack('cnn', n, seed=data.draw(st.integers(0, 9), 'seed'))
  anything = st.one_of(
    st.sampled_from([*(REJECTED | ACCEPTED).values()]),
    st.floats(width=32),
    st.floats(-25, 20).map(lambda digits: 10.0**digits),
  )
  for row in rows:
    value = np.float32(data.draw(anything, f'row {row}'))
    part = data.draw(st.floats(0, 1), f'part of row {row}')
    rng = np.random.default_rng(row)
    with np.errstate(over='ignore'):
      for leaf in jax.tree.leaves(tree):
        leaf[row] = np.where(
          rng.random(leaf[row].shape) < part, value, leaf[row]
        )
  return tree, rows


# Bounds that a paper proves ------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(data=st.data())
@cases(argvalues=cases_of('model', 'leaf', names=['geometric_median']))
def test_a_minority_moves_the_geometric_median_so_far(case, data):
  """The update moves at most 2 (n - f) / (n - 2 f) times honest distances."""
  tree, rows = draw_updates(case, data)
  out, _ = case(tree)
  honest = np.setdiff1d(np.arange(11), rows)
  factor = 2 * len(honest) / (len(honest) - len(rows))
  arrays = [array for _, array in oracles.leaves(tree)]
  outs = [leaf.ravel().astype(float) for leaf in leaves_of(out)]
  for positions in oracles.groups(tree, case.by):
    own = oracles.rows_of([arrays[p] for p in positions])[honest]
    centre = np.mean(own, axis=0)
    radius = np.max(np.linalg.norm(own - centre, axis=1))
    moved = np.concatenate([outs[p] for p in positions]) - centre
    assert np.linalg.norm(moved) <= factor * radius


@settings(max_examples=20, deadline=None)
@given(data=st.data())
@cases(argvalues=cases_of('model', 'leaf', names=['fltrust']))
def test_fltrust_is_never_longer_than_the_server(case, data):
  tree, _ = draw_updates(case, data)
  server = server_update(tree)
  out, _ = case(tree, server_update=server)
  outs, trusted = leaves_of(out), leaves_of(server)
  for positions in oracles.groups(tree, case.by):
    length = np.linalg.norm(
      np.concatenate([outs[p].ravel() for p in positions])
    )
    limit = np.linalg.norm(
      np.concatenate([trusted[p].ravel() for p in positions])
    )
    assert length <= limit * (1 + 1e-5)


def test_fltrust_does_not_lengthen_rows_of_lost_squares():
  """In float32, only one square of the last row's 20,000 is not zero."""
  server = np.zeros(20_000, np.float32)
  server[0] = 1
  x = np.stack([server, server, np.full_like(server, 1e-19)])
  x[2, 0] = 1.2e-19
  out = lca.fltrust(jnp.asarray(x), server_update=jnp.asarray(server))
  np.testing.assert_allclose(out, server, rtol=1e-6)


@cases(argvalues=cases_of('model', 'leaf', names=['monna']))
@pytest.mark.parametrize('kind', KINDS)
def test_monna_survives_any_rows_but_its_pivots(case, kind):
  rows = 1 + at_random(10, 4)
  tree = with_rows(pool.stack('cnn', 11), rows, kind)
  out, _ = case(tree)
  assert all(np.all(np.isfinite(leaf)) for leaf in leaves_of(out))
  assert_bounded_by_the_honest(case, out, tree, rows)


@pytest.mark.parametrize('kind', KINDS)
def test_the_mean_of_clipped_rows_survives_any(kind):
  tree = with_rows(pool.stack('cnn', 11), at_random(11, 4), kind)
  out = lca.chain(lca.static_clip, lca.mean)(tree, threshold=2.0)
  length = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves_of(out)))
  assert length <= 2 * (1 + 1e-5)


# Coordinate-wise rules -----------------------------------------------------


@cases(argvalues=HULL)
@pytest.mark.parametrize('kind', KINDS)
def test_rules_on_coordinates_follow_the_oracle_past_any_rows(case, kind):
  tree = pool.stack('cnn', 11)
  for count in range(1, case.bad_rows(11) + 1):
    changed = with_rows(tree, at_random(11, count), kind)
    check(case, changed, *case(changed))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
@cases(argvalues=HULL)
def test_every_coordinate_lies_between_honest_ones(case, data):
  tree, rows = draw_updates(case, data)
  out, _ = case(tree)
  honest = np.setdiff1d(np.arange(11), rows)
  for leaf, own in zip(leaves_of(out), leaves_of(tree), strict=True):
    low, high = np.min(own[honest], axis=0), np.max(own[honest], axis=0)
    slack = 1e-6 * np.maximum(np.abs(low), np.abs(high))  # a float32 mean
    if case.name == 'median':
      slack = 0  # the median of eleven entries is one of them
    assert np.all(leaf >= low - slack) and np.all(leaf <= high + slack)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
@cases(argvalues=NEAREST)
def test_means_of_the_nearest_are_finite(case, data):
  tree, _ = draw_updates(case, data)
  out, _ = case(tree)
  assert all(np.all(np.isfinite(leaf)) for leaf in leaves_of(out))


@cases(argvalues=NEAREST)
@pytest.mark.parametrize('kind', KINDS)
def test_means_of_the_nearest_follow_the_oracle_past_any_rows(case, kind):
  tree = pool.stack('cnn', 11)
  for count in range(1, case.bad_rows(11) + 1):
    changed = with_rows(tree, at_random(11, count), kind)
    check(case, changed, *case(changed))


# No promise ----------------------------------------------------------------


@pytest.mark.parametrize('name', ['mean', 'sign_majority'])
@pytest.mark.parametrize('by', ['model', 'leaf'])
def test_a_rule_without_defence_is_spoiled_by_a_nan(name, by):
  case = Case(name, 'euclidean', by if RULES[name].layers else 'model')
  tree = pool.stack('cnn', 11)
  tree['params']['layer_1']['bias'][3, 2] = np.nan
  out, _ = case(tree)
  bias = np.asarray(out['params']['layer_1']['bias'])
  assert np.isnan(bias[2]) if name == 'mean' else np.isinf(bias[2])
  assert sum(np.sum(~np.isfinite(leaf)) for leaf in leaves_of(out)) == 1


def test_one_client_moves_the_sign_majority():
  x = np.ones((11, 2), np.float32)
  x[3] = -1e6
  out = lca.sign_majority(jnp.asarray(x), theta=6)
  np.testing.assert_allclose(out, np.mean(x, axis=0), rtol=1e-6)


def test_one_client_moves_foolsgold():
  """A client that resembles no other has the highest trust."""
  x = pool.stack('leaf', 11)
  x[3] *= 1e6
  out = lca.foolsgold(jnp.asarray(x))
  assert np.linalg.norm(out) > 1e4 * np.median(np.linalg.norm(x, axis=1))


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e30])
def test_fltrust_is_lost_without_its_server(bad):
  x = jnp.asarray(pool.stack('leaf', 11))
  assert np.all(np.isnan(lca.fltrust(x, server_update=x[0].at[1].set(bad))))


# Derivatives beside rejected rows ------------------------------------------


@pytest.mark.parametrize('value', [1.5e19, 1e30, 3e38, np.nan, np.inf])
@pytest.mark.parametrize('before', [None, 'nnm', 'clip_to_median_norm'])
def test_rejected_rows_are_in_no_derivative(before, value):
  """Derivatives with respect to honest rows do not depend on rejected rows."""
  x = jnp.asarray(pool.stack('leaf', 9))
  bad = jnp.insert(x, jnp.array([2, 6]), value, axis=0)
  where = np.array([i for i in range(11) if i not in (2, 7)])
  assert not np.any(np.isnan(bad[where]))

  def gradient(updates, f):
    rule, hyper = lca.geometric_median, {}
    if before:
      rule = lca.chain(getattr(lca, before), rule)
    if before == 'nnm':
      hyper = {'f': f}

    def product(updates):
      return jnp.vdot(rule(updates, **hyper), jnp.cos(jnp.arange(50.0)))

    return jax.jit(jax.grad(product))(updates)

  want, got = gradient(x, 1), gradient(bad, 3)
  np.testing.assert_allclose(got[where], want, rtol=1e-3, atol=1e-5)
  assert not np.any(np.delete(got, where, axis=0))
