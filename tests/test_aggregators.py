"""What one rule alone does, stateless, and make_aggregator."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import cases, cases_of, server_update, with_rows

import lca
from lca.stacked import order_statistics

# What one rule alone does --------------------------------------------------


def test_sorting_integers_sorts_floats():
  x = np.random.default_rng(0).normal(size=(3, 4, 50)).astype(np.float32)
  x[0, :, :9] = [[np.inf], [-np.inf], [0], [1]]
  np.testing.assert_array_equal(
    order_statistics.sort(jnp.asarray(x)), np.sort(x)
  )


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


@pytest.mark.parametrize('power', [1, 2, 4])
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
    (11, {'f': 2.0}, ['integer', 'f=2.0']),
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


# Options that give other definitions ---------------------------------------


def test_bulyan_may_select_at_once():
  differ = 0
  for seed in range(6):
    x = reference.stack('leaf', 12, seed)
    rows = x.astype(float)
    scores = reference.krum_scores(rows, f=2)
    members = reference.select(scores, np.zeros(12, bool), 8)
    hyper = {'f': 2, 'selection': 'once'}
    out, info = lca.explain(lca.bulyan)(jnp.asarray(x), **hyper)
    assert np.flatnonzero(info['selected']).tolist() == sorted(members)
    want = reference.bulyan(rows, members, f=2)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)
    differ += set(members) != set(reference.bulyan_members(rows, f=2))
  assert differ


def test_the_geometric_median_may_start_from_zero():
  """After one step each row has one over its own length."""
  x = reference.stack('leaf', 11)
  out = lca.geometric_median(jnp.asarray(x), init='zero', num_iters=1)
  weights = 1 / np.linalg.norm(x.astype(float), axis=1)
  want = weights / weights.sum() @ x.astype(float)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('middle', ['lower', 'upper'])
def test_meamed_may_measure_from_another_median(middle):
  x = reference.stack('leaf', 12)
  out = lca.meamed(jnp.asarray(x), f=3, median=middle)
  rows = x.astype(float)
  away = np.abs(rows - reference.coordinate_median(rows, median=middle))
  nearest = np.argsort(away, axis=0)[:9]
  want = np.take_along_axis(rows, nearest, axis=0).mean(axis=0)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)


def selections(rule, keys=6, **hyper):
  """Who is selected with each key, of clients who are nothing but noise."""
  x = jax.random.normal(jax.random.key(0), (11, 300))
  of = jax.jit(lambda key: lca.explain(rule)(x, key=key, **hyper)[1])
  each = [of(jax.random.key(seed))['selected'] for seed in range(keys)]
  return {tuple(np.flatnonzero(selected).tolist()) for selected in each}


def test_draws_of_coordinates_decide():
  assert len(selections(lca.sign_guard)) > 1
  assert len(selections(lca.sign_guard, fraction=0.5)) > 1
  assert len(selections(lca.sign_guard, fraction=1.0)) == 1
  assert len(selections(lca.dnc, f=3, subsample_dim=20)) > 1
  assert len(selections(lca.dnc, f=3, subsample_dim=300)) == 1


@pytest.mark.parametrize('leaf', ['a', 'b', 'c'])
def test_dnc_draws_from_every_leaf(leaf):
  tree = {'a': (11, 40), 'b': (11, 5, 20), 'c': (11, 60)}
  tree = jax.tree.map(np.ones, tree, is_leaf=lambda x: isinstance(x, tuple))
  tree[leaf][4] += 9
  hyper = {'f': 1, 'subsample_dim': 50, 'key': jax.random.key(0)}
  _, info = lca.explain(lca.dnc)(tree, **hyper)
  assert np.flatnonzero(~info['selected']).tolist() == [4]


KEYED = {
  'sign_guard': functools.partial(lca.sign_guard, fraction=0.5),
  'dnc': functools.partial(lca.dnc, f=2, subsample_dim=9, num_iters=2),
}


@pytest.mark.parametrize('name', KEYED)
def test_draws_under_vmap_and_for_every_platform(name):
  """Of NumPy arrays, in bfloat16, beside a leaf without entries."""
  rule, tree = KEYED[name], reference.stack('pair', 11)
  keys = jax.random.split(jax.random.key(0), 3)
  batch = jax.vmap(lambda key: rule(tree, key=key))(keys)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  singles = [rule(tree, key=key) for key in keys]
  jax.tree.map(close, batch, jax.tree.map(lambda *x: np.stack(x), *singles))
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree)
  half['empty'] = jnp.zeros((11, 0))
  for form in (rule, lca.layerwise(rule)):
    out = form(half, key=keys[0])
    assert out['empty'].shape == (0,)
    assert out['bias'].dtype == jnp.bfloat16
  platforms = ('cpu', 'cuda', 'tpu')
  exported = jax.export.export(jax.jit(rule), platforms=platforms)(
    tree, key=keys[0]
  )
  assert exported.platforms == platforms


def test_a_row_is_its_own_nearest():
  """Under the cosine distance, others of one direction are as near."""
  x = jnp.array([[1.0], [1], [1], [1], [0.1]])
  nearest = lca.nnm(x, f=1, distance='cosine')
  np.testing.assert_allclose(nearest[4], (3 + 0.1) / 4, rtol=1e-6)
  monna = lca.monna(x, f=1, pivot=4, distance='cosine')
  np.testing.assert_allclose(monna, nearest[4], rtol=1e-6)


# Derivatives beside rejected rows ------------------------------------------


@pytest.mark.parametrize('value', [1.5e19, 1e30, 3e38, np.nan, np.inf])
@pytest.mark.parametrize('before', [None, 'nnm', 'clip_to_median_norm'])
def test_rejected_rows_are_in_no_derivative(before, value):
  """The honest rows' is what it is without them."""
  x = jnp.asarray(reference.stack('leaf', 9))
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


