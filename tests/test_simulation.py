"""Sampling, and a round against its parts put together by hand."""

import dataclasses
import functools
import queue
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lca
from lca import attacks
from lca import data as datasets
from lca.federated.clients import LocalGradient, LocalTraining
from lca.federated.placement import Placement, clients_mesh
from lca.federated.population import Population
from lca.federated.randomness import Purpose, key_for
from lca.federated.round import Server
from lca.federated.simulation import Simulation
from lca.models import CNN, Classifier

CLASSIFIER = Classifier(CNN(10, features=(2, 3), hidden=(4,)), (8.0,), (8.0,))
TRAIN = LocalTraining(
  losses=CLASSIFIER.losses,
  optimizer=optax.sgd(0.05),
  batch_size=8,
  local_epochs=1,
)
POPULATION = Population(
  num_clients=12, clients_per_round=7, num_attackers=4, num_byzantine=2
)


@pytest.fixture(scope='module')
def data():
  return datasets.federate(
    datasets.load('digits'),
    partition='iid',
    num_clients=POPULATION.num_clients,
    min_examples=1,
    seed=3,
  )


def simulation(
  data,
  devices=1,
  chunk_size=1,
  eval_batch_size=50,
  population=POPULATION,
  classifier=CLASSIFIER,
  train=TRAIN,
  **changes,
):
  server = {
    'aggregator': lca.stateless(lca.mean, weights=None),
    'optimizer': optax.sgd(1.0),
  }
  return Simulation(
    data=data,
    population=population,
    classifier=classifier,
    train=train,
    server=Server(**(server | changes)),
    seed=3,
    placement=Placement(clients_mesh(devices), chunk_size, eval_batch_size),
  )


@pytest.mark.parametrize('shape', [(), (0, 3), (6,), (3, 3, 1, 4), (2, 65537)])
def test_keys_draw_what_jaxs_own_would(shape):
  key = jax.random.key(5, impl='threefry2x32')
  for i in (Purpose.TRAIN, 2, 8):
    key = jax.random.fold_in(key, i)
  own = key_for(5, Purpose.TRAIN, 2, 8)
  for draw in (jax.random.bits, jax.random.normal):
    np.testing.assert_array_equal(draw(own, shape), draw(key, shape))
    rows = jax.vmap(functools.partial(draw, shape=shape))
    np.testing.assert_array_equal(
      rows(jax.random.split(own, 3)), rows(jax.random.split(key, 3))
    )


def test_sampling_draws_exactly_the_byzantine_asked_for():
  attackers = POPULATION.attackers(seed=3)
  assert attackers.sum() == 4
  seen, positions = set(), []
  for round_idx in range(200):
    ids, byzantine = POPULATION.sample(3, round_idx)
    assert len(set(ids.tolist())) == 7
    assert byzantine.sum() == 2
    np.testing.assert_array_equal(byzantine, attackers[ids])
    seen |= set(ids.tolist())
    positions += np.flatnonzero(byzantine).tolist()
  assert seen == set(range(12))
  # 400 Byzantine rows over 7 positions: 57 each, with a deviation of 7.
  assert np.all(np.abs(np.bincount(positions, minlength=7) - 57) < 35)


def test_sampling_depends_on_seed_and_round_alone():
  first = POPULATION.sample(3, 5)
  for again, same in zip(POPULATION.sample(3, 5), first, strict=True):
    np.testing.assert_array_equal(again, same)
  assert np.any(POPULATION.sample(3, 6)[0] != first[0])
  assert np.any(POPULATION.sample(4, 5)[0] != first[0])


def test_sampled_attackers_come_as_the_draw_gives_them():
  population = dataclasses.replace(POPULATION, num_byzantine=None)
  counts = [population.sample(0, i)[1].sum() for i in range(300)]
  assert set(counts) >= {1, 2, 3}
  # Hypergeometric: 7 of 12 with 4 attackers; mean 7/3, deviation 0.84.
  assert abs(np.mean(counts) - 7 / 3) < 5 * 0.84 / np.sqrt(300)


