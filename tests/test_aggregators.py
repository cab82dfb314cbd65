"""The contract that every rule keeps, plain, cosine and layerwise.

A rule enters with one line of `RULES`; its float64 oracle lives in
`reference.py`.
"""

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import lca

BYZANTINE = {4: 0, 11: 4, 25: 11, 100: 20}  # the f that rules are given


def few(n, f):
  """An f that leaves the oracles few subsets to go through."""
  return min(f, {25: 2, 100: 1}.get(n, f))


class Spec(NamedTuple):
  """A rule under test.

  Attributes:
    rule: the rule.
    hyper: its hyper-parameters, from n and f.
    cosine: whether it has a cosine form.
    robust: whether any f rows may hold anything.
    takes_one: whether the result is one client's row.
  """

  rule: Callable[..., Any]
  hyper: Callable[[int, int], dict[str, int]]
  cosine: bool = True
  robust: bool = True
  takes_one: bool = True


RULES = {
  'mean': Spec(lca.mean, lambda n, f: {}, False, False, False),
  'krum': Spec(lca.krum, lambda n, f: {'f': f}),
  'multi_krum': Spec(
    lca.multi_krum,
    lambda n, f: {'f': f, 'm': min(5, n - f)},
    takes_one=False,
  ),
  'medoid': Spec(lca.medoid, lambda n, f: {}),
  'cge': Spec(lca.cge, lambda n, f: {'f': f}, cosine=False, takes_one=False),
  'mda': Spec(lca.mda, lambda n, f: {'f': few(n, f)}, takes_one=False),
  'smea': Spec(
    lca.smea, lambda n, f: {'f': few(n, f)}, cosine=False, takes_one=False
  ),
}
# monna is not among them: it trusts its pivot, and any row may be bad here.


class Case(NamedTuple):
  name: str
  kind: str
  by: str

  def __str__(self):
    return '-'.join(self)

  @property
  def spec(self):
    return RULES[self.name]

  @property
  def exact(self):
    """Whether the result is one client's row, bit for bit."""
    return self.spec.takes_one and self.kind == 'euclidean'

  @property
  def rule(self):
    rule = self.spec.rule
    if self.kind == 'cosine':
      rule = lca.cosine(rule)
    return rule if self.by == 'model' else lca.layerwise(rule, by=self.by)

  def hyper(self, n):
    return self.spec.hyper(n, BYZANTINE[n])

  def __call__(self, tree):
    """The jitted rule: the update, and what was decided."""
    return run(self, len(jax.tree.leaves(tree)[0]))(tree)


@functools.cache
def run(case, n):
  return jax.jit(functools.partial(lca.explain(case.rule), **case.hyper(n)))


def cases_of(*scopes):
  return [
    Case(name, kind, by)
    for name, spec in RULES.items()
    for kind in ('euclidean', 'cosine')[: 1 + spec.cosine]
    for by in scopes
  ]


CASES = cases_of('model', 'leaf', 'module', 'block')
SHORT = cases_of('model', 'leaf')
ROBUST = [case for case in SHORT if case.spec.robust]

cases = functools.partial(pytest.mark.parametrize, 'case', ids=str)


def check(case, tree, out, info):
  """`out` and `info` are what the oracle says, up to float32's rounding."""
  clip = {'clip': 'median'} if case.kind == 'cosine' else {}
  n = len(jax.tree.leaves(tree)[0])
  arrays = [array for _, array in reference.leaves(tree)]
  outs = [np.asarray(leaf) for leaf in jax.tree.leaves(out)]
  for layer, positions in enumerate(reference.groups(tree, case.by)):
    own = [arrays[p] for p in positions]
    rows = reference.rows_of(own)
    weights = reference.weights_of(case.name, rows, case.hyper(n), case.kind)
    if case.name in reference.SCORES:
      said = {
        k: np.asarray(v) if case.by == 'model' else np.asarray(v)[layer]
        for k, v in info.items()
      }
      weights = check_selection(case, rows, said, weights)
    elif case.name in reference.OBJECTIVES:
      said = np.asarray(info['selected'])
      said = said if case.by == 'model' else said[layer]
      weights = check_subset(case, rows, said, weights)
    expected = reference.combine(own, weights, **clip)
    scale = np.max(np.abs(rows[weights > 0]), initial=0)
    for p, want in zip(positions, expected, strict=True):
      if case.exact:
        np.testing.assert_array_equal(outs[p], want.astype(np.float32))
      else:
        # A float32 sum of n products, and a norm of rounded squares.
        np.testing.assert_allclose(outs[p], want, rtol=1e-5, atol=2e-6 * scale)


