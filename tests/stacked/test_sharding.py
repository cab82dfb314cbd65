"""Rules on updates that are spread over devices by their coordinates."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import RULES, Case
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import lca
from lca import attacks
from lca.federated.placement import clients_mesh
from lca.stacked import sharding

MESH = clients_mesh(4)
N = 11


def tree(width=1024):
  """Returns updates: leaves split along several axes, and one not split."""
  shapes = {
    'conv': (3, 3, 2, 8),
    'dense': (width, 9),
    'tied': (6, 5),  # no axis is divisible by the four devices
    'bias': (12,),
  }
  rng = np.random.default_rng(0)
  return {
    name: jnp.float32(rng.normal(size=(N, *shape)))
    * (1 + jnp.arange(N)[:, None] if not shape[1:] else 1)
    for name, shape in shapes.items()
  }


def spread(updates):
  def place(x):
    spec = sharding.by_coordinate(x.shape, len(MESH.devices))
    return jax.device_put(x, NamedSharding(MESH, spec))

  return jax.tree.map(place, updates)


def check_agrees(function, *trees, rtol, atol):
  """Checks that four devices, each on its coordinates, agree with one."""
  want = jax.jit(function)(*trees)
  with jax.set_mesh(MESH):
    got = jax.jit(function)(*map(spread, trees))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    got,
    want,
  )


def by_client(updates):
  """Returns updates of 12 rows, of which each device has three."""

  def place(x):
    rows = jnp.concatenate([x, x[:1]])
    return jax.device_put(rows, NamedSharding(MESH, P(sharding.AXIS)))

  return jax.tree.map(place, updates)


@pytest.mark.parametrize('exchanged', [1, 2 * 1024 * 9 * 4, 2**23])
def test_rows_are_exchanged_for_coordinates(monkeypatch, exchanged):
  monkeypatch.setattr(sharding, '_EXCHANGED', exchanged)

  @jax.jit
  def exchange(updates):
    return jax.tree.map(lambda x: sharding.from_clients(x, MESH), updates)

  updates = by_client(tree())
  spread_out = exchange(updates)
  jax.tree.map(np.testing.assert_array_equal, spread_out, updates)
  wanted = jax.tree.map(lambda x: x.sharding, spread(updates))
  got = jax.tree.map(lambda x: x.sharding, spread_out)
  assert all(
    jax.tree.leaves(
      jax.tree.map(lambda a, b: a.is_equivalent_to(b, 5), got, wanted)
    )
  )


def test_an_exchange_in_pieces_needs_half_the_memory(monkeypatch):
  updates = by_client({'kernel': jnp.zeros((N, 2**15, 8))})  # 1 MB a row

  def temporary(exchanged):
    monkeypatch.setattr(sharding, '_EXCHANGED', exchanged)
    exchange = jax.jit(lambda x: sharding.from_clients(x['kernel'], MESH))
    used = exchange.lower(updates).compile().memory_analysis()
    assert used.output_size_in_bytes == 3 * 2**20  # a quarter of twelve rows
    return used.temp_size_in_bytes

  assert temporary(2**20) <= temporary(2**23) / 2


def test_the_longest_axis_is_split():
  specs = {name: x.sharding.spec for name, x in spread(tree()).items()}
  assert specs == {
    'conv': P(None, None, None, None, 'clients'),
    'dense': P(None, 'clients'),
    'tied': P(),
    'bias': P(None, 'clients'),
  }
  # The rows are not split, even if they are the longest axis, nor is an axis of
  # length 0.
  assert sharding.by_coordinate((400, 8), 4) == P(None, 'clients')
  assert sharding.by_coordinate((400, 0, 3), 4) == P()
  assert sharding.by_coordinate((12,), 4, lead=0) == P('clients')


# One rule for each way to read the updates; --thorough runs the others, too.
FEW = {
  ('krum', 'cosine', 'leaf'),
  ('bulyan', 'euclidean', 'model'),
  ('dnc', 'euclidean', 'model'),
  ('fltrust', 'euclidean', 'model'),
  ('geometric_median', 'euclidean', 'leaf'),
  ('lasa', 'euclidean', 'model'),
  ('meamed', 'euclidean', 'model'),
  ('sign_guard', 'euclidean', 'model'),
}
CASES = [
  pytest.param(case, marks=() if case in FEW else pytest.mark.thorough)
  for name, spec in RULES.items()
  for case in (
    Case(name, 'euclidean', 'model'),
    Case(name, 'cosine' if spec.cosine else 'euclidean', 'leaf'),
  )
  if spec.layers or case.by == 'model'
]


@pytest.mark.parametrize('case', CASES, ids=str)
def test_rules_agree_with_one_device(case):
  updates = tree(64)
  updates['conv'] = updates['conv'].at[3, 0, 0, 0, 0].set(jnp.nan)
  rule = functools.partial(case.rule, **case.extra(updates), **case.hyper(N))
  check_agrees(rule, updates, rtol=2e-4, atol=1e-5)


def test_a_model_is_evaluated_on_all_devices():
  """DeepSight's models are whole, and each device has some of the inputs."""
  updates = {'dense': 0.1 * tree(64)['dense'], 'bias': tree(64)['bias'][:, :9]}
  predict = lca.Predictor(
    lambda params, x: x @ params['dense'] + params['bias'],
    jax.ShapeDtypeStruct((64,), jnp.float32),
  )
  rule = functools.partial(
    lca.explain(lca.deep_sight),
    params=jax.tree.map(lambda x: x[0], updates),
    predict=predict,
    key=jax.random.key(0),
    num_inputs=40,
    min_cluster_size=2,
  )
  check_agrees(rule, updates, rtol=2e-4, atol=1e-5)
  with jax.set_mesh(MESH):
    text = jax.jit(rule).lower(spread(updates)).compile().as_text()
  assert re.search(r'f32\[10,9\].* dot\(', text)  # a quarter of the inputs


