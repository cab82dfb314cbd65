"""LEGATO against Algorithm 2 with the log of all workers' gradients."""

import functools
import warnings
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracles
import pool
import pytest
from cases import TRACES, signature
from pool import REJECTED

import lca

pytestmark = pytest.mark.filterwarnings('ignore:.*layers.*:UserWarning')

SHAPES = {
  'params': {
    'conv': {'bias': (2,), 'kernel': (3, 3, 1, 2)},
    'head': {'bias': (3,), 'kernel': (4, 3)},
    'scale': (),
  }
}
NUM_LEAVES, NUM_MODULES = 5, 3
N = 7
# The error of sums of seven rounded numbers, of magnitude up to some tens.
CLOSE = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-5)
EQUAL = np.testing.assert_array_equal


class Hyper(NamedTuple):
  window: int
  by: str = 'leaf'
  norm: str = 'frobenius'
  normalize: str = 'sum'
  divisor: str = 'past'

  def __str__(self):
    return '-'.join(map(str, self))


OTHER = {
  'by': 'module',
  'norm': 'spectral',
  'normalize': 'max',
  'divisor': 'window',
}
ALL_WINDOWS = [Hyper(window) for window in range(1, 11)]
# Each option in two windows: alone, and together with all the others.
EVERY_OPTION = [
  *(Hyper(8, **{name: value}) for name, value in OTHER.items()),
  Hyper(3, **OTHER),
]
TYPICAL = [Hyper(4), Hyper(3, **OTHER)]
hypers = functools.partial(pytest.mark.parametrize, 'hyper', ids=str)


def tree_of(leaf):
  """Returns the tree of `leaf(shape)` for every shape of a client's update."""
  return jax.tree.map(leaf, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def gradients(count, n=N, seed=0, dtype=np.float32):
  """Returns one tree per round, with random scales of leaves and clients.

  The layers' shares of the norm then vary by tens of percent.
  """
  rng = np.random.default_rng([seed, n])

  def leaf(shape):
    ranks = (1,) * len(shape)
    size = rng.lognormal(sigma=0.7) * rng.lognormal(sigma=0.5, size=(n, *ranks))
    return (size * (0.5 + rng.normal(size=(n, *shape)))).astype(dtype)

  return [tree_of(leaf) for _ in range(count)]


def constant(value, n=N):
  return tree_of(lambda shape: np.full((n, *shape), value, np.float32))


def with_row(tree, row, value):
  return pool.replace_rows(tree, [row], lambda leaf: np.float32(value))


def params(tree):
  return jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), tree)


def init(hyper, tree):
  return lca.legato(**hyper._asdict()).init(params(tree))


@functools.cache
def step(hyper):
  """Returns a jitted `(updates, state) -> (update, state, info)`."""
  explain = lca.explain(lca.legato(**hyper._asdict()))

  def traced(updates, state):
    TRACES[hyper, signature(updates)] += 1
    return explain(updates, state)

  return jax.jit(traced)


def run(hyper, trees, function=None):
  """Yields `(update, state, info)` of every round."""
  state = init(hyper, trees[0])
  for tree in trees:
    update, state, info = (function or step(hyper))(tree, state)
    yield update, state, info


def finite(tree):
  return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


# Following the oracle ------------------------------------------------------


# The relative error of norms: roots of sums of some hundred rounded squares.
ROUNDING = {np.float32: 1e-6, np.float64: 1e-14}


def oracle(hyper, trees):
  """Yields (update, factors, norms `[rounds, layers]`, log) of every round."""
  log = []
  for tree in trees:
    update, log, factors = oracles.legato(tree, log, **hyper._asdict())
    layers = oracles.groups(tree, hyper.by)
    yield update, factors, oracles.legato_norms(log, layers, hyper.norm), log


def sensitivity(norms):
  """Returns by how much the factors amplify a relative error of the norms.

  A deviation is a difference of norms, which is smaller than the norms. If the
  norms are constant, the deviation is the floor, 1e-6 of the largest norm.
  """
  if len(norms) < 2:
    return 0
  mean = np.mean(norms, axis=0)
  return np.max(mean / (np.std(norms, axis=0) + 1e-6 * np.max(mean)), initial=1)


def scales(log):
  """Returns the largest entry of every leaf in the log."""
  return [
    max(np.max(np.abs(arrays[p][accepted])) for arrays, accepted in log)
    for p in range(NUM_LEAVES)
  ]