def test_rejected_rows_are_not_in_the_derivative_of_the_server_s_length():
  x = jnp.asarray(reference.stack('leaf', 9))
  bad = jnp.insert(x, jnp.array([2, 6]), 3e38, axis=0)
  of = lambda rows: jax.grad(  # noqa: E731
    lambda own: jnp.sum(lca.fltrust(rows, server_update=own))
  )(jnp.mean(x, axis=0))
  np.testing.assert_allclose(of(bad), of(x), rtol=1e-5)


def test_the_geometric_median_of_float32_has_a_derivative_under_x64():
  x = reference.stack('leaf', 11)
  gradient = jax.grad(lambda x: jnp.sum(lca.geometric_median(x)))
  want = gradient(jnp.asarray(x))
  with jax.enable_x64(True):
    got = gradient(jnp.asarray(x, jnp.float32))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


# stateless and make_aggregator ---------------------------------------------


def test_make_aggregator_takes_the_layers_of_legato_from_the_scope():
  with pytest.raises(TypeError, match="'scope', got 'by'"):
    lca.make_aggregator({'name': 'legato', 'by': 'leaf'})


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


@cases(argvalues=cases_of('model', 'leaf', 'module', 'block'))
def test_make_aggregator_reaches_every_case(case):
  tree = reference.stack('stats', 11)
  config = {'name': case.name, 'scope': case.by, **case.hyper(11)}
  if case.spec.cosine:
    config['distance'] = case.kind
  aggregator = lca.make_aggregator(config)
  update = functools.partial(aggregator.update, **case.extra(tree))
  shape = jax.eval_shape(update, tree, aggregator.init(tree))[0]
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


def test_make_aggregator_gives_the_distance_to_those_that_have_one():
  """Alike before a rule, one without a distance, and one with a state."""
  x = jnp.asarray(reference.stack('leaf', 11))
  keys = {'pre': ('nnm',), 'f': 2, 'distance': 'cosine', 'clip': None}
  nnm = functools.partial(lca.cosine(lca.nnm, clip=None), f=2)
  for name, rule, own in [
    ('krum', functools.partial(lca.cosine(lca.krum, clip=None), f=2), {}),
    ('trimmed_mean', functools.partial(lca.trimmed_mean, f=2), {}),
    ('centered_clip', None, {'threshold': 1.0}),
  ]:
    aggregator = lca.make_aggregator({'name': name, **keys, **own})
    out, _ = aggregator.update(x, aggregator.init(x[0]))
    if rule is None:
      alone = lca.centered_clip(**own)
      want, _ = alone.update(nnm(x), alone.init(x[0]))
    else:
      want = rule(nnm(x))
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


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


def test_mda_breaks_ties_by_the_mean_distance_or_the_order():
  """0, 1, 3, 4 and 1, 3, 4, 5 have one diameter; the latter are closer."""
  x = jnp.array([0.0, 1.0, 3.0, 4.0, 5.0, 100.0, 200.0])
  assert lca.mda(x, f=3) == (1 + 3 + 4 + 5) / 4
  assert lca.mda(x, f=3, ties='first') == (0 + 1 + 3 + 4) / 4
  assert lca.mda(x[::-1], f=3, ties='first') == (1 + 3 + 4 + 5) / 4


@pytest.mark.parametrize('rule', [lca.mda, lca.smea])
def test_subsets_are_compared_a_few_at_a_time(rule):
  updates = {str(i): jnp.ones((60, 4 + i)) for i in range(5)}
  form = jax.jit(functools.partial(lca.layerwise(rule), f=2))
  used = form.lower(updates).compile().memory_analysis()
  # All of the 1,770 subsets' products of 58 clients would take 119 MB.
  assert used.temp_size_in_bytes < 30e6


@pytest.mark.parametrize(
  ('rule', 'hyper', 'message'),
  [
    (lca.cge, {'f': 3}, r'cge needs .* n=6, f=3'),
    (lca.cge, {'f': -1}, r'cge needs .* n=6, f=-1'),
    (lca.monna, {'f': 3}, r'monna needs .* n=6, f=3'),
    (lca.monna, {'f': 1, 'pivot': 6}, 'n=6, pivot=6'),
    (lca.mda, {'f': 3}, r'mda needs .* n=6, f=3'),
    (lca.mda, {'f': 1, 'ties': 'last'}, "ties .*'last'"),
    (lca.caf, {'f': 1, 'farthest': 'all'}, "farthest .*'all'"),
    (lca.mda, {'f': 2, 'max_subsets': 14}, '15 subsets, .*max_subsets=14'),
    (lca.smea, {'f': 2, 'max_subsets': 14}, '15 subsets, .*max_subsets=14'),
  ],
)
def test_what_averages_and_subsets_need(rule, hyper, message):
  with pytest.raises(ValueError, match=message):
    rule(jnp.ones((6, 2)), **hyper)


