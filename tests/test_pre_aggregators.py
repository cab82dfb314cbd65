"""Pre-aggregators, which return stacked updates, and lca.chain."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest
from cases import BYZANTINE, TRACES, num_clients, signature, thorough, traces
from pool import ACCEPTED, REJECTED, at_random, with_rows, worst_case

import lca

KEY = jax.random.key(5)
# Weights are quotients of rounded norms; rows are sums of rounded products.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)

# name -> (function from n and f to hyper-parameters, value of a rejected row)
PRE = {
  'nnm': (lambda n, f: {'f': f}, np.nan),
  'bucketing': (lambda n, f: {'key': KEY, 'bucket_size': 3}, None),
  'clip_to_median_norm': (lambda n, f: {}, np.nan),
  'static_clip': (lambda n, f: {'threshold': 8.0}, 0.0),
  'arc': (lambda n, f: {'f': f}, np.nan),
}
FORMS = [
  (name, kind, by)
  for name in PRE
  for kind in ('euclidean', 'cosine')[: 1 + (name == 'nnm')]
  for by in ('model', 'leaf')
]
forms = pytest.mark.parametrize('form', FORMS, ids='-'.join)


def of(form):
  name, kind, by = form
  rule = getattr(lca, name)
  rule = lca.cosine(rule) if kind == 'cosine' else rule
  return rule if by == 'model' else lca.layerwise(rule, by=by)


@functools.cache
def run(form, n):
  hyper = PRE[form[0]][0](n, BYZANTINE[n])

  def traced(tree):
    TRACES[form, n, signature(tree)] += 1
    return lca.explain(of(form))(tree, **hyper)

  return jax.jit(traced)


def call(form, tree):
  return run(form, num_clients(tree))(tree)


def expected(form, tree):
  name, kind, by = form
  n = num_clients(tree)
  if name == 'clip_to_median_norm':
    layers = oracles.groups(tree, by)
    arrays = [array for _, array in oracles.leaves(tree)]
    answer = [None] * len(arrays)
    for positions in layers:
      clipped = oracles.clip_to_median_norm([arrays[p] for p in positions])
      for p, array in zip(positions, clipped, strict=True):
        answer[p] = array
    return oracles.rebuild(tree, answer)
  hyper = PRE[name][0](n, BYZANTINE[n])
  if name == 'bucketing':
    order = np.asarray(jax.random.permutation(hyper.pop('key'), n))
    hyper['order'] = order
  return oracles.pre_aggregate(name, tree, hyper, kind=kind, by=by)


def check(form, tree, out, scale=1.0):
  assert jax.tree.structure(out) == jax.tree.structure(tree)
  close = functools.partial(CLOSE, atol=2e-6 * scale)
  jax.tree.map(close, out, expected(form, tree))


# The oracles ---------------------------------------------------------------


@forms
def test_follows_the_oracle(form):
  tree = pool.stack('cnn', 11)
  check(form, tree, call(form, tree)[0])


@forms
@pytest.mark.parametrize('n', [4, pytest.param(25, marks=pytest.mark.thorough)])
def test_follows_the_oracle_at_every_n(form, n):
  tree = pool.stack('pair', n)
  check(form, tree, call(form, tree)[0])


@pytest.mark.parametrize(
  'form',
  thorough([form for form in FORMS if form[2] == 'model']),
  ids='-'.join,
)
@pytest.mark.parametrize(('name', 'n'), [('wide', 11), ('pair', 100)])
def test_follows_the_oracle_when_large(form, name, n):
  tree = pool.stack(name, n)
  check(form, tree, call(form, tree)[0])


@forms
@pytest.mark.parametrize('scale', [10, 1000])
def test_follows_the_oracle_under_attack(form, scale):
  tree = pool.stack('cnn', 11)
  attacked = worst_case(tree, at_random(11, 4), scale)
  # nnm mixes rows of this scale into honest rows, but its selection is honest.
  check(form, attacked, call(form, attacked)[0], scale)


def test_the_pool_has_no_ties():
  """Checks that distances differ, so that the oracle fixes the neighbours."""
  for name, n in [('cnn', 11), ('pair', 4), ('pair', 25)]:
    tree = pool.stack(name, n)
    for _, leaf in oracles.leaves(tree):
      for kind in ('euclidean', 'cosine'):
        matrix = oracles.distance_matrix(oracles.rows_of([leaf]), kind)
        m = n - BYZANTINE[n]
        ordered = np.sort(matrix, axis=1)
        if m < n:
          assert np.all(ordered[:, m] - ordered[:, m - 1] > 1e-6)


# Rejected rows -------------------------------------------------------------


@forms
@pytest.mark.parametrize('kind', [*REJECTED, *ACCEPTED, 'copies'])
def test_any_rows_are_survived(form, kind):
  if form[0] == 'nnm' and kind in ('copies', 'zeros', '1e-40'):
    kind = 'nan'  # equal rows tie, and the oracle's answer is one of many
  tree = pool.stack('cnn', 11)
  becomes = PRE[form[0]][1]
  for count in (1, 4):
    rows = at_random(11, count)
    changed = with_rows(tree, rows, kind)
    out, _ = call(form, changed)
    if becomes is not None and kind in REJECTED:
      for leaf in jax.tree.leaves(out):
        want = np.full_like(leaf[rows], becomes)
        np.testing.assert_array_equal(np.asarray(leaf)[rows], want)
    if kind in ('1e4', '1e10') and form[0] in ('nnm', 'bucketing'):
      continue  # rows that mix entries this large are compared up to 1e3 above
    if kind == '1e-40':  # XLA may flush subnormal numbers to zero
      out = jax.tree.map(lambda x: np.where(np.abs(x) < 1e-37, 0, x), out)
      changed = with_rows(tree, rows, 'zeros')
    check(form, changed, out)


@forms
def test_nothing_left(form):
  tree = with_rows(pool.stack('cnn', 11), np.arange(11), 'nan')
  out, _ = call(form, tree)
  for leaf in jax.tree.leaves(out):
    if form[0] == 'static_clip':
      np.testing.assert_array_equal(leaf, 0)
    else:
      assert np.all(np.isnan(leaf))


@forms
def test_too_few_left(form):
  rows = [0, 1, 4, 5, 6, 7, 9, 10]
  tree = with_rows(pool.stack('cnn', 11), rows, 'inf')
  check(form, tree, call(form, tree)[0])


# The rest of the contract --------------------------------------------------


@forms
def test_keeps_structure_and_dtypes(form):
  tree = pool.stack('pair', 11)
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree)
  half['bias'] = jnp.asarray(tree['bias'])
  out, _ = call(form, half)
  assert jax.tree.map(lambda x: x.dtype, out) == jax.tree.map(
    lambda x: x.dtype, half
  )
  exact = jax.tree.map(lambda x: np.asarray(x, np.float32), half)
  close = functools.partial(np.testing.assert_allclose, rtol=2**-8, atol=1e-6)
  wide = jax.tree.map(lambda x: np.asarray(x, np.float32), out)
  jax.tree.map(close, wide, expected(form, exact))


@forms
def test_jit_and_eager_agree(form):
  tree = jax.tree.map(jnp.asarray, pool.stack('pair', 11))
  hyper = PRE[form[0]][0](11, 4)
  jax.tree.map(CLOSE, of(form)(tree, **hyper), call(form, tree)[0])


@forms
def test_new_values_do_not_recompile(form):
  for seed in range(3):
    tree = pool.stack('pair', 11, seed)
    check(form, tree, call(form, tree)[0])
  call(form, with_rows(tree, [1, 2], 'nan'))
  assert traces(form, tree) == 1


@forms
def test_clients_change_places_with_their_rows(form):
  if form[0] == 'bucketing':
    pytest.skip('its key draws places, not clients')
  tree = pool.stack('cnn', 11)
  order = np.random.default_rng(3).permutation(11)
  out, _ = call(form, tree)
  moved, _ = call(form, jax.tree.map(lambda x: x[order], tree))
  jax.tree.map(lambda a, b: CLOSE(a, b[order]), moved, out)


@forms
def test_identical_updates_come_back(form):
  tree = jax.tree.map(
    lambda x: np.repeat(x[:1] / 100, 11, axis=0), pool.stack('cnn', 11)
  )
  out, _ = call(form, tree)
  for leaf, stacked in zip(
    jax.tree.leaves(out), jax.tree.leaves(tree), strict=True
  ):
    want = np.broadcast_to(stacked[0], leaf.shape)
    np.testing.assert_allclose(leaf, want, rtol=2e-6)


@forms
def test_vmap_is_a_loop(form):
  trees = [pool.stack('pair', 11, seed) for seed in range(3)]
  trees[1] = with_rows(trees[1], [2, 7], 'nan')
  batch = jax.tree.map(lambda *x: np.stack(x), *trees)
  rule = functools.partial(of(form), **PRE[form[0]][0](11, 4))
  outs = jax.jit(jax.vmap(rule))(batch)
  for i, tree in enumerate(trees):
    check(form, tree, jax.tree.map(lambda x, i=i: x[i], outs))


@forms
def test_derivatives_along_the_updates(form):
  """Pre-aggregators are homogeneous; the static clip is below its threshold."""
  tree = jax.tree.map(jnp.asarray, pool.stack('pair', 11))
  if form[0] == 'static_clip':
    tree = jax.tree.map(lambda x: x / 100, tree)
  rule = functools.partial(of(form), **PRE[form[0]][0](11, 4))
  out, tangent = jax.jit(lambda t: jax.jvp(rule, (t,), (t,)))(tree)
  jax.tree.map(CLOSE, tangent, out)


@forms
def test_exports_for_every_platform(form):
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
  tree = jax.tree.map(like, pool.stack('pair', 11))
  rule = jax.jit(functools.partial(of(form), **PRE[form[0]][0](11, 4)))
  platforms = ('cpu', 'cuda', 'tpu')
  exported = jax.export.export(rule, platforms=platforms)(tree)
  assert exported.platforms == platforms


@forms
def test_layerwise_of_one_leaf_is_the_rule(form):
  x = pool.stack('leaf', 11)
  if form[2] == 'leaf':
    want, _ = call((*form[:2], 'model'), x)
    CLOSE(call(form, x)[0], want)


# Preconditions -------------------------------------------------------------


@pytest.mark.parametrize(
  ('rule', 'hyper', 'values'),
  [
    ('nnm', {'f': 3}, ['nnm', 'n=6', 'f=3']),
    ('nnm', {'f': -1}, ['nnm', 'f=-1']),
    ('nnm', {'f': 1, 'distance': 'manhattan'}, ['manhattan']),
    ('bucketing', {'key': KEY, 'bucket_size': 0}, ['bucket_size=0']),
    ('bucketing', {'key': KEY, 'bucket_size': 7}, ['n=6', 'bucket_size=7']),
    ('static_clip', {'threshold': 0.0}, ['threshold=0']),
    ('static_clip', {'threshold': -1.0}, ['threshold=-1']),
    ('arc', {'f': -1}, ['arc', 'f=-1']),
    ('arc', {'f': 7}, ['arc', 'n=6', 'f=7']),
  ],
)
def test_what_pre_aggregators_need(rule, hyper, values):
  with pytest.raises(ValueError) as error:
    getattr(lca, rule)(jnp.ones((6, 2)), **hyper)
  assert all(value in str(error.value) for value in values), error.value
