"""Gram matrix, distances, clip factors and mixtures against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest

import lca


def rows_of(tree):
  return oracles.rows_of([array for _, array in oracles.leaves(tree)])


def gram_of(rows):
  return lca.gram(jnp.asarray(rows, jnp.float32))


def gram64(rows):
  return np.array([[np.dot(a, b) for a in rows] for b in rows])


# gram ----------------------------------------------------------------------


@pytest.mark.parametrize('name', ['leaf', 'cnn', 'edge', 'stats'])
@pytest.mark.parametrize('n', [4, 11])
def test_gram_is_all_inner_products(name, n):
  tree = pool.stack(name, n)
  want = gram64(rows_of(tree))
  got = lca.gram(tree)
  assert got.dtype == jnp.float32
  # Errors are relative to the norms, not to a product that may be near 0.
  np.testing.assert_allclose(got, want, atol=1e-6 * np.max(want))


@pytest.mark.parametrize('columns', [24575, 24576, 24577, 36864, 100_003])
def test_gram_of_many_columns(columns):
  """Adds up chunks of columns, with and without a remainder."""
  x = np.random.default_rng(columns).normal(size=(5, columns))
  x = x.astype(np.float32)
  want = gram64(x.astype(np.float64))
  for gram in (lca.gram, jax.jit(lca.gram)):
    np.testing.assert_allclose(gram(x), want, atol=2e-6 * np.max(want))


def test_every_column_counts_once():
  x = np.ones((2, 3 * 8192 + 5), np.float32)
  np.testing.assert_array_equal(lca.gram(x), np.full((2, 2), x.shape[1]))


def test_gram_of_a_model_is_the_sum_of_its_leaves():
  tree = pool.stack('cnn', 11)
  parts = sum(np.asarray(lca.gram(leaf)) for leaf in jax.tree.leaves(tree))
  np.testing.assert_allclose(lca.gram(tree), parts, rtol=1e-5, atol=1e-4)


def test_gram_adds_bfloat16_in_float32():
  x = jnp.full((2, 1000), 1 + 2**-7, jnp.bfloat16)
  gram = lca.gram(x)
  assert gram.dtype == jnp.float32
  # Exact but for float32's rounding; bfloat16 would stop counting at 256.
  np.testing.assert_allclose(gram, 1000 * (1 + 2**-7) ** 2, rtol=1e-6)


def test_gram_keeps_float64():
  with jax.enable_x64(True):
    x = np.random.default_rng(0).normal(size=(5, 20))
    gram = lca.gram(jnp.asarray(x))
    assert gram.dtype == np.float64
    np.testing.assert_allclose(gram, gram64(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e30])
def test_a_bad_client_spoils_its_own_row_and_column_only(value):
  x = pool.stack('leaf', 11)
  clean = np.asarray(lca.gram(x))
  x[4, 7] = value
  got = np.asarray(lca.gram(x))
  others = np.arange(11) != 4
  np.testing.assert_array_equal(
    got[np.ix_(others, others)], clean[np.ix_(others, others)]
  )


@pytest.mark.parametrize('function', [lca.gram, lambda x: lca.mix(x, None)])
def test_updates_must_be_stacked(function):
  with pytest.raises(ValueError, match=r'(?s)3.*4'):
    function([jnp.zeros((3, 2)), jnp.zeros((4, 2))])
  with pytest.raises(ValueError, match='stacked'):
    function([])
  with pytest.raises(ValueError, match='stacked'):
    function([jnp.zeros((3, 2)), jnp.zeros(())])


# norms and rejected rows ---------------------------------------------------


def test_norms():
  rows = np.array([[3, 4], [0, 0], [np.nan, 1], [1e19, 0], [1e18, 0]])
  gram = gram_of(rows)
  want = np.array([5, 0, np.inf, np.inf, 1e18])
  np.testing.assert_allclose(lca.geometry.norms(gram), want, rtol=1e-6)
  np.testing.assert_allclose(
    lca.geometry.squared_norms(gram), want**2, rtol=1e-6
  )
  np.testing.assert_array_equal(
    lca.geometry.rejected_rows(gram), oracles.rejected(rows)
  )


@pytest.mark.parametrize('share', [0.999, 1.001])
def test_rows_are_rejected_beyond_a_sixteenth_of_the_range(share):
  edge = np.sqrt(share * float(np.finfo(np.float32).max) / 16)
  rows = np.array([[edge, 0], [-edge, 0], [1, 2]])
  bad = lca.geometry.rejected_rows(gram_of(rows))
  np.testing.assert_array_equal(bad, oracles.rejected(rows))
  assert np.asarray(bad).tolist() == [share > 1, share > 1, False]
  between = np.asarray(lca.distances(gram_of(rows)))
  # The squared distance of opposite rows is four times their squared norm.
  assert np.isfinite(between[0, 1]) == (share < 1)


def test_two_halves_may_be_rejected_together():
  """Rejects a row whose norm is in range in every leaf but not as a whole."""
  edge = np.sqrt(0.6 * float(np.finfo(np.float32).max) / 16)
  leaf = jnp.array([[edge], [1.0]], jnp.float32)
  assert not np.any(lca.geometry.rejected_rows(lca.gram(leaf)))
  whole = lca.geometry.rejected_rows(lca.gram([leaf, leaf]))
  assert np.asarray(whole).tolist() == [True, False]


# distances -----------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize(
  ('kind', 'power'), [('euclidean', 1), ('euclidean', 2), ('cosine', None)]
)
@pytest.mark.parametrize('name', ['leaf', 'cnn'])
def test_distances_follow_the_oracle(name, kind, power):
  tree = pool.stack(name, 11)
  rows = rows_of(tree)
  rows[3], rows[7] = 0, 0
  rows[5] = np.nan
  got = lca.distances(gram_of(rows), kind, power)
  want = oracles.distance_matrix(rows, kind, power)
  want[5, 5] = np.inf  # the oracle leaves its diagonal out of every sum
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_default_power_is_the_square():
  gram = gram_of(pool.stack('leaf', 11))
  np.testing.assert_array_equal(
    lca.distances(gram), lca.distances(gram, power=2)
  )


@pytest.mark.parametrize('kind', ['euclidean', 'cosine'])
def test_distances_are_a_dissimilarity(kind):
  x = pool.stack('leaf', 11)
  x[2] = x[1] * (1 + 1e-7)  # rounding may make the squared distance negative
  between = np.asarray(lca.distances(gram_of(x), kind))
  assert np.all(np.diagonal(between) == 0)
  assert np.all(between >= 0)
  # The two divisions of a cosine round.
  np.testing.assert_allclose(between, between.T, rtol=1e-6)


def test_cosine_of_zero_rows():
  between = lca.distances(gram_of([[0, 0], [0, 0], [1, 2], [-3, 1]]), 'cosine')
  assert np.asarray(between)[:2].tolist() == [[0, 0, 2, 2], [0, 0, 2, 2]]


@pytest.mark.parametrize('scale', [1e-12, 1, 1e10, 1e18])
def test_cosine_is_scale_free(scale):
  """Norms near 1e18 have a product that would overflow."""
  rows = np.array([[1, 0], [1, 1], [0, 2], [-1, 0]]) / 2
  want = oracles.distance_matrix(rows, 'cosine')
  got = lca.distances(gram_of(scale * rows), 'cosine')
  np.testing.assert_allclose(got, want, atol=1e-6)
  mixed = rows * np.array([[scale], [1], [1], [scale]])
  got = lca.distances(gram_of(mixed), 'cosine')
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_cosine_stays_between_0_and_2():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 1000)) * rng.choice([1, -1, 2, -3], size=(50, 1))
  between = np.asarray(lca.distances(gram_of(x), 'cosine'))
  assert np.min(between) >= 0 and np.max(between) <= 2


def test_cosine_is_half_the_squared_distance_of_unit_vectors():
  x = pool.stack('leaf', 11).astype(np.float64)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  gram = gram_of(x)
  np.testing.assert_allclose(
    lca.distances(gram, 'cosine'), lca.distances(gram) / 2, atol=1e-6
  )


def test_distances_refuse():
  gram = jnp.eye(3)
  with pytest.raises(ValueError, match=r'power.*3'):
    lca.distances(gram, power=3)
  with pytest.raises(ValueError, match=r'power.*0'):
    lca.distances(gram, power=0)
  with pytest.raises(ValueError, match='power=2'):
    lca.distances(gram, 'cosine', 2)
  with pytest.raises(ValueError, match='manhattan'):
    lca.distances(gram, 'manhattan')


# clip factors --------------------------------------------------------------


@pytest.mark.parametrize('median', ['interpolated', 'lower'])
@pytest.mark.parametrize(
  'norms',
  [
    [1, 2, 3, 4, 5],
    [1, 2, 3, 4],
    [4, 1, 3, 100],
    [0, 0, 0, 5],
    [0, 0, 3, 5],
    [2, np.nan, 9, 1e30],
    [np.inf, 7, np.nan, np.nan],
    [3],
  ],
)
def test_clip_factors_follow_the_oracle(norms, median):
  rows = np.array(norms, float)[:, None] * [[0.6, -0.8]]
  bad = oracles.rejected(rows)
  want = np.where(bad, 1, oracles.clip_factors(rows, median))
  got = lca.geometry.clip_factors(gram_of(rows), median)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_two_medians():
  gram = gram_of([[1.0], [2], [4], [8]])
  factors = lca.geometry.clip_factors
  np.testing.assert_allclose(factors(gram), [1, 1, 0.75, 0.375])
  np.testing.assert_allclose(factors(gram, 'lower'), [1, 1, 0.5, 0.25])
  with pytest.raises(ValueError, match='upper'):
    factors(gram, 'upper')


def test_clip_factors_over_the_rows_not_left_out():
  gram = gram_of([[1.0], [2], [4], [8], [16]])
  out = jnp.array([True, True, False, False, False])
  factors = lca.geometry.clip_factors(gram, rejected=out)
  np.testing.assert_allclose(factors, [1, 1, 1, 1, 0.5])


def test_a_median_of_large_norms_does_not_overflow():
  factors = lca.geometry.clip_factors(gram_of([[4e18], [4e18], [4e18], [1]]))
  np.testing.assert_allclose(factors, 1)


def test_clip_factors_with_nothing_left():
  factors = lca.geometry.clip_factors(gram_of([[np.nan], [np.inf]]))
  np.testing.assert_array_equal(factors, 1)


def test_scale_keeps_dtypes():
  tree = {'a': jnp.ones((2, 3), jnp.bfloat16), 'b': jnp.ones(2)}
  out = lca.geometry.scale(tree, jnp.array([2.0, 0.5]))
  assert out['a'].dtype == jnp.bfloat16 and out['b'].dtype == jnp.float32
  assert out['a'].tolist() == [[2, 2, 2], [0.5, 0.5, 0.5]]
  assert out['b'].tolist() == [2, 0.5]


# mix -----------------------------------------------------------------------


WEIGHTS = {
  'all': np.linspace(0.5, 1.5, 11),
  'some': np.array([0, 0.5, 0, 0, -2, 0, 0.25, 0, 0, 0, 0]),
  'one': np.eye(11)[6],
  'none': np.zeros(11),
}


@pytest.mark.quick
@pytest.mark.parametrize('name', ['cnn', 'edge'])
@pytest.mark.parametrize('weights', WEIGHTS.values(), ids=WEIGHTS)
def test_mix_follows_the_oracle(name, weights):
  tree = pool.stack(name, 11)
  got = jax.jit(lca.mix)(tree, jnp.asarray(weights, jnp.float32))
  for leaf, out in zip(
    jax.tree.leaves(tree), jax.tree.leaves(got), strict=True
  ):
    want = np.tensordot(weights, leaf.astype(np.float64), 1)
    # Eleven float32 products of numbers up to 5.
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)


def test_mix_of_one_row_is_the_row():
  tree = pool.stack('cnn', 11)
  got = jax.jit(lca.mix)(tree, jnp.asarray(WEIGHTS['one'], jnp.float32))
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(y, x[6]), tree, got)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize('bad', [[0], [10], [0, 4, 10]])
def test_a_row_of_weight_zero_is_absent(value, bad):
  x = pool.stack('leaf', 11)
  weights = np.ones(11, np.float32)
  weights[bad] = 0
  want = lca.mix(jnp.asarray(x), jnp.asarray(weights))
  x[bad] = value
  for mix in (lca.mix, jax.jit(lca.mix)):
    np.testing.assert_array_equal(
      mix(jnp.asarray(x), jnp.asarray(weights)), want
    )
  batched = jax.vmap(lca.mix)(jnp.stack([x, x]), jnp.stack([weights] * 2))
  np.testing.assert_allclose(batched, [want, want], rtol=1e-5, atol=1e-6)


def test_mix_lets_a_weighed_nan_through():
  out = lca.mix(jnp.array([[1.0, jnp.nan], [1, 1]]), jnp.array([0.5, 0.5]))
  assert out[0] == 1 and np.isnan(out[1])
  out = lca.mix(jnp.ones((2, 1)), jnp.array([jnp.nan, 0]))
  assert np.isnan(out[0])


def test_a_row_of_weight_zero_has_no_tangent():
  x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
  along = jnp.array([[1.0, 1.0], [jnp.nan, jnp.inf]])
  for weights in (jnp.array([2.0, 0.0]), jnp.array([[2.0, 0.0], [1.0, 0.0]])):
    _, moved = jax.jvp(lambda x, w=weights: lca.mix(x, w), (x,), (along,))
    np.testing.assert_array_equal(
      moved, np.multiply.outer(weights[..., 0], [1, 1])
    )


def test_mix_of_numpy_arrays():
  x, weights = np.eye(3, dtype=np.float32), np.array([0, 1, 0], np.float32)
  np.testing.assert_array_equal(lca.mix(x, weights), x[1])


def test_mix_adds_bfloat16_in_float32():
  x = jnp.ones((1000, 3), jnp.bfloat16)
  out = lca.mix(x, jnp.full(1000, 1.0))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out, jnp.asarray(1000, jnp.bfloat16))
  small = lca.mix(x, jnp.full(1000, 1e-3))
  np.testing.assert_allclose(np.asarray(small, np.float32), 1, rtol=2**-8)


def test_cosines_are_symmetric_to_the_last_bit():
  """Two clients have one distance, whichever comes first, so that ties tie."""
  cosines = lca.geometry.cosines(gram_of(pool.stack('leaf', 25)))
  np.testing.assert_array_equal(cosines, cosines.T)


def angles(gram):
  return jnp.arccos(lca.geometry.cosines(gram))


@pytest.mark.parametrize('form', [lambda rule: rule, lca.layerwise])
def test_a_distance_may_be_a_function(form):
  tree = pool.stack('pair', 11)
  tree = pool.replace_rows(tree, [3, 8], lambda leaf: np.float32(np.nan))
  _, info = lca.explain(form(lca.krum))(tree, f=2, distance=angles)
  groups = oracles.groups(
    tree, 'model' if form is not lca.layerwise else 'leaf'
  )
  arrays = [array for _, array in oracles.leaves(tree)]
  for layer, positions in enumerate(groups):
    rows = oracles.rows_of([arrays[p] for p in positions])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    between = np.arccos(np.clip(unit @ unit.T, -1, 1))
    between[np.isnan(between)] = np.inf
    np.fill_diagonal(between, np.inf)
    scores = np.sort(between, axis=1)[:, :7].sum(axis=1)
    got = np.atleast_2d(info['scores'])[layer]
    np.testing.assert_allclose(got, scores, rtol=1e-5)
    selected = np.atleast_2d(info['selected'])[layer]
    assert np.flatnonzero(selected).tolist() == [np.argmin(scores)]


def test_a_power_belongs_to_the_euclidean_distance():
  for distance in ('cosine', angles):
    with pytest.raises(ValueError, match='power=1'):
      lca.distances(jnp.eye(3), distance, power=1)


# clip_to_median_norm -------------------------------------------------------


@pytest.mark.parametrize('median', ['interpolated', 'lower'])
def test_the_median_norm_lies_among_the_honest(median):
  """Holds for minorities that send long, short, zero or rejected rows."""
  lengths = jax.jit(lambda x: lca.geometry.median_norm(lca.gram(x), median))
  for n, f in ((4, 1), (5, 2), (10, 4), (11, 5)):
    x = np.abs(pool.stack('leaf', n))
    honest = np.linalg.norm(x[f:], axis=1)
    for sent in (0, 1e-30, 1.0, 1e10, 1e18, np.nan, np.inf):
      for count in range(f + 1):  # send `sent`; the other liars send long rows
        x[:f], x[:count] = 1e15, sent
        got = float(lengths(jnp.asarray(x)))
        assert honest.min() * (1 - 1e-5) <= got <= honest.max() * (1 + 1e-5)