# Preconditions of the other rules ------------------------------------------


KEY = jax.random.key(0)


@pytest.mark.parametrize(
  ('name', 'hyper', 'values'),
  [
    ('median', {'median': 'mean'}, ["'mean'"]),
    ('trimmed_mean', {'f': 3}, ['trimmed_mean', 'n=6', 'f=3']),
    ('trimmed_mean', {'f': -1}, ['f=-1']),
    ('trimmed_mean', {'f': 2, 'f_above': 4}, ['n=6', 'f=2', 'f_above=4']),
    ('trimmed_mean', {'f': 2, 'f_above': -1}, ['f_above=-1']),
    ('trimmed_mean', {'f': 0.1}, ['trimmed_mean', 'integer', 'f=0.1']),
    ('meamed', {'f': 3}, ['meamed', 'n=6', 'f=3']),
    ('meamed', {'f': -1}, ['f=-1']),
    ('sign_majority', {'theta': 7}, ['sign_majority', 'n=6', 'theta=7']),
    ('sign_majority', {'theta': -1}, ['theta=-1']),
    ('bulyan', {'f': 1}, ['bulyan', 'n=6', 'f=1']),
    ('bulyan', {'f': -1}, ['f=-1']),
    ('bulyan_trimmed', {'f': 2, 'm': 3}, ['bulyan_trimmed', 'n=6', 'f=2']),
    ('bulyan_trimmed', {'f': 1, 'm': 6}, ['n=6', 'f=1', 'm=6']),
    ('bulyan_trimmed', {'f': 1, 'm': 0}, ['m=0']),
    ('bulyan_trimmed', {'f': 1, 'm': 2}, ['m=2', 'trim=1']),
    ('bulyan_trimmed', {'f': 1, 'm': 4, 'trim': 2}, ['m=4', 'trim=2']),
    ('bulyan_trimmed', {'f': 1, 'm': 4, 'trim': -1}, ['trim=-1']),
    ('geometric_median', {'num_iters': 0}, ['num_iters=0']),
    ('geometric_median', {'nu': 0.0}, ['nu=0']),
    ('geometric_median', {'tol': -1.0}, ['tol=-1']),
    ('geometric_median', {'nu': np.nan}, ['nu=nan']),
    ('geometric_median', {'tol': np.nan}, ['tol=nan']),
    ('geometric_median', {'init': 'origin'}, ["'origin'"]),
    ('geometric_median', {'num_iters': 1.5}, ['integer', 'num_iters=1.5']),
    ('krum', {'f': 1, 'num_neighbors': 3.0}, ['krum', 'num_neighbors=3.0']),
    ('monna', {'f': 1, 'pivot': 1.5}, ['monna', 'integer', 'pivot=1.5']),
    ('mean', {'weights': jnp.ones(5)}, ['mean', '(6,)', '(5,)']),
    ('sign_majority', {'theta': 1.5}, ['integer', 'theta=1.5']),
    ('bucketing', {'key': KEY, 'bucket_size': 2.5}, ['bucket_size=2.5']),
    (
      'dnc',
      {'f': 1, 'subsample_dim': 2.5, 'key': KEY},
      ['integer', 'subsample_dim=2.5'],
    ),
    ('caf', {'f': 1.5}, ['caf', 'integer', 'f=1.5']),
    ('caf', {'f': 3}, ['caf', 'n=6', 'f=3']),
    ('caf', {'f': -1}, ['f=-1']),
    ('dnc', {'f': -1}, ['dnc', 'f=-1']),
    ('dnc', {'f': 6}, ['dnc', 'n=6', 'f=6']),
    ('dnc', {'f': 1, 'num_iters': 2}, ['num_iters=2', 'subsample_dim']),
    (
      'dnc',
      {'f': 1, 'num_iters': 0, 'subsample_dim': 1, 'key': KEY},
      ['num_iters=0'],
    ),
    ('dnc', {'f': 1, 'subsample_dim': 0, 'key': KEY}, ['subsample_dim=0']),
    ('dnc', {'f': 1, 'filter_fraction': -1.0}, ['filter_fraction=-1']),
    ('dnc', {'f': 2, 'filter_fraction': 3.0}, ['filter_fraction=3', 'n=6']),
    ('dnc', {'f': 2, 'filter_fraction': np.nan}, ['filter_fraction=nan']),
    ('sign_guard', {'key': KEY, 'fraction': 0.0}, ['fraction=0']),
    ('sign_guard', {'key': KEY, 'fraction': 1.5}, ['fraction=1.5']),
    ('sign_guard', {'key': KEY, 'lower': 4.0}, ['lower=4', 'upper=3']),
    ('lasa', {'sparsity': 1.0}, ['sparsity=1']),
    ('lasa', {'sparsity': -0.5}, ['sparsity=-0.5']),
    ('lasa', {'norm_bound': np.nan}, ['norm_bound=nan']),
    ('lasa', {'sign_bound': -1.0}, ['sign_bound=-1']),
  ],
)
def test_what_rules_need(name, hyper, values):
  with pytest.raises(ValueError) as error:
    getattr(lca, name)(jnp.ones((6, 2)), **hyper)
  assert all(value in str(error.value) for value in values), error.value


