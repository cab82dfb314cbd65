"""The population: which clients there are, attack, are drawn and answer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lca.federated.randomness import Purpose, key_for


@dataclasses.dataclass(frozen=True)
class Population:
  """The clients that may be drawn for a round, and how many of them attack.

  Attributes:
    num_clients: of the population.
    clients_per_round: drawn without replacement.
    num_attackers: Byzantine clients in the population. None makes a fifth of
      the population attack, rounded down; the attribute then holds that number.
    num_byzantine: how many of them take part in every round; None leaves it to
      the draw.
    drop_rate: the chance that an honest client that was drawn does not answer;
      attackers always do.

  Raises:
    ValueError: numbers that do not fit together, each named.

  Examples:
    >>> Population(13, 6, num_attackers=None, num_byzantine=1).num_attackers
    2
  """

  num_clients: int
  clients_per_round: int
  num_attackers: int | None = 0
  num_byzantine: int | None = 0
  drop_rate: float = 0.0

  def __post_init__(self):
    n, attackers = self.clients_per_round, self.num_attackers
    if attackers is None:
      attackers = self.num_clients // 5
      object.__setattr__(self, 'num_attackers', attackers)
    if not 1 <= n <= self.num_clients:
      raise ValueError(
        f'clients_per_round={n} must lie between 1 and the population of '
        f'{self.num_clients} clients'
      )
    if not 0 <= attackers <= self.num_clients:
      raise ValueError(
        f'num_attackers={attackers} must lie between 0 and the population of '
        f'{self.num_clients} clients'
      )
    if not 0 <= self.drop_rate < 1:
      raise ValueError(f'drop_rate={self.drop_rate} must lie in [0, 1)')
    if self.num_byzantine is None:
      return
    if not 0 <= self.num_byzantine <= min(n, attackers):
      raise ValueError(
        f'num_byzantine={self.num_byzantine} must lie between 0 and the '
        f'smaller of clients_per_round={n} and num_attackers={attackers}'
      )
    honest = self.num_clients - attackers
    if n - self.num_byzantine > honest:
      raise ValueError(
        f'a round needs {n - self.num_byzantine} honest clients, but there '
        f'are {honest}: {self.num_clients} less num_attackers={attackers}'
      )

  def attackers(self, seed: int) -> np.ndarray:
    """Returns the `[num_clients]` mask of the attackers, fixed for a run."""
    key = key_for(seed, Purpose.ATTACKERS)
    mask = np.zeros(self.num_clients, bool)
    order = np.asarray(jax.random.permutation(key, self.num_clients))
    mask[order[: self.num_attackers]] = True
    return mask

  def sample(self, seed: int, round_idx: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a round's clients.

    Returns:
      Their ids `[n]`, in random order, and the mask `[n]` of the Byzantine.
    """
    drawn, shuffled = jax.random.split(key_for(seed, Purpose.SAMPLE, round_idx))
    order = np.asarray(jax.random.permutation(drawn, self.num_clients))
    attackers = self.attackers(seed)
    if self.num_byzantine is None:
      ids = order[: self.clients_per_round]
    else:
      byzantine = order[attackers[order]][: self.num_byzantine]
      num_honest = self.clients_per_round - self.num_byzantine
      honest = order[~attackers[order]][:num_honest]
      ids = np.concatenate([byzantine, honest])
    ids = np.asarray(jax.random.permutation(shuffled, ids))
    return ids, attackers[ids]

  def dropped(
    self, seed: int, round_idx: int, byzantine: np.ndarray
  ) -> jax.Array:
    """Draws the clients of a round that do not answer.

    Args:
      seed: of the run.
      round_idx: of the round.
      byzantine: `[n]` mask, from `sample`.

    Returns:
      Their mask `[n]`.
    """
    if not self.drop_rate:
      return jnp.zeros(len(byzantine), bool)
    key = key_for(seed, Purpose.DROP, round_idx)
    draws = jax.random.uniform(key, byzantine.shape)
    return (draws < self.drop_rate) & ~byzantine

  def most_dropped(self, seed: int, num_rounds: int) -> tuple[int, int]:
    """Finds a round with the largest number of clients that do not answer.

    The size of the population matters only where `num_byzantine` is None.

    Returns:
      The round's index, and how many clients do not answer in it.
    """
    n, population = self.clients_per_round, self
    if self.num_byzantine is not None:  # which rows attack, not who, counts
      population = dataclasses.replace(
        self, num_clients=n, num_attackers=self.num_byzantine
      )

    # This bound counts attackers too, although they always answer: telling
    # them apart is slow, and only the rounds of the largest counts need it.
    def count(round_idx):
      return jnp.sum(self.dropped(seed, round_idx, np.zeros(n, bool)))

    at_most = np.asarray(lax.map(count, jnp.arange(num_rounds)))
    worst, most = 0, -1
    for round_idx in np.argsort(-at_most, kind='stable').tolist():
      if at_most[round_idx] <= most:
        break
      _, byzantine = population.sample(seed, round_idx)
      found = int(jnp.sum(self.dropped(seed, round_idx, byzantine)))
      if found > most:
        worst, most = round_idx, found
    return worst, most


def population_from(
  server: Mapping[str, Any],
  attack: Mapping[str, Any],
  num_clients: int,
  drop_rate: float = 0.0,
) -> Population:
  """Reads a Population from `config.server` and `config.attack`.

  Args:
    server: with `clients_per_round`.
    attack: with `name`; unless that is `'none'`, with `num_attackers` (None
      stands for a fifth of the clients), `sampled` and maybe `num_byzantine`.
    num_clients: how many hold data.
    drop_rate: as in `Population`.

  Raises:
    ValueError: numbers that do not fit together, each named.
  """
  n = server['clients_per_round']
  if attack['name'] == 'none':
    return Population(num_clients, n, drop_rate=drop_rate)
  if attack['sampled'] == ('num_byzantine' in attack):
    raise ValueError(
      'either attack.sampled, and the draw decides how many attack, or '
      'attack.num_byzantine: compose the preset with or without _sampled'
    )
  population = Population(
    num_clients, n, attack['num_attackers'], None, drop_rate
  )
  if not population.num_attackers:
    raise ValueError(
      f'attack.name={attack["name"]!r} needs attackers, but of the '
      f'{num_clients} clients there are attack.num_attackers=0'
    )
  if attack['sampled']:
    return population
  return dataclasses.replace(population, num_byzantine=attack['num_byzantine'])