def test_honest_clients_alone_do_not_answer():
  population = dataclasses.replace(POPULATION, drop_rate=0.3)
  counts = np.zeros(7)
  for round_idx in range(300):
    _, byzantine = population.sample(3, round_idx)
    dropped = population.dropped(3, round_idx, byzantine)
    assert not np.any(dropped & byzantine)
    np.testing.assert_array_equal(
      dropped, population.dropped(3, round_idx, byzantine)
    )
    counts += dropped
  # 5 of 7 are honest: 64 of 300 each, with a deviation of 7.
  assert np.all(np.abs(counts - 300 * 0.3 * 5 / 7) < 35)


@pytest.mark.parametrize('num_byzantine', [0, 2, 4, None])
def test_the_round_in_which_most_do_not_answer(num_byzantine):
  population = dataclasses.replace(
    POPULATION, num_byzantine=num_byzantine, drop_rate=0.3
  )
  counts = [
    np.sum(population.dropped(3, i, population.sample(3, i)[1]))
    for i in range(60)
  ]
  for num_rounds in (1, 7, 60):
    worst, most = population.most_dropped(3, num_rounds)
    assert most == counts[worst] == max(counts[:num_rounds])
  assert most > 0.3 * 7
  if num_byzantine is not None:  # else it depends on who is there
    more = dataclasses.replace(population, num_clients=sys.maxsize)
    assert more.most_dropped(3, 60) == (worst, most)


@pytest.mark.parametrize(
  ('numbers', 'message'),
  [
    ((10, 11), 'clients_per_round=11'),
    ((10, 0), 'clients_per_round=0'),
    ((10, 5, 11, 1), 'num_attackers=11'),
    ((10, 5, 3, 4), 'num_byzantine=4'),
    ((10, 5, 8, 6), 'num_byzantine=6'),
    ((10, 8, 4, 1), r'7 honest clients, but there are 6'),
    ((10, 8, 0, 0, 1.0), r'drop_rate=1.0 must lie in \[0, 1\)'),
  ],
)
def test_populations_that_cannot_be(numbers, message):
  with pytest.raises(ValueError, match=message):
    Population(*numbers)


@pytest.mark.parametrize('drop_rate', [0.0, 0.5])
def test_a_round_is_its_parts(data, drop_rate):
  attack = attacks.make({'name': 'label_flipping', 'boost': 3.0})
  population = dataclasses.replace(POPULATION, drop_rate=drop_rate)
  sim = simulation(
    data,
    population=population,
    attack=attack,
    aggregator=lca.stateless(lca.mean),
    devices=2,
  )
  before = sim.init()
  after, metrics = sim.run_round(before, 4)

  ids, byzantine = population.sample(3, 4)
  dropped = population.dropped(3, 4, byzantine)
  assert dropped.any() == (drop_rate > 0)
  clients = data.gather(ids)
  labels = attacks.flip_labels(
    clients.labels,
    byzantine=byzantine,
    client_ids=ids,
    num_classes=10,
    key=key_for(3, Purpose.LABELS),
  )
  total, losses = jax.tree.map(jnp.zeros_like, before.variables), []
  weights = clients.num_examples * ~dropped
  for row, client_id in enumerate(ids):
    one = datasets.ClientData(
      clients.inputs[row], labels[row], clients.num_examples[row]
    )
    key = key_for(3, Purpose.TRAIN, 4, client_id)
    update, loss = jax.jit(TRAIN)(before.variables, one, key)
    boost = (3.0 if byzantine[row] else 1.0) * weights[row] / sum(weights)
    boosted = jax.tree.map(jnp.array(boost).__mul__, update)
    total = jax.tree.map(jnp.add, total, boosted)
    losses.append(float(loss))

  expected = jax.tree.map(jnp.add, before.variables, total)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    after.variables,
    expected,
  )
  honest = np.mean(np.array(losses)[~byzantine & ~dropped])
  np.testing.assert_allclose(metrics['train_loss'], honest, rtol=1e-5)
  assert (metrics['byzantine'], metrics['rejected']) == (2, 0)
  assert metrics.get('dropped', 0) == dropped.sum()
  assert sim.more_metrics == (['dropped'] if drop_rate else [])


