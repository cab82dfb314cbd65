"""Evaluation is exact over the test set, in one block or several."""

import dataclasses

import numpy as np
import pytest
from simulations import CLASSIFIER, TRAIN, simulation

import lca
from lca import data as datasets
from lca.federated import plan
from lca.models import CNN


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
  # A block holds at most three batches of 7 images of 64 bytes on each device.
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
  # The whole set was read at once; then in 18 or 5 blocks of at most three
  # batches for each device.
  assert sizes[0] == 360
  assert sizes[1:] == {1: [21] * 17 + [3], 4: [84] * 4 + [24]}[devices]
  # A set of one block stays on the devices. Several blocks are read again.
  whole.evaluate(state)
  assert len(sizes) == 1 + len(range(0, 360, sizes[1]))
  blocks.evaluate(state)
  assert len(sizes) == 1 + 2 * len(range(0, 360, sizes[1]))


def test_the_next_block_is_read_while_one_is_tested(data, monkeypatch):
  monkeypatch.setattr(lca.federated.evaluation, 'BLOCK_BYTES', 120 * 64)
  sim = simulation(data, eval_batch_size=60)
  read, events = datasets.Split.read, []

  class Awaited:
    """A result of a test that records when the host waits for it."""

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
  monkeypatch.setattr(sim._evaluation, '_test', test)
  metrics = sim.evaluate(sim.init())
  assert events == [
    *('read', 'tested', 'read', 'awaited', 'tested'),
    *('read', 'awaited', 'tested', 'awaited'),
  ]
  assert metrics == {'test_loss': 3 * 90 / 360, 'test_accuracy': 3 * 36 / 360}


@pytest.fixture(scope='module')
def with_validation(data):
  held_out = np.arange(3, 100, 2)
  return dataclasses.replace(data, validation_indices=held_out)


@pytest.mark.parametrize(('devices', 'block_bytes'), [(1, 2**28), (4, 60 * 64)])
def test_validation_examples_are_measured_as_test_examples(
  data, with_validation, devices, block_bytes, monkeypatch
):
  monkeypatch.setattr(lca.federated.evaluation, 'BLOCK_BYTES', block_bytes)
  sim = simulation(with_validation, devices=devices, eval_batch_size=5)
  state, train = sim.init(), data.dataset.train
  metrics = sim.evaluate(state)
  assert [*metrics] == [
    *('test_loss', 'test_accuracy', 'validation_loss', 'validation_accuracy')
  ]
  plain = simulation(data, devices=devices, eval_batch_size=5)
  assert plain.evaluate(state).items() <= metrics.items()
  # The same examples as the test set of another simulation.
  rows = np.arange(3, 100, 2)
  split = datasets.Split(train.inputs[rows], train.labels[rows])
  dataset = dataclasses.replace(data.dataset, test=split)
  other = simulation(
    dataclasses.replace(data, dataset=dataset),
    devices=devices,
    eval_batch_size=5,
  ).evaluate(state)
  assert metrics['validation_accuracy'] == other['test_accuracy']
  np.testing.assert_allclose(
    metrics['validation_loss'], other['test_loss'], rtol=1e-6
  )


def test_the_memory_of_validation_examples_is_planned(with_validation):
  sim = simulation(with_validation)
  # Seven clients in two rounds; an image of 8 x 8 bytes and a label of 4.
  examples = 2 * 7 * with_validation.max_examples + 360 + 49
  assert plan.of(sim).examples == examples * (64 + 4)
  assert sim.more_metrics == ['validation_loss', 'validation_accuracy']


@pytest.mark.parametrize(
  ('devices', 'block_bytes', 'logits'),
  [(1, 2**28, 10), (4, 2**28, 12), (2, 60 * 64, 10)],
)
def test_the_confusion_matrix(data, devices, block_bytes, logits, monkeypatch):
  monkeypatch.setattr(lca.federated.evaluation, 'BLOCK_BYTES', block_bytes)
  module = CNN(logits, features=(2, 3), hidden=(4,))
  classifier = dataclasses.replace(CLASSIFIER, module=module)
  train = dataclasses.replace(TRAIN, losses=classifier.losses)
  sim = simulation(
    data,
    devices=devices,
    eval_batch_size=7,
    classifier=classifier,
    train=train,
  )
  state, test = sim.init(), data.dataset.test
  predicted = np.asarray(classifier.logits(state.variables, test.inputs))
  expected = np.zeros((10, logits), int)
  np.add.at(expected, (test.labels, predicted.argmax(1)), 1)
  counts = sim.confusion(state)
  assert counts.dtype == int
  np.testing.assert_array_equal(counts, expected)
  np.testing.assert_array_equal(
    counts.sum(1), np.bincount(test.labels, minlength=10)
  )
  accuracy = sim.evaluate(state)['test_accuracy']
  assert np.trace(counts) / len(test) == accuracy


def test_the_accuracy_of_each_class_is_measured(data):
  """Their mean, weighted by the classes' sizes, is the accuracy of all."""
  sim = simulation(data, by_class=True)
  measured = sim.evaluate(sim.init())
  names = [f'test_accuracy/{k}' for k in range(10)]
  assert [name for name in sim.more_metrics if name in names] == names
  sizes = np.bincount(data.dataset.test.labels, minlength=10)
  mean = np.average([measured[name] for name in names], weights=sizes)
  assert mean == pytest.approx(measured['test_accuracy'])
  counts = sim.confusion(sim.init())
  assert measured['test_accuracy/3'] == counts[3, 3] / sizes[3]


def test_a_class_without_test_examples_has_no_accuracy():
  inputs, labels = np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 3
  dataset = datasets.from_arrays(
    (inputs, labels), (inputs[:4], labels[:4] % 2), num_classes=10
  )
  spread = datasets.federate(
    dataset, partition='iid', num_clients=12, min_examples=1, seed=0
  )
  sim = simulation(spread, by_class=True)
  measured = sim.evaluate(sim.init())
  assert np.isnan(measured['test_accuracy/2'])
  assert not np.isnan(measured['test_accuracy/1'])
