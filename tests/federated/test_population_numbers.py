"""The number of attackers, if only the data tell the number of clients."""

import dataclasses

import pytest

from lca.federated.population import Population, population_from

SERVER = {'clients_per_round': 6}


def attack(num_attackers, **keys):
  """Returns a section `attack` of a config."""
  return {
    'name': 'zero',
    'sampled': False,
    'num_byzantine': 1,
    'num_attackers': num_attackers,
  } | keys


@pytest.mark.parametrize(
  ('num_clients', 'attackers'),
  [(20, 4), (19, 3), (16, 3), (13, 2), (1807, 361)],
)
def test_none_is_a_fifth_of_those_found(num_clients, attackers):
  population = Population(num_clients, 6, None)
  assert population.num_attackers == attackers
  assert population.attackers(seed=0).sum() == attackers
  again = dataclasses.replace(population, drop_rate=0.5)
  assert again.num_attackers == attackers
  population = population_from(SERVER, attack(None), num_clients)
  assert (population.num_attackers, population.num_byzantine) == (attackers, 1)


def test_a_number_stays_as_it_is():
  assert population_from(SERVER, attack(4), 13).num_attackers == 4
  sampled = attack(4, sampled=True)
  del sampled['num_byzantine']
  population = population_from(SERVER, sampled, 13, drop_rate=0.25)
  assert population == Population(13, 6, 4, None, 0.25)


def test_nobody_attacks_without_an_attack():
  assert population_from(SERVER, {'name': 'none'}, 13) == Population(13, 6)
  assert Population(13, 6).num_attackers == 0


@pytest.mark.parametrize(
  ('num_attackers', 'num_clients', 'message'),
  [
    (None, 4, r'clients_per_round=6 must lie .* population of 4 clients'),
    (0, 13, r"'zero' needs attackers, but of the 13 .*num_attackers=0"),
    (14, 13, r'num_attackers=14 must lie between 0 and .* of 13 clients'),
  ],
)
def test_numbers_that_cannot_be_are_named(num_attackers, num_clients, message):
  with pytest.raises(ValueError, match=message):
    population_from(SERVER, attack(num_attackers), num_clients)


def test_fewer_attackers_than_attack_in_a_round():
  with pytest.raises(ValueError, match=r'num_byzantine=3 .* num_attackers=2'):
    population_from(SERVER, attack(None, num_byzantine=3), 13)


def test_the_draw_or_a_number():
  with pytest.raises(ValueError, match=r'either attack\.sampled'):
    population_from(SERVER, attack(4, sampled=True), 20)