def check_selection(case, rows, said, weights):
  """Checks who was selected; returns the weights without the clip.

  Two clients whose scores differ by less than float32 can tell may change
  places, so it is the scores of the selected that are compared.
  """
  n = len(rows)
  bad = reference.rejected(rows)
  scores, _ = reference.scores_of(case.name, rows, case.hyper(n), case.kind)
  selected = said['selected']
  np.testing.assert_array_equal(said['rejected'], bad)
  assert not np.any(selected & bad)
  assert np.sum(selected) == np.sum(weights > 0)
  if np.any(selected):
    finite = scores[np.isfinite(scores)]
    # Sums of 1e5 products in float32 have a relative error near 1e-6, and a
    # distance loses a digit to the cancellation of squared norms.
    slack = 1e-5 * (np.median(finite) if len(finite) else 0)
    slack += 1e-6 * n if case.kind == 'cosine' else 0
    worst = np.max(scores[weights > 0])
    assert np.all(scores[selected] <= worst + slack)
    assert np.all(scores[~selected & ~bad] >= worst - slack)
    assert not np.any(np.isfinite(said['scores'][bad]))
  return selected / max(1, np.sum(selected))


def check_subset(case, rows, selected, weights):
  """As `check_selection`, by the subsets' objective."""
  assert not np.any(selected & reference.rejected(rows))
  assert np.sum(selected) == np.sum(weights > 0)
  if np.any(selected):
    objective = reference.OBJECTIVES[case.name](rows, case.kind)
    best = objective(np.flatnonzero(weights))
    got = objective(np.flatnonzero(selected))
    # A difference of squared norms in float32, or of directions.
    size = np.max(np.sum(rows[selected] ** 2, axis=1))
    slack = 1e-6 * (len(rows) if case.kind == 'cosine' else size)
    assert got <= best * (1 + 1e-5) + slack
  return selected / max(1, np.sum(selected))


def worst_case(tree, rows, scale):
  """`rows` replaced by random directions of `scale` times the usual norm."""
  rng = np.random.default_rng(7)

  def change(leaf):
    return scale * rng.normal(size=leaf[rows].shape)

  return reference.replace_rows(tree, rows, change)


def at_random(n, count, seed=0):
  return np.random.default_rng([seed, n, count]).permutation(n)[:count]


# Against the oracles -------------------------------------------------------


@cases(argvalues=SHORT)
@pytest.mark.parametrize('name', ['cnn', 'edge'])
def test_follows_the_oracle(case, name):
  tree = reference.stack(name, 11)
  check(case, tree, *case(tree))


@cases(argvalues=cases_of('module', 'block'))
def test_follows_the_oracle_over_batch_statistics(case):
  tree = reference.stack('stats', 11)
  check(case, tree, *case(tree))


@cases(argvalues=cases_of('leaf'))
@pytest.mark.parametrize('n', [4, 25, 100])
def test_follows_the_oracle_at_every_n(case, n):
  tree = reference.stack('pair', n)
  check(case, tree, *case(tree))


@cases(argvalues=cases_of('model'))
def test_follows_the_oracle_over_many_columns(case):
  tree = reference.stack('wide', 11)
  check(case, tree, *case(tree))


# One case: sixty layers take ten times as long to compile as six.
@cases(argvalues=[Case('krum', 'cosine', 'leaf')])
def test_follows_the_oracle_over_many_leaves(case):
  tree = reference.stack('deep', 11)
  check(case, tree, *case(tree))


@cases(argvalues=SHORT)
@pytest.mark.parametrize(('name', 'n'), [('cnn', 11), ('pair', 25)])
@pytest.mark.parametrize('scale', [10, 1000])
def test_follows_the_oracle_under_attack(case, name, n, scale):
  tree = reference.stack(name, n)
  attacked = worst_case(tree, at_random(n, BYZANTINE[n]), scale)
  check(case, attacked, *case(attacked))


def test_the_pool_has_no_ties():
  """So that the comparisons above do fix who is selected."""
  for name, n in [('pair', 4), ('cnn', 11), ('pair', 25), ('pair', 100)]:
    tree = reference.stack(name, n)
    rows = reference.rows_of([array for _, array in reference.leaves(tree)])
    for case in cases_of('model'):
      if case.name in reference.SCORES:
        scores, m = reference.scores_of(
          case.name, rows, case.hyper(n), case.kind
        )
        ordered = np.sort(scores)
        if m < n:
          assert ordered[m] - ordered[m - 1] > 5e-5 * np.median(scores), n