def follow(hyper, trees, dtype=np.float32):
  """Compares every round with the oracle; returns the largest sensitivity."""
  worst = 0
  rounds = zip(run(hyper, trees), oracle(hyper, trees), strict=True)
  for (update, state, _), (want, factors, norms, log) in rounds:
    # The factor is a quotient; numerator and denominator have the norms' error.
    slack = 2 * ROUNDING[dtype] * sensitivity(norms)
    worst = max(worst, sensitivity(norms))
    np.testing.assert_allclose(state.factors, factors, rtol=slack)
    leaves = jax.tree.leaves(update)
    wants = [array for _, array in oracles.leaves(want)]
    for leaf, array, scale in zip(leaves, wants, scales(log), strict=True):
      assert leaf.dtype == dtype
      # The factors weigh entries as large as the gradients in the log.
      atol = (slack + ROUNDING[dtype]) * scale
      np.testing.assert_allclose(leaf, array, rtol=0, atol=atol)
  return worst


@hypers(argvalues=[*ALL_WINDOWS, *EVERY_OPTION])
def test_follows_the_oracle_round_after_round(hyper):
  # With a larger sensitivity, the tolerance would accept any factors.
  assert follow(hyper, gradients(30)) < 1e3


@hypers(argvalues=TYPICAL)
def test_follows_the_oracle_in_float64(hyper):
  with jax.enable_x64(True):
    assert follow(hyper, gradients(12, dtype=np.float64), np.float64) < 1e3


def test_the_readings_differ():
  """The options give different results, so the tests above tell them apart."""
  trees = gradients(6)
  updates = []
  for hyper in [Hyper(8)] + [Hyper(8, **{k: v}) for k, v in OTHER.items()]:
    *_, (update, *_) = oracle(hyper, trees)
    updates.append(update['params']['head']['kernel'])
  for i, one in enumerate(updates):
    for other in updates[:i]:
      assert np.max(np.abs(one - other)) > 1e-2 * np.max(np.abs(one))


@pytest.mark.quick
def test_a_run_by_hand():
  """One client has two layers of one number; P are the shares of the norm.

  The floor, 1e-6 of a mean near 0.8, moves factors by 4e-6 of themselves.
  """
  rounds = [(3.0, 4.0), (8.0, 6.0), (0.0, 5.0)]  # P: (.6, .8) (.8, .6) (0, 1)
  for options, wants in [
    # The deviations are (.1, .1), then, over the last two rounds, (.4, .2).
    ({'window': 2}, [(3, 4), (5.5, 5), (16 / 3, 16 / 3)]),
    ({'window': 2, 'normalize': 'max'}, [(3, 4), (8, 6), (4, 5)]),
    ({'window': 3, 'divisor': 'window'}, [(3, 4), (4.75, 4)]),
    ({'window': 3, 'by': 'model'}, rounds),  # with one layer, its factor is 1
    ({'window': 1}, rounds),
  ]:
    agg = lca.legato(**options)
    run_round = jax.jit(agg.update)
    state, log = agg.init({'a': jnp.zeros(1), 'b': jnp.zeros(1)}), []
    for (a, b), want in zip(rounds, wants, strict=False):
      tree = {'a': jnp.array([[a]]), 'b': jnp.array([[b]])}
      update, state = run_round(tree, state)
      CLOSE([*update['a'], *update['b']], want, rtol=1e-5)
      update, log, _ = oracles.legato(tree, log, **options)
      CLOSE([*update['a'], *update['b']], want, rtol=1e-5)


@pytest.mark.parametrize(('norm', 'want'), [('frobenius', 2), ('spectral', 1)])
def test_norms_by_hand(norm, want):
  """Layer a has four orthogonal unit rows; all norms sum to 4 sqrt(2)."""
  tree = {'a': jnp.eye(4), 'b': jnp.ones(4)}
  agg = lca.legato(window=1, norm=norm)
  state = agg.init({'a': jnp.zeros(4), 'b': jnp.zeros(())})
  _, state = jax.jit(agg.update)(tree, state)
  CLOSE(state.norms, np.array([[want, 2]]) / (4 * np.sqrt(2)))


