"""Aggregators with a state, over several rounds."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest
from cases import params
from hypothesis import given, settings
from hypothesis import strategies as st
from pool import ACCEPTED, REJECTED, at_random, with_rows
from stateful_cases import MADE, NEEDS, Oracle

import lca
from lca.aggregators.base import ExplainedUpdate

FORMS = [(name, by) for name in MADE for by in ('model', 'leaf')]
forms = pytest.mark.parametrize('form', FORMS, ids='-'.join)
# The error of sums of rounded products, over five rounds.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5)


@functools.cache
def pair(form):
  """Returns an aggregator, which is given a tree if it needs one."""
  name, by = form
  made = getattr(lca, name.split(',')[0])(**MADE[name])
  made = made if by == 'model' else lca.layerwise(made, by=by)
  if name not in NEEDS:
    return made

  def explain_update(updates, state):
    brought = {NEEDS[name]: params(updates)}
    return lca.explain(made)(updates, state, **brought)

  return lca.Aggregator(made.init, ExplainedUpdate(explain_update))


@functools.cache
def update(form):
  return jax.jit(lambda updates, state: pair(form).update(updates, state))


def init(form, tree):
  return pair(form).init(jax.tree.map(lambda x: jnp.asarray(x[0]), tree))


def rounds(name, n=11, bad=None, count=5):
  """Yields one tree per round; from the second on with bad rows if asked."""
  for seed in range(count):
    tree = pool.stack(name, n, seed)
    if bad is not None and seed:
      tree = with_rows(tree, at_random(n, 1 + seed % 4, seed), bad)
    yield tree


@forms
@pytest.mark.parametrize('bad', [None, 'nan', 'zeros'])
def test_follows_the_oracle_round_after_round(form, bad):
  oracle, state = Oracle(form), None
  for tree in rounds('cnn', bad=bad):
    state = init(form, tree) if state is None else state
    out, state = update(form)(tree, state)
    oracle.check(tree, out)


@forms
def test_follows_the_oracle_at_once_and_eagerly(form):
  oracle, state = Oracle(form), None
  for tree in rounds('pair', count=2):
    tree = jax.tree.map(jnp.asarray, tree)
    state = init(form, tree) if state is None else state
    out, state = pair(form).update(tree, state)
    oracle.check(tree, out)


@forms
@pytest.mark.parametrize('kind', [*REJECTED, *ACCEPTED, 'copies'])
def test_any_rows_are_survived(form, kind):
  oracle, state = Oracle(form), None
  for seed in range(2):
    tree = with_rows(pool.stack('cnn', 11, seed), [1, 4, 5, 9], kind)
    state = init(form, tree) if state is None else state
    out, state = update(form)(tree, state)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))
    if kind in REJECTED:
      oracle.check(tree, out)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
@forms
def test_the_answer_stays_within_reach(form, data):
  """The update is bounded by the clips, whatever four rows hold."""
  seed = data.draw(st.integers(0, 9), 'seed')
  tree = pool.stack('cnn', 11, seed)
  rows = data.draw(st.permutations(range(11)), 'rows')[:4]
  anything = st.one_of(
    st.sampled_from([*(REJECTED | ACCEPTED).values()]), st.floats(width=32)
  )
  honest = np.setdiff1d(np.arange(11), rows)
  for row in rows:
    value = np.float32(data.draw(anything, f'row {row}'))
    for leaf in jax.tree.leaves(tree):
      leaf[row] = value
  out, _ = update(form)(tree, init(form, tree))
  name, hyper = form[0].split(',')[0], MADE[form[0]]
  arrays = [array for _, array in oracles.leaves(tree)]
  outs = [np.asarray(leaf).astype(float) for leaf in jax.tree.leaves(out)]
  for positions in oracles.groups(tree, form[1]):
    own = oracles.rows_of([arrays[p] for p in positions])[honest]
    if name == 'adaptive_clip':
      limit = hyper['threshold']
    elif name == 'crfl':  # the new model is no longer than the clip
      leaves = jax.tree.leaves(params(tree))
      model = np.concatenate([leaves[p].ravel() for p in positions])
      limit = hyper['rho'] + hyper['growth'] + np.linalg.norm(model)
    elif name == 'centered_clip':
      limit = hyper['threshold'] * hyper.get('num_iters', 1)
    else:  # the median of the norms is no longer than an honest one
      limit = np.max(np.linalg.norm(own, axis=1))
    moved = np.concatenate([outs[p].ravel() for p in positions])
    assert np.linalg.norm(moved) <= limit * (1 + 1e-5)


@forms
def test_nothing_left(form):
  """Without usable rows, centred clipping keeps v, an adaptive clip returns
  zero, and averages are NaN.
  """
  state = before = None
  for i, tree in enumerate(rounds('cnn', count=3)):
    state = init(form, tree) if state is None else state
    if i == 1:
      tree = with_rows(tree, np.arange(11), 'nan')
    out, state = update(form)(tree, state)
    if i == 1:
      if form[0].startswith('centered'):
        jax.tree.map(np.testing.assert_array_equal, out, before)
      elif form[0].startswith('adaptive'):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(out))
      else:
        assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(out))
    else:  # the next round is not affected
      assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))
    before = out


@forms
def test_the_order_of_the_clients_does_not_matter(form):
  state = moved_state = None
  for seed, tree in enumerate(rounds('cnn', count=3)):
    state = init(form, tree) if state is None else state
    moved_state = state if moved_state is None else moved_state
    order = np.random.default_rng(seed).permutation(11)
    out, state = update(form)(tree, state)
    moved = jax.tree.map(lambda x, order=order: x[order], tree)
    other, moved_state = update(form)(moved, moved_state)
    jax.tree.map(CLOSE, other, out)


@forms
def test_states_keep_their_structure_and_dtypes_are_the_leaves(form):
  tree = pool.stack('pair', 11)
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree)
  half['bias'] = jnp.asarray(tree['bias'])
  state = init(form, half)
  describe = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
  out, after = update(form)(half, state)
  assert describe(out) == jax.tree.map(lambda x: (x.shape[1:], x.dtype), half)
  assert describe(after) == describe(state)
  out, again = update(form)(half, after)
  assert describe(again) == describe(state)


@forms
def test_rounds_may_be_scanned(form):
  """The rounds of a `lax.scan` follow the oracle as those of a Python loop."""
  trees = list(rounds('pair', count=3))
  batch = jax.tree.map(lambda *x: np.stack(x), *trees)

  @jax.jit
  def loop(batch, state):
    def step(state, tree):
      out, state = pair(form).update(tree, state)
      return state, out

    return jax.lax.scan(step, state, batch)[1]

  outs = loop(batch, init(form, trees[0]))
  oracle = Oracle(form)
  for i, tree in enumerate(trees):
    oracle.check(tree, jax.tree.map(lambda x, i=i: x[i], outs))


@pytest.mark.parametrize('name', [*MADE, 'legato'])
def test_vmap_is_a_loop(name):
  made = lca.legato(window=3) if name == 'legato' else pair((name, 'model'))
  trees = [list(rounds('pair', count=4))[i:] for i in range(2)]
  stack = lambda *x: np.stack(x)  # noqa: E731
  state = made.init(jax.tree.map(lambda x: jnp.asarray(x[0]), trees[0][0]))
  states = [state, state]
  both = jax.tree.map(stack, *states)
  batched, single = jax.jit(jax.vmap(made.update)), jax.jit(made.update)
  for now in zip(*trees, strict=False):
    outs, both = batched(jax.tree.map(stack, *now), both)
    for i, tree in enumerate(now):
      want, states[i] = single(tree, states[i])
      jax.tree.map(CLOSE, jax.tree.map(lambda x, i=i: x[i], outs), want)


@pytest.mark.parametrize('name', MADE)
def test_differentiates_with_the_weights_held_fixed(name):
  form, (first, now, along) = (name, 'model'), rounds('leaf', count=3)
  _, state = update(form)(first, init(form, first))
  explained = functools.partial(lca.explain(pair(form)), state=state)
  _, _, info = jax.jit(explained)(now)
  _, got = jax.jit(lambda x, t: jax.jvp(lambda x: explained(x)[0], (x,), (t,)))(
    now, along
  )
  CLOSE(got, info['weights'] @ along)


@forms
def test_exports_for_every_platform(form):
  tree = pool.stack('pair', 11)
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
  arguments = jax.tree.map(like, (tree, init(form, tree)))
  platforms = ('cpu', 'cuda', 'tpu')
  exported = jax.export.export(update(form), platforms=platforms)(*arguments)
  assert exported.platforms == platforms


@forms
def test_explain_gives_what_was_decided(form):
  tree = pool.stack('cnn', 11)
  tree = with_rows(tree, [3], 'nan')
  out, state, info = lca.explain(pair(form))(tree, init(form, tree))
  layers = () if form[1] == 'model' else (len(jax.tree.leaves(tree)),)
  assert info['rejected'].shape == (*layers, 11)
  assert np.all(np.asarray(info['rejected'])[..., 3])
  want, want_state = update(form)(tree, init(form, tree))
  jax.tree.map(CLOSE, (out, state), (want, want_state))


def test_layerwise_of_one_leaf_is_the_aggregator():
  for name in ('centered_clip', 'clipped_clustering'):
    state = flat_state = None
    for tree in rounds('leaf', count=2):
      if state is None:
        state = init((name, 'leaf'), tree)
        flat_state = init((name, 'model'), tree)
      out, state = update((name, 'leaf'))(tree, state)
      want, flat_state = update((name, 'model'))(tree, flat_state)
      CLOSE(out, want)


# Preconditions -------------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'hyper', 'words'),
  [
    ('centered_clip', {'threshold': 0.0}, 'threshold=0'),
    ('centered_clip', {'threshold': -1.0}, 'threshold=-1'),
    ('centered_clip', {'threshold': 1.0, 'num_iters': 0}, 'num_iters=0'),
    ('centered_clip', {'threshold': 1.0, 'init': 'median'}, "'median'"),
    ('centered_clip', {'threshold': 1.0, 'num_iters': 1.5}, 'num_iters=1.5'),
    ('clipped_clustering', {'window': 11.5}, 'window=11.5'),
    ('legato', {'window': 2.5}, 'window=2.5'),
    ('crfl', {'sigma': -1.0}, 'sigma=-1'),
    ('crfl', {'growth': np.inf}, 'growth=inf'),
    ('crfl', {'rho': 0.0}, 'rho=0'),
    ('crfl', {'rho_max': np.nan}, 'rho_max=nan'),
    ('crfl', {}, 'crfl needs params'),
    ('learned_distance', {'f': -1}, 'f=-1'),
    ('learned_distance', {'f': 1, 'share': 1.0}, 'share=1'),
    ('learned_distance', {'f': 1, 'temperature': 0.0}, 'temperature=0'),
    ('learned_distance', {'f': 1, 'rate': np.nan}, 'rate=nan'),
    ('learned_distance', {'f': 1}, 'needs server_update'),
    ('adaptive_clip', {'threshold': 0.0}, 'threshold=0'),
    ('adaptive_clip', {'quantile': 1.5}, 'quantile=1.5'),
    ('adaptive_clip', {'quantile': np.nan}, 'quantile=nan'),
    ('adaptive_clip', {'rate': -0.1}, 'rate=-0.1'),
    ('adaptive_clip', {'noise_multiplier': np.inf}, 'noise_multiplier=inf'),
    ('adaptive_clip', {'count_noise': -1.0}, 'count_noise=-1'),
    ('adaptive_clip', {'noise_multiplier': 0.1}, 'needs a key'),
    ('adaptive_clip', {'count_noise': 0.1}, 'needs a key'),
    (
      'adaptive_clip',
      {'noise_multiplier': 0.6},
      r'=0\.6, count_noise=0\.3, n=6',
    ),
    ('clipped_clustering', {'window': 0}, 'window=0'),
    ('clipped_clustering', {'threshold': 0.0}, 'threshold=0'),
  ],
)
def test_what_aggregators_need(name, hyper, words):
  with pytest.raises(ValueError, match=words):
    pair = getattr(lca, name)(**hyper)
    pair.update(jnp.ones((6, 2)), pair.init(jnp.ones(2)))
