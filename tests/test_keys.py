"""Rules that draw at random need a key, and their result depends on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pool
import pytest

import lca

# Draws -----------------------------------------------------------------------


def selections(rule, keys=6, **hyper):
  """Returns the sets of clients that a rule selects, one for every key.

  The clients' updates are pure noise.
  """
  x = jax.random.normal(jax.random.key(0), (11, 300))
  info_of = jax.jit(lambda key: lca.explain(rule)(x, key=key, **hyper)[1])
  each = [info_of(jax.random.key(seed))['selected'] for seed in range(keys)]
  return {tuple(np.flatnonzero(selected).tolist()) for selected in each}


def test_draws_of_coordinates_decide():
  assert len(selections(lca.sign_guard)) > 1
  assert len(selections(lca.sign_guard, fraction=0.5)) > 1
  assert len(selections(lca.sign_guard, fraction=1.0)) == 1
  assert len(selections(lca.dnc, f=3, subsample_dim=20)) > 1
  assert len(selections(lca.dnc, f=3, subsample_dim=300)) == 1


KEYED = {
  'sign_guard': functools.partial(lca.sign_guard, fraction=0.5),
  'dnc': functools.partial(lca.dnc, f=2, subsample_dim=9, num_iters=2),
}


@pytest.mark.parametrize('name', KEYED)
def test_draws_under_vmap_and_for_every_platform(name):
  """Takes NumPy arrays, bfloat16 leaves and a leaf without entries, too."""
  rule, tree = KEYED[name], pool.stack('pair', 11)
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


# Preconditions -------------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'hyper'),
  [('sign_guard', {}), ('dnc', {'f': 1, 'subsample_dim': 1})],
)
def test_a_key_is_asked_for(name, hyper):
  with pytest.raises((TypeError, ValueError), match='key'):
    getattr(lca, name)(jnp.ones((6, 2)), **hyper)
