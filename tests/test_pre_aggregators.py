"""Rules that give clients back, and lca.chain."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import (
  ACCEPTED,
  BYZANTINE,
  REJECTED,
  TRACES,
  Case,
  at_random,
  cases,
  cases_of,
  num_clients,
  signature,
  thorough,
  traces,
  with_rows,
  worst_case,
)
from cases import run as run_rule
from hypothesis import given, settings
from hypothesis import strategies as st

import lca

KEY = jax.random.key(5)
# Weights are quotients of rounded norms, rows sums of rounded products.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)

# name -> (hyper-parameters from n and f, what a rejected row becomes)
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
    layers = reference.groups(tree, by)
    arrays = [array for _, array in reference.leaves(tree)]
    answer = [None] * len(arrays)
    for positions in layers:
      clipped = reference.clip_to_median_norm([arrays[p] for p in positions])
      for p, array in zip(positions, clipped, strict=True):
        answer[p] = array
    return reference.rebuild(tree, answer)
  hyper = PRE[name][0](n, BYZANTINE[n])
  if name == 'bucketing':
    order = np.asarray(jax.random.permutation(hyper.pop('key'), n))
    hyper['order'] = order
  return reference.pre_aggregate(name, tree, hyper, kind=kind, by=by)


def check(form, tree, out, scale=1.0):
  assert jax.tree.structure(out) == jax.tree.structure(tree)
  close = functools.partial(CLOSE, atol=2e-6 * scale)
  jax.tree.map(close, out, expected(form, tree))


# The oracles ---------------------------------------------------------------


@forms
def test_follows_the_oracle(form):
  tree = reference.stack('cnn', 11)
  check(form, tree, call(form, tree)[0])


@forms
@pytest.mark.parametrize('n', [4, pytest.param(25, marks=pytest.mark.thorough)])
def test_follows_the_oracle_at_every_n(form, n):
  tree = reference.stack('pair', n)
  check(form, tree, call(form, tree)[0])


@pytest.mark.parametrize(
  'form',
  thorough([form for form in FORMS if form[2] == 'model']),
  ids='-'.join,
)
@pytest.mark.parametrize(('name', 'n'), [('wide', 11), ('pair', 100)])
def test_follows_the_oracle_when_large(form, name, n):
  tree = reference.stack(name, n)
  check(form, tree, call(form, tree)[0])


@forms
@pytest.mark.parametrize('scale', [10, 1000])
def test_follows_the_oracle_under_attack(form, scale):
  tree = reference.stack('cnn', 11)
  attacked = worst_case(tree, at_random(11, 4), scale)
  # To the size of what is mixed into honest rows, which nnm leaves honest.
  check(form, attacked, call(form, attacked)[0], scale)


def test_the_pool_has_no_ties():
  """So that the comparisons above do fix who are the nearest."""
  for name, n in [('cnn', 11), ('pair', 4), ('pair', 25)]:
    tree = reference.stack(name, n)
    for _, leaf in reference.leaves(tree):
      for kind in ('euclidean', 'cosine'):
        matrix = reference.distance_matrix(reference.rows_of([leaf]), kind)
        m = n - BYZANTINE[n]
        ordered = np.sort(matrix, axis=1)
        if m < n:
          assert np.all(ordered[:, m] - ordered[:, m - 1] > 1e-6)


@pytest.mark.parametrize('bucket_size', [1, 2, 5, 11])
def test_bucket_sizes(bucket_size):
  x = reference.stack('leaf', 11)
  x[[2, 3, 7]] = np.nan
  out = lca.bucketing(jnp.asarray(x), key=KEY, bucket_size=bucket_size)
  order = np.asarray(jax.random.permutation(KEY, 11))
  hyper = {'order': order, 'bucket_size': bucket_size}
  CLOSE(out, reference.pre_aggregate('bucketing', x, hyper))
  assert len(out) == -(-11 // bucket_size)


def test_buckets_of_two_by_default():
  x = jnp.asarray(reference.stack('leaf', 11))
  out = lca.bucketing(x, key=KEY)
  np.testing.assert_array_equal(out, lca.bucketing(x, key=KEY, bucket_size=2))
  other = lca.bucketing(x, key=jax.random.key(6))
  assert not np.allclose(out, other)


@pytest.mark.parametrize('n', [10, 25])
def test_arc_clips_as_many_as_the_paper_says(n):
  """floor(2 (f / n) (n - f)), of which many are whole before the floor."""
  x = np.arange(1.0, n + 1, dtype=np.float32)[:, None]
  for f in range((n + 1) // 2):
    out = np.asarray(lca.arc(jnp.asarray(x), f=f))
    np.testing.assert_allclose(out, reference.arc_matrix(x, f=f) @ x, rtol=1e-6)


def test_arc_clips_nothing_to_an_infinite_threshold():
  x = np.array([[1.0], [2], [3], [4], [50], [np.inf]], np.float32)
  out = lca.arc(jnp.asarray(x).at[3:].set(jnp.inf), f=1)
  np.testing.assert_array_equal(out, [[1], [2], [3], *[[np.nan]] * 3])
  # One of them infinite: k = 1, so the second largest norm is the threshold.
  np.testing.assert_array_equal(
    lca.arc(jnp.asarray(x), f=1), [[1], [2], [3], [4], [50], [np.nan]]
  )


def test_nnm_takes_itself_and_the_lowest_index():
  x = jnp.array([[0.0], [1], [-1], [10], [11]])
  out = lca.nnm(x, f=2)
  CLOSE(out[0], [0])
  CLOSE(out[3], [(10 + 11 + 1) / 3])
  tied = jnp.array([[0.0], [2], [-2], [4], [50]])
  # Client 1 has 0 and 4 at distance 2; client 0 has 2 and -2.
  CLOSE(lca.nnm(tied, f=2)[:2, 0], [0, 2])
  few = lca.nnm(jnp.array([[0.0], [2], [-2], [2], [-2]]), f=2)
  CLOSE(few[0], [0])  # 0, 2 and -2, the first two of the four
  np.testing.assert_allclose(few[1], [4 / 3], rtol=1e-6)


def test_static_clip_of_zeros_and_short_rows():
  x = jnp.array([[0.0, 0], [3, 4], [6, 8], [jnp.nan, 1]])
  out = lca.static_clip(x, threshold=5.0)
  CLOSE(out, [[0, 0], [3, 4], [3, 4], [0, 0]])


# Rejected rows -------------------------------------------------------------


@forms
@pytest.mark.parametrize('kind', [*REJECTED, *ACCEPTED, 'copies'])
def test_any_rows_are_survived(form, kind):
  if form[0] == 'nnm' and kind in ('copies', 'zeros', '1e-40'):
    kind = 'nan'  # there, ties make what the oracle says one answer of many
  tree = reference.stack('cnn', 11)
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
      continue  # rows that mix such entries are compared up to 1e3, above
    if kind == '1e-40':  # which may be flushed to zero
      out = jax.tree.map(lambda x: np.where(np.abs(x) < 1e-37, 0, x), out)
      changed = with_rows(tree, rows, 'zeros')
    check(form, changed, out)


@forms
def test_nothing_left(form):
  tree = with_rows(reference.stack('cnn', 11), np.arange(11), 'nan')
  out, _ = call(form, tree)
  for leaf in jax.tree.leaves(out):
    if form[0] == 'static_clip':
      np.testing.assert_array_equal(leaf, 0)
    else:
      assert np.all(np.isnan(leaf))


@forms
def test_too_few_left(form):
  rows = [0, 1, 4, 5, 6, 7, 9, 10]
  tree = with_rows(reference.stack('cnn', 11), rows, 'inf')
  check(form, tree, call(form, tree)[0])


# The rest of the contract --------------------------------------------------


@forms
def test_keeps_structure_and_dtypes(form):
  tree = reference.stack('pair', 11)
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
  tree = jax.tree.map(jnp.asarray, reference.stack('pair', 11))
  hyper = PRE[form[0]][0](11, 4)
  jax.tree.map(CLOSE, of(form)(tree, **hyper), call(form, tree)[0])


@forms
def test_new_values_do_not_recompile(form):
  for seed in range(3):
    tree = reference.stack('pair', 11, seed)
    check(form, tree, call(form, tree)[0])
  call(form, with_rows(tree, [1, 2], 'nan'))
  assert traces(form, tree) == 1


@forms
def test_clients_change_places_with_their_rows(form):
  if form[0] == 'bucketing':
    pytest.skip('its key draws places, not clients')
  tree = reference.stack('cnn', 11)
  order = np.random.default_rng(3).permutation(11)
  out, _ = call(form, tree)
  moved, _ = call(form, jax.tree.map(lambda x: x[order], tree))
  jax.tree.map(lambda a, b: CLOSE(a, b[order]), moved, out)


@forms
def test_identical_updates_come_back(form):
  tree = jax.tree.map(
    lambda x: np.repeat(x[:1] / 100, 11, axis=0), reference.stack('cnn', 11)
  )
  out, _ = call(form, tree)
  for leaf, stacked in zip(
    jax.tree.leaves(out), jax.tree.leaves(tree), strict=True
  ):
    want = np.broadcast_to(stacked[0], leaf.shape)
    np.testing.assert_allclose(leaf, want, rtol=2e-6)


@forms
def test_vmap_is_a_loop(form):
  trees = [reference.stack('pair', 11, seed) for seed in range(3)]
  trees[1] = with_rows(trees[1], [2, 7], 'nan')
  batch = jax.tree.map(lambda *x: np.stack(x), *trees)
  rule = functools.partial(of(form), **PRE[form[0]][0](11, 4))
  outs = jax.jit(jax.vmap(rule))(batch)
  for i, tree in enumerate(trees):
    check(form, tree, jax.tree.map(lambda x, i=i: x[i], outs))


@forms
def test_derivatives_along_the_updates(form):
  """Homogeneous, but for the static clip: there, up to the threshold."""
  tree = jax.tree.map(jnp.asarray, reference.stack('pair', 11))
  if form[0] == 'static_clip':
    tree = jax.tree.map(lambda x: x / 100, tree)
  rule = functools.partial(of(form), **PRE[form[0]][0](11, 4))
  out, tangent = jax.jit(lambda t: jax.jvp(rule, (t,), (t,)))(tree)
  jax.tree.map(CLOSE, tangent, out)


@forms
def test_exports_for_every_platform(form):
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
  tree = jax.tree.map(like, reference.stack('pair', 11))
  rule = jax.jit(functools.partial(of(form), **PRE[form[0]][0](11, 4)))
  platforms = ('cpu', 'cuda', 'tpu')
  exported = jax.export.export(rule, platforms=platforms)(tree)
  assert exported.platforms == platforms


@forms
def test_layerwise_of_one_leaf_is_the_rule(form):
  x = reference.stack('leaf', 11)
  if form[2] == 'leaf':
    want, _ = call((*form[:2], 'model'), x)
    CLOSE(call(form, x)[0], want)


# chain ---------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['euclidean', 'cosine'])
@pytest.mark.parametrize('name', ['krum', 'multi_krum', 'median', 'bulyan'])
def test_chain_is_calling_in_sequence(name, kind):
  tree = jax.tree.map(jnp.asarray, reference.stack('pair', 11))
  rule = getattr(lca, name)
  hyper = {'f': 2}
  own = {'multi_krum': {'f': 2, 'm': 3}, 'median': {}}.get(name, hyper)
  nnm = lca.cosine(lca.nnm) if kind == 'cosine' else lca.nnm
  got = jax.jit(functools.partial(lca.chain(nnm, rule), **(hyper | own)))(tree)
  want = jax.jit(lambda t: rule(nnm(t, f=2), **own))(tree)
  close_by_objective(name, nnm(tree, f=2), own, got, want)


def close_by_objective(name, mixed, own, got, want):
  """Mixed clients are close to each other: who is selected may differ."""
  try:
    jax.tree.map(CLOSE, got, want)
  except AssertionError:
    if name not in reference.SCORES:
      raise
    rows = reference.rows_of([array for _, array in reference.leaves(mixed)])
    scores, m = reference.scores_of(name, rows, own, 'euclidean')
    ordered = np.sort(scores)
    assert ordered[m] - ordered[m - 1] < 1e-5 * np.median(scores)


def test_chain_of_several_and_the_order_of_them():
  tree = jax.tree.map(jnp.asarray, reference.stack('pair', 11))
  tree['bias'] = tree['bias'].at[3].multiply(100)
  form = lca.chain(lca.clip_to_median_norm, lca.nnm, lca.mean)
  want = lca.mean(lca.nnm(lca.clip_to_median_norm(tree), f=2))
  jax.tree.map(CLOSE, form(tree, f=2), want)
  other = lca.chain(lca.nnm, lca.clip_to_median_norm, lca.mean)(tree, f=2)
  assert not np.allclose(other['bias'], want['bias'], rtol=1e-4)
  alone = lca.chain(lca.krum)(tree, f=2)
  jax.tree.map(np.testing.assert_array_equal, alone, lca.krum(tree, f=2))


def test_chain_passes_the_key_and_each_its_own():
  x = jnp.asarray(reference.stack('leaf', 25))
  form = lca.chain(lca.bucketing, lca.trimmed_mean)
  got = form(x, key=KEY, bucket_size=5, f=1)
  want = lca.trimmed_mean(lca.bucketing(x, key=KEY, bucket_size=5), f=1)
  CLOSE(got, want)


@pytest.mark.parametrize('after', ['static_clip', 'arc'])
def test_a_buckets_norm_is_not_its_members(after):
  x = jnp.asarray(reference.stack('leaf', 11))
  hyper = {'f': 2} if after != 'static_clip' else {'threshold': 1.0}
  step = getattr(lca, after)
  got = lca.chain(lca.bucketing, step, lca.mean)(x, key=KEY, **hyper)
  CLOSE(got, lca.mean(step(lca.bucketing(x, key=KEY), **hyper)))
  kept = lca.chain(lca.bucketing, lca.cge)(x, key=KEY, f=2)
  CLOSE(kept, lca.cge(lca.bucketing(x, key=KEY), f=2))
  one = jnp.full((4, 1), 2.0)
  clipped = lca.chain(lca.bucketing, lca.static_clip, lca.mean)
  CLOSE(clipped(one, key=KEY, threshold=1.0), [1.0])


def test_chain_knows_the_hyper_parameters():
  x = jnp.asarray(reference.stack('leaf', 11))
  form = lca.chain(lca.nnm, lca.multi_krum)
  with pytest.raises(TypeError, match='m'):
    form(x, f=2)
  with pytest.raises(TypeError, match='theta'):
    form(x, f=2, m=3, theta=1)
  with pytest.raises(TypeError):
    lca.stateless(form, f=2, m=3, theta=1)
  aggregator = lca.stateless(form, f=2, m=3)
  out, _ = aggregator.update(x, aggregator.init(x[0]))
  CLOSE(out, form(x, f=2, m=3))


def test_chain_keeps_what_a_step_binds():
  x = jnp.asarray(reference.stack('leaf', 11))
  of_one = functools.partial(lca.nnm, f=1)
  chained = lca.chain(of_one, lca.krum)(x, f=3)
  np.testing.assert_allclose(
    chained, lca.krum(lca.nnm(x, f=1), f=3), rtol=1e-5, atol=1e-6
  )
  with pytest.raises(TypeError):
    lca.chain(of_one, lca.krum)(x)  # Krum's f is not bound


def test_chain_before_an_aggregator():
  inner = lca.centered_clip(threshold=3.0)
  pair = lca.chain(lca.clip_to_median_norm, inner)
  assert isinstance(pair, lca.Aggregator)
  state = want_state = None
  for seed in range(3):
    x = jnp.asarray(reference.stack('leaf', 11, seed))
    state = pair.init(x[0]) if state is None else state
    want_state = inner.init(x[0]) if want_state is None else want_state
    out, state = pair.update(x, state)
    want, want_state = inner.update(lca.clip_to_median_norm(x), want_state)
    CLOSE(out, want)


def test_layerwise_of_a_chain_and_a_chain_of_layerwise():
  tree = jax.tree.map(jnp.asarray, reference.stack('pair', 11))
  got = lca.layerwise(lca.chain(lca.nnm, lca.cge))(tree, f=2)
  same = lca.chain(lca.layerwise(lca.nnm), lca.layerwise(lca.cge))(tree, f=2)
  want = jax.tree.map(lambda x: lca.cge(lca.nnm(x, f=2), f=2), tree)
  jax.tree.map(CLOSE, got, want)
  jax.tree.map(CLOSE, same, want)


@cases(
  argvalues=thorough(
    (
      case
      for case in cases_of('model')
      if case.spec.promise == 'full' and case.name != 'lasa'
    ),
    except_for=('bulyan', 'geometric_median', 'krum', 'trimmed_mean'),
  )
)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_full_rule_after_nnm_is_full(case, data):
  """Four rows of anything: finite, and of a length that honest rows bound."""
  x = reference.stack('leaf', 11, data.draw(st.integers(0, 9), 'seed'))
  rows = data.draw(st.permutations(range(11)), 'rows')[: case.bad_rows(11)]
  anything = st.one_of(
    st.sampled_from([*(REJECTED | ACCEPTED).values()]), st.floats(width=32)
  )
  for row in rows:
    x[row] = np.float32(data.draw(anything, f'row {row}'))
  hyper = case.hyper(11)
  out, _ = run_after_nnm(case, hyper.get('f', 4))(x, case.extra(x))
  assert np.all(np.isfinite(out))
  honest = np.delete(x, rows, axis=0).astype(float)
  # Of an honest row nnm makes at most three times the longest, of which the
  # rule makes 4 n times.
  size = 3 * 4 * 11 * np.max(np.linalg.norm(honest, axis=1))
  assert np.linalg.norm(np.asarray(out, float)) <= size


@functools.cache
def run_after_nnm(case, f):
  form = lca.chain(lca.nnm, case.plain)
  hyper = {'f': f} | case.hyper(11)
  return jax.jit(lambda tree, extra: lca.explain(form)(tree, **extra, **hyper))


def test_cases_run_without_nnm():
  """So that the chain above is what differs."""
  case = Case('krum', 'euclidean', 'model')
  x = reference.stack('leaf', 11)
  mixed, _ = run_after_nnm(case, 4)(x, {})
  assert not np.allclose(mixed, run_rule(case, 11)(x, {})[0])


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


def test_bucketing_needs_a_key():
  with pytest.raises(TypeError, match='key'):
    lca.bucketing(jnp.ones((6, 2)))