@pytest.mark.parametrize(('devices', 'chunk_size'), [(4, 1), (2, 3)])
def test_devices_and_chunks_do_not_matter(data, devices, chunk_size):
  one = simulation(data)
  many = simulation(data, devices=devices, chunk_size=chunk_size)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    one.run_round(one.init(), 0)[0].variables,
    many.run_round(many.init(), 0)[0].variables,
  )


@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [(jnp.float32, 2e-3), (jnp.float64, 1e-8)]
)
def test_rounding_alone_grows_over_the_rounds(data, dtype, tolerance):
  """One device, and eight with a client that is nobody on one of them."""

  class OfDtype(Classifier):
    def init(self, key, input_spec):
      variables = super().init(key, input_spec)
      return jax.tree.map(lambda x: x.astype(dtype), variables)

  classifier = OfDtype(CLASSIFIER.module, (8.0,), (8.0,))
  losses = []
  with jax.enable_x64(dtype == jnp.float64):
    for devices, chunk_size in ((1, 1), (8, 2)):
      sim = simulation(
        data, devices=devices, chunk_size=chunk_size, classifier=classifier
      )
      state = sim.init()
      for round_idx in range(5):
        state, _ = sim.run_round(state, round_idx)
      assert jax.tree.leaves(state.variables)[0].dtype == dtype
      losses.append(sim.evaluate(state)['test_loss'])
  np.testing.assert_allclose(*losses, rtol=tolerance)


def test_the_server_optimizer_sees_minus_the_aggregate(data):
  plain, half = simulation(data), simulation(data, optimizer=optax.sgd(0.5))
  start = plain.init().variables
  full_step = plain.run_round(plain.init(), 0)[0].variables
  half_step = half.run_round(half.init(), 0)[0].variables
  jax.tree.map(
    lambda s, f, h: np.testing.assert_allclose(h, (s + f) / 2, atol=1e-6),
    start,
    full_step,
    half_step,
  )


@pytest.mark.parametrize(
  ('devices', 'batch_size'), [(1, 50), (2, 7), (4, 1000), (1, 360)]
)
def test_evaluation_is_exact_over_the_test_set(data, devices, batch_size):
  sim = simulation(data, devices=devices, eval_batch_size=batch_size)
  state = sim.init()
  test = data.dataset.test
  logits = np.asarray(CLASSIFIER.logits(state.variables, test.inputs), float)
  shifted = logits - logits.max(1, keepdims=True)
  log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
  losses = -log_probabilities[np.arange(len(test)), test.labels]
  metrics = sim.evaluate(state)
  np.testing.assert_allclose(metrics['test_loss'], losses.mean(), rtol=1e-5)
  assert metrics['test_accuracy'] == np.mean(logits.argmax(1) == test.labels)


@pytest.mark.parametrize('devices', [1, 4])
def test_a_large_test_set_is_evaluated_block_by_block(
  data, devices, monkeypatch
):
  whole = simulation(data, devices=devices, eval_batch_size=7)
  state = whole.init()
  # Batches of 7 images of 64 bytes: at most three of them on a device.
  monkeypatch.setattr(
    lca.federated.evaluation, 'BLOCK_BYTES', 3 * 7 * 64 * devices + 1
  )
  read, sizes = datasets.Split.read, []

  def counted(split, rows):
    sizes.append(len(rows))
    return read(split, rows)

  monkeypatch.setattr(datasets.Split, 'read', counted)
  blocks = simulation(data, devices=devices, eval_batch_size=7)
  expected, got = whole.evaluate(state), blocks.evaluate(state)
  assert got['test_accuracy'] == expected['test_accuracy']
  np.testing.assert_allclose(got['test_loss'], expected['test_loss'], rtol=1e-6)
  # At once, and then in 18 or 5 blocks of three batches a device.
  assert sizes[0] == 360
  assert sizes[1:] == {1: [21] * 17 + [3], 4: [84] * 4 + [24]}[devices]
  # A small test set stays on the devices, a large one does not.
  whole.evaluate(state)
  assert len(sizes) == 1 + len(range(0, 360, sizes[1]))
  blocks.evaluate(state)
  assert len(sizes) == 1 + 2 * len(range(0, 360, sizes[1]))