def test_a_layer_that_does_not_vary_keeps_its_present():
  """The norms are (2, 1, 2) / 3 and (2, 2, 1) / 3: layer 0 does not vary.

  The deviation of layer 0 is the floor, 1e-6 * 2/3, the others' is 1/6: the
  factors are 1 - 8e-6 and 4e-6.
  """
  agg = lca.legato(window=2)
  run_round = jax.jit(agg.update)
  state = agg.init([jnp.zeros(1)] * 3)
  for tree in ([2.0, 1.0, 2.0], [2.0, 2.0, 1.0]):
    update, state = run_round([jnp.array([[x]]) for x in tree], state)
  CLOSE(state.factors, [1 - 8e-6, 4e-6, 4e-6], rtol=0.3, atol=0)
  CLOSE(np.ravel(update), [2, 1, 2], rtol=1e-5)


def test_of_one_layer_it_is_the_mean():
  hyper, trees = Hyper(4, by='model'), gradients(6)
  for tree, (update, *_) in zip(trees, run(hyper, trees), strict=True):
    jax.tree.map(lambda out, x: CLOSE(out, np.mean(x, axis=0)), update, tree)


# The state -----------------------------------------------------------------


def in_any_order(rows):
  return np.sort(np.asarray(rows), axis=0)


@hypers(argvalues=TYPICAL)
def test_the_state_holds_the_norms_and_the_past_means(hyper):
  trees = gradients(9)
  rounds = zip(run(hyper, trees), oracle(hyper, trees), strict=True)
  layers = NUM_LEAVES if hyper.by == 'leaf' else NUM_MODULES
  for i, ((_, state, _), (_, _, norms, _)) in enumerate(rounds):
    assert int(state.count) == i + 1
    assert state.norms.shape == (hyper.window, layers)
    CLOSE(in_any_order(state.norms[: i + 1]), in_any_order(norms))
    kept = trees[: i + 1][-(hyper.window - 1) :]
    rings = jax.tree.leaves(state.past)
    for ring, *leaves in zip(rings, *map(jax.tree.leaves, kept), strict=True):
      assert ring.shape == (hyper.window - 1, *leaves[0].shape[1:])
      means = [np.mean(leaf, axis=0, dtype=np.float64) for leaf in leaves]
      CLOSE(in_any_order(ring[: i + 1]), in_any_order(means))


@hypers(argvalues=TYPICAL)
def test_the_state_does_not_grow_with_the_clients(hyper):
  describe = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
  states = []
  for n in (5, 50):
    tree = constant(1, n)
    state = init(hyper, tree)
    _, after, _ = jax.eval_shape(step(hyper), tree, state)
    assert describe(after) == describe(state)
    states.append(describe(after))
  assert states[0] == states[1]


# Compilation and dtypes ----------------------------------------------------


@hypers(argvalues=TYPICAL)
def test_no_round_recompiles(hyper):
  """One trace serves all rounds, and a state that jitted `init` made."""
  trees = gradients(9)
  for _ in run(hyper, trees):
    pass
  step(hyper)(trees[0], jax.jit(lambda tree: init(hyper, tree))(trees[0]))
  assert TRACES[hyper, signature(trees[0])] == 1


@hypers(argvalues=[Hyper(4)])
def test_jit_is_eager(hyper):
  trees = [jax.tree.map(jnp.asarray, t['params']['head']) for t in gradients(3)]
  eager = lca.explain(lca.legato(**hyper._asdict()))
  for out, want in zip(
    run(hyper, trees), run(hyper, trees, eager), strict=True
  ):
    # XLA sums in another order; `sensitivity` says how errors grow.
    jax.tree.map(functools.partial(CLOSE, rtol=1e-4, atol=1e-4), out, want)


@hypers(argvalues=TYPICAL)
def test_dtypes_are_the_leaves(hyper):
  def mixed(tree):
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree)
    half['params']['scale'] = jnp.asarray(tree['params']['scale'])
    return half

  describe = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
  trees = [mixed(tree) for tree in gradients(6)]
  before = describe(init(hyper, trees[0]))
  rounds = zip(run(hyper, trees), oracle(hyper, trees), strict=True)
  for (update, state, _), (want, *_, log) in rounds:
    assert describe(update) == jax.tree.map(
      lambda x: (x.shape[1:], x.dtype), trees[0]
    )
    assert describe(state) == before
    # The mean, the past and the update are each rounded to 8 bits.
    wants = [array for _, array in oracles.leaves(want)]
    for leaf, array, scale in zip(
      jax.tree.leaves(update), wants, scales(log), strict=True
    ):
      CLOSE(leaf.astype(jnp.float32), array, rtol=0, atol=0.01 * scale)


