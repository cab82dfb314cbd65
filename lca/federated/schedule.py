"""The rounds in which attackers attack."""

import dataclasses
from collections.abc import Sequence

from lca.options import whole


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The rounds in which the attackers attack; in the others they are honest.

  Attributes:
    first_round: number of the first of these rounds; rounds count from 1.
    last_round: number of the last one; None attacks to the end.
    every: attacks in every k-th round from the first on.
    rounds: the numbers of these rounds, one by one, in the place of the other
      three; None does not name them.

  Raises:
    ValueError: a number is below 1, the last round comes before the first, or
      rounds are named in both ways.

  Examples:
    >>> schedule = Schedule(first_round=2, last_round=6, every=2)
    >>> [number for number in range(1, 9) if schedule.attacks(number)]
    [2, 4, 6]
  """

  first_round: int = 1
  last_round: int | None = None
  every: int = 1
  rounds: Sequence[int] | None = None

  def __post_init__(self):
    for name in ('first_round', 'last_round', 'every'):
      number = getattr(self, name)
      if not (name == 'last_round' and number is None):
        whole(1)(f'attack.{name}', number)
    if self.last_round is not None and self.last_round < self.first_round:
      raise ValueError(
        f'attack.last_round={self.last_round} comes before '
        f'attack.first_round={self.first_round}'
      )
    if self.rounds is None:
      return
    if isinstance(self.rounds, int) or not len(self.rounds):
      raise ValueError(
        'attack.rounds must be the numbers of rounds, such as (2, 4), got '
        f'{self.rounds}'
      )
    for number in self.rounds:
      whole(1)('attack.rounds', number)
    if (self.first_round, self.last_round, self.every) != (1, None, 1):
      raise ValueError(
        f'attack.rounds={tuple(self.rounds)} names all rounds of the attack: '
        'leave out attack.first_round, attack.last_round and attack.every'
      )

  def attacks(self, number: int) -> bool:
    """Returns True if the attackers attack in a round.

    Args:
      number: of the round, from 1.
    """
    if self.rounds is not None:
      return number in self.rounds
    after = number - self.first_round
    ended = self.last_round is not None and number > self.last_round
    return after >= 0 and after % self.every == 0 and not ended


ALWAYS = Schedule()
