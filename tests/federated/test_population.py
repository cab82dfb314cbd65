"""Sampling of a round's clients, and of those that do not answer."""

import dataclasses
import sys

import numpy as np
import pytest
from simulations import POPULATION

from lca.federated.population import Population


def test_sampling_draws_exactly_the_byzantine_asked_for():
  attackers = POPULATION.attackers(seed=3)
  assert attackers.sum() == 4
  drawn, positions = set(), []
  for round_idx in range(200):
    ids, byzantine = POPULATION.sample(3, round_idx)
    assert len(set(ids.tolist())) == 7
    assert byzantine.sum() == 2
    np.testing.assert_array_equal(byzantine, attackers[ids])
    drawn |= set(ids.tolist())
    positions += np.flatnonzero(byzantine).tolist()
  assert drawn == set(range(12))
  # 400 Byzantine rows over 7 positions are 57 each, with a standard deviation
  # of 7; the bound is five of them.
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
  # The number of attackers among 7 of 12 clients, 4 of them attackers, is
  # hypergeometric, with mean 7/3 and standard deviation 0.84.
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
  # 5 of 7 clients are honest, so each position is dropped in 64 of 300 rounds.
  # The standard deviation is 7; the bound is five of them.
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
  if num_byzantine is not None:  # then the population's size does not matter
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