# Rejected rows -------------------------------------------------------------


REJECTED = {
  'nan': np.nan,
  'inf': np.inf,
  '-inf': -np.inf,
  '1e30': 1e30,
  '1.5e19': 1.5e19,
}
ACCEPTED = {'1e10': 1e10, '1e4': 1e4, 'zeros': 0.0, '1e-40': 1e-40}


def with_rows(tree, rows, kind):
  """`rows` of `tree` made to be of one kind of the contract."""
  if kind == 'copies':
    honest = next(i for i in range(100) if i not in rows)
    return reference.replace_rows(tree, rows, lambda leaf: leaf[honest])
  value = (REJECTED | ACCEPTED)[kind]
  return reference.replace_rows(tree, rows, lambda leaf: np.float32(value))


@cases(argvalues=ROBUST)
@pytest.mark.parametrize('kind', [*REJECTED, *ACCEPTED, 'copies'])
def test_any_rows_are_survived(case, kind):
  tree = reference.stack('cnn', 11)
  for count in range(1, BYZANTINE[11] + 1):
    rows = at_random(11, count)
    changed = with_rows(tree, rows, kind)
    out, info = case(changed)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))
    assert np.all(np.asarray(info['rejected'])[..., rows] == (kind in REJECTED))
    # XLA may flush subnormal numbers to zero, which no test should forbid.
    if kind == '1e-40':
      changed = with_rows(tree, rows, 'zeros')
      out = jax.tree.map(lambda x: np.where(np.abs(x) < 1e-37, 0, x), out)
    check(case, changed, out, info)


@cases(argvalues=ROBUST)
def test_how_a_row_is_bad_makes_no_difference(case):
  tree = reference.stack('cnn', 11)
  rows = at_random(11, 4)
  answers = [case(with_rows(tree, rows, kind)) for kind in REJECTED]
  for answer in answers[1:]:
    jax.tree.map(np.testing.assert_array_equal, answer, answers[0])


@cases(argvalues=ROBUST)
def test_one_bad_entry_rejects_its_scope_alone(case):
  tree = reference.stack('cnn', 11)
  tree['params']['layer_1']['bias'][3, 2] = np.nan
  out, info = case(tree)
  layers = np.sum(np.asarray(info['rejected']))
  assert layers == 1
  check(case, tree, out, info)


@cases(argvalues=ROBUST)
def test_nothing_left_is_nan(case):
  tree = reference.stack('cnn', 11)
  for kind in REJECTED:
    out, info = case(with_rows(tree, np.arange(11), kind))
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(out))
    assert np.all(info['rejected']) and not np.any(info['selected'])


@cases(argvalues=[case for case in ROBUST if not case.spec.takes_one])
def test_too_few_left_are_averaged(case):
  tree = reference.stack('cnn', 11)
  left = [2, 3, 8]
  bad = np.setdiff1d(np.arange(11), left)
  tree = with_rows(tree, bad, 'nan')
  out, info = case(tree)
  np.testing.assert_array_equal(
    np.atleast_2d(info['selected']).all(axis=0).nonzero()[0], left
  )
  check(case, tree, out, info)


@cases(argvalues=ROBUST)
def test_one_left_is_the_answer(case):
  tree = with_rows(reference.stack('cnn', 11), np.arange(10), 'inf')
  out, info = case(tree)
  check(case, tree, out, info)
  assert np.all(np.asarray(info['selected'])[..., 10])


@cases(argvalues=[case for case in SHORT if not case.spec.robust])
def test_a_rule_without_defence_says_nan(case):
  tree = reference.stack('cnn', 11)
  tree['params']['layer_1']['bias'][3, 2] = np.nan
  out, _ = case(tree)
  bias = np.asarray(out['params']['layer_1']['bias'])
  assert np.isnan(bias[2]) and np.sum(np.isnan(bias)) == 1


