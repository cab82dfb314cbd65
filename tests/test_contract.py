"""The contract that every rule keeps, plain, cosine and layerwise.

tests/test_properties.py tests what the rules of other people should have, too.
"""

import functools
import pathlib
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest
from cases import (
  MOST,
  OF_MODELS,
  ONCE,
  RULES,
  SHORT,
  Case,
  cases,
  cases_of,
  traces,
)
from comparison import STAGES, TOLERANCE, check
from pool import with_rows

import lca

EVERY = RULES | OF_MODELS
# Rules with derivatives of order statistics or of a fixed point.
SMOOTH = [*oracles.COLUMNS, *STAGES, 'geometric_median']
# The other rules hold their weights, quotients of norms, constant.
HELD = [case for case in ONCE if case.name not in (*SMOOTH, 'lasa')]


# Tracing, order, layers ---------------------------------------


@cases(argvalues=cases_of('model'))
def test_float64_is_followed_in_float64(case):
  with jax.enable_x64(True):
    tree = pool.stack('leaf', 11).astype(np.float64)
    tree[4] *= 1e30  # rejected in float32, but accepted in float64
    extra = case.extra(tree)
    rule = functools.partial(case.rule, **case.hyper(11))
    out = jax.jit(rule)(jnp.asarray(tree), **extra)
    assert out.dtype == np.float64
    rows = np.delete(tree, 4, axis=0)
    if case.spec.promise in ('full', 'hull', 'finite') and case.name not in (
      'meamed',
      'phocas',
    ):
      assert np.max(np.abs(out)) <= np.max(np.abs(rows))
    elif case.name == 'mean':
      np.testing.assert_allclose(out, np.mean(tree, axis=0), rtol=1e-13)


@cases(argvalues=SHORT)
def test_new_values_do_not_recompile(case):
  for seed in range(3):
    tree = pool.stack('pair', 11, seed)
    check(case, tree, *case(tree))
  case(with_rows(tree, [1, 2], 'nan'))
  case(with_rows(tree, [0], 'zeros'))
  assert traces(case, tree) == 1


# Without monna, which has a pivot, and Bulyan: for its last clients, two share
# one distance, and the lowest index decides.
@cases(argvalues=[c for c in SHORT if c.name not in ('monna', 'bulyan')])
def test_the_order_of_the_clients_does_not_matter(case):
  tree = pool.stack('cnn', 11)
  order = np.random.default_rng(3).permutation(11)
  if case.name == 'sign_guard' and case.by == 'leaf':
    tree = pool.stack('wide', 11)  # sign shares of few entries tie too often
  out, info = case(tree)
  moved, moved_info = case(jax.tree.map(lambda x: x[order], tree))
  for leaf, other in zip(
    jax.tree.leaves(out), jax.tree.leaves(moved), strict=True
  ):
    if case.exact:
      np.testing.assert_array_equal(other, leaf)
    else:  # the sums run in another order
      atol = TOLERANCE.get(case.name, 2e-6)
      np.testing.assert_allclose(other, leaf, rtol=1e-5, atol=atol)
  if 'selected' in info:
    np.testing.assert_array_equal(
      moved_info['selected'], np.asarray(info['selected'])[..., order]
    )


@cases(argvalues=cases_of('leaf'))
def test_layerwise_of_one_leaf_is_the_rule(case):
  x = pool.stack('leaf', 11)
  out, info = case(x)
  want, flat = case._replace(by='model')(x)
  # The sums over a batch of one Gram matrix may run in another order. A step of
  # CAF divides their rounding by the gap between the two largest eigenvalues,
  # here a tenth of the larger one. By the oracle, one rounding of every inner
  # product moves the result by 1.1e-6 after the seven steps; a sum of fifty
  # products has a few roundings.
  atol = 5e-6 if case.name == 'caf' else 1e-6
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=atol)
  assert set(info) == set(flat)
  if 'selected' in info:
    np.testing.assert_array_equal(
      info['selected'], np.atleast_2d(flat['selected'])
    )


@pytest.mark.parametrize('name', ['mean', *oracles.COLUMNS])
def test_layerwise_of_a_rule_on_coordinates_is_the_rule(name):
  rule = getattr(lca, name)
  for by in ('leaf', 'module', 'block', 'model'):
    assert lca.layerwise(rule, by=by) is rule


@cases(argvalues=MOST)
def test_exports_for_every_platform(case):
  small = {'a': np.zeros((11, 7), np.float32), 'b': np.zeros(11, np.float32)}
  tree = small if case.by != 'model' else pool.stack('wide', 11)
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
  shapes, extra = jax.tree.map(like, (tree, case.extra(tree)))
  rule = jax.jit(functools.partial(case.rule, **case.hyper(11)))
  platforms = ('cpu', 'cuda', 'tpu')
  exported = jax.export.export(rule, platforms=platforms)(shapes, **extra)
  assert exported.platforms == platforms
  assert len(exported.out_avals) == len(jax.tree.leaves(shapes))


# Derivatives ---------------------------------------------------------------


