"""The training of a round's clients, by one or several calls of one program.

A call trains some of each device's chunks of clients. The calls of a long round
are enqueued all at once, so that no device waits for the host or for another
device. The losses of a call are there as soon as it has ended, and tell the
host how far the round is.
"""

import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lca.data import ClientData
from lca.federated.attackers import (
  Attackers,
  AttackersTraining,
  train_attackers,
)
from lca.federated.clients import LocalGradient
from lca.federated.placement import (
  Placement,
  blank_results,
  chunk_width,
  train_clients,
  with_shardings,
)
from lca.federated.randomness import Purpose, key_for
from lca.typing import PyTree, Updates

SECONDS = 2.0
"""Seconds that a call takes at least, except in the first round of a process,
whose pace is not known. A call touches its working memory anew: with jaxlib
0.10 this took 20 ms a device for 39 MB, on a CPU."""

_CALLS = 24
"""The most calls of a round. JAX lets 32 computations wait on a CPU device, and
blocks before it enqueues one more."""


Program = jax.stages.Wrapped | jax.stages.Compiled

Clients = tuple[ClientData, jax.Array, Attackers | None]
"""The examples of all rows, their ids, and the attackers that train in their
own way."""


class Start(NamedTuple):
  """The model and the keys that all clients of a round start from.

  Attributes:
    variables: the model.
    key: PRNG key of the training.
    examples_key: PRNG key of `Attack.on_examples`.
    attack: what the attackers keep; see `ServerState`.
  """

  variables: PyTree
  key: jax.Array
  examples_key: jax.Array
  attack: PyTree


class RoundTraining:
  """The program that trains a round's clients, and the calls of a round.

  Attributes:
    donated: the position of the argument of `function` that is donated.
    results: the shapes, dtypes and shardings of the updates and the losses.
    blank_results: see the function of this name in `lca.federated.placement`.

  Args:
    train: computes one client's update.
    placement: the devices, and how many clients each trains at once.
    variables: the model's shapes.
    data: the shapes of the stacked examples of all rows that train.
    attackers: computes an attacker's update; None trains all alike.
    places: the number of attackers of a device, at most.
  """

  donated = (4,)  # the updates
  attackers_donated = (6,)

  def __init__(
    self,
    train: LocalGradient,
    placement: Placement,
    variables: PyTree,
    data: ClientData,
    attackers: AttackersTraining | None = None,
    places: int = 0,
  ):
    self._train, self._placement = train, placement
    self._attackers, self._places = attackers, places * placement.devices
    self._variables, self._data = variables, data
    self._calls: list[tuple[int, jax.Array]] = []  # rows trained by then
    self._seconds = float('inf')  # that the last round has trained
    update = jax.eval_shape(train.to_update_dtype, variables)
    rows = len(data.num_examples)
    self.blank_results = blank_results(placement.mesh, update, rows)
    shapes = jax.eval_shape(self.blank_results)
    self.results = with_shardings(shapes, placement.by_client)

  def function(self, chunk_size: int | None = None) -> jax.stages.Wrapped:
    """Returns the function of `train_clients`.

    Args:
      chunk_size: number of clients that a device trains at once; None for that
        of the placement.
    """
    return train_clients(
      self._train,
      self._placement.mesh,
      chunk_size or self._placement.chunk_size,
    )

  @property
  def attackers_function(self) -> jax.stages.Wrapped | None:
    """The function of `train_attackers`; None if all clients train alike."""
    if self._attackers is None:
      return None
    placement = self._placement
    return train_attackers(
      self._attackers, placement.mesh, placement.chunk_size
    )

  def lower_attackers(self, kept: PyTree) -> jax.stages.Lowered | None:
    """Lowers `attackers_function`, unless it is None.

    Args:
      kept: see `attackers_arguments`.
    """
    function = self.attackers_function
    if function is None:
      return None
    return function.lower(*self.attackers_arguments(kept))

  def attackers_arguments(self, kept: PyTree) -> tuple[PyTree, ...]:
    """Returns the shapes of the arguments of `attackers_function`.

    Args:
      kept: the shapes of what the attackers keep; see `ServerState`.
    """
    assert self._attackers is not None
    variables, data, ids, key, updates, losses, *_ = self.arguments
    place = jax.ShapeDtypeStruct((self._places,), jnp.int32)
    attackers = Attackers(*[place] * 3)
    return (
      *(variables, data, ids),
      with_shardings(attackers, self._placement.by_client),
      (key, key),
      with_shardings(kept, self._placement.everywhere),
      *(updates, losses, self._attackers.numbers),
    )

  @property
  def arguments(self) -> tuple[PyTree, ...]:
    """The shapes, dtypes and shardings of the arguments of `function`."""
    data, ids = self._data, self._data.num_examples
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return (
      with_shardings(self._variables, self._placement.everywhere),
      *with_shardings((data, ids), self._placement.by_client),
      jax.eval_shape(lambda: key_for(0, Purpose.TRAIN)),
      *self.results,
      number,
      number,
      self._train.numbers,
    )

  def enqueue(
    self,
    program: Program,
    attack: Program | None,
    start: Start,
    clients: Clients,
    calls: int | None = None,
  ) -> tuple[Updates, jax.Array, dict[str, PyTree]]:
    """Enqueues the training of all clients, and does not wait for it.

    The first round of a process, and a round after one of more than `SECONDS`,
    are several calls of the program. All processes of a run must make the same
    calls, so that in a run of several processes a round is always one call.

    Args:
      program: from `lower` or `function`.
      attack: from `attackers_function`; None if all clients train alike.
      start: what the clients start from.
      clients: the clients, on the mesh.
      calls: the number of calls, if it is not to be chosen here.

    Returns:
      The updates and the losses of all clients, and what the attackers keep in
      the place of `Start.attack`: `{}`, or the memory of an attack that adapts.
    """
    rows, devices = len(self._data.num_examples), self._placement.devices
    width = chunk_width(rows // devices, self._placement.chunk_size)
    chunks = -(-rows // (width * devices))
    if calls is None:
      calls = 1
      if jax.process_count() == 1:
        calls = int(np.clip(self._seconds / SECONDS, 1, min(chunks, _CALLS)))
    bounds = np.linspace(0, chunks, 1 + calls)
    self._calls, self._begun = [], time.monotonic()
    updates, losses = self.blank_results()
    kept: dict[str, PyTree] = {}
    data, client_ids, attackers = clients
    numbers = self._train.numbers
    for first, stop in itertools.pairwise(bounds.astype(np.int32)):
      updates, losses = program(
        *(start.variables, data, client_ids, start.key),
        *(updates, losses, first, stop, numbers),
      )
      self._calls.append((min(int(stop) * width * devices, rows), losses))
    if self._attackers is not None and attack is not None:
      updates, losses, kept = attack(
        *(start.variables, data, client_ids, attackers),
        *((start.key, start.examples_key), start.attack),
        *(updates, losses, self._attackers.numbers),
      )
      self._calls[-1] = rows, losses
    return updates, losses, kept

  def wait(self, report: Callable[[int], object]) -> None:
    """Waits for the calls of `enqueue`, one after the other.

    Args:
      report: is called with the number of rows that are trained, after each
        call except the last one.
    """
    for trained, losses in self._calls[:-1]:
      jax.block_until_ready(losses)
      report(trained)
    jax.block_until_ready(self._calls[-1][1])
    self._seconds = time.monotonic() - self._begun
    self._calls = []
