"""Rules, updates and helpers that the tests of combinators share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pool
import pytest

import lca

RULES = {
  'krum': (lca.krum, {'f': 2}),
  'multi_krum': (lca.multi_krum, {'f': 2, 'm': 4}),
  'medoid': (lca.medoid, {}),
}
EQUAL = np.testing.assert_array_equal


every_rule = pytest.mark.parametrize('name', RULES)


def same(one, other, compare=EQUAL):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(compare, one, other)


def stack(name, n=11, seed=0):
  return jax.tree.map(jnp.asarray, pool.stack(name, n, seed))


def uneven(name, n=12, seed=0):
  """Returns updates whose norms differ by leaf and client, so clips act."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: (
      x * rng.uniform(0.2, 5, (n,) + (1,) * (x.ndim - 1)).astype(np.float32)
    ),
    pool.stack(name, n, seed),
  )


def explain(form, tree, **hyper):
  return jax.jit(functools.partial(lca.explain(form), **hyper))(tree)


def call(form, tree, **hyper):
  return jax.jit(functools.partial(form, **hyper))(tree)