@cases(argvalues=HELD)
def test_differentiates_with_the_weights_held_fixed(case):
  tree = jax.tree.map(jnp.asarray, pool.stack('pair', 11))
  _, info = case(tree)
  extra = case.extra(tree)
  cotangent = jax.tree.map(lambda x: jnp.cos(jnp.arange(x[0].size)), tree)

  def product(updates):
    out = case.rule(updates, **extra, **case.hyper(11))
    parts = jax.tree.map(lambda x, c: jnp.vdot(x.ravel(), c), out, cotangent)
    return sum(jax.tree.leaves(parts))

  gradient = jax.tree.leaves(jax.jit(jax.grad(product))(tree))
  for i, c in enumerate(jax.tree.leaves(cotangent)):
    weights = np.full(11, 1 / 11)
    if 'weights' in info:
      weights = np.atleast_2d(info['weights'])[i if case.by == 'leaf' else 0]
    want = weights[:, None] * np.asarray(c)
    got = np.asarray(gradient[i]).reshape(11, -1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@cases(argvalues=cases_of('model', names=SMOOTH))
def test_differentiates_as_differences_do(case):
  with jax.enable_x64(True):
    x = jnp.asarray(pool.stack('leaf', 11), jnp.float64)
    along = jnp.asarray(pool.stack('leaf', 11, seed=1), jnp.float64)
    hyper = case.hyper(11)
    if case.name == 'geometric_median':
      # Iterate to convergence: the differences below are those of the limit.
      hyper |= {'tol': 1e-13, 'num_iters': 2000}
    rule = jax.jit(functools.partial(case.rule, **hyper))
    out, got = jax.jvp(rule, (x,), (along,))
    cotangent = jnp.cos(jnp.arange(50.0))
    (back,) = jax.jit(jax.vjp(rule, x)[1])(cotangent)
    step = 1e-6
    want = (rule(x + step * along) - rule(x - step * along)) / (2 * step)
    if case.kind == 'cosine':
      # The clip is held constant in derivatives, but not in the differences.
      # Along the updates themselves, both derivatives equal the update.
      _, got = jax.jvp(rule, (x,), (x,))
      want, along = out, x
    # Differences of float64 numbers lose half of their digits.
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
      jnp.vdot(back, along), jnp.vdot(cotangent, want), rtol=1e-6
    )


@pytest.mark.parametrize('by', ['model', 'leaf'])
def test_lasa_differentiates_along_the_updates(by):
  """LASA is homogeneous: along the updates, the derivative is the update."""
  case = Case('lasa', 'euclidean', by)
  tree = jax.tree.map(jnp.asarray, pool.stack('pair', 11))
  out, tangent = jax.jit(lambda t: jax.jvp(case.rule, (t,), (t,)))(tree)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, tangent, out)


# What all rules refuse -----------------------------------------------------


@cases(argvalues=SHORT)
def test_updates_must_be_stacked(case):
  rule = functools.partial(case.rule, **case.hyper(11))
  for bad, words in [
    ({'a': jnp.zeros((11, 2)), 'b': jnp.zeros((12, 2))}, r'(?s)11.*12'),
    ({}, 'stacked'),
    ({'a': jnp.zeros((11, 2)), 'b': jnp.zeros(())}, 'stacked'),
  ]:
    names = {
      'fltrust': 'server_update',
      'flame': 'params',
      'align_ins': 'params',
    }
    extra = {names[case.name]: bad} if case.name in names else {}
    with pytest.raises(ValueError, match=words):
      rule(bad, **extra)


@pytest.mark.parametrize('name', EVERY)
def test_rules_without_a_distance_have_no_cosine_form(name):
  if not EVERY[name].cosine:
    with pytest.raises(TypeError, match=name):
      lca.cosine(getattr(lca, name))


@pytest.mark.parametrize('name', EVERY)
def test_hyper_parameters_are_keywords(name):
  with pytest.raises(TypeError):
    getattr(lca, name)(jnp.zeros((11, 3)), 2)


def promises():
  """Returns the promises by name, from the tables of docs/rules.md."""
  page = pathlib.Path(lca.__file__).parents[1] / 'docs' / 'rules.md'
  found, column = {}, None
  for line in page.read_text().splitlines():
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    if 'promise' in cells:
      column = cells.index('promise')
    elif not line.startswith('|'):
      column = None
    elif column is not None and cells[0].startswith('`'):
      found[cells[0].strip('`')] = cells[column]
  return found


def test_every_promise_is_in_the_docs():
  aggregators = lca.aggregators.AGGREGATORS
  assert sorted(promises()) == sorted([*EVERY, *aggregators])


@pytest.mark.parametrize('name', promises())
def test_the_docstrings_promise_what_the_docs_do(name):
  text = promises()[name]
  docstring = ' '.join(getattr(lca, name).__doc__.split())
  assert f' Promise (docs/rules.md): {text}. ' in docstring
  if name in EVERY:
    assert re.match(r'\w+', text)[0] == EVERY[name].promise
