"""The population of clients: who attacks, who is drawn, who answers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lca.federated.randomness import Purpose, key_for
from lca.federated.schedule import ALWAYS, Schedule


@dataclasses.dataclass(frozen=True)
class Population:
  """The clients that may be drawn for a round, and how many of them attack.

  Attributes:
    num_clients: number of clients in the population.
    clients_per_round: number of clients drawn for a round, without replacement.
    num_attackers: number of Byzantine clients in the population. None stands
      for a fifth of the population, rounded down; the attribute then holds this
      number.
    num_byzantine: number of Byzantine clients in every round. None draws the
      clients of a round regardless of who is Byzantine, so that the number
      varies.
    drop_rate: probability, in [0, 1), that an honest client in a round does not
      answer. Byzantine clients always answer.
    schedule: the rounds in which the attackers attack. It does not change which
      clients are drawn.

  Raises:
    ValueError: the numbers do not fit together.

  Examples:
    >>> Population(13, 6, num_attackers=None, num_byzantine=1).num_attackers
    2
  """

  num_clients: int
  clients_per_round: int
  num_attackers: int | None = 0
  num_byzantine: int | None = 0
  drop_rate: float = 0.0
  schedule: Schedule = ALWAYS

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
        f'are {honest}: {self.num_clients} clients less num_attackers='
        f'{attackers}; lower num_attackers or clients_per_round'
      )

  def attackers(self, seed: int) -> np.ndarray:
    """Returns the `[num_clients]` mask of the attackers, fixed for a run.

    Args:
      seed: seed of the run.
    """
    key = key_for(seed, Purpose.ATTACKERS)
    mask = np.zeros(self.num_clients, bool)
    order = np.asarray(jax.random.permutation(key, self.num_clients))
    mask[order[: self.num_attackers]] = True
    return mask

  def sample(self, seed: int, round_idx: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the clients of a round.

    Args:
      seed: seed of the run.
      round_idx: index of the round.

    Returns:
      The `[n]` ids of the clients, in random order, and the `[n]` mask of those
      that are Byzantine in this round.
    """
    draw_key, order_key = jax.random.split(
      key_for(seed, Purpose.SAMPLE, round_idx)
    )
    order = np.asarray(jax.random.permutation(draw_key, self.num_clients))
    attackers = self.attackers(seed)
    if self.num_byzantine is None:
      ids = order[: self.clients_per_round]
    else:
      # Take the first clients of each kind in a random order of the population.
      byzantine = order[attackers[order]][: self.num_byzantine]
      num_honest = self.clients_per_round - self.num_byzantine
      honest = order[~attackers[order]][:num_honest]
      ids = np.concatenate([byzantine, honest])
    ids = np.asarray(jax.random.permutation(order_key, ids))
    attack = self.schedule.attacks(round_idx + 1)
    return ids, attackers[ids] & attack

  def dropped(
    self, seed: int, round_idx: int, byzantine: np.ndarray
  ) -> jax.Array:
    """Draws the clients of a round that do not answer.

    Args:
      seed: seed of the run.
      round_idx: index of the round.
      byzantine: `[n]` mask of the Byzantine clients, from `sample`.

    Returns:
      The `[n]` mask of the clients that do not answer.
    """
    if not self.drop_rate:
      return jnp.zeros(len(byzantine), bool)
    key = key_for(seed, Purpose.DROP, round_idx)
    draws = jax.random.uniform(key, byzantine.shape)
    return (draws < self.drop_rate) & ~byzantine

  def most_dropped(self, seed: int, num_rounds: int) -> tuple[int, int]:
    """Finds the round in which the largest number of clients do not answer.

    Args:
      seed: seed of the run.
      num_rounds: number of rounds to look at, from round 0.

    Returns:
      The index of the round, and the number of clients that do not answer in
      it. The size of the population affects the result only if `num_byzantine`
      is None.
    """
    n, population = self.clients_per_round, self
    if self.num_byzantine is not None:
      # The result depends on which rows attack, not on which clients these are.
      # So draw from the smallest population that has the same rows.
      population = dataclasses.replace(
        self, num_clients=n, num_attackers=self.num_byzantine
      )

    # A cheap upper bound for every round: the count as if nobody attacked.
    # Sampling, which is slow, is left to the rounds with the largest bounds.
    def upper_bound(round_idx):
      return jnp.sum(self.dropped(seed, round_idx, np.zeros(n, bool)))

    bounds = np.asarray(lax.map(upper_bound, jnp.arange(num_rounds)))
    worst, most = 0, -1
    for round_idx in np.argsort(-bounds, kind='stable').tolist():
      if bounds[round_idx] <= most:
        break  # no later round can exceed the largest count
      _, byzantine = population.sample(seed, round_idx)
      count = int(jnp.sum(self.dropped(seed, round_idx, byzantine)))
      if count > most:
        worst, most = round_idx, count
    return worst, most


def population_from(
  server: Mapping[str, Any],
  attack: Mapping[str, Any],
  num_clients: int,
  drop_rate: float = 0.0,
) -> Population:
  """Makes a `Population` from the sections `server` and `attack` of a config.

  Args:
    server: the section with `clients_per_round`.
    attack: the section with `name`. Unless the name is `'none'`, it also has
      `num_attackers` (None stands for a fifth of the clients), `sampled`, and,
      if `sampled` is False, `num_byzantine`.
    num_clients: number of clients that hold data.
    drop_rate: as in `Population`.

  Raises:
    ValueError: the numbers do not fit together.
  """
  n = server['clients_per_round']
  if attack['name'] == 'none':
    return Population(num_clients, n, drop_rate=drop_rate)
  if attack['sampled'] == ('num_byzantine' in attack):
    raise ValueError(
      'set either attack.sampled=True, so that the draw decides how many '
      'clients attack, or attack.num_byzantine, which fixes the number: '
      'an attack preset with the suffix _sampled sets attack.sampled=True, '
      'the preset without the suffix sets attack.num_byzantine'
    )
  schedule = Schedule(
    **{
      field.name: attack[field.name]
      for field in dataclasses.fields(Schedule)
      if field.name in attack
    }
  )
  population = Population(
    num_clients, n, attack['num_attackers'], None, drop_rate, schedule
  )
  if not population.num_attackers:
    raise ValueError(
      f'attack.name={attack["name"]!r} needs attackers, but of the '
      f'{num_clients} clients none attacks: attack.num_attackers=0'
    )
  if attack['sampled']:
    return population
  return dataclasses.replace(population, num_byzantine=attack['num_byzantine'])