@hypers(argvalues=TYPICAL)
def test_exports_for_every_platform(hyper):
  (tree,) = gradients(1)
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
  arguments = jax.tree.map(like, (tree, init(hyper, tree)))
  platforms = ('cpu', 'cuda', 'tpu')
  exported = jax.export.export(step(hyper), platforms=platforms)(*arguments)
  assert exported.platforms == platforms


# Rejected rows -------------------------------------------------------------


def spoiled(tree, row):
  """Returns the tree with one NaN in one layer of a row."""
  kernel = tree['params']['conv']['kernel'].copy()
  kernel[row, 1, 1, 0, 1] = np.nan
  conv = tree['params']['conv'] | {'kernel': kernel}
  return {'params': tree['params'] | {'conv': conv}}


@hypers(argvalues=TYPICAL)
def test_a_rejected_worker_never_shows(hyper):
  trees = gradients(8)
  trees[2] = spoiled(trees[2], 4)
  trees[3] = with_row(trees[3], 1, np.inf)
  assert follow(hyper, trees) < 1e3
  assert all(finite((update, state)) for update, state, _ in run(hyper, trees))


@hypers(argvalues=TYPICAL)
def test_a_rejected_worker_is_as_good_as_absent(hyper):
  trees = gradients(5)
  without = list(trees)
  without[2] = jax.tree.map(lambda x: np.delete(x, 4, axis=0), trees[2])
  wants = list(run(hyper, without))
  for value in REJECTED.values():
    spoilt = [*trees[:2], with_row(trees[2], 4, value), *trees[3:]]
    for (update, state, _), (want, want_state, _) in zip(
      run(hyper, spoilt), wants, strict=True
    ):
      # Sums of six and of seven terms have different rounding.
      close = functools.partial(CLOSE, rtol=1e-4, atol=1e-5)
      jax.tree.map(close, (update, state), (want, want_state))


@hypers(argvalues=[Hyper(1), *TYPICAL])
@pytest.mark.parametrize('when', [0, 1, 6])
def test_a_round_of_nobody_is_nan_and_forgotten(hyper, when):
  trees = gradients(8)
  lost = [*trees[:when], constant(np.nan), *trees[when:]]
  rounds = list(run(hyper, lost))
  update, state, info = rounds.pop(when)
  assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(update))
  assert np.all(info['rejected'])
  before = rounds[when - 1][1] if when else init(hyper, trees[0])
  jax.tree.map(EQUAL, state, before)
  for (update, state, _), (want, want_state, _) in zip(
    rounds, run(hyper, trees), strict=True
  ):
    jax.tree.map(EQUAL, (update, state), (want, want_state))


@hypers(argvalues=TYPICAL)
@pytest.mark.parametrize('value', [1e4, 1e10, 1e17, 0.0])
def test_finite_rows_count(hyper, value):
  trees = gradients(8)
  trees[3] = with_row(trees[3], 4, value)
  for round_idx in (2, 5):
    trees[round_idx] = with_row(trees[round_idx], 0, value)
  follow(hyper, trees)
  assert all(finite((update, state)) for update, state, _ in run(hyper, trees))


@hypers(argvalues=TYPICAL)
def test_many_long_rows_do_not_overflow(hyper):
  """Each row is accepted, but the squares of forty rows overflow float32."""
  trees = []
  for seed, tree in enumerate(gradients(5, n=40)):
    rng = np.random.default_rng(seed)
    rows = oracles.rows_of([a for _, a in oracles.leaves(tree)])
    size = np.linalg.norm(rows, axis=1)
    goal = rng.uniform(3.5e18, 4.5e18, 40) / size
    trees.append(
      jax.tree.map(
        lambda x, goal=goal: (
          x * goal.reshape((-1,) + (1,) * (x.ndim - 1))
        ).astype(np.float32),
        tree,
      )
    )
  assert follow(hyper, trees) < 1e3


# Degenerate rounds ---------------------------------------------------------


@pytest.mark.parametrize('normalize', ['sum', 'max'])
@pytest.mark.parametrize('value', [0.0, 1e-25])
def test_nothing_sent(normalize, value):
  """Squares of 1e-25 are zero in float32; no layer varies.

  So all factors are equal, and the update is what was sent.
  """
  share = {'sum': 1 / NUM_LEAVES, 'max': 1}[normalize]
  hyper = Hyper(3, normalize=normalize)
  trees = [constant(value)] * 5
  for i, (update, state, _) in enumerate(run(hyper, trees)):
    CLOSE(state.factors, np.full(NUM_LEAVES, share if i else 1))
    EQUAL(state.norms, 0)
    for leaf in jax.tree.leaves(update):
      CLOSE(leaf, value, atol=1e-6 * value)


