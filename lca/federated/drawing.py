"""The draws of a run: the clients of each round, and their examples."""

import functools

import jax
import numpy as np

from lca.attacks import Attack
from lca.attacks.base import keep_examples
from lca.data import ClientData, FederatedDataset
from lca.federated.attackers import Attackers, memory_of
from lca.federated.population import Population
from lca.federated.randomness import Purpose, key_for
from lca.federated.server import Round


class Drawing:
  """Draws the rounds of a run, and reads the examples of their clients.

  Everything follows from the seed and the index of a round (see
  `lca.federated.randomness`).

  Attributes:
    examples_key: PRNG key of `Attack.on_examples`.
    memory: the first memory of an attack that adapts; None if it does not.

  Args:
    data: the examples of every client.
    population: draws the clients of each round.
    attack: changes the examples of Byzantine clients.
    seed: seed of the run.

  Raises:
    ValueError: the attack cannot change such examples.
  """

  def __init__(
    self,
    data: FederatedDataset,
    population: Population,
    attack: Attack,
    seed: int,
  ):
    self._data, self._population, self._seed = data, population, seed
    self._attack, self.examples_key = attack, key_for(seed, Purpose.LABELS)
    self._on_examples = jax.jit(
      functools.partial(
        attack.on_examples,
        num_classes=data.dataset.num_classes,
        input_range=data.dataset.input_range,
      )
    )
    one = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
      data.gathered_shapes(1),
    )
    known = memory_of(attack, data.dataset)
    self.memory = known.get('memory')
    jax.eval_shape(self._attacked, one.inputs, one.labels, 0, 0, known)

  def draw(self, round_idx: int) -> Round:
    """Draws the clients of a round, and the keys of attack and rule."""
    ids, byzantine = self._population.sample(self._seed, round_idx)
    answered = None
    if self._population.drop_rate:
      answered = ~np.asarray(
        self._population.dropped(self._seed, round_idx, byzantine)
      )
    attacker = None
    if self._attack.needs_loss:
      # A row of zeros without examples, if nobody attacks.
      examples = self._data.gather(ids[byzantine][:1], rows=1)
      attacker = jax.tree.map(lambda x: x[0], examples)
    return Round(
      ids=ids,
      byzantine=byzantine,
      num_examples=self._data.num_examples[ids],
      attack_key=key_for(self._seed, Purpose.ATTACK, round_idx),
      rule_key=key_for(self._seed, Purpose.AGGREGATE, round_idx),
      answered=answered,
      attacker=attacker,
    )

  def training_key(self, round_idx: int) -> jax.Array:
    """Returns the key for the training of a round's clients."""
    return key_for(self._seed, Purpose.TRAIN, round_idx)

  def attackers(self, round_idx: int) -> list[int]:
    """Returns the ids of a round's Byzantine clients."""
    ids, byzantine = self._population.sample(self._seed, round_idx)
    return sorted(ids[byzantine].tolist())

  def places(self, width: int) -> int:
    """Returns how many of a device's clients may attack in a round.

    Args:
      width: number of clients of each device.
    """
    most = self._population.num_byzantine  # None if the draw decides
    return width if most is None else max(1, min(width, most))

  def read(
    self, drawn: Round, width: int, i: int
  ) -> tuple[ClientData, np.ndarray, Attackers | None]:
    """Reads the examples of the clients of one device.

    The server's own examples, if it has any, follow those of the clients.

    Args:
      drawn: the clients of the round.
      width: number of clients of each device.
      i: index of the device among those that share the clients.

    Returns:
      The examples with the attack's changes, the `[width]` ids of the clients,
      and, if the attackers train in their own way, the attackers. These have
      their examples unchanged, and their number is 0 among those of all rows.
    """
    ids, attacking = self._rows(drawn, width, i)
    # The last devices may have fewer than `width` clients. Rows without
    # examples fill the other places. Their ids do not matter, and they do not
    # attack.
    data = self._data.gather(ids, rows=width)
    client_ids = np.resize(ids, width).astype(np.int32)
    attackers = None
    if self._attack.training is not None:
      attackers = self._attackers_at(attacking, ids, width)
      data.num_examples[attacking] = 0
    elif self._attack.on_examples is not keep_examples:
      for row in attacking:
        client_id = client_ids[row]
        data.inputs[row], data.labels[row] = self._attacked(
          data.inputs[row],
          data.labels[row],
          client_id,
          self._attackers[client_id],
          {},
        )
    return data, client_ids, attackers

  def _attackers_at(self, rows, ids, width) -> Attackers:
    """Returns the attackers among the clients of a device."""
    places = self.places(width)
    attackers = Attackers(
      rows=np.full(places, width, np.int32),
      numbers=np.zeros(places, np.int32),
      num_examples=np.zeros(places, np.int32),
    )
    taken = slice(len(rows))
    attackers.rows[taken] = rows
    attackers.numbers[taken] = self._attackers[ids[rows]]
    attackers.num_examples[taken] = self._data.num_examples[ids[rows]]
    return attackers

  def _rows(self, drawn, width, i):
    """Returns the ids of a device's clients, and the rows of attackers."""
    ids, byzantine = np.asarray(drawn.ids), np.asarray(drawn.byzantine)
    if self._data.server_id is not None:
      ids = np.append(ids, self._data.server_id)
      byzantine = np.append(byzantine, False)
    rows = slice(i * width, (i + 1) * width)
    return ids[rows], np.flatnonzero(byzantine[rows])

  def _attacked(self, inputs, labels, client_id, attacker, known):
    """Returns the examples of an attacker as the attack changes them."""
    return self._on_examples(
      inputs,
      labels,
      client_id=client_id,
      attacker=attacker,
      key=self.examples_key,
      **known,
      **self._attack.numbers,
    )

  @functools.cached_property
  def _attackers(self) -> np.ndarray:
    """For each attacker's id the number of attackers with a lower id."""
    mask = self._population.attackers(self._seed)
    return np.cumsum(mask, dtype=np.int32) - 1