@settings(max_examples=20, deadline=None)
@given(data=st.data())
@cases(argvalues=ROBUST)
def test_the_answer_is_made_of_acceptable_rows(case, data):
  """Whatever f rows hold, and wherever they are."""
  n = 11
  f = data.draw(st.integers(1, BYZANTINE[n]), 'f')
  rows = data.draw(st.permutations(range(n)), 'rows')[:f]
  tree = reference.stack('cnn', n, seed=data.draw(st.integers(0, 9), 'seed'))
  anything = st.one_of(
    st.sampled_from([*(REJECTED | ACCEPTED).values()]),
    st.floats(width=32),
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
  out, info = case(tree)
  selected = np.atleast_2d(info['selected'])
  leaves = jax.tree.leaves(tree)
  for i, leaf in enumerate(jax.tree.leaves(out)):
    took = selected[0 if case.by == 'model' else i]
    chosen = leaves[i][took].astype(np.float64)
    assert np.all(np.isfinite(chosen)) and np.all(np.isfinite(leaf))
    assert np.sum(took) >= 1
    if case.exact:
      assert np.sum(took) == 1
      np.testing.assert_allclose(leaf, chosen[0], rtol=0, atol=1e-37)
    else:
      # Clips shrink rows towards 0, averages stay between them.
      slack = 1e-5 * np.max(np.abs(chosen), axis=0) + 1e-37
      if case.kind == 'cosine':
        chosen = np.concatenate([chosen, 0 * chosen[:1]])
      assert np.all(leaf <= np.max(chosen, axis=0) + slack)
      assert np.all(leaf >= np.min(chosen, axis=0) - slack)


# The rest of the contract --------------------------------------------------


@cases(argvalues=SHORT)
def test_keeps_structure_and_dtypes(case):
  tree = reference.stack('pair', 11)
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree)
  half['bias'] = jnp.asarray(tree['bias'])  # a mixture of dtypes
  out, info = case(half)
  shape = jax.tree.map(lambda x: (x.shape[1:], x.dtype), half)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), out) == shape
  assert info.get('scores', np.zeros(1, np.float32)).dtype == np.float32
  exact = jax.tree.map(lambda x: np.asarray(x, np.float32), half)
  wide = jax.tree.map(lambda x: np.asarray(x, np.float32), out)
  if case.exact:
    check(case, exact, wide, info)
  else:
    want, _ = case(exact)  # bfloat16 has 8 bits: half an ulp is 2**-9
    close = functools.partial(np.testing.assert_allclose, rtol=2**-8, atol=1e-6)
    jax.tree.map(close, wide, want)


@cases(argvalues=cases_of('model'))
def test_float64_is_followed_in_float64(case):
  with jax.enable_x64(True):
    tree = reference.stack('leaf', 11).astype(np.float64)
    tree[4] *= 1e30  # rejected in float32, and in range here
    rule = functools.partial(case.rule, **case.hyper(11))
    out = jax.jit(rule)(jnp.asarray(tree))
    assert out.dtype == np.float64
    rows = np.delete(tree, 4, axis=0)
    if case.spec.robust:
      assert np.max(np.abs(out)) <= np.max(np.abs(rows))
    else:
      np.testing.assert_allclose(out, np.mean(tree, axis=0), rtol=1e-13)


@cases(argvalues=SHORT)
def test_jit_and_eager_agree(case):
  tree = reference.stack('pair', 11)
  eager = lca.explain(case.rule)(
    jax.tree.map(jnp.asarray, tree), **case.hyper(11)
  )
  check(case, tree, *eager)
  if case.exact:
    jax.tree.map(np.testing.assert_array_equal, eager[0], case(tree)[0])


@cases(argvalues=cases_of('model'))
def test_updates_may_be_numpy_arrays(case):
  x = reference.stack('leaf', 11)
  check(case, x, *lca.explain(case.rule)(x, **case.hyper(11)))


@cases(argvalues=SHORT)
def test_new_values_do_not_recompile(case):
  traces = []

  @jax.jit
  def rule(updates):
    traces.append(1)
    return case.rule(updates, **case.hyper(11))

  tree = reference.stack('leaf', 11)
  for seed in range(3):
    other = reference.stack('leaf', 11, seed)
    np.testing.assert_array_equal(rule(other), case(other)[0])
  rule(with_rows(tree, [1, 2], 'nan'))
  rule(with_rows(tree, [0], 'zeros'))
  assert len(traces) == 1


@cases(argvalues=SHORT)
def test_the_order_of_the_clients_does_not_matter(case):
  tree = reference.stack('cnn', 11)
  order = np.random.default_rng(3).permutation(11)
  out, info = case(tree)
  moved, moved_info = case(jax.tree.map(lambda x: x[order], tree))
  for leaf, other in zip(
    jax.tree.leaves(out), jax.tree.leaves(moved), strict=True
  ):
    if case.exact:
      np.testing.assert_array_equal(other, leaf)
    else:  # sums in another order
      np.testing.assert_allclose(other, leaf, rtol=1e-5, atol=2e-6)
  if info:
    np.testing.assert_array_equal(
      moved_info['selected'], np.asarray(info['selected'])[..., order]
    )