def test_the_next_block_is_read_while_one_is_tested(data, monkeypatch):
  monkeypatch.setattr(lca.federated.evaluation, 'BLOCK_BYTES', 120 * 64)
  sim = simulation(data, eval_batch_size=60)
  read, events = datasets.Split.read, []

  class Awaited:
    def __array__(self, *args, **kwargs):
      events.append('awaited')
      return np.float32(90)

  def recorded(split, rows):
    events.append('read')
    return read(split, rows)

  def test(variables, images, labels, weights):
    events.append('tested')
    return Awaited(), np.float32(36)

  monkeypatch.setattr(datasets.Split, 'read', recorded)
  monkeypatch.setattr(sim, '_test', test)
  metrics = sim.evaluate(sim.init())
  assert events == [
    *('read', 'tested', 'read', 'awaited', 'tested'),
    *('read', 'awaited', 'tested', 'awaited'),
  ]
  assert metrics == {'test_loss': 3 * 90 / 360, 'test_accuracy': 3 * 36 / 360}


def test_the_next_rounds_clients_are_read_ahead(data, monkeypatch):
  gather, gathered = datasets.FederatedDataset.gather, queue.Queue()

  def recorded(self, ids, rows):
    assert threading.current_thread() is not threading.main_thread()
    gathered.put(ids.tolist())
    return gather(self, ids, rows)

  monkeypatch.setattr(datasets.FederatedDataset, 'gather', recorded)
  sim = simulation(data)
  state, _ = sim.run_round(sim.init(), 0)
  state, _ = sim.run_round(state, 1)
  state, _ = sim.run_round(state, 5)
  sim.run_round(state, 6, last=True)  # there is no round 7 to read for
  for round_idx in (0, 1, 2, 5, 6):
    ids, _ = POPULATION.sample(3, round_idx)
    assert gathered.get(timeout=60) == ids.tolist()
  assert gathered.empty()


def test_a_round_depends_on_its_number_alone(data):
  sim, other = simulation(data), simulation(data)
  state = sim.init()
  sim.run_round(state, 0)
  after, metrics = sim.run_round(state, 1)
  for round_idx in (7, 1, 1):
    again, same = other.run_round(state, round_idx)
  assert same == metrics
  jax.tree.map(np.testing.assert_array_equal, again, after)


def test_an_error_in_reading_is_raised_in_its_own_round(data, monkeypatch):
  gather, broken = datasets.FederatedDataset.gather, {1}

  def failing(self, ids, rows):
    if any(np.array_equal(ids, POPULATION.sample(3, i)[0]) for i in broken):
      raise OSError('the disk is gone')
    return gather(self, ids, rows)

  monkeypatch.setattr(datasets.FederatedDataset, 'gather', failing)
  sim = simulation(data)
  state, _ = sim.run_round(sim.init(), 0)
  with pytest.raises(OSError, match='the disk is gone'):
    sim.run_round(state, 1)
  broken.clear()
  sim.run_round(state, 1)


def test_a_nan_client_does_not_reach_the_model(data):
  def send_nan(updates, *, byzantine, key, aggregate):
    del key
    return lca.geometry.scale(updates, jnp.where(byzantine, jnp.nan, 1.0))

  attack = attacks.NO_ATTACK._replace(on_updates=send_nan)
  rule = lca.layerwise(lca.cosine(lca.krum))
  robust = simulation(data, attack=attack, aggregator=lca.stateless(rule, f=2))
  state, _ = robust.run_round(robust.init(), 0)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.variables))
  mean = simulation(data, attack=attack)
  state, _ = mean.run_round(mean.init(), 0)
  assert all(np.all(np.isnan(x)) for x in jax.tree.leaves(state.variables))