@pytest.mark.parametrize(
  ('name', 'hyper'),
  [
    ('trimmed_mean', {'f': 2}),
    ('trimmed_mean', {'f': 5, 'f_above': 0}),
    ('trimmed_mean', {'f': 0}),
    ('meamed', {'f': 2}),
    ('sign_majority', {'theta': 0}),
    ('sign_majority', {'theta': 6}),
    ('bulyan', {'f': 0}),
    ('bulyan_trimmed', {'f': 1, 'm': 5}),
    ('bulyan_trimmed', {'f': 1, 'm': 1, 'trim': 0}),
    ('caf', {'f': 2}),
    ('dnc', {'f': 2}),
    ('lasa', {'sparsity': 0.0}),
    ('sign_guard', {'fraction': 1.0}),
  ],
)
def test_the_last_values_that_will_do(name, hyper):
  out = getattr(lca, name)(jnp.ones((6, 2)), **hyper)
  want = -1 if name == 'sign_majority' and hyper['theta'] > 6 else 1
  np.testing.assert_allclose(out, [want, want], rtol=1e-6)


@pytest.mark.parametrize(
  ('name', 'hyper'),
  [('sign_guard', {}), ('dnc', {'f': 1, 'subsample_dim': 1})],
)
def test_a_key_is_asked_for(name, hyper):
  with pytest.raises((TypeError, ValueError), match='key'):
    getattr(lca, name)(jnp.ones((6, 2)), **hyper)


def test_fltrust_asks_for_the_servers_update():
  with pytest.raises(TypeError, match='server_update'):
    lca.fltrust(jnp.ones((6, 2)))
  with pytest.raises((TypeError, ValueError)):
    lca.fltrust(jnp.ones((6, 2)), server_update=jnp.ones(3))


# Rules on coordinates ------------------------------------------------------


@pytest.mark.parametrize('kind', ['interpolated', 'lower', 'upper'])
@pytest.mark.parametrize('n', [1, 2, 3, 4, 5, 8, 11, 12, 25, 26])
def test_median_is_exact(n, kind):
  """With ties, infinities and NaN among the entries, for every n."""
  rng = np.random.default_rng(n)
  x = rng.integers(-2, 3, size=(n, 40)).astype(np.float32)
  x[rng.random(x.shape) < 0.1] = np.inf
  x[rng.random(x.shape) < 0.1] = -np.inf
  x[rng.random(x.shape) < 0.05] = np.nan
  out = np.asarray(lca.median(jnp.asarray(x), median=kind))
  want = reference.coordinate_median(x.astype(float), median=kind)
  # A NaN that is chosen may come out as NaN or as the inf it sorts with.
  unclear = np.isnan(x).any(axis=0) & ~np.isfinite(want)
  assert not np.any(np.isfinite(out[unclear]))
  np.testing.assert_array_equal(out[~unclear], want[~unclear])


def test_median_does_not_overflow():
  x = jnp.array([[3e38], [3e38], [3e38], [3.2e38]])
  np.testing.assert_allclose(lca.median(x), [3e38], rtol=1e-6)
  x = jnp.array([[-3e38], [3e38]])
  np.testing.assert_allclose(lca.median(x), [0], atol=1e31)
  x = jnp.array([[3e38], [3e38], [3.2e38], [3.2e38]])
  for out in (lca.median(x), lca.trimmed_mean(x, f=0)):
    assert np.float32(3e38) <= out[0] <= np.float32(3.2e38)


@pytest.mark.parametrize(('n', 'f', 'f_above'), [
  (1, 0, 0), (2, 0, 1), (5, 2, 2), (6, 2, 0), (6, 0, 3), (11, 3, 5),
  (25, 11, 11), (26, 5, 5),
])  # fmt: skip
def test_trimmed_mean_follows_the_oracle(n, f, f_above):
  rng = np.random.default_rng(n)
  x = rng.normal(size=(n, 50)).astype(np.float32)
  x[rng.random(x.shape) < 0.2] = 0.5  # ties
  out = lca.trimmed_mean(jnp.asarray(x), f=f, f_above=f_above)
  want = reference.trimmed_mean(x.astype(float), f=f, f_above=f_above)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
  if f == f_above:
    same = lca.trimmed_mean(jnp.asarray(x), f=f)
    np.testing.assert_array_equal(out, same)


@pytest.mark.parametrize('large', [1e9, 1e38, np.inf, np.nan])
def test_what_is_trimmed_leaves_no_trace(large):
  x = reference.stack('leaf', 11)
  clean = np.sort(x, axis=0)
  x[[2, 5]] = large
  x[[7, 9]] = -large
  out = lca.trimmed_mean(jnp.asarray(x), f=4)
  other = x.copy()
  other[[2, 5]] = np.inf
  other[[7, 9]] = np.inf if np.isnan(large) else -np.inf
  same = lca.trimmed_mean(jnp.asarray(other), f=4)
  np.testing.assert_array_equal(out, same)
  assert np.all(out >= clean[0]) and np.all(out <= clean[-1])


