"""Mixtures of distances, and distances by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import lca

NAMES = ('mixed', 'separating', 'rank_weighted')
CLOSE = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)


@functools.cache
def compiled(name):
  """Returns a jitted function from rows to distances."""
  return jax.jit(lambda rows: lca.distances(lca.gram(rows), name))


def rows_like(kind, seed=0):
  """Returns `[11, 6]` rows of which some stand out as `kind` says."""
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(11, 6)) + 3
  if kind == 'turned':
    rows[[1, 4, 7]] *= [1, -1, 1, 1, -1, 1]
    rows *= rng.uniform(0.3, 2, size=(11, 1))
  if kind == 'long':
    rows[[1, 4, 7]] *= 8
  if kind == 'rejected':
    rows[[0, 5]] = [[np.nan] * 6, [1e30] * 6]
  if kind == 'zeros':
    rows[[2, 3]] = 0
  if kind == 'copies':
    rows[:7] = rows[0]
  return rows.astype(np.float32)


KINDS = ('plain', 'turned', 'long', 'rejected', 'zeros')


@pytest.mark.parametrize('kind', KINDS)
def test_mixtures_follow_the_oracle(kind):
  rows = rows_like(kind)
  exact = rows.astype(float)
  wants = {name: getattr(oracles, name)(exact) for name in NAMES}
  separations, mixtures = wants['separating']
  wants['separating'] = mixtures[int(np.argmax(separations))]
  if kind in ('turned', 'long'):  # 0 is the cosine distance
    assert np.argmax(separations) == {'turned': 0, 'long': 4}[kind]
  for name, want in wants.items():
    np.fill_diagonal(want, np.where(np.isinf(np.diag(want)), np.inf, 0))
    CLOSE(compiled(name)(rows), want)


@pytest.mark.parametrize('name', NAMES)
def test_neither_order_nor_length_matters(name):
  rows = rows_like('turned', seed=1)
  order = np.random.default_rng(0).permutation(11)
  want = compiled(name)(rows)
  CLOSE(compiled(name)(rows[order]), want[order][:, order])
  CLOSE(compiled(name)(rows * np.float32(2**-20)), want)


@pytest.mark.parametrize('name', NAMES)
def test_rejected_and_odd_rows(name):
  found = np.asarray(compiled(name)(rows_like('rejected')))
  bad = np.isin(np.arange(11), [0, 5])
  np.testing.assert_array_equal(np.isinf(found), bad[:, None] | bad)
  every = np.full((11, 6), np.nan, np.float32)
  assert np.all(np.isinf(compiled(name)(every)))
  for odd in (np.zeros((11, 6)), np.ones((11, 6)), rows_like('copies')):
    found = np.asarray(compiled(name)(np.asarray(odd, np.float32)))
    assert np.all(np.isfinite(found))
    assert np.all(found >= 0)
  huge = rows_like('plain')
  huge[3] = 1e18
  assert np.max(compiled(name)(huge)) <= 1e4 * (1 + 1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_a_name_is_the_function_in_every_layer(name):
  updates = {'a': rows_like('turned'), 'b': rows_like('long')}
  rule = lca.make_aggregator(
    {'name': 'krum', 'f': 3, 'scope': 'leaf', 'distance': name}
  )
  update, _, info = lca.explain(rule)(updates, rule.init(updates))
  for i, (leaf, rows) in enumerate(updates.items()):
    between = np.asarray(compiled(name)(rows))
    scores = np.sort(between, axis=1)[:, 1:7].sum(axis=1)
    CLOSE(info['scores'][i], scores)
    np.testing.assert_array_equal(update[leaf], rows[np.argmin(scores)])


def test_half_precision():
  rows = jnp.asarray(rows_like('turned'), jnp.bfloat16)
  found = lca.distances(lca.gram(rows), 'separating')
  assert found.dtype == jnp.float32
  CLOSE(found, compiled('separating')(rows.astype(jnp.float32)))


def test_what_mixtures_need():
  gram = lca.gram(rows_like('plain'))
  for f in (-1, 6, 1.5):
    with pytest.raises(ValueError, match=f'n=11, f={f}'):
      lca.geometry.separating(gram, f=f)
  with pytest.raises(ValueError, match='power=1'):
    lca.distances(gram, 'separating', power=1)
