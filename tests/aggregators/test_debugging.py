"""Every rule without jit, and with JAX looking for NaN.

Researchers debug in both ways. On finite updates no rule produces an
intermediate NaN, and every rule works without compilation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pool
import pytest
from cases import ONCE
from comparison import TOLERANCE

import lca

N = 11
MODES = {
  'without_jit': jax.disable_jit,
  'debug_nans': functools.partial(jax.debug_nans, True),
}
modes = pytest.mark.parametrize('mode', MODES.values(), ids=MODES)
PRE_AGGREGATORS = {
  'arc': {'f': 2},
  'bucketing': {'key': jax.random.key(0)},
  'clip_to_median_norm': {},
  'nnm': {'f': 2},
  'static_clip': {'threshold': 1.0},
}
AGGREGATORS = {
  'adaptive_clip': lca.adaptive_clip(),
  'centered_clip': lca.centered_clip(threshold=1.0, num_iters=2),
  'clipped_clustering': lca.clipped_clustering(window=2 * N),
  'layerwise': lca.layerwise(lca.clipped_clustering(window=2 * N)),
  'crfl': lca.crfl(),
  'fl_detector': lca.fl_detector(num_clients=N, window=1, start=3),
  'flanders': lca.flanders(f=2, num_clients=N, num_iters=3, subsample_dim=9),
  'learned_distance': lca.learned_distance(f=2),
  'legato': lca.legato(window=3),
  'spectral': lca.legato(window=3, norm='spectral'),
}
FORMS = {
  'chain': lca.chain(lca.nnm, lca.bulyan),
  'clip_by_leaf': lca.cosine(lca.bulyan, clip_by='leaf'),
  'layerwise_chain': lca.layerwise(lca.chain(lca.nnm, lca.median)),
}


@functools.cache
def tree():
  return jax.tree.map(jnp.asarray, pool.stack('pair', N, 0))


def same(mode, function, tolerance=2e-6):
  """Checks that the function returns the same in the mode as under jit."""
  want = jax.jit(function)(tree())
  with mode():
    got = function(tree())
  for x, y in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    assert np.all(np.isfinite(x))
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=tolerance)


# One rule of each machinery: weights of the Gram matrix, rounds of selection,
# order statistics, an iteration, eigenvectors. Without jit every operation is
# compiled by itself, which takes seconds a rule; `--thorough` tries them all.
WITHOUT_JIT = ('krum', 'bulyan', 'median', 'geometric_median', 'caf', 'fltrust')


@pytest.mark.parametrize(
  ('case', 'mode'),
  [
    pytest.param(
      case,
      mode,
      id=f'{case}-{name}',
      marks=()
      if name != 'without_jit' or case.name in WITHOUT_JIT
      else pytest.mark.thorough,
    )
    for name, mode in MODES.items()
    for case in ONCE
  ],
)
def test_rules(case, mode):
  hyper = case.extra(tree()) | case.hyper(N)
  tolerance = TOLERANCE.get(case.name, 2e-6)
  same(mode, lambda x: case.rule(x, **hyper), tolerance)


@modes
@pytest.mark.parametrize('name', PRE_AGGREGATORS)
def test_pre_aggregators(name, mode):
  same(mode, lambda x: getattr(lca, name)(x, **PRE_AGGREGATORS[name]))


@modes
@pytest.mark.parametrize('name', FORMS)
def test_forms(name, mode):
  same(mode, lambda x: FORMS[name](x, f=1))


@modes
@pytest.mark.parametrize('name', AGGREGATORS)
def test_aggregators(name, mode):
  aggregator = AGGREGATORS[name]

  def rounds(x):
    one = jax.tree.map(lambda leaf: leaf[0], x)
    state, given = aggregator.init(one), {'key': jax.random.key(0)}
    given |= {'params': one, 'server_update': one, 'client_ids': jnp.arange(N)}
    for power in (1, 2, 3):  # the layers' shares of the norm vary
      rows = jax.tree.map(lambda leaf, by=power: leaf**by, x)
      update, state = aggregator.update(rows, state, **given)
    return update

  same(mode, rounds)