def test_the_server_trains_on_its_own_examples_as_a_client_does():
  held = datasets.federate(
    datasets.load('digits'),
    partition='iid',
    num_clients=POPULATION.num_clients,
    min_examples=1,
    seed=3,
    root_examples=40,
  )
  held_out = set(held.root_indices.tolist())
  assert len(held_out) == 40
  assert not held_out & {int(i) for c in held.client_indices for i in c}

  def rule(updates, *, server_update):
    return server_update

  sim = simulation(held, aggregator=lca.stateless(rule))
  state = sim.init()
  after, _ = sim.run_round(state, 0)
  key = jax.random.fold_in(key_for(3, Purpose.TRAIN, 0), held.server_id)
  data = jax.tree.map(lambda x: x[0], held.gather([held.server_id]))
  assert data.num_examples == 40
  want, _ = jax.jit(TRAIN)(state.variables, data, key)
  got = jax.tree.map(jnp.subtract, after.variables, state.variables)
  jax.tree.map(close, got, want)


def held_by(data, indices):
  """The digits, held by as many clients as there are lists of indices."""
  return datasets.FederatedDataset(data.dataset, list(map(np.array, indices)))


def everyone(data, rule, **hyper):
  """A round of all clients, none of whom attacks."""
  sim = simulation(
    data,
    population=Population(data.num_clients, data.num_clients),
    aggregator=lca.stateless(rule, **hyper),
  )
  state = sim.init()
  return state.variables, sim.run_round(state, 0)[0].variables


def one_step(variables, split, indices):
  """SGD's on these examples."""

  def loss(params):
    rows = np.array(indices)
    images, labels = split.inputs[rows], split.labels[rows]
    return jnp.mean(CLASSIFIER.losses({'params': params}, images, labels)[0])

  grads = jax.jit(jax.grad(loss))(variables['params'])
  step = jax.tree.map(lambda p, g: p - 0.05 * g, variables['params'], grads)
  return {'params': step}


close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)


def test_a_client_with_one_example(data):
  def smallest(updates, *, weights):
    return jax.tree.map(lambda x: x[jnp.argmin(weights)], updates)

  held = held_by(data, [range(8), [33], range(40, 45)])
  before, after = everyone(held, smallest)
  jax.tree.map(close, after, one_step(before, data.dataset.train, [33]))


@pytest.mark.parametrize(
  ('rule', 'hyper'),
  [(lca.layerwise(lca.cosine(lca.krum)), {'f': 1}), (lca.median, {})],
)
def test_all_clients_equal(data, rule, hyper):
  held = held_by(data, [range(8)] * 5)
  before, after = everyone(held, rule, **hyper)
  jax.tree.map(close, after, one_step(before, data.dataset.train, range(8)))


def test_a_rule_that_needs_the_server_says_so(data):
  with pytest.raises(TypeError, match='server_update'):
    simulation(data, aggregator=lca.stateless(lca.fltrust)).run_round(
      simulation(data).init(), 0
    )


def test_workers_momentum_is_part_of_the_state(data):
  gradient = LocalGradient(losses=CLASSIFIER.losses, batch_size=8)
  plain = simulation(data, train=gradient)
  damped = simulation(data, train=gradient, momentum=0.75)
  start = plain.init()
  assert start.momenta == ()
  once, _ = plain.run_round(start, 0)
  state, _ = damped.run_round(damped.init(), 0)
  ids, _ = POPULATION.sample(3, 0)

  def step(new, old):
    return jax.tree.map(jnp.subtract, new.variables, old.variables)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, 0.25 * b, rtol=1e-3, atol=1e-7),
    step(state, start),
    step(once, start),
  )
  for leaf in jax.tree.leaves(state.momenta):
    assert len(leaf) == POPULATION.num_clients
    others = np.setdiff1d(np.arange(POPULATION.num_clients), ids)
    assert not np.any(leaf[others])
  mean = jax.tree.map(lambda m: jnp.mean(m[ids], 0), state.momenta)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7),
    step(state, start)['params'],
    mean,
  )