@hypers(argvalues=TYPICAL)
def test_a_round_of_zeros_counts(hyper):
  trees = gradients(6)
  trees[3] = constant(0)
  assert follow(hyper, trees) < 1e3


def test_rounds_that_are_all_alike():
  """Past and present are equal, and so is every mixture of them.

  The mean of two or four equal numbers is exact: the deviations are 0.
  """
  (tree,) = gradients(1)
  for i, (update, state, _) in enumerate(run(Hyper(4), [tree] * 7)):
    assert finite(state)
    jax.tree.map(lambda out, x: CLOSE(out, np.mean(x, axis=0)), update, tree)
    if i in (1, 3, 4, 5, 6):
      CLOSE(state.factors, np.full(NUM_LEAVES, 1 / NUM_LEAVES))


# Properties that hold for all updates --------------------------------------


@hypers(argvalues=TYPICAL)
def test_linear_in_the_present_with_the_factors_held(hyper):
  """Negated updates have the same norms, and so the same factors."""
  *before, last = gradients(7)
  *_, (_, state, _) = run(hyper, before)
  plus, after, info = step(hyper)(last, state)
  minus, other, _ = step(hyper)(jax.tree.map(np.negative, last), state)
  EQUAL(after.factors, other.factors)
  groups = oracles.groups(last, hyper.by)
  sums = np.sum(info['weights'], axis=1)
  CLOSE(sums, after.factors)
  leaves = list(map(jax.tree.leaves, (plus, minus, last, state.past)))
  for w, positions in zip(after.factors, groups, strict=True):
    for p in positions:
      up, down, rows, ring = (each[p] for each in leaves)
      CLOSE((up - down) / 2, w * np.mean(rows, axis=0))
      CLOSE((up + down) / 2, (1 - w) * np.mean(ring, axis=0))


@hypers(argvalues=[Hyper(3, **OTHER)])
def test_differentiates_with_the_factors_held(hyper):
  *before, last, direction = gradients(7)
  *_, (_, state, _) = run(hyper, before)
  update = lambda tree: step(hyper)(tree, state)[0]  # noqa: E731
  _, moved = jax.jvp(update, (last,), (direction,))
  _, after, _ = step(hyper)(last, state)
  leaves = jax.tree.leaves(moved), jax.tree.leaves(direction)
  groups = oracles.groups(last, hyper.by)
  for w, positions in zip(after.factors, groups, strict=True):
    for p in positions:
      CLOSE(leaves[0][p], w * np.mean(leaves[1][p], axis=0))


@hypers(argvalues=TYPICAL)
def test_the_order_of_the_clients_does_not_matter(hyper):
  trees = gradients(7)
  moved = []
  for seed, tree in enumerate(trees):
    order = np.random.default_rng(seed).permutation(N)
    moved.append(jax.tree.map(lambda x, order=order: x[order], tree))
  for (update, state, _), (want, want_state, _) in zip(
    run(hyper, moved), run(hyper, trees), strict=True
  ):
    close = functools.partial(CLOSE, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, (update, state), (want, want_state))


def test_the_log_is_not_copied():
  """The log of a donated state is not copied, which took half of the time."""
  params = {'b': jnp.zeros(10), 'w': jnp.zeros(100_000)}
  agg = lca.legato(window=20)
  state = agg.init(params)
  updates = jax.tree.map(lambda x: jnp.ones((3, *x.shape)), params)
  step = jax.jit(agg.update, donate_argnums=1).lower(updates, state).compile()
  log = sum(x.nbytes for x in jax.tree.leaves(state.past))
  memory = step.memory_analysis()
  assert memory.alias_size_in_bytes >= log > 4 * memory.temp_size_in_bytes


# explain, combinators, config ----------------------------------------------


