"""Tests of FLDetector: scores, the search for clusters, and exclusion.

It is not among the cases of `tests/stateful_cases.py`, because it needs the
clients' ids, a key and a model that moves by its own aggregates.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool import flat, tree_of

import lca
from configs import digits
from lca.aggregators.rules.fl_detector import two_means

KEY = jax.random.key(0)
C, D, N = 20, 40, 4  # clients, parameters, window
FAR = np.full(D, 3.0, np.float32)  # a first model, far from the optima


class World:
  """Clients whose losses are quadratic, so that updates follow the model.

  Attributes:
    noise: of every update, relative to the distance of the optimum.
  """

  def __init__(self, seed=0, noise=0.02):
    rng = np.random.default_rng(seed)
    curves = rng.uniform(0.2, 1.0, D)
    self.rng, self.noise = rng, noise
    self.best = rng.normal(size=(C, D))
    self.curves = curves * rng.uniform(0.9, 1.1, (C, D))

  def rows(self, model, ids, attackers=()):
    rows = 0.3 * self.curves[ids] * (self.best[ids] - model)
    rows += self.noise * self.rng.normal(size=rows.shape)
    attacking = np.isin(ids, attackers)
    rows[attacking] = 0.5 * self.rng.normal(size=(attacking.sum(), D))
    return rows.astype(np.float32)


@functools.cache
def update_of(**options):
  """Returns an aggregator, and its jitted update with an info."""
  pair = lca.fl_detector(
    **{'num_clients': C, 'window': N, 'start': 9} | options
  )
  return pair, jax.jit(lca.explain(pair))


def train(rounds, attackers=(), world=None, **options):
  """Yields `(t, state, info)` of rounds of all clients."""
  world = world or World()
  pair, update = update_of(**options)
  model, ids = FAR, np.arange(C)
  state = pair.init(tree_of(jnp.zeros(D)))
  for t in range(1, rounds + 1):
    out, state, info = update(
      tree_of(world.rows(model, ids, attackers)),
      state,
      key=jax.random.fold_in(KEY, t),
      params=tree_of(model),
      client_ids=ids,
    )
    model = model + flat(out)
    yield t, state, info


@pytest.mark.parametrize('sampled', [False, True])
def test_scores_follow_the_oracle(sampled):
  """All clients, or 8 of them, with rows of NaN in some rounds."""
  world, oracle = World(), oracles.FLDetector(N)
  pair, update = update_of(start=1000)
  state, model = pair.init(tree_of(jnp.zeros(D))), FAR
  scored = 0
  for t in range(25):
    ids = np.arange(C)
    if sampled:
      ids = world.rng.permutation(C - 1)[:8]
      if t in (2, 20):  # absent for longer than the window
        ids[0] = C - 1
    rows = world.rows(model, ids, attackers=(3,))
    if t in (7, 15):
      rows[2] = np.nan
    out, state, info = update(
      tree_of(rows), state, key=KEY, params=tree_of(model), client_ids=ids
    )
    scores, want = oracle.round(rows.astype(float), model.astype(float), ids)
    np.testing.assert_allclose(flat(out), want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(info['scores'], scores, rtol=2e-3)
    np.testing.assert_array_equal(info['rejected'], oracles.rejected(rows))
    scored += np.isfinite(scores).sum()
    model = model + flat(out)
  assert scored > 100


def test_attackers_are_excluded_for_good():
  attackers = [1, 5, 6]
  for t, state, info in train(17, attackers):  # the next search is at 18
    excluded = np.flatnonzero(state.excluded).tolist()
    if t < 9:
      assert not excluded and np.all(info['selected'])
    else:
      assert excluded == attackers
      assert np.flatnonzero(~info['selected']).tolist() == attackers
      np.testing.assert_allclose(
        info['weights'], ~np.isin(np.arange(C), attackers) / 17, rtol=1e-6
      )


@pytest.mark.parametrize('seed', range(4))
def test_nobody_is_excluded_without_attackers(seed):
  *_, (_, state, _) = train(9, world=World(seed))
  assert not np.any(state.excluded)


def test_the_search_waits_after_it_has_found_somebody():
  world = World()
  waits = []
  for t, state, _ in train(20, [4, 7], world=world):
    waits.append(int(state.wait))
    assert np.isfinite(state.scores).any() == (t >= N + 2 and t != 9)
  assert waits[:9] == [*range(7, -1, -1), 9]
  assert waits[9] == 8


def test_rejected_rows_and_absent_clients_keep_their_last_update():
  pair = lca.fl_detector(num_clients=C)
  update, state = jax.jit(pair.update), pair.init(tree_of(jnp.zeros(D)))
  rows = World().rows(np.zeros(D), np.arange(6))
  rows[1] = 1e30
  arguments = {'key': KEY, 'params': tree_of(np.zeros(D, np.float32))}
  out, state = update(
    tree_of(rows), state, client_ids=np.arange(6) + 3, **arguments
  )
  assert state.last_round.tolist() == [0, 0, 0, 1, 0, 1, 1, 1, 1] + [0] * 11
  assert not np.any(flat(state.previous)[4])
  np.testing.assert_array_equal(flat(state.previous)[5], rows[2])
  # A round without a usable row changes nothing.
  rows[:] = np.nan
  out, after = update(
    tree_of(rows), state, client_ids=np.arange(6), **arguments
  )
  assert np.all(np.isnan(flat(out)))
  jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize('value', [1e18, 1e4, 0.0])
def test_any_rows_are_survived(value):
  """Attackers that send the same in all rounds; the update stays finite."""
  world, (pair, update) = World(), update_of()
  state, model = pair.init(tree_of(jnp.zeros(D))), FAR
  for t in range(12):
    rows = world.rows(model, np.arange(C))
    rows[:3] = value
    out, state, info = update(
      tree_of(rows),
      state,
      key=jax.random.fold_in(KEY, t),
      params=tree_of(model),
      client_ids=np.arange(C),
    )
    assert np.all(np.isfinite(flat(out)))
    assert not np.any(np.isnan(info['scores']))
    model = model + flat(out)


def test_the_order_of_the_clients_does_not_matter():
  world, (pair, update) = World(), update_of()
  state = other = pair.init(tree_of(jnp.zeros(D)))
  model = FAR
  for t in range(10):
    ids, order = np.arange(C), np.random.default_rng(t).permutation(C)
    rows = world.rows(model, ids, [2])
    given = {'key': jax.random.fold_in(KEY, t), 'params': tree_of(model)}
    out, state, _ = update(tree_of(rows), state, client_ids=ids, **given)
    moved, other, _ = update(
      tree_of(rows[order]), other, client_ids=ids[order], **given
    )
    np.testing.assert_allclose(flat(moved), flat(out), rtol=1e-4, atol=1e-6)
    model = model + flat(out)
  np.testing.assert_array_equal(state.excluded, other.excluded)
  assert state.excluded.tolist() == [i == 2 for i in range(C)]


def test_every_layer_searches_on_its_own():
  made = lca.layerwise(lca.fl_detector(num_clients=C, window=N, start=9))
  state = made.init(tree_of(jnp.zeros(D)))
  out, state = jax.jit(made.update)(
    tree_of(World().rows(np.zeros(D), np.arange(C))),
    state,
    key=KEY,
    params=tree_of(np.zeros(D, np.float32)),
    client_ids=np.arange(C),
  )
  assert len(state) == 2 and out['a'].shape == (5, 6)


def test_the_state_keeps_its_dtypes():
  pair = lca.fl_detector(num_clients=4)
  rows = jnp.ones((3, 5), jnp.bfloat16)
  state = pair.init(rows[0])
  out, after = jax.jit(pair.update)(
    rows, state, key=KEY, params=jnp.ones(5), client_ids=jnp.arange(3)
  )
  dtypes = functools.partial(jax.tree.map, lambda x: x.dtype)
  assert dtypes(after) == dtypes(state) and out.dtype == jnp.bfloat16


# Clusters ------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_two_means_are_the_best_split(data):
  values = data.draw(st.lists(st.integers(0, 20), min_size=8, max_size=8))
  present = data.draw(st.lists(st.booleans(), min_size=8, max_size=8))
  x, mask = np.array(values) / 16, np.array(present)
  one, two, upper = jax.jit(two_means)(
    jnp.asarray(np.where(mask, x, np.nan), jnp.float32), jnp.asarray(mask)
  )
  kept = np.sort(x[mask])

  def squares(part):
    return np.sum((part - np.mean(part)) ** 2) if len(part) else 0.0

  np.testing.assert_allclose(one, squares(kept), atol=1e-5)
  splits = [squares(kept[:i]) + squares(kept[i:]) for i in range(1, len(kept))]
  if splits:
    np.testing.assert_allclose(two, min(splits), atol=1e-5)
    parts = squares(x[mask & upper]) + squares(x[mask & ~upper])
    np.testing.assert_allclose(parts, min(splits), atol=1e-5)
  else:
    assert np.isinf(two)
  assert not np.any(upper & ~mask)


# Arguments -----------------------------------------------------------------


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'window': 0}, 'window=0'),
    ({'window': 5, 'start': 10}, 'start=10'),
    ({'num_clients': 0}, 'num_clients=0'),
    ({'num_clients': 2.5}, r'num_clients=2\.5'),
    ({'num_references': 0}, 'num_references=0'),
  ],
)
def test_wrong_options(options, words):
  with pytest.raises(ValueError, match=words):
    lca.fl_detector(**{'num_clients': 9} | options)


@pytest.mark.parametrize('missing', ['key', 'params', 'client_ids'])
def test_a_missing_argument_is_named(missing):
  x, pair = jnp.ones((3, 2)), lca.fl_detector(num_clients=3)
  given = {'key': KEY, 'params': x[0], 'client_ids': jnp.arange(3)}
  del given[missing]
  with pytest.raises(ValueError, match=f'fl_detector needs {missing}'):
    pair.update(x, pair.init(x[0]), **given)


def test_a_round_has_no_more_clients_than_the_population():
  x, pair = jnp.ones((3, 2)), lca.fl_detector(num_clients=2)
  given = {'key': KEY, 'params': x[0], 'client_ids': jnp.arange(3)}
  with pytest.raises(ValueError, match='num_clients=2, n=3'):
    pair.update(x, pair.init(x[0]), **given)
  given['client_ids'] = jnp.array([0, 2])
  out, _ = jax.jit(pair.update)(x[:2], pair.init(x[0]), **given)
  assert np.all(np.isnan(out))


def test_a_config_follows_the_population():
  config = digits.get_config('fl_detector')
  assert config.aggregator.num_clients == config.data.num_clients == 20
  config.data.num_clients = 30
  assert config.aggregator.num_clients == 30
  config.aggregator.num_clients = None
  with pytest.raises(TypeError, match=r'needs a value for aggregator\.num_cl'):
    lca.make_aggregator(config.aggregator)
