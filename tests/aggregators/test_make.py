"""Tests of `make_aggregator`: from names and options to an aggregator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pool
import pytest
from cases import cases, cases_of

import lca


def test_make_aggregator_takes_the_layers_of_legato_from_the_scope():
  with pytest.raises(TypeError, match=r"got 'by', .*'scope'"):
    lca.make_aggregator({'name': 'legato', 'by': 'leaf'})


@cases(argvalues=cases_of('model', 'leaf', 'module', 'block'))
def test_make_aggregator_reaches_every_case(case):
  tree = pool.stack('stats', 11)
  config = {'name': case.name, 'scope': case.by, **case.hyper(11)}
  if case.spec.cosine:
    config['distance'] = case.kind
  aggregator = lca.make_aggregator(config)
  update = functools.partial(aggregator.update, **case.extra(tree))
  shape = jax.eval_shape(update, tree, aggregator.init(tree))[0]
  assert jax.tree.structure(shape) == jax.tree.structure(tree)


def test_make_aggregator_options_arrive():
  x = jnp.asarray(pool.stack('leaf', 12))
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
  """The distance reaches `pre`, whether or not the rule has a distance."""
  x = jnp.asarray(pool.stack('leaf', 11))
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
  x = jnp.asarray(pool.stack('leaf', 11))
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


@pytest.mark.quick
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