@cases(argvalues=SHORT)
@pytest.mark.parametrize('scale', [1, 1e-12, 1e12])
def test_identical_updates_come_back(case, scale):
  tree = jax.tree.map(
    lambda x: np.repeat(np.float32(scale) * x[:1], 11, axis=0),
    reference.stack('cnn', 11),
  )
  out, _ = case(tree)
  for leaf, stacked in zip(
    jax.tree.leaves(out), jax.tree.leaves(tree), strict=True
  ):
    if case.exact:
      np.testing.assert_array_equal(leaf, stacked[0])
    else:  # a mean of n equal terms
      np.testing.assert_allclose(leaf, stacked[0], rtol=1e-6)


@cases(argvalues=SHORT)
def test_vmap_is_a_loop(case):
  trees = [reference.stack('pair', 11, seed) for seed in range(3)]
  trees[1] = with_rows(trees[1], [2, 7], 'nan')
  batch = jax.tree.map(lambda *x: np.stack(x), *trees)
  outs, infos = jax.jit(
    jax.vmap(functools.partial(lca.explain(case.rule), **case.hyper(11)))
  )(batch)
  for i, tree in enumerate(trees):
    out, info = jax.tree.map(lambda x, i=i: x[i], (outs, infos))
    if case.spec.robust:
      check(case, tree, out, info)
    else:
      close = functools.partial(
        np.testing.assert_allclose, rtol=1e-5, atol=2e-6
      )
      jax.tree.map(close, out, case(tree)[0])


@cases(argvalues=cases_of('leaf'))
def test_differentiates_with_the_weights_held_fixed(case):
  tree = jax.tree.map(jnp.asarray, reference.stack('pair', 11))
  _, info = case(tree)
  cotangent = jax.tree.map(lambda x: jnp.cos(jnp.arange(x[0].size)), tree)

  def product(updates):
    out = case.rule(updates, **case.hyper(11))
    parts = jax.tree.map(lambda x, c: jnp.vdot(x.ravel(), c), out, cotangent)
    return sum(jax.tree.leaves(parts))

  gradient = jax.tree.leaves(jax.jit(jax.grad(product))(tree))
  for i, c in enumerate(jax.tree.leaves(cotangent)):
    weights = np.full(11, 1 / 11)
    if 'weights' in info:
      weights = np.atleast_2d(info['weights'])[i if case.by == 'leaf' else 0]
    want = weights[:, None] * np.asarray(c)
    got = np.asarray(gradient[i]).reshape(11, -1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@cases(argvalues=SHORT)
def test_exports_for_every_platform(case):
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    {'a': np.zeros((11, 7), np.float32), 'b': np.zeros(11, np.float32)}
    if case.by != 'model'
    else reference.stack('wide', 11),
  )
  rule = jax.jit(functools.partial(case.rule, **case.hyper(11)))
  platforms = ('cpu', 'cuda', 'tpu')
  exported = jax.export.export(rule, platforms=platforms)(shapes)
  assert exported.platforms == platforms
  assert len(exported.out_avals) == len(jax.tree.leaves(shapes))


def test_import_brings_no_training_libraries():
  unwanted = ['tensorflow', 'tensorflow_datasets', 'flax', 'optax']
  code = f'import sys, lca; print([m for m in {unwanted} if m in sys.modules])'
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == '[]'


# What one rule alone does --------------------------------------------------


def test_mean_with_weights():
  tree = jax.tree.map(jnp.asarray, reference.stack('edge', 11))
  weights = np.arange(11.0)
  out = lca.mean(tree, weights=jnp.asarray(weights))
  want = reference.mean(tree, weights)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, out, want)
  out = lca.mean(tree, weights=jnp.arange(11) * 1000)  # numbers of examples
  jax.tree.map(close, out, want)


def test_mean_leaves_out_a_client_without_weight():
  tree = with_rows(reference.stack('edge', 11), [0], 'nan')
  tree = jax.tree.map(jnp.asarray, tree)
  out = lca.mean(tree, weights=jnp.arange(11.0))
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))