@pytest.mark.parametrize(('n', 'f'), [(3, 1), (4, 1), (7, 2), (11, 4), (12, 5)])
def test_meamed_shares_the_last_places(n, f):
  """Small whole numbers: their distances to the median are exact, and tie."""
  rng = np.random.default_rng(n)
  x = rng.integers(-3, 4, size=(n, 60)).astype(np.float32)
  out = lca.meamed(jnp.asarray(x), f=f)
  want = reference.meamed(x.astype(float), f=f)
  np.testing.assert_allclose(out, want, rtol=1e-6, atol=1e-6)


def test_meamed_by_hand():
  x = jnp.array([[0.0], [1], [2], [3], [4]])
  np.testing.assert_allclose(lca.meamed(x, f=1), [2])  # 1, 2, 3, half 0 and 4
  x = jnp.array([[0.0], [1], [2], [3], [9]])
  np.testing.assert_allclose(lca.meamed(x, f=1), [1.5])


@pytest.mark.parametrize('theta', range(6))
def test_sign_majority_follows_the_oracle(theta):
  rng = np.random.default_rng(0)
  x = rng.integers(-1, 3, size=(5, 40)).astype(np.float32)
  out = lca.sign_majority(jnp.asarray(x), theta=theta)
  want = reference.sign_majority(x.astype(float), theta=theta)
  np.testing.assert_allclose(out, want, rtol=1e-6)


# Bulyan --------------------------------------------------------------------


@pytest.mark.parametrize('power', [None, 1])
@pytest.mark.parametrize(
  ('n', 'f'), [(3, 0), (7, 1), (11, 2), (12, 2), (25, 5)]
)
def test_bulyan_follows_the_oracle(n, f, power):
  x = reference.stack('leaf', n).astype(float)
  members = reference.bulyan_members(x, f=f, power=power or 2)
  out, info = lca.explain(lca.bulyan)(
    jnp.asarray(x, jnp.float32), f=f, power=power
  )
  assert np.flatnonzero(info['selected']).tolist() == sorted(members)
  want = reference.bulyan(x, members, f=f)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)


def test_bulyan_takes_the_lowest_index_in_a_tie():
  """Copies of two points: all of those that are selected tie at each step."""
  x = np.array([[0.0]] * 7 + [[1.0]] * 4)
  _, info = lca.explain(lca.bulyan)(jnp.asarray(x), f=2)
  # Three zeros win; four zeros and four ones tie, and a zero wins; three zeros
  # lose to four ones; and the rest are ties again.
  assert reference.bulyan_members(x, f=2) == [0, 1, 2, 3, 7, 4, 5]
  assert np.flatnonzero(info['selected']).tolist() == [0, 1, 2, 3, 4, 5, 7]
  _, info = lca.explain(lca.bulyan)(jnp.ones((11, 1)), f=2)
  assert np.flatnonzero(info['selected']).tolist() == list(range(7))


@pytest.mark.parametrize('count', range(12))
def test_bulyan_with_rejected_rows(count):
  """Up to f of them change who is selected, more leave a plain mean."""
  x = reference.stack('leaf', 11)
  x[np.random.default_rng(count).permutation(11)[:count]] = np.nan
  rows = x.astype(float)
  members = reference.bulyan_members(rows, f=2)
  out, info = lca.explain(lca.bulyan)(jnp.asarray(x), f=2)
  assert np.flatnonzero(info['selected']).tolist() == sorted(members)
  want = reference.bulyan(rows, members, f=2)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
  'hyper',
  [
    {'f': 1, 'm': 10},
    {'f': 2, 'm': 5, 'trim': 0},
    {'f': 3, 'm': 8, 'num_neighbors': 2, 'power': 1},
  ],
)
def test_bulyan_trimmed_options_follow_the_oracle(hyper):
  x = reference.stack('leaf', 11).astype(float)
  krum = {k: v for k, v in hyper.items() if k not in ('m', 'trim')}
  scores = reference.krum_scores(x, **krum)
  members = reference.select(scores, np.zeros(11, bool), hyper['m'])
  want = reference.bulyan_trimmed(x, members, **hyper)
  out, info = lca.explain(lca.bulyan_trimmed)(
    jnp.asarray(x, jnp.float32), **hyper
  )
  assert np.flatnonzero(info['selected']).tolist() == sorted(members)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)


def test_bulyan_trimmed_without_trim_is_multi_krum():
  x = jnp.asarray(reference.stack('leaf', 11))
  for wrap in (lambda rule: rule, lca.cosine):
    out = wrap(lca.bulyan_trimmed)(x, f=2, m=5, trim=0)
    want = wrap(lca.multi_krum)(x, f=2, m=5)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


# The geometric median ------------------------------------------------------


@pytest.mark.parametrize('init', ['medoid', 'mean'])
def test_geometric_median_ends_where_the_sum_of_distances_is_least(init):
  x = reference.stack('leaf', 25)
  x[:6] += 100
  out = lca.geometric_median(jnp.asarray(x), init=init, num_iters=1000)
  rows = x.astype(float)
  best = reference.geometric_median_weights(rows) @ rows
  got = reference.sum_of_distances(rows, np.asarray(out, float))
  # Flat around its minimum, where float32 tells sums of distances apart.
  assert got <= reference.sum_of_distances(rows, best) * (1 + 1e-6)


