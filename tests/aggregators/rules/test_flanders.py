"""Tests of FLANDERS: forecasts, scores, who is kept, and the history.

It is not among the cases of `tests/stateful_cases.py`, because it needs the
clients' ids.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from pool import flat, tree_of

import lca
from configs import digits
from lca.aggregators.rules.flanders import forecast

KEY = jax.random.key(0)
C, D, F = 12, 40, 7  # clients, parameters, clients to leave out: a majority
HYPER = {'num_clients': C, 'num_iters': 20, 'window': 3}
RIDGE = {'num_iters': 20, 'window': 3, 'alpha': 1.0, 'beta': 1.0}


class World:
  """A model, and clients that move it, each in a direction of its own too."""

  def __init__(self, seed=0):
    self.rng = np.random.default_rng(seed)
    self.model = self.rng.normal(size=D).astype(np.float32)
    self.own = 0.3 * self.rng.normal(size=(C, D))

  def rows(self, ids, attackers=()):
    rows = 0.2 * self.rng.normal(size=D) + self.own[ids]
    rows += self.rng.uniform(0.02, 0.2, (len(ids), 1)) * self.rng.normal(
      size=(len(ids), D)
    )
    attacking = np.isin(ids, attackers)
    rows[attacking] += 5 * self.rng.normal(size=(attacking.sum(), D))
    return rows.astype(np.float32)


@functools.cache
def update_of(by='model', **options):
  """Returns an aggregator, and its jitted update with an info."""
  pair = lca.flanders(**HYPER | {'f': F} | options)
  pair = pair if by == 'model' else lca.layerwise(pair, by=by)
  return pair, jax.jit(lca.explain(pair))


def rounds(world, count, sampled=False):
  """Yields rounds with attackers, rows of NaN, and 10 clients if sampled."""
  for t in range(count):
    ids = world.rng.permutation(C)[: 10 if sampled else C]
    rows = world.rows(ids, attackers=(1, 4, 7) if t % 2 else ())
    if t == 3:
      rows[2] = np.nan
      rows[5] = np.inf
    yield ids, rows


@pytest.mark.parametrize('sampled', [False, True])
def test_rounds_follow_the_oracle(sampled):
  """More rounds than the window, with attackers and absent clients."""
  world, oracle = World(), oracles.Flanders(F, **RIDGE)
  pair, update = update_of()
  state = pair.init(tree_of(jnp.zeros(D)))
  for ids, rows in rounds(world, 6, sampled):
    out, state, info = update(
      tree_of(rows), state, params=tree_of(world.model), client_ids=ids
    )
    scores, kept, want = oracle.round(
      rows.astype(float), world.model.astype(float), ids
    )
    np.testing.assert_allclose(info['scores'], scores, rtol=2e-4)
    assert np.flatnonzero(info['selected']).tolist() == kept
    np.testing.assert_allclose(flat(out), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(info['rejected'], oracles.rejected(rows))
    world.model += flat(out)


@pytest.mark.parametrize('window', [2, 4])
@pytest.mark.parametrize('ridge', [(1.0, 1.0), (0.02, 0.3)])
def test_the_forecast_is_that_of_alternating_least_squares(window, ridge):
  """With more coordinates than rows, and with fewer."""
  for d in (60, 5):
    rng = np.random.default_rng(d)
    series = rng.normal(size=(window, 1, d)) + rng.normal(size=(window, 9, d))
    unit = np.max(np.abs(series))
    a, b = oracles.autoregression(
      list(series / unit), alpha=ridge[0], beta=ridge[1], num_iters=30
    )
    got = jax.jit(forecast, static_argnums=(1, 2, 3))(
      jnp.asarray(series, jnp.float32), *ridge, 30
    )
    np.testing.assert_allclose(got, a @ series[-1] @ b, atol=2e-4)


def test_least_squares_find_the_matrices_of_a_series():
  """A series without noise is foretold; the ridge is small."""
  rng = np.random.default_rng(0)
  a, b = (np.linalg.qr(rng.normal(size=(k, k)))[0] for k in (4, 3))
  series = [rng.normal(size=(4, 3))]
  for _ in range(8):
    series.append(a @ series[-1] @ b)
  got = forecast(jnp.asarray(np.array(series[:-1])), 1e-3, 1e-3, 200)
  np.testing.assert_allclose(got, series[-1], atol=1e-2)


def run(world, count, attackers=(), value=None, **options):
  """Yields `(rows, update, state, info)` of rounds of all clients."""
  pair, update = update_of(**options)
  state, ids = pair.init(tree_of(jnp.zeros(D))), np.arange(C)
  for t in range(count):
    rows = world.rows(ids, attackers)
    if value is not None:
      rows[list(attackers)] = value
    out, state, info = update(
      tree_of(rows),
      state,
      key=jax.random.fold_in(KEY, t),
      params=tree_of(world.model),
      client_ids=ids,
    )
    yield rows, flat(out), state, info
    world.model += flat(out)


def test_a_majority_of_attackers_is_left_out_from_the_first_round_on():
  attackers = [0, 2, 3, 5, 8, 10, 11]
  for _, _, _, info in run(World(), 6, attackers):
    assert np.flatnonzero(~info['selected']).tolist() == attackers


def test_the_history_holds_who_is_kept_and_the_new_model_for_all_others():
  pair, update = update_of(subsample_dim=None)
  world, ids = World(), np.array([3, 9, 0, 4, 6, 1, 8, 7, 11, 5])
  rows = world.rows(ids, attackers=(9, 1))
  rows[4] = np.nan
  model = tree_of(world.model)
  state = pair.init(tree_of(jnp.zeros(D)))
  out, after, info = update(tree_of(rows), state, params=model, client_ids=ids)
  moved = world.model + flat(out)
  newest = np.array(after.models[-1])
  for i, row, kept in zip(ids, rows, info['selected'], strict=True):
    want = world.model + row if kept else moved
    np.testing.assert_allclose(newest[i], want, atol=1e-6)
  absent = np.setdiff1d(np.arange(C), ids)
  np.testing.assert_allclose(newest[absent], moved[None].repeat(2, 0))
  np.testing.assert_array_equal(
    after.models[:-1], np.broadcast_to(world.model, (2, C, D))
  )
  # A round without a usable row changes nothing.
  rows[:] = np.nan
  out, same, _ = update(tree_of(rows), after, params=model, client_ids=ids)
  assert np.all(np.isnan(flat(out)))
  jax.tree.map(np.testing.assert_array_equal, same, after)


def test_the_drawn_coordinates_stay_and_follow_the_key():
  drawn = []
  for seed in (0, 1):
    world, oracle = World(), oracles.Flanders(F, **RIDGE)
    pair, update = update_of(subsample_dim=9)
    state, ids = pair.init(tree_of(jnp.zeros(D))), np.arange(C)
    for t in range(3):
      rows, key = world.rows(ids), jax.random.fold_in(jax.random.key(seed), t)
      given = {'params': tree_of(world.model), 'client_ids': ids, 'key': key}
      out, state, info = update(tree_of(rows), state, **given)
      # 7 columns of the leaf with 30, and 2 of that with 10.
      columns = np.array(state.columns) + np.repeat([0, 30], [7, 2])
      drawn.append(columns)
      scores, *_ = oracle.round(rows[:, columns], world.model[columns], ids)
      np.testing.assert_allclose(info['scores'], scores, rtol=1e-4)
      world.model += flat(out)
  assert len(set(map(tuple, drawn))) == 2
  assert all(len(set(columns)) == 9 for columns in drawn)


@pytest.mark.parametrize('value', [1e18, -1e4, 0.0, np.nan])
def test_any_rows_are_survived(value):
  """Six clients of 12 send the same in all rounds."""
  attackers = (0, 1, 2, 6, 7, 8)
  for _, out, state, info in run(World(), 5, attackers, value):
    assert np.all(np.isfinite(out)) and np.all(np.isfinite(state.models))
    assert not np.any(np.isnan(info['scores']))
    if value:
      assert not np.any(info['selected'][np.array(attackers)])


def test_fewer_usable_rows_than_are_kept_are_averaged():
  attackers = range(10)
  for rows, out, _, _ in run(World(), 2, attackers, np.inf):
    np.testing.assert_allclose(out, rows[10:].mean(axis=0), rtol=1e-5)


def test_equal_zero_models_and_updates_come_back():
  pair, update = update_of()
  zero = tree_of(np.zeros((C, D), np.float32))
  model = tree_of(np.zeros(D, np.float32))
  state = pair.init(model)
  for _ in range(2):
    out, state, info = update(
      zero, state, params=model, client_ids=np.arange(C)
    )
    assert not np.any(flat(out)) and not np.any(info['scores'])
    assert info['selected'].tolist() == [True] * (C - F) + [False] * F


def test_the_order_of_the_clients_does_not_matter():
  world, (pair, update) = World(), update_of()
  state = other = pair.init(tree_of(jnp.zeros(D)))
  for t in range(4):
    ids, order = np.arange(C), np.random.default_rng(t).permutation(C)
    rows, model = world.rows(ids, [2]), tree_of(world.model)
    out, state, _ = update(tree_of(rows), state, params=model, client_ids=ids)
    moved, other, _ = update(
      tree_of(rows[order]), other, params=model, client_ids=ids[order]
    )
    np.testing.assert_allclose(flat(moved), flat(out), rtol=1e-4, atol=1e-6)
    world.model += flat(out)
  np.testing.assert_allclose(state.models, other.models, rtol=1e-4, atol=1e-5)


def test_every_layer_decides_on_its_own():
  """As the rule does on each leaf by itself, with a state of its own."""
  world, (pair, update) = World(), update_of('leaf')
  single, one = update_of()
  state = pair.init(tree_of(jnp.zeros(D)))
  states = [single.init(jnp.zeros((5, 6))), single.init(jnp.zeros(10))]
  for _ in range(3):
    rows = tree_of(world.rows(np.arange(C), [2]))
    model = tree_of(world.model)
    out, state, info = update(
      rows, state, params=model, client_ids=np.arange(C)
    )
    assert info['selected'].shape == (2, C)
    for k, name in enumerate('ab'):
      want, states[k], _ = one(
        rows[name], states[k], params=model[name], client_ids=np.arange(C)
      )
      np.testing.assert_allclose(out[name], want, rtol=1e-5, atol=1e-6)
    world.model += flat(out)


def test_the_state_keeps_its_dtypes():
  pair = lca.flanders(f=1, num_clients=4)
  rows = jnp.ones((3, 5), jnp.bfloat16)
  state = pair.init(rows[0])
  out, after = jax.jit(pair.update)(
    rows, state, params=jnp.ones(5), client_ids=jnp.arange(3)
  )
  dtypes = functools.partial(jax.tree.map, lambda x: x.dtype)
  assert dtypes(after) == dtypes(state) and out.dtype == jnp.bfloat16
  assert state.models.dtype == jnp.float32


def test_differentiates_with_the_weights_held_fixed():
  world, (pair, update) = World(), update_of()
  rows, along = world.rows(np.arange(C)), world.rows(np.arange(C))
  given = {'params': tree_of(world.model), 'client_ids': np.arange(C)}
  state = pair.init(tree_of(jnp.zeros(D)))
  _, _, info = update(tree_of(rows), state, **given)
  _, got = jax.jvp(
    lambda x: update(x, state, **given)[0], [tree_of(rows)], [tree_of(along)]
  )
  np.testing.assert_allclose(flat(got), info['weights'] @ along, atol=1e-5)


# Arguments -----------------------------------------------------------------


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'f': -1}, 'f=-1'),
    ({'f': 1.5}, r'integer f, got f=1\.5'),
    ({'num_clients': 0}, 'num_clients=0'),
    ({'window': 1}, 'window=1'),
    ({'num_iters': 0}, 'num_iters=0'),
    ({'subsample_dim': 0}, 'subsample_dim=0'),
    ({'subsample_dim': 2.5}, r'integer subsample_dim, got subsample_dim=2\.5'),
    ({'alpha': 0.0}, r'finite alpha > 0, got alpha=0\.0'),
    ({'beta': np.inf}, 'beta=inf'),
  ],
)
def test_wrong_options(options, words):
  with pytest.raises(ValueError, match=words):
    lca.flanders(**{'f': 1, 'num_clients': 9} | options)


def test_what_a_round_must_bring():
  x = jnp.ones((3, 2))
  pair = lca.flanders(f=1, num_clients=3, subsample_dim=1)
  brought = {'key': KEY, 'params': x[0], 'client_ids': jnp.arange(3)}
  for name in brought:
    rest = {k: v for k, v in brought.items() if k != name}
    with pytest.raises(ValueError, match=f'flanders needs {name}'):
      pair.update(x, pair.init(x[0]), **rest)
  with pytest.raises(ValueError, match='f < n, got n=1, f=1'):
    pair.update(x[:1], pair.init(x[0]), **brought)
  with pytest.raises(ValueError, match='num_clients=3, n=4'):
    pair.update(jnp.ones((4, 2)), pair.init(x[0]), **brought)
  brought['client_ids'] = jnp.array([0, 1, 3])
  out, _ = jax.jit(pair.update)(x, pair.init(x[0]), **brought)
  assert np.all(np.isnan(out))


def test_a_config_follows_the_population_and_the_attackers():
  config = digits.get_config('flanders,gaussian')
  assert config.aggregator.num_clients == config.data.num_clients == 20
  config.attack.num_byzantine = 3
  assert config.aggregator.f == 3