def test_who_does_not_answer_keeps_its_momentum(data):
  population = dataclasses.replace(POPULATION, drop_rate=0.5)
  sim = simulation(
    data,
    population=population,
    aggregator=lca.stateless(lca.median),
    momentum=0.75,
  )
  state, metrics = sim.run_round(sim.init(), 0)
  ids, byzantine = population.sample(3, 0)
  dropped = population.dropped(3, 0, byzantine)
  assert 0 < metrics['dropped'] < 4  # a median of numbers is one
  moved = np.zeros(population.num_clients, bool)
  for leaf in jax.tree.leaves(state.momenta):
    moved |= np.any(np.asarray(leaf), axis=tuple(range(1, leaf.ndim)))
  np.testing.assert_array_equal(np.flatnonzero(moved), sorted(ids[~dropped]))


def test_attackers_do_not_see_who_does_not_answer(data):
  population = dataclasses.replace(POPULATION, drop_rate=0.5)

  def send_how_many_are_missing(updates, *, byzantine):
    missing = lca.geometry.rejected_rows(lca.geometry.norms_gram(updates))
    rows = jax.tree.map(
      lambda x: jnp.full_like(x[0], jnp.sum(missing)), updates
    )
    return attacks.replace(updates, byzantine, rows)

  def largest(updates):
    return jax.tree.map(lambda x: jnp.nanmax(x, axis=0), updates)

  sim = simulation(
    data,
    population=population,
    attack=attacks.from_function(send_how_many_are_missing),
    aggregator=lca.stateless(largest),
  )
  before = sim.init()
  after, metrics = sim.run_round(before, 0)
  assert metrics['dropped'] > 0
  step = jax.tree.map(jnp.subtract, after.variables, before.variables)
  for leaf in jax.tree.leaves(step):
    np.testing.assert_allclose(leaf, metrics['dropped'], rtol=1e-5)


def test_what_is_remembered_is_written_to_in_place(data):
  sim = simulation(data, aggregator=lca.legato(window=30), momentum=0.75)
  state = sim.init()
  variables, _, *memory = map(jax.tree.leaves, state)
  size = sum(x.nbytes for leaves in memory for x in leaves)
  assert sim.programs.apply.memory_analysis().alias_size_in_bytes == size
  sim.run_round(state, 0)
  assert all(x.is_deleted() for leaves in memory for x in leaves)
  assert not any(x.is_deleted() for x in variables)


def test_the_layers_metrics(data):
  sim = simulation(data, aggregator=lca.legato(window=3), layers='leaf')
  state, metrics = sim.run_round(sim.init(), 0)
  state, metrics = sim.run_round(state, 1)
  leaves = [
    f'params/{module}/{leaf}'
    for module in ('Conv_0', 'Conv_1', 'Dense_0', 'Dense_1')
    for leaf in ('bias', 'kernel')
  ]
  assert sim.more_metrics == [
    f'{table}/{leaf}' for table in ('norm', 'factor') for leaf in leaves
  ]
  factors = [metrics[f'factor/{leaf}'] for leaf in leaves]
  np.testing.assert_allclose(np.sum(factors), 1, rtol=1e-5)
  norms = [metrics[f'norm/{leaf}'] for leaf in leaves]
  np.testing.assert_allclose(norms, state.aggregator.norms[1], rtol=1e-6)
  assert simulation(data).more_metrics == []


def test_an_attack_is_given_what_the_server_will_make_of_updates(data):
  seen = {}

  def on_updates(updates, *, byzantine, key, aggregate):
    seen['update'] = aggregate(updates)
    return jax.tree.map(jnp.zeros_like, updates)

  attack = attacks.NO_ATTACK._replace(on_updates=on_updates)
  sim = simulation(data, attack=attack)
  start = sim.init()
  after, _ = sim.run_round(start, 0)
  jax.tree.map(np.testing.assert_array_equal, after.variables, start.variables)
  assert jax.tree.structure(seen['update']) == jax.tree.structure(
    start.variables
  )
