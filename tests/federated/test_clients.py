"""Local training equals plain Python loops over unpadded batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import Normalized

from lca.data import ClientData
from lca.federated.clients import (
  LocalGradient,
  LocalTraining,
  shuffled,
  with_momentum,
)
from lca.federated.placement import (
  blank_results,
  clients_mesh,
  default_microbatch_size,
  place_clients,
  train_clients,
)
from lca.federated.randomness import Purpose, key_for
from lca.models import CNN, Classifier

# With batches of 4, the last batch is short, the only one, or full.
SIZES = (9, 1, 16, 4, 12)
CLASSIFIER = Classifier(CNN(3, features=(2, 3), hidden=(4,)), (8.0,), (8.0,))
SPEC = jax.ShapeDtypeStruct((8, 8, 1), 'uint8')
TRAIN = LocalTraining(
  losses=CLASSIFIER.losses,
  optimizer=optax.adam(1e-2),
  batch_size=4,
  local_epochs=2,
)
KEY = jax.random.key(5)
INPUT = jax.ShapeDtypeStruct((8, 8, 1), np.uint8)

# Adam divides by the root of a squared gradient, which amplifies the rounding
# errors of gradients near zero. A step of the updates is about 1e-2.
CLOSE = {'rtol': 1e-3, 'atol': 2e-5}


def test_a_mesh_is_of_devices_that_there_are():
  assert clients_mesh(3).size == 3
  assert clients_mesh().size == jax.device_count() == 8
  for wrong in (0, -1, 9):
    with pytest.raises(ValueError, match=f'a mesh of {wrong} devices'):
      clients_mesh(wrong)


def client_data(padded_to=16):
  """Returns the examples of five clients of `SIZES`, padded with zeros."""
  rng = np.random.default_rng(1)
  shape = (len(SIZES), padded_to, 8, 8, 1)
  images = np.zeros(shape, np.uint8)
  labels = np.zeros(shape[:2], np.int32)
  for i, size in enumerate(SIZES):
    images[i, :size] = rng.integers(0, 17, (size, 8, 8, 1))
    labels[i, :size] = rng.integers(0, 3, size)
  return ClientData(images, labels, np.array(SIZES, np.int32))


def variables():
  return CLASSIFIER.init(key_for(0, Purpose.INIT), INPUT)


def mean_loss(params, images, labels):
  losses, _ = CLASSIFIER.losses({'params': params}, images, labels)
  return jnp.mean(losses)


GRADIENT = jax.jit(jax.value_and_grad(mean_loss))
UPDATE = jax.jit(TRAIN.optimizer.update)


def python_loop(data, client_id, train=TRAIN):
  """Trains one client in Python, batch by batch, on its unpadded examples.

  Returns:
    The update and the mean loss over all examples used.
  """
  count = int(data.num_examples[client_id])
  key = jax.random.fold_in(KEY, client_id)
  start = variables()
  params, losses = start['params'], []
  opt_state = train.optimizer.init(params)

  for epoch in range(train.local_epochs):
    order = shuffled(jax.random.fold_in(key, epoch), count, count)
    for at in range(0, count, train.batch_size):
      rows = np.asarray(order[at : at + train.batch_size])
      loss, grads = GRADIENT(
        params, data.inputs[client_id][rows], data.labels[client_id][rows]
      )
      losses += [float(loss)] * len(rows)
      updates, opt_state = UPDATE(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
  return jax.tree.map(jnp.subtract, {'params': params}, start), np.mean(losses)


@pytest.fixture(scope='module')
def expected():
  data = client_data()
  results = [python_loop(data, i) for i in range(len(SIZES))]
  updates, losses = zip(*results, strict=True)
  return jax.tree.map(lambda *rows: np.stack(rows), *updates), np.array(losses)


def trained(train, mesh, chunk_size, variables, placed):
  """Trains the placed clients in one call; returns updates and losses."""
  rows = len(placed[1])
  update = train.to_update_dtype(variables)
  return train_clients(train, mesh, chunk_size)(
    variables, *placed, KEY, *blank_results(mesh, update, rows)(), 0, rows
  )


def run(train=TRAIN, devices=1, chunk_size=1, data=None):
  """Trains all clients on a mesh; returns their updates and losses."""
  data = client_data() if data is None else data
  mesh = clients_mesh(devices)
  ids = np.arange(len(data.labels), dtype=np.int32)
  placed = place_clients((data, ids), mesh)
  updates, losses = trained(train, mesh, chunk_size, variables(), placed)
  n = len(data.labels)
  return jax.tree.map(lambda u: np.asarray(u)[:n], updates), losses[:n]


def assert_close(got, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), got, expected
  )


@pytest.mark.parametrize(
  ('devices', 'chunk_size'),
  [
    (1, 5),
    (4, 2),
    pytest.param(1, 1, marks=pytest.mark.thorough),
    pytest.param(1, 2, marks=pytest.mark.thorough),
    pytest.param(2, 1, marks=pytest.mark.thorough),
  ],
)
def test_all_at_once_equals_a_python_loop(devices, chunk_size, expected):
  assert_close(run(devices=devices, chunk_size=chunk_size), expected)


@pytest.mark.parametrize(
  'microbatch_size',
  [3, *(pytest.param(k, marks=pytest.mark.thorough) for k in (1, 4, 100))],
)
def test_microbatches_change_rounding_alone(microbatch_size, expected):
  train = dataclasses.replace(TRAIN, microbatch_size=microbatch_size)
  assert_close(run(train), expected)


def test_padding_changes_no_bit():
  short, long = run(), run(data=client_data(padded_to=41))
  same = np.testing.assert_array_equal
  if tuple(map(int, jax.lib.__version__.split('.')[:2])) < (0, 10):
    # With the flags of conftest.py, older compilers round the two differently;
    # without these flags the bits are the same there, too (seen with 0.7.2).
    same = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
  jax.tree.map(same, short, long)


def test_a_client_without_examples_stays_where_it_is():
  data = client_data()
  data.num_examples[3] = 0
  updates, losses = run(data=data)
  assert all(not np.any(leaf[3]) for leaf in jax.tree.leaves(updates))
  assert losses[3] == 0
  assert all(np.any(leaf[2]) for leaf in jax.tree.leaves(updates))


def test_a_client_does_not_depend_on_the_others():
  data = client_data()
  updates, _ = run(data=data)
  data.inputs[1:] = 16 - data.inputs[1:]
  changed, _ = run(data=data)
  for before, after in zip(
    jax.tree.leaves(updates), jax.tree.leaves(changed), strict=True
  ):
    np.testing.assert_array_equal(before[0], after[0])
    assert np.any(before[2] != after[2])


def test_shuffled_is_a_permutation_that_ignores_the_padding():
  for count in (0, 1, 7, 20):
    order = np.asarray(shuffled(KEY, 20, count))
    assert sorted(order) == list(range(20))
    assert sorted(order[:count]) == list(range(count))
    np.testing.assert_array_equal(
      order[:count], np.asarray(shuffled(KEY, 33, count))[:count]
    )


def test_shuffled_puts_every_example_everywhere():
  keys = jax.random.split(KEY, 2000)
  orders = np.asarray(jax.vmap(lambda k: shuffled(k, 8, 5))(keys))[:, :5]
  counts = np.stack([np.bincount(column, minlength=5) for column in orders.T])
  # Each count is 400 on average, with a standard deviation of 18; the bound is
  # five of them.
  assert np.all(np.abs(counts - 400) < 90)


@pytest.mark.parametrize(
  'wrong', [{'batch_size': 0}, {'local_epochs': 0}, {'microbatch_size': 0}]
)
def test_numbers_below_one_are_errors(wrong):
  with pytest.raises(ValueError, match=f'{next(iter(wrong))} must be at least'):
    dataclasses.replace(TRAIN, **wrong)


def test_a_chunk_below_one_is_an_error():
  with pytest.raises(ValueError, match='chunk_size must be at least 1, got 0'):
    train_clients(TRAIN, clients_mesh(1), 0)


def test_a_gradient_is_that_of_one_random_batch():
  data = client_data()
  gradient = LocalGradient(losses=CLASSIFIER.losses, batch_size=10)
  updates, losses = run(gradient)
  for client_id, size in enumerate(SIZES):
    key = jax.random.fold_in(KEY, client_id)
    rows = np.asarray(shuffled(key, size, size))[:10]
    loss, grads = GRADIENT(
      variables()['params'],
      data.inputs[client_id][rows],
      data.labels[client_id][rows],
    )
    one = jax.tree.map(lambda u, i=client_id: u[i], updates)
    assert_close(one, {'params': jax.tree.map(jnp.negative, grads)})
    np.testing.assert_allclose(losses[client_id], loss, rtol=1e-5)


def test_a_gradient_without_examples_is_zero():
  data = client_data()
  data.num_examples[3] = 0
  updates, losses = run(
    LocalGradient(losses=CLASSIFIER.losses, batch_size=4), data=data
  )
  assert all(not np.any(leaf[3]) for leaf in jax.tree.leaves(updates))
  assert losses[3] == 0


@pytest.mark.parametrize(
  'microbatch_size', [3, pytest.param(1, marks=pytest.mark.thorough)]
)
def test_dropout_does_not_depend_on_microbatches(microbatch_size):
  module = CNN(3, features=(2, 3), hidden=(4,), dropout=(0.25, 0.5))
  losses = Classifier(module, (8.0,), (8.0,)).losses
  train = dataclasses.replace(TRAIN, losses=losses)
  small = dataclasses.replace(train, microbatch_size=microbatch_size)
  expected = run(train)
  assert_close(run(small), expected)
  # Dropout changes the losses.
  assert not np.allclose(expected[1], run()[1], rtol=0.01)


def test_clients_drop_out_on_their_own():
  module = CNN(3, features=(2, 3), hidden=(4,), dropout=(0.5, 0.5))
  losses = Classifier(module, (8.0,), (8.0,)).losses
  data = client_data()
  for array in data:
    array[:] = array[2]  # all clients have the same examples
  gradient = LocalGradient(losses=losses, batch_size=16)  # in the same batch
  _, with_dropout = run(gradient, data=data)
  assert len(set(np.asarray(with_dropout).tolist())) == len(SIZES)


def test_momentum_is_a_mean_over_a_clients_own_rounds():
  rng = np.random.default_rng(0)
  momenta = {'w': jnp.zeros((4, 3))}
  rounds = [
    ([0, 2], rng.normal(size=(2, 3))),
    ([2, 1], rng.normal(size=(2, 3))),
  ]
  sent = []
  for ids, x in rounds:
    momenta, out = with_momentum(
      momenta, {'w': jnp.asarray(x, jnp.float32)}, jnp.array(ids), 0.9
    )
    sent.append(np.asarray(out['w']))
  (_, first), (_, second) = rounds
  np.testing.assert_allclose(sent[0], 0.1 * first, rtol=1e-6)
  expected = [0.9 * 0.1 * first[1] + 0.1 * second[0], 0.1 * second[1]]
  np.testing.assert_allclose(sent[1], expected, rtol=1e-5)
  kept = [0.1 * first[0], expected[1], expected[0], np.zeros(3)]
  np.testing.assert_allclose(momenta['w'], kept, rtol=1e-5)


NORMALIZED = Classifier(Normalized(3), (8.0,), (8.0,))


def normalized_variables():
  return NORMALIZED.init(key_for(0, Purpose.INIT), INPUT)


@jax.jit
def normalized_gradient(variables, images, labels):
  """Returns loss, gradient and new statistics of a batch without padding."""

  def mean_loss(params):
    losses, updated = NORMALIZED.losses(
      {**variables, 'params': params}, images, labels, jnp.zeros(len(labels))
    )
    return jnp.mean(losses), updated

  grad = jax.value_and_grad(mean_loss, has_aux=True)
  (loss, updated), grads = grad(variables['params'])
  return loss, grads, updated


def run_normalized(train, data, devices=1, chunk_size=1):
  mesh = clients_mesh(devices)
  ids = np.arange(len(SIZES), dtype=np.int32)
  placed = place_clients((data, ids), mesh)
  updates, losses = trained(
    train, mesh, chunk_size, normalized_variables(), placed
  )
  n = len(SIZES)
  return jax.tree.map(lambda u: np.asarray(u)[:n], updates), losses[:n]


@pytest.mark.parametrize(('devices', 'chunk_size'), [(1, 1), (2, 5)])
def test_batch_statistics_are_those_of_real_examples(devices, chunk_size):
  data = client_data()
  # This test cannot use Adam. A batch of one example is normalised to 0, so its
  # gradient is rounding error, which Adam would scale up.
  train = dataclasses.replace(
    TRAIN, losses=NORMALIZED.losses, optimizer=optax.sgd(0.1, momentum=0.9)
  )
  update = jax.jit(train.optimizer.update)
  updates, losses = run_normalized(train, data, devices, chunk_size)
  for client_id, size in enumerate(SIZES):
    key = jax.random.fold_in(KEY, client_id)
    start = variables = normalized_variables()
    opt_state = train.optimizer.init(variables['params'])
    losses_used = []
    for epoch in range(train.local_epochs):
      order = shuffled(jax.random.fold_in(key, epoch), size, size)
      for at in range(0, size, train.batch_size):
        rows = np.asarray(order[at : at + train.batch_size])
        loss, grads, updated = normalized_gradient(
          variables, data.inputs[client_id][rows], data.labels[client_id][rows]
        )
        step, opt_state = update(grads, opt_state, variables['params'])
        params = optax.apply_updates(variables['params'], step)
        variables = {**updated, 'params': params}
        losses_used += [float(loss)] * len(rows)
    one = jax.tree.map(lambda u, i=client_id: u[i], updates)
    assert_close(one, jax.tree.map(jnp.subtract, variables, start))
    np.testing.assert_allclose(
      losses[client_id], np.mean(losses_used), rtol=1e-4
    )


def test_a_gradients_batch_statistics_are_sent_as_they_moved():
  data = client_data()
  data.num_examples[3] = 0
  gradient = LocalGradient(losses=NORMALIZED.losses, batch_size=10)
  updates, _ = run_normalized(gradient, data)
  start = normalized_variables()
  for client_id, size in enumerate(data.num_examples):
    one = jax.tree.map(lambda u, i=client_id: u[i], updates)
    if size == 0:
      assert not any(np.any(leaf) for leaf in jax.tree.leaves(one))
      continue
    key = jax.random.fold_in(KEY, client_id)
    rows = np.asarray(shuffled(key, size, size))[:10]
    _, grads, updated = normalized_gradient(
      start, data.inputs[client_id][rows], data.labels[client_id][rows]
    )
    expected = jax.tree.map(
      jnp.subtract, updated, {'batch_stats': start['batch_stats']}
    )
    expected['params'] = jax.tree.map(jnp.negative, grads)
    assert_close(one, expected)


def test_microbatches_would_have_statistics_of_their_own():
  train = dataclasses.replace(
    TRAIN, losses=NORMALIZED.losses, microbatch_size=3
  )
  with pytest.raises(
    ValueError, match='microbatch_size=3 splits a batch of 4 examples'
  ):
    run_normalized(train, client_data())
  whole = dataclasses.replace(train, microbatch_size=4)
  run_normalized(whole, client_data())


def test_microbatches_are_the_default_on_cpus_without_batch_statistics():
  assert default_microbatch_size('cpu') == 32
  assert default_microbatch_size('cpu', batch_stats=True) is None
  assert default_microbatch_size('gpu') is None
