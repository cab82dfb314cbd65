"""Partitions of the training examples."""

import numpy as np
import pytest

from lca.data import partitions

LABELS = np.arange(103) % 10


@pytest.mark.parametrize('num_clients', [1, 7, 100, 103])
def test_iid_uses_every_example_once_and_evenly(num_clients):
  clients = partitions.iid(LABELS, num_clients, seed=3)
  sizes = [len(client) for client in clients]
  assert len(clients) == num_clients
  assert max(sizes) - min(sizes) <= 1
  np.testing.assert_array_equal(
    np.sort(np.concatenate(clients)), np.arange(len(LABELS))
  )


def test_iid_is_determined_by_the_seed_alone():
  first = partitions.iid(LABELS, 7, seed=3)
  np.random.seed(0)  # noqa: NPY002 (the global state must not matter)
  again = partitions.iid(LABELS[::-1], 7, seed=3)
  other = partitions.iid(LABELS, 7, seed=4)
  assert all(map(np.array_equal, first, again))
  assert not all(map(np.array_equal, first, other))


def test_iid_mixes_the_classes():
  labels = np.repeat(np.arange(10), 1000)
  for client in partitions.iid(labels, 10, seed=0):
    counts = np.bincount(labels[client], minlength=10)
    # 100 of each class are expected, with a deviation of 9.
    assert counts.min() > 50 and counts.max() < 150


@pytest.mark.parametrize('num_clients', [0, -1, 104])
def test_iid_names_an_impossible_number_of_clients(num_clients):
  with pytest.raises(ValueError, match=f'103 examples, got {num_clients}'):
    partitions.iid(LABELS, num_clients, seed=0)


def test_make_dispatches_by_name():
  made = partitions.make('iid', LABELS, 7, seed=3)
  assert all(map(np.array_equal, made, partitions.iid(LABELS, 7, seed=3)))
  with pytest.raises(ValueError, match="unknown partition 'idd'; known: iid"):
    partitions.make('idd', LABELS, 7, seed=3)