@hypers(argvalues=TYPICAL)
def test_explain_gives_what_was_decided(hyper):
  trees = gradients(4)
  trees[2] = with_row(trees[2], 5, np.nan)
  layers = NUM_LEAVES if hyper.by == 'leaf' else NUM_MODULES
  for i, (_, state, info) in enumerate(run(hyper, trees)):
    assert sorted(info) == ['factors', 'rejected', 'weights']
    EQUAL(info['factors'], state.factors)
    rejected = np.arange(N) == (5 if i == 2 else -1)
    EQUAL(info['rejected'], rejected)
    share = ~rejected / np.sum(~rejected)
    assert info['weights'].shape == (layers, N)
    CLOSE(info['weights'], np.outer(state.factors, share))


def test_layerwise_refuses_what_takes_layers_itself():
  with pytest.raises(TypeError, match='by'):
    lca.layerwise(lca.legato())
  clip = functools.partial(lca.static_clip, threshold=1.0)
  with pytest.raises(TypeError, match='by'):
    lca.layerwise(lca.chain(clip, lca.legato()))


def test_follows_a_pre_aggregator():
  clip = functools.partial(lca.static_clip, threshold=2.0)
  agg = lca.chain(clip, lca.legato(window=4))
  update = jax.jit(agg.update)
  trees = gradients(3)
  state = agg.init(params(trees[0]))
  clipped = list(map(clip, trees))
  for tree, (want, *_) in zip(trees, run(Hyper(4), clipped), strict=True):
    out, state = update(tree, state)
    # The norms have other rounding, as in `test_jit_is_eager`.
    jax.tree.map(functools.partial(CLOSE, rtol=1e-4, atol=1e-4), out, want)


@pytest.mark.parametrize(
  ('hyper', 'words'),
  [
    ({'window': 0}, 'window=0'),
    ({'window': -3}, 'window=-3'),
    ({'norm': 'nuclear'}, r'(?=.*norm)(?=.*nuclear)'),
    ({'normalize': 'mean'}, r'(?=.*normalize)(?=.*mean)'),
    ({'divisor': 'all'}, r'(?=.*divisor)(?=.*all)'),
    ({'by': 'tensor'}, 'tensor'),
  ],
)
def test_what_legato_needs(hyper, words):
  with pytest.raises(ValueError, match=words):
    lca.legato(**hyper)


@pytest.mark.parametrize('norm', ['frobenius', 'spectral'])
def test_leaves_must_agree_on_the_clients(norm):
  agg = lca.legato(norm=norm)
  state = agg.init({'a': jnp.zeros(2), 'b': jnp.zeros(2)})
  with pytest.raises(ValueError, match='disagree'):
    agg.update({'a': jnp.ones((3, 2)), 'b': jnp.ones((4, 2))}, state)


@pytest.mark.parametrize(
  ('hyper', 'warns'),
  [
    (Hyper(4), True),
    (Hyper(2), True),
    (Hyper(2, by='module'), True),
    (Hyper(5), False),
    (Hyper(10), False),
    (Hyper(1), False),  # the update is the plain mean
    (Hyper(2, normalize='max'), False),
    (Hyper(3, by='module'), False),
    (Hyper(2, by='model'), False),
  ],
  ids=str,
)
def test_warns_where_the_past_weighs_more_than_the_present(hyper, warns):
  tree = constant(1)
  with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter('always')
    agg = lca.legato(**hyper._asdict())
    jax.eval_shape(agg.update, tree, agg.init(params(tree)))
  messages = [str(w.message) for w in seen if w.category is UserWarning]
  assert bool(messages) == warns
  layers = NUM_LEAVES if hyper.by == 'leaf' else NUM_MODULES
  for message in messages:
    assert str(layers) in message and str(hyper.window) in message


def test_make_aggregator_reaches_every_option():
  options = {k: v for k, v in OTHER.items() if k != 'by'}
  agg = lca.make_aggregator(
    {'name': 'legato', 'window': 3, 'scope': 'module', **options}
  )
  trees = gradients(4)
  state = agg.init(params(trees[0]))
  update = jax.jit(agg.update)
  for tree, (want, want_state, _) in zip(
    trees, run(Hyper(3, **OTHER), trees), strict=True
  ):
    out, state = update(tree, state)
    jax.tree.map(CLOSE, (out, state), (want, want_state))


def test_make_aggregator_refuses():
  with pytest.raises(TypeError, match='log_size'):
    lca.make_aggregator({'name': 'legato', 'scope': 'leaf', 'log_size': 3})
  with pytest.raises(ValueError, match='window=0'):
    lca.make_aggregator({'name': 'legato', 'scope': 'leaf', 'window': 0})