@pytest.mark.parametrize('power', [1, 2])
@pytest.mark.parametrize('num_neighbors', [None, 1, 6])
@pytest.mark.parametrize('f', [0, 1, 4])
def test_krum_options_follow_the_oracle(f, num_neighbors, power):
  x = reference.stack('leaf', 11)
  hyper = {'f': f, 'num_neighbors': num_neighbors, 'power': power}
  out, info = lca.explain(lca.krum)(jnp.asarray(x), **hyper)
  scores = reference.krum_scores(x.astype(float), **hyper)
  # Squared distances of norms near 10: seven digits, one lost to cancelling.
  np.testing.assert_allclose(info['scores'], scores, rtol=2e-6)
  np.testing.assert_array_equal(out, x[np.argmin(scores)])
  out, info = lca.explain(lca.multi_krum)(jnp.asarray(x), m=3, **hyper)
  np.testing.assert_allclose(info['scores'], scores, rtol=2e-6)
  want = reference.mix(
    x.astype(float),
    reference.weights_of('multi_krum', x.astype(float), {'m': 3, **hyper}),
  )
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


def test_powers_default_to_the_square_in_krum_and_to_one_in_the_medoid():
  x = jnp.asarray(reference.stack('leaf', 11))
  scores = lambda rule, **k: lca.explain(rule)(x, **k)[1]['scores']  # noqa: E731
  np.testing.assert_array_equal(
    scores(lca.krum, f=2), scores(lca.krum, f=2, power=2)
  )
  np.testing.assert_array_equal(scores(lca.medoid), scores(lca.medoid, power=1))


@pytest.mark.parametrize('power', [1, 2])
def test_medoid_powers_follow_the_oracle(power):
  x = np.array([[0.0], [1], [2], [3], [99]], np.float32)
  out = lca.medoid(jnp.asarray(x), power=power)
  scores = reference.medoid_scores(x.astype(float), power=power)
  np.testing.assert_array_equal(out, x[np.argmin(scores)])
  assert out[0] == {1: 2, 2: 3}[power]  # the middle; nearest to the mean, 21


def test_multi_krum_of_one_is_krum():
  x = jnp.asarray(reference.stack('leaf', 11))
  np.testing.assert_array_equal(lca.multi_krum(x, f=3, m=1), lca.krum(x, f=3))


def test_ties_go_to_the_lowest_index():
  x = jnp.array([[9.0], [1], [1], [1], [1], [1], [-9]])
  for rule, hyper, m in [
    (lca.krum, {'f': 1}, 1),
    (lca.multi_krum, {'f': 1, 'm': 3}, 3),
    (lca.medoid, {}, 1),
  ]:
    _, info = lca.explain(rule)(x, **hyper)
    assert np.flatnonzero(info['selected']).tolist() == list(range(1, 1 + m))


# Preconditions -------------------------------------------------------------


@pytest.mark.parametrize(
  ('n', 'hyper', 'values'),
  [
    (4, {'f': 1}, ['n=4', 'f=1']),
    (5, {'f': 2}, ['n=5', 'f=2']),
    (11, {'f': -1}, ['f=-1']),
    (11, {'f': 2, 'num_neighbors': 0}, ['num_neighbors=0']),
    (11, {'f': 2, 'num_neighbors': 11}, ['n=11', 'num_neighbors=11']),
    (11, {'f': 2, 'power': 3}, ['power', '3']),
    (11, {'f': 2, 'distance': 'cosine', 'power': 2}, ['power=2', 'cosine']),
    (11, {'f': 2, 'distance': 'manhattan'}, ['manhattan']),
  ],
)
@pytest.mark.parametrize(
  'rule', [lca.krum, functools.partial(lca.multi_krum, m=1)]
)
def test_krum_preconditions(rule, n, hyper, values):
  with pytest.raises(ValueError) as error:
    rule(jnp.zeros((n, 3)), **hyper)
  assert all(value in str(error.value) for value in values), error.value


@pytest.mark.parametrize('m', [0, -1, 10, 12])
def test_multi_krum_needs_m_in_range(m):
  with pytest.raises(ValueError, match=f'n=11, f=2, m={m}'):
    lca.multi_krum(jnp.zeros((11, 3)), f=2, m=m)
  lca.multi_krum(jnp.zeros((11, 3)), f=2, m=9)  # the largest


def test_medoid_preconditions():
  x = jnp.zeros((5, 3))
  with pytest.raises(ValueError, match='3'):
    lca.medoid(x, power=3)
  with pytest.raises(ValueError, match='power=1'):
    lca.medoid(x, distance='cosine', power=1)
  with pytest.raises(ValueError, match='manhattan'):
    lca.medoid(x, distance='manhattan')