AGGREGATORS = {
  'legato': lca.legato(window=3),
  'adaptive_clip': lca.adaptive_clip(threshold=2.0),
  'centered_clip': lca.centered_clip(threshold=2.0, num_iters=3),
  'clipped_clustering': lca.clipped_clustering(window=2 * N),
  'crfl': lca.crfl(),
  'fl_detector': lca.fl_detector(num_clients=N),
  'flanders': lca.flanders(f=2, num_clients=N),
  'learned_distance': lca.learned_distance(f=2),
}


@pytest.mark.filterwarnings('ignore:with . layers and window=3')
@pytest.mark.parametrize('name', AGGREGATORS)
def test_aggregators_agree_with_one_device(name):
  agg, rounds = AGGREGATORS[name], [tree(64), jax.tree.map(jnp.sin, tree(64))]
  one = jax.tree.map(lambda x: x[0], rounds[0])

  def both(updates, again):
    state, given = agg.init(one), {'key': jax.random.key(0), 'params': one}
    given |= {'client_ids': jnp.arange(N), 'server_update': one}
    _, state = agg.update(updates, state, **given)
    return agg.update(again, state, **given)[0]

  check_agrees(both, *rounds, rtol=2e-4, atol=1e-5)


def collectives(rule, updates):
  """Returns names and shapes of the collectives in the compiled rule."""
  with jax.set_mesh(MESH):
    text = jax.jit(rule).lower(spread(updates)).compile().as_text()
  matches = re.findall(
    r'= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|'
    r'reduce-scatter)(?:-start)?\(',
    text,
  )
  return {
    (kind, shape)
    for shapes, kind in matches
    for shape in re.findall(r'\w+\[([\d,]*)\]', shapes)
  }


def split(updates):
  return {k: v for k, v in updates.items() if k != 'tied'}


@pytest.mark.parametrize(
  ('rule', 'layers'),
  [
    (functools.partial(lca.layerwise(lca.cosine(lca.krum)), f=2), 3),
    (functools.partial(lca.krum, f=2), 1),
    (functools.partial(lca.geometric_median), 1),
  ],
  ids=['layerwise_cosine_krum', 'krum', 'geometric_median'],
)
def test_devices_exchange_inner_products_alone(rule, layers):
  # The second all-reduce serves close rows: the inner products of their parts
  # and the central row, of all layers at once (see `gram_passes`).
  assert collectives(rule, split(tree())) == {
    ('all-reduce', f'{N},{N}'),
    ('all-reduce', f'{layers},{N + 1},{N + 1}'),
  }


@pytest.mark.parametrize(
  'rule',
  [lca.median, functools.partial(lca.trimmed_mean, f=2), lca.mean],
  ids=['median', 'trimmed_mean', 'mean'],
)
def test_coordinatewise_rules_exchange_nothing(rule):
  assert collectives(rule, split(tree())) == set()


def test_legatos_state_is_split_as_well():
  agg, updates = lca.legato(window=4), split(tree(2**14))
  state = jax.eval_shape(agg.init, jax.tree.map(lambda x: x[0], updates))
  place = functools.partial(NamedSharding, MESH)
  state = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape,
      x.dtype,
      sharding=place(sharding.by_coordinate(x.shape, 4) if x.ndim > 2 else P()),
    ),
    state,
  )
  with jax.set_mesh(MESH):
    compiled = jax.jit(agg.update).lower(spread(updates), state).compile()
  whole = sum(x.nbytes for x in jax.tree.leaves(updates)) + sum(
    x.size * x.dtype.itemsize for x in jax.tree.leaves(state)
  )
  used = compiled.memory_analysis()
  assert used.argument_size_in_bytes < 0.3 * whole
  assert used.output_size_in_bytes + used.temp_size_in_bytes < 0.3 * whole


@pytest.mark.parametrize('rule', [lca.krum, lca.median], ids=['krum', 'median'])
def test_a_device_needs_its_share_of_memory(rule):
  updates = split(tree(2**14))
  whole = sum(x.nbytes for x in jax.tree.leaves(updates))
  rule = functools.partial(rule, f=2) if rule is lca.krum else rule
  with jax.set_mesh(MESH):
    compiled = jax.jit(rule).lower(spread(updates)).compile()
  used = compiled.memory_analysis()
  assert used.argument_size_in_bytes < 0.26 * whole
  assert used.temp_size_in_bytes < 0.2 * whole


def test_gradients_are_those_of_one_device():
  updates = tree(64)

  def loss(updates):
    out = lca.layerwise(lca.cosine(lca.multi_krum))(updates, f=2, m=3)
    middle = lca.median(updates)
    return sum(jnp.sum(x**2) for x in jax.tree.leaves((out, middle)))

  check_agrees(jax.grad(loss), updates, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['min_max', 'gaussian', 'optimized'])
def test_attacks_agree_with_one_device(name):
  options = {
    'min_max': {'direction': 'std'},
    'gaussian': {'mu': 0.0, 'sigma': 2.0, 'layers': None},
    'optimized': {
      'direction': 'alie',
      'num_strengths': 4,
      'max_strength': 4.0,
      'batch_size': 2,
      'aggregate': functools.partial(lca.krum, f=3),
    },
  }[name]

  def run(updates):
    return getattr(attacks, name)(
      updates, byzantine=jnp.arange(N) < 3, key=jax.random.key(1), **options
    )

  updates = tree(64)
  check_agrees(run, updates, rtol=1e-3, atol=1e-4)