def test_a_median_among_many_has_a_derivative():
  """Of an even number of scalars every point between the middle two is one."""
  x = jnp.array([[0.0], [1], [2], [3]])
  one = jnp.ones((4, 1))
  rule = functools.partial(lca.geometric_median, tol=1e-6)
  gradient = jax.jit(jax.grad(lambda x: rule(x)[0]))(x)
  assert np.all(np.isfinite(gradient))
  # All rows moved alike move it, too, wherever it lies.
  moved = jax.jit(lambda x: jax.jvp(rule, (x,), (one,))[1])(x)
  np.testing.assert_allclose(moved, [1], rtol=1e-4)


def test_the_geometric_median_has_a_derivative_beside_a_row_far_away():
  x, along = np.random.default_rng(0).normal(size=(2, 6, 3))
  x[5] *= 1e8
  rule = functools.partial(lca.geometric_median, tol=1e-7)
  single = jnp.asarray(x, jnp.float32), jnp.asarray(along, jnp.float32)
  _, got = jax.jit(lambda x, v: jax.jvp(rule, (x,), (v,)))(*single)
  with jax.enable_x64(True):
    exact = functools.partial(lca.geometric_median, tol=1e-14, num_iters=9000)
    step = 1e-5
    ahead, behind = (exact(jnp.asarray(x + s * along)) for s in (step, -step))
    want = (ahead - behind) / (2 * step)
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_geometric_median_on_a_line_is_the_median():
  x = jnp.array([[0.0], [1], [2], [10], [1e6]])
  np.testing.assert_allclose(lca.geometric_median(x), [2], atol=1e-3)


def test_geometric_median_in_one_step():
  """From equal weights: each at one over its distance to the mean."""
  x = reference.stack('leaf', 11)
  out = lca.geometric_median(jnp.asarray(x), num_iters=1, init='mean')
  rows = x.astype(float)
  weights = 1 / np.linalg.norm(rows - rows.mean(axis=0), axis=1)
  want = (weights / weights.sum()) @ rows
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)


# Spectral rules ------------------------------------------------------------