@cases(argvalues=SHORT)
def test_updates_must_be_stacked(case):
  rule = functools.partial(case.rule, **case.hyper(11))
  disagree = {'a': jnp.zeros((11, 2)), 'b': jnp.zeros((12, 2))}
  with pytest.raises(ValueError, match=r'(?s)11.*12'):
    rule(disagree)
  with pytest.raises(ValueError, match='stacked'):
    rule({})
  with pytest.raises(ValueError, match='stacked'):
    rule({'a': jnp.zeros((11, 2)), 'b': jnp.zeros(())})


def test_hyper_parameters_are_keywords():
  with pytest.raises(TypeError):
    lca.krum(jnp.zeros((11, 3)), 2)


# stateless and make_aggregator ---------------------------------------------


def test_stateless_is_the_rule():
  x = jnp.asarray(reference.stack('leaf', 11))
  aggregator = lca.stateless(lca.krum, f=2)
  assert isinstance(aggregator, lca.Aggregator)
  state = aggregator.init(x[0])
  assert jax.tree.leaves(state) == []
  for key in (None, jax.random.key(0)):  # the simulation passes everything
    out, state = aggregator.update(
      x, state, key=key, weights=jnp.ones(11), server_update=x[0]
    )
    np.testing.assert_array_equal(out, lca.krum(x, f=2))


def test_stateless_forwards_what_is_named_and_not_bound():
  x, state = jnp.asarray(reference.stack('leaf', 11)), ()
  weights = jnp.arange(11.0)
  weighted = lca.mean(x, weights=weights)
  assert not np.allclose(weighted, lca.mean(x))
  out, _ = lca.stateless(lca.mean).update(x, state, weights=weights)
  np.testing.assert_array_equal(out, weighted)
  bound = lca.stateless(lca.mean, weights=weights)
  out, _ = bound.update(x, state, weights=jnp.ones(11))
  np.testing.assert_array_equal(out, weighted)
  out, _ = lca.stateless(lca.mean, weights=None).update(
    x, state, weights=weights
  )
  np.testing.assert_array_equal(out, lca.mean(x))
  out, _ = lca.stateless(lca.layerwise(lca.mean)).update(
    x, state, weights=weights
  )
  np.testing.assert_array_equal(out, weighted)


def test_stateless_passes_a_key_and_a_server_update():
  def rule(updates, *, key, server_update):
    return updates[0] + jax.random.normal(key) + server_update

  x, key = jnp.ones((5, 2)), jax.random.key(1)
  aggregator = lca.stateless(rule)
  out, _ = aggregator.update(
    x, (), key=key, weights=jnp.ones(5), server_update=x[1]
  )
  np.testing.assert_array_equal(out, rule(x, key=key, server_update=x[1]))
  with pytest.raises(TypeError, match='key'):
    aggregator.update(x, (), server_update=x[1])
  with pytest.raises(TypeError, match='server_update'):
    aggregator.update(x, (), key=key)


@pytest.mark.parametrize('wrap', [lambda rule: rule, lca.layerwise])
def test_stateless_knows_the_hyper_parameters(wrap):
  with pytest.raises(TypeError, match=r'krum.*\bm\b'):
    lca.stateless(wrap(lca.krum), f=2, m=5)
  with pytest.raises(TypeError, match=r"krum.*'f'"):
    lca.stateless(wrap(lca.krum))
  with pytest.raises(TypeError, match=r"krum.*'m'"):
    lca.stateless(wrap(lca.multi_krum), f=2)
  with pytest.raises(TypeError, match='power'):
    lca.stateless(wrap(lca.cosine(lca.krum)), f=2, power=2)


@cases(argvalues=CASES)
def test_make_aggregator_reaches_every_case(case):
  tree = reference.stack('stats', 11)
  config = {'name': case.name, 'scope': case.by, **case.hyper(11)}
  if case.spec.cosine:
    config['distance'] = case.kind
  aggregator = lca.make_aggregator(config)
  shape = jax.eval_shape(aggregator.update, tree, aggregator.init(tree))[0]
  assert jax.tree.structure(shape) == jax.tree.structure(tree)


def test_make_aggregator_options_arrive():
  x = jnp.asarray(reference.stack('leaf', 12))
  config = {'name': 'krum', 'f': 2, 'distance': 'cosine'}
  for clip in (
    {'clip': None},
    {'median': 'lower'},
    {'clip_by': 'leaf', 'median': 'lower'},
  ):
    out, _ = jax.jit(lca.make_aggregator(config | clip).update)(x, ())
    want = jax.jit(functools.partial(lca.cosine(lca.krum, **clip), f=2))(x)
    np.testing.assert_array_equal(out, want)
  plain = {'name': 'krum', 'f': 2, 'num_neighbors': 1, 'power': 1}
  out, _ = lca.make_aggregator(plain).update(x, ())
  np.testing.assert_array_equal(out, lca.krum(x, f=2, num_neighbors=1, power=1))
  assert config == {'name': 'krum', 'f': 2, 'distance': 'cosine'}


