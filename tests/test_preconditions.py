"""Values that rules refuse, and the extreme values that they accept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lca

# Averages and rules over subsets -------------------------------------------


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
    (lca.mda, {'f': 2, 'max_subsets': 14}, '15 subsets .*max_subsets=14'),
    (lca.smea, {'f': 2, 'max_subsets': 14}, '15 subsets .*max_subsets=14'),
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
    ('phocas', {'f': 3}, ['phocas', 'n=6', 'f=3']),
    ('phocas', {'f': -1}, ['f=-1']),
    ('phocas', {'f': 0.5}, ['phocas', 'integer', 'f=0.5']),
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
    ('multi_metrics', {'fraction': 0.0}, ['multi_metrics', 'fraction=0']),
    ('multi_metrics', {'fraction': 1.5}, ['fraction=1.5']),
    ('multi_metrics', {'fraction': np.nan}, ['fraction=nan']),
    ('multi_metrics', {'weights': jnp.ones(5)}, ['(6,)', '(5,)']),
    ('rflbat', {'epsilon_1': 0.5}, ['rflbat', 'epsilon_1=0.5']),
    ('rflbat', {'epsilon_2': np.nan}, ['epsilon_2=nan']),
    ('rflbat', {'max_clusters': 0}, ['max_clusters=0']),
    ('rflbat', {'max_clusters': 2.5}, ['integer', 'max_clusters=2.5']),
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
    ('phocas', {'f': 2}),
    ('phocas', {'f': 0}),
    ('sign_majority', {'theta': 0}),
    ('sign_majority', {'theta': 6}),
    ('bulyan', {'f': 0}),
    ('bulyan_trimmed', {'f': 1, 'm': 5}),
    ('bulyan_trimmed', {'f': 1, 'm': 1, 'trim': 0}),
    ('caf', {'f': 2}),
    ('dnc', {'f': 2}),
    ('multi_metrics', {'fraction': 1.0}),
    ('multi_metrics', {'fraction': 0.01}),
    ('rflbat', {'epsilon_1': 1.0, 'epsilon_2': 1.0, 'max_clusters': 1}),
    ('rflbat', {'max_clusters': 100}),
    ('lasa', {'sparsity': 0.0}),
    ('sign_guard', {'fraction': 1.0}),
  ],
)
def test_the_last_values_that_will_do(name, hyper):
  out = getattr(lca, name)(jnp.ones((6, 2)), **hyper)
  want = -1 if name == 'sign_majority' and hyper['theta'] > 6 else 1
  np.testing.assert_allclose(out, [want, want], rtol=1e-6)