def test_caf_that_filters_nobody_is_the_mean():
  x = reference.stack('leaf', 11)
  out = lca.caf(jnp.asarray(x), f=0)
  np.testing.assert_allclose(out, np.mean(x, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('n', [5, 12, 25])
@pytest.mark.parametrize('farthest', ['remaining', 'any'])
def test_caf_follows_the_oracle(n, farthest):
  x = reference.stack('leaf', n)
  for f in sorted({1, n // 4, (n - 1) // 2}):
    x[0] += 20 if farthest == 'remaining' else 1
    out = lca.caf(jnp.asarray(x), f=f, farthest=farthest)
    rows = x.astype(float)
    want = reference.caf_weights(rows, f=f, farthest=farthest) @ rows
    scale = np.max(np.abs(rows))
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5 * scale)


def _legato_of_spectral_norms(updates):
  pair = lca.legato(norm='spectral')
  return pair.update(updates, pair.init(jax.tree.map(lambda x: x[0], updates)))


@pytest.mark.parametrize(
  'update',
  [
    functools.partial(lca.smea, f=2),
    functools.partial(lca.layerwise(lca.smea), f=2),
    functools.partial(lca.layerwise(lca.caf), f=2),
    functools.partial(lca.layerwise(lca.dnc), f=2),
    jax.vmap(functools.partial(lca.caf, f=2)),
    _legato_of_spectral_norms,
  ],
)
def test_eigenvectors_are_found_one_matrix_at_a_time(update):
  """Two batches at once wait for each other on a CPU of two cores."""
  tree = jax.tree.map(lambda x: np.stack([x] * 11), reference.stack('pair', 11))
  text = jax.jit(update).lower(tree).as_text()
  calls = [line for line in text.splitlines() if '_ssyevd' in line]
  assert calls
  assert not [
    line for line in calls if re.search(r'tensor<\d+x\d+x\d+xf', line)
  ]


@pytest.mark.parametrize('fraction', [0.0, 0.5, 1.0, 1.5])
def test_dnc_filters_a_fraction(fraction):
  x = reference.stack('leaf', 11)
  hyper = {'f': 3, 'filter_fraction': fraction}
  out, info = lca.explain(lca.dnc)(jnp.asarray(x), **hyper)
  rows = x.astype(float)
  weights = reference.weights_of('dnc', rows, hyper)
  assert np.sum(weights > 0) == 11 - int(fraction * 3)
  np.testing.assert_allclose(info['weights'], weights, rtol=1e-6)
  np.testing.assert_allclose(out, weights @ rows, rtol=1e-5, atol=2e-6)
  scores = reference.outlyingness(rows, f=3)
  # Squares of projections on a direction known to some 1e-5.
  np.testing.assert_allclose(
    info['scores'], scores, rtol=1e-3, atol=1e-4 * np.max(scores)
  )


def test_dnc_of_draws_intersects_what_each_keeps():
  tree = reference.stack('cnn', 11)
  attacked = jax.tree.map(jnp.asarray, tree)
  attacked = jax.tree.map(lambda x: x.at[jnp.array([2, 6])].add(50), attacked)
  rule = jax.jit(
    functools.partial(lca.explain(lca.dnc), f=2, num_iters=4, subsample_dim=200)
  )
  outs = []
  for seed in range(3):
    out, info = rule(attacked, key=jax.random.key(seed))
    assert set(info) >= {'weights', 'selected', 'rejected'}
    assert 'scores' not in info
    selected = np.asarray(info['selected'])
    # All four draws drop the same two, who are far out in every coordinate.
    assert np.flatnonzero(~selected).tolist() == [2, 6]
    np.testing.assert_allclose(info['weights'], selected / 9, rtol=1e-6)
    outs.append(out)
  honest = jax.tree.map(lambda x: np.mean(np.delete(x, [2, 6], 0), 0), tree)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)
  jax.tree.map(close, outs[0], honest)


def test_dnc_of_draws_that_share_nobody_is_nan():
  """Each of forty draws of one coordinate drops two of five."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 400)), jnp.float32)
  hyper = {'f': 2, 'num_iters': 40, 'subsample_dim': 1}
  out, info = lca.explain(lca.dnc)(x, key=jax.random.key(0), **hyper)
  assert np.all(np.isnan(out)) and not np.any(info['selected'])


def test_dnc_draws_with_its_key():
  x = jnp.asarray(reference.stack('leaf', 25))
  hyper = {'f': 5, 'subsample_dim': 10}
  rule = lambda seed: lca.dnc(x, key=jax.random.key(seed), **hyper)  # noqa: E731
  np.testing.assert_array_equal(rule(0), rule(0))
  assert any(not np.allclose(rule(0), rule(seed)) for seed in (1, 2, 3))


# Similarity, trust, signs --------------------------------------------------


def test_foolsgold_silences_those_who_agree_too_well():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(8, 200)).astype(np.float32)
  x[5:] = x[5] * [[1], [2], [3]] + 0.01 * rng.normal(size=(3, 200))
  _, info = lca.explain(lca.foolsgold)(jnp.asarray(x))
  weights = np.asarray(info['weights'])
  want = reference.foolsgold_weights(x.astype(float))
  np.testing.assert_allclose(weights, want, rtol=1e-4, atol=1e-6)
  assert np.all(weights[5:] == 0) and np.all(weights[:5] > 0)


def test_fltrust_by_hand():
  x = jnp.array([[2.0, 0], [0, 3], [-1, 0], [0, 0], [5, 5]])
  out, info = lca.explain(lca.fltrust)(x, server_update=jnp.array([1.0, 0]))
  root = np.sqrt(0.5)
  trust = np.array([1, 0, 0, 0, root])
  want = (np.array([1, 0]) + root * np.array([root, root])) / trust.sum()
  np.testing.assert_allclose(out, want, rtol=1e-6)
  lengths = np.array([2, 3, 1, 1, np.sqrt(50)])
  np.testing.assert_allclose(
    info['weights'], trust / lengths / trust.sum(), rtol=1e-6, atol=1e-7
  )


def test_fltrust_is_as_long_as_the_servers_update():
  """With the trust held fixed, its derivative along that one is itself."""
  x, server = jnp.asarray(reference.stack('leaf', 11)), jnp.ones(50)
  out, tangent = jax.jvp(
    lambda s: lca.fltrust(x, server_update=s), (server,), (server,)
  )
  np.testing.assert_allclose(tangent, out, rtol=1e-5)
  _, across = jax.jvp(
    lambda s: lca.fltrust(x, server_update=s),
    (server,),
    (server.at[::2].set(-1),),  # of the same length to first order
  )
  np.testing.assert_allclose(across, np.zeros(50), atol=1e-6)


def test_fltrust_without_trust_is_nan():
  x = -jnp.asarray(np.abs(reference.stack('leaf', 11)))
  assert np.all(np.isnan(lca.fltrust(x, server_update=jnp.ones(50))))


def test_fltrust_splits_the_servers_update_by_layer():
  tree = jax.tree.map(jnp.asarray, reference.stack('pair', 11))
  server = server_update(tree)
  out = lca.layerwise(lca.fltrust)(tree, server_update=server)
  for key, leaf in tree.items():
    want = lca.fltrust(leaf, server_update=server[key])
    np.testing.assert_allclose(out[key], want, rtol=1e-5, atol=1e-6)
  aggregator = lca.stateless(lca.layerwise(lca.fltrust))
  same, _ = aggregator.update(
    tree, aggregator.init(server), server_update=server
  )
  jax.tree.map(np.testing.assert_array_equal, same, out)


def test_sign_guard_filters_by_norm_and_by_signs():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(12, 400)).astype(np.float32) + np.float32(1)
  x[1] *= 4  # too long
  x[2] *= 0.05  # too short
  x[3:6] *= -1  # of other signs
  x[7] *= 2  # long, and clipped
  rows = x.astype(float)
  (clusters,) = reference.sign_guard_choices(rows)[1]
  kept = [0, 6, 7, 8, 9, 10, 11]
  assert np.flatnonzero(clusters).tolist() == [0, 1, 2, *kept[1:]]
  out, info = lca.explain(lca.sign_guard)(jnp.asarray(x), fraction=1.0)
  assert np.flatnonzero(info['selected']).tolist() == kept
  clip = reference.clip_factors(rows)
  assert clip[7] < 1
  want = np.mean(clip[kept, None] * rows[kept], axis=0)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
  # A tenth of the coordinates, 40 of them, say the same.
  _, info = lca.explain(lca.sign_guard)(jnp.asarray(x), key=jax.random.key(0))
  selected = np.flatnonzero(info['selected'])
  assert set(selected) <= set(kept) and len(selected) >= 4


@functools.cache
def sign_guard(by):
  return jax.jit(lca.layerwise(lca.sign_guard, by=by))


@pytest.mark.parametrize(
  ('name', 'by'),
  [
    ('cnn', 'model'),
    ('pair', 'leaf'),
    pytest.param('cnn', 'leaf', marks=pytest.mark.thorough),
  ],
)
@pytest.mark.parametrize('bad', [np.nan, 1e30, 1e10, 0.0])
def test_sign_guard_with_a_key_survives_any_rows(bad, name, by):
  tree = reference.stack(name, 11)
  tree = reference.replace_rows(
    tree, [1, 4, 8, 9], lambda leaf: np.float32(bad)
  )
  outs = [sign_guard(by)(tree, key=jax.random.key(s)) for s in (0, 0, 1)]
  for out in outs:
    for leaf, own in zip(
      jax.tree.leaves(out), jax.tree.leaves(tree), strict=True
    ):
      assert np.all(np.isfinite(leaf))
      honest = np.delete(own, [1, 4, 8, 9], 0)
      assert np.max(np.abs(leaf)) <= np.max(np.abs(honest)) * (1 + 1e-5)
  jax.tree.map(np.testing.assert_array_equal, outs[0], outs[1])


def test_sign_guard_of_two_as_large_takes_the_first():
  x = jnp.array([[-1.0, -1], [1, 1], [-1, -1], [1, 1]])
  _, info = lca.explain(lca.sign_guard)(x, fraction=1.0)
  assert np.flatnonzero(info['selected']).tolist() == [0, 2]


# LASA ----------------------------------------------------------------------


@pytest.mark.parametrize(
  'hyper',
  [
    {},
    {'sparsity': 0.0},
    {'sparsity': 0.9, 'norm_bound': 1.0},
    {'sparsity': 0.5, 'norm_bound': 0.3, 'sign_bound': 0.2},
    {'norm_bound': 0.0, 'sign_bound': 0.0},
  ],
)
def test_lasa_follows_the_oracle(hyper):
  tree = reference.stack('cnn', 12)
  bias = tree['params']['layer_1']['bias']
  bias[3] *= 100
  bias[7] = np.nan
  arrays = [array for _, array in reference.leaves(tree)]
  out = jax.jit(functools.partial(lca.lasa, **hyper))(tree)
  for leaf, want in zip(
    jax.tree.leaves(out), reference.lasa(arrays, **hyper), strict=True
  ):
    np.testing.assert_allclose(leaf, want, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize('half', [False, True])
def test_lasa_follows_the_oracle_in_float64(half):
  with jax.enable_x64(True):
    for seed in range(8):
      tree = reference.stack('cnn', 11, seed)
      tree = jax.tree.map(lambda x: np.float64(x) + 1e-9 * np.sin(x), tree)
      if half:  # a tree of both widths
        bias = tree['params']['layer_1']['bias']
        tree['params']['layer_1']['bias'] = bias.astype(np.float32)
      arrays = [array for _, array in reference.leaves(tree)]
      out = lca.lasa(tree, sparsity=0.5)
      for leaf, want in zip(
        jax.tree.leaves(out), reference.lasa(arrays, sparsity=0.5), strict=True
      ):
        # The norms that clip are sums over all leaves, in each its own dtype.
        tolerance = 1e-6 if half else 1e-12
        np.testing.assert_allclose(leaf, want, rtol=tolerance, atol=tolerance)


def test_an_infinite_bound_of_lasa_leaves_the_other_one():
  x = jnp.abs(jnp.asarray(reference.stack('leaf', 11)))  # of one purity
  kept, same = (
    lca.explain(lca.lasa)(x, norm_bound=1.0, sign_bound=bound)[1]['selected']
    for bound in (np.inf, 1e30)
  )
  assert not np.all(kept)
  np.testing.assert_array_equal(kept, same)


def test_lasa_sparsifies_kernels_alone_and_together():
  large = np.arange(1, 11, dtype=np.float32).reshape(1, 2, 5)
  small = large / 100
  tree = {'a': {'kernel': large, 'bias': small[0, :1]}, 'b': {'kernel': small}}
  tree = jax.tree.map(lambda x: np.repeat(x, 3, axis=0), tree)
  out = lca.lasa(tree, sparsity=0.5)
  # Ten of twenty: above the tenth largest there are nine, all in one kernel.
  assert np.sum(np.asarray(out['a']['kernel']) != 0) == 9
  assert np.asarray(out['a']['kernel'])[0, 0] == 0
  assert not np.any(out['b']['kernel'])
  np.testing.assert_allclose(out['a']['bias'], small[0, 0], rtol=1e-6)
  whole = lca.lasa(tree, sparsity=0.0)
  np.testing.assert_allclose(whole['b']['kernel'], small[0], rtol=1e-6)
