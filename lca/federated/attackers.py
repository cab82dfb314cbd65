"""The training of the clients that attack by how they train.

Honest clients and attackers then train in two programs, so that only attackers
pay for an attacker's steps: the first program gives them no examples.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lca.attacks import Attack, Training
from lca.data import ClientData, Dataset
from lca.federated.clients import LocalTraining
from lca.federated.placement import chunk_width
from lca.federated.server import memory_in
from lca.models import Classifier
from lca.stacked.sharding import AXIS
from lca.typing import PyTree


class Attackers(NamedTuple):
  """The attackers among the clients of a device.

  There are as many places as a device may have attackers. Those that attack
  come first.

  Attributes:
    rows: `[places]` positions among the device's clients, ascending; their
      number for a place without an attacker.
    numbers: `[places]` numbers of the attackers among those of the population.
    num_examples: `[places]` numbers of examples.
  """

  rows: Any
  numbers: Any
  num_examples: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackersTraining(LocalTraining):
  """An attacker's part of federated averaging; see `lca.attacks.Training`.

  Attributes:
    attack: has a `training`, and changes the attacker's examples.
    num_classes: of the data.
    input_range: the smallest and the largest value of an input.
    logits: computes the logits of inputs.
    start: the server's parameters, while a client trains.
    kept: the coordinates in which a client's model may change, while it trains.
  """

  attack: Attack
  num_classes: int
  input_range: tuple[float, float] | None
  logits: Callable[[PyTree, jax.Array], jax.Array] | None = None
  start: PyTree = None
  kept: PyTree = None

  @property
  def numbers(self) -> dict[str, Any]:
    """See `LocalGradient.numbers`: those of the attack, too."""
    return {
      'training': super().numbers,
      'attack': dict(self.attack.numbers),
    }

  def with_numbers(self, numbers: dict[str, Any]) -> 'AttackersTraining':
    """See `LocalGradient.with_numbers`."""
    attack = self.attack._replace(numbers=numbers['attack'])
    other: Any = super().with_numbers(numbers['training'])
    return dataclasses.replace(other, attack=attack)

  @property
  def _how(self) -> Training:
    assert self.attack.training is not None
    return self.attack.training

  def attack_with(
    self,
    variables: PyTree,
    clean: ClientData,
    client_id: jax.Array,
    attacker: jax.Array,
    key: jax.Array,
    examples_key: jax.Array,
    kept: dict[str, PyTree],
  ) -> tuple[PyTree, jax.Array]:
    """Computes an attacker's update.

    Args:
      variables: the server's model.
      clean: the client's examples.
      client_id: `[]`.
      attacker: `[]` number of the attacker.
      key: PRNG key of the training.
      examples_key: PRNG key of `Attack.on_examples`.
      kept: what the attackers keep; see `ServerState.attack`.

    Returns:
      See `LocalGradient.__call__`.
    """
    inputs, labels = self.attack.on_examples(
      clean.inputs,
      clean.labels,
      client_id=client_id,
      attacker=attacker,
      num_classes=self.num_classes,
      input_range=self.input_range,
      key=examples_key,
      **memory_in(kept),
      **self.attack.numbers,
    )
    data = clean._replace(inputs=inputs, labels=labels)
    if self._how.batch_share is not None:
      data = clean._replace(
        inputs=jnp.concatenate([inputs, clean.inputs]),
        labels=jnp.concatenate([labels, clean.labels]),
      )
    ranked = None
    if self._how.ranks_gradient:
      ranked = self._whole_gradient(variables, clean, key)
    elif self._how.needs_last_change:
      ranked = kept['last_change']['params']
    part = dataclasses.replace(
      self, start=variables['params'], kept=self._how.kept(ranked)
    )
    update, loss = part(variables, data, key)
    return self._how.at_the_end(update), loss

  def adapt(
    self,
    variables: PyTree,
    data: ClientData,
    attackers: Attackers,
    memory: PyTree,
  ) -> PyTree:
    """Lets the first attacker of a round adapt the memory of all.

    All devices of a mesh make the same steps.

    Args:
      variables: the server's model.
      data: the examples of the device's clients.
      attackers: those of the device.
      memory: before the round; it stays as it is in a round without attackers.
    """
    adaptive = self.attack.adaptive
    assert adaptive is not None
    attacks = attackers.rows[0] < len(data.labels)
    first = jnp.where(attacks, lax.axis_index(AXIS), _NOBODY)
    leader = lax.pmin(first, AXIS)
    nobody, mine = leader == _NOBODY, leader == first
    row = jnp.minimum(attackers.rows[0], len(data.labels) - 1)
    own = jax.tree.map(lambda x: x[row], data)
    own = own._replace(num_examples=attackers.num_examples[0])
    own = jax.tree.map(
      lambda x: lax.psum(jnp.where(mine, x, 0), AXIS).astype(x.dtype), own
    )
    adapt = functools.partial(
      adaptive.adapt,
      losses=self.losses,
      logits=self.logits,
      variables=variables,
      data=own,
      input_range=self.input_range,
    )
    return lax.cond(nobody, lambda memory: memory, adapt, memory)

  def _whole_gradient(self, variables, clean, key):
    """Returns the gradient of the sum of a client's losses."""
    order = jnp.arange(len(clean.labels))

    def add_batch(i, total):
      start = i * self.batch_size
      stop = jnp.minimum(start + self.batch_size, clean.num_examples)
      _, gradient, _ = self.loss_and_gradient(
        variables, clean, key, order, start, stop
      )
      return jax.tree.map(jnp.add, total, gradient)

    zeros = jax.tree.map(jnp.zeros_like, variables['params'])
    num_batches = -(-clean.num_examples // self.batch_size)
    return lax.fori_loop(0, num_batches, add_batch, zeros)

  def order(self, key: jax.Array, data: ClientData) -> jax.Array:
    """See `LocalTraining.order`.

    With a `batch_share`, the poisoned examples are followed by the clean ones,
    and each batch begins with its poisoned ones.
    """
    share = self._how.batch_share
    if share is None:
      return super().order(key, data)
    size = len(data.labels) // 2
    half = data._replace(labels=data.labels[:size])
    place = jnp.arange(size) % self.batch_size
    # The last batch may be smaller.
    left = data.num_examples - (jnp.arange(size) - place)
    in_batch = jnp.minimum(self.batch_size, left)
    poisoned = place < jnp.round(share * in_batch)
    return super().order(key, half) + jnp.where(poisoned, 0, size)

  def change_gradient(self, gradient: PyTree, params: PyTree) -> PyTree:
    """See `lca.attacks.Training`."""
    return self._how.change_gradient(gradient, params, self.start, self.kept)

  def after(self, what: Any, params: PyTree) -> PyTree:
    """See `lca.attacks.Training`."""
    return self._how.after(what, params, self.start)


_NOBODY = 2**30  # more than there are devices


def memory_of(attack: Attack, dataset: Dataset) -> dict[str, PyTree]:
  """Returns the first memory of an attack by its name; {} if it has none."""
  if attack.adaptive is None:
    return {}
  shape = dataset.train.input_spec.shape
  return {'memory': attack.adaptive.init(shape, dataset.input_range)}


def attackers_training(
  train: LocalTraining,
  attack: Attack,
  dataset: Dataset,
  classifier: Classifier,
) -> AttackersTraining:
  """Returns an attacker's part of a round.

  Args:
    train: the training of a client with the attackers' optimiser.
    attack: what the attackers do.
    dataset: the data.
    classifier: the model.
  """
  fields = {
    field.name: getattr(train, field.name)
    for field in dataclasses.fields(LocalTraining)
  }
  return AttackersTraining(
    **fields,
    attack=attack,
    num_classes=dataset.num_classes,
    input_range=dataset.input_range,
    logits=classifier.logits,
  )


def train_attackers(
  train: AttackersTraining, mesh: Mesh, chunk_size: int
) -> jax.stages.Wrapped:
  """Makes the function that trains the attackers of a round.

  Args:
    train: computes an attacker's update.
    mesh, chunk_size: see `train_clients` in `lca.federated.placement`.

  Returns:
    A jitted function `(variables, data, client_ids, attackers, keys,
    kept, updates, losses, numbers) -> (updates, losses, kept)`. `data` and
    `client_ids` are stacked over all rows, `attackers` over the places of all
    devices. `keys` are those of the training and of the examples, `kept` is
    `ServerState.attack`. The results are written into the attackers' rows of
    `updates` and `losses`, whose memory is used again. The `kept` that is
    returned has the new memory of an attack that adapts; else it is `{}`.
  """

  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(), *(P(AXIS),) * 3, P(), P(), P(AXIS), P(AXIS), P()),
    out_specs=(P(AXIS), P(AXIS), P()),
    check_vma=False,  # see `train_clients`
  )
  def on_each_device(
    variables,
    data,
    client_ids,
    attackers,
    keys,
    kept,
    updates,
    losses,
    numbers,
  ):
    part, kept = train.with_numbers(numbers), dict(kept)
    clients, places = len(client_ids), len(attackers.rows)
    train_key, examples_key = keys

    def train_one(row, number, num_examples):
      clean = jax.tree.map(lambda x: x[jnp.minimum(row, clients - 1)], data)
      client_id = client_ids[jnp.minimum(row, clients - 1)]
      return part.attack_with(
        variables,
        clean._replace(num_examples=num_examples),
        client_id,
        number,
        jax.random.fold_in(train_key, client_id),
        examples_key,
        kept,
      )

    width = chunk_width(places, chunk_size)
    # The last chunk is filled up with places without an attacker.
    filled = jax.tree.map(
      lambda x, empty: jnp.pad(x, (0, -places % width), constant_values=empty),
      attackers,
      Attackers(clients, 0, 0),
    )

    def train_chunk(i, results):
      rows, *others = jax.tree.map(
        lambda x: lax.dynamic_slice_in_dim(x, i * width, width), filled
      )
      if width == 1:
        trained = train_one(rows[0], *(x[0] for x in others))
        trained = jax.tree.map(lambda x: x[None], trained)
      else:
        trained = jax.vmap(train_one)(rows, *others)
      return jax.tree.map(
        lambda x, new: x.at[rows].set(new, mode='drop'), results, trained
      )

    attacking = jnp.sum(attackers.rows < clients)
    if part.attack.adaptive is not None:
      kept['memory'] = part.adapt(variables, data, attackers, kept['memory'])
    chunks = -(-attacking // width)
    results = lax.fori_loop(0, chunks, train_chunk, (updates, losses))
    return *results, memory_in(kept)

  return jax.jit(on_each_device, donate_argnums=6)