def test_make_aggregator_weights():
  x = jnp.asarray(reference.stack('leaf', 11))
  weights = jnp.arange(11.0)
  for scope in ('model', 'leaf'):
    for choice, want in [
      ({}, lca.mean(x)),
      ({'weights': 'uniform'}, lca.mean(x)),
      ({'weights': 'examples'}, lca.mean(x, weights=weights)),
    ]:
      aggregator = lca.make_aggregator(
        {'name': 'mean', 'scope': scope, **choice}
      )
      out, _ = jax.jit(aggregator.update)(x, (), weights=weights)
      np.testing.assert_allclose(out, want, rtol=1e-6)


@pytest.mark.parametrize(
  ('config', 'error', 'words'),
  [
    ({'name': 'krumm', 'f': 2}, ValueError, 'krumm'),
    ({'name': 'krum', 'f': 2, 'm': 5}, TypeError, r'krum.*\bm\b'),
    ({'name': 'krum'}, TypeError, r"krum.*'f'"),
    ({'name': 'krum', 'f': 2, 'clip': 'median'}, ValueError, 'clip'),
    (
      {'name': 'krum', 'f': 2, 'distance': 'euclidean', 'median': 'lower'},
      ValueError,
      'median',
    ),
    (
      {'name': 'krum', 'f': 2, 'distance': 'cosine', 'power': 2},
      ValueError,
      'power',
    ),
    ({'name': 'krum', 'f': 2, 'scope': 'tensor'}, ValueError, 'tensor'),
    ({'name': 'krum', 'f': 2, 'weights': 'uniform'}, TypeError, 'weights'),
    ({'name': 'mean', 'weights': 'foo'}, ValueError, 'foo'),
    ({'name': 'mean', 'distance': 'cosine'}, TypeError, 'mean'),
    ({'name': 'mean', 'f': 2}, TypeError, r'mean.*\bf\b'),
  ],
)
def test_make_aggregator_refuses(config, error, words):
  with pytest.raises(error, match=words):
    lca.make_aggregator(config)


def test_make_aggregator_refuses_an_unknown_distance():
  config = {'name': 'krum', 'f': 2, 'distance': 'manhattan'}
  with pytest.raises(ValueError, match='manhattan'):
    lca.make_aggregator(config).update(jnp.zeros((11, 3)), ())


@pytest.mark.parametrize('kind', ['euclidean', 'cosine'])
@pytest.mark.parametrize('pivot', [0, 7])
def test_monna_follows_the_oracle(kind, pivot):
  x = reference.stack('leaf', 11)
  x[[2, 5]] = np.nan
  hyper = {'f': 4, 'pivot': pivot}
  out = lca.monna(jnp.asarray(x), distance=kind, **hyper)
  rows = x.astype(float)
  weights = reference.weights_of('monna', rows, hyper, kind)
  assert weights[pivot] > 0 and np.sum(weights > 0) == 7
  want = reference.mix(rows, weights)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


def test_monna_is_lost_without_its_pivot():
  x = jnp.asarray(reference.stack('leaf', 11)).at[3].set(jnp.inf)
  assert np.all(np.isnan(lca.monna(x, f=4, pivot=3)))
  assert np.all(np.isfinite(lca.monna(x, f=4, pivot=4)))


@pytest.mark.parametrize(
  ('rule', 'hyper', 'message'),
  [
    (lca.cge, {'f': 3}, r'cge needs .* n=6, f=3'),
    (lca.cge, {'f': -1}, r'cge needs .* n=6, f=-1'),
    (lca.monna, {'f': 3}, r'monna needs .* n=6, f=3'),
    (lca.monna, {'f': 1, 'pivot': 6}, 'n=6, pivot=6'),
    (lca.mda, {'f': 3}, r'mda needs .* n=6, f=3'),
    (lca.mda, {'f': 2, 'max_subsets': 14}, '15 subsets, .*max_subsets=14'),
    (lca.smea, {'f': 2, 'max_subsets': 14}, '15 subsets, .*max_subsets=14'),
  ],
)
def test_what_averages_and_subsets_need(rule, hyper, message):
  with pytest.raises(ValueError, match=message):
    rule(jnp.ones((6, 2)), **hyper)
