"""The programs of the server's part of a round, and their place on devices.

Attack and rule are two programs, so that a sweep over both compiles each attack
once and each rule once, and not all of their combinations.
"""

import functools

import jax
from jax import lax

from lca.federated.placement import Placement, with_shardings
from lca.federated.round import (
  Round,
  Sent,
  Server,
  ServerState,
  next_model,
  receive,
)
from lca.typing import PyTree, Updates


class ServerPrograms:
  """The two halves of `lca.federated.round.server_step` on a mesh.

  Clients train on one device each. The server works on some coordinates of all
  clients on each device (see `lca.stacked.sharding`), so the first program of
  the two redistributes the updates.

  Attributes:
    shardings: those of the state's arrays.

  Args:
    server: the parts of the server's step.
    placement: the devices.
    state: the state's shapes.
    clients: number of clients in a round, `n`.
    server_trains: True if the row after the clients' rows is the server's own
      update.
    clients_drop: True if clients may not answer.
  """

  def __init__(
    self,
    server: Server,
    placement: Placement,
    state: ServerState,
    *,
    clients: int,
    server_trains: bool,
    clients_drop: bool,
  ):
    self._server, self._placement = server, placement
    self._clients, self._server_trains = clients, server_trains
    self._changes_updates = server.changes_updates or clients_drop
    self.shardings = placement.by_coordinate(state)._replace(
      momenta=placement.by_coordinate(state.momenta, lead=1)
    )

  @functools.cached_property
  def receive(self) -> jax.stages.Wrapped | None:
    """A jitted function that makes what the server receives.

    `(variables, opt_state, aggregator, momenta, updates, losses, drawn,
    numbers) -> (received, momenta)`: the fields of the state, the results of
    all rows that have trained (the clients, maybe the server, and rows that
    fill up the last devices), the draws of the round, and `Server.numbers`. The
    momenta are donated, so that XLA updates them in place. None if nothing
    changes the updates.
    """
    if not self._changes_updates:
      return None
    return jax.jit(self._receive, donate_argnames='momenta')

  @functools.cached_property
  def step(self) -> jax.stages.Wrapped:
    """A jitted function that makes the next model.

    `(variables, opt_state, aggregator, momenta, received, drawn, numbers) ->
    (state, metrics)`. `received` is from `receive`; without it, `received` is
    the tuple of updates and losses of all rows that have trained. The
    aggregator's state and the momenta are donated.
    """
    return jax.jit(
      self._step,
      donate_argnames=('aggregator', 'momenta'),
      out_shardings=(self.shardings, self._placement.everywhere),
    )

  def lower(
    self, state: ServerState, trained: tuple[Updates, jax.Array], drawn: Round
  ) -> tuple[jax.stages.Lowered | None, jax.stages.Lowered]:
    """Lowers `receive`, unless it is None, and `step`.

    Args:
      state: shapes and shardings of the state.
      trained: shapes and shardings of the updates and losses of all rows.
      drawn: any round's draws.
    """
    received: PyTree = trained
    receiving, numbers = None, self._server.numbers
    with jax.set_mesh(self._placement.mesh):
      if self.receive is not None:
        receiving = self.receive.lower(*state, *trained, drawn, numbers)
        shapes, _ = receiving.out_info
        received = with_shardings(shapes, self._received_shardings(shapes))
      return receiving, self.step.lower(*state, received, drawn, numbers)

  def _receive(
    self,
    variables,
    opt_state,
    aggregator,
    momenta,
    updates,
    losses,
    drawn,
    numbers,
  ):
    state = ServerState(variables, opt_state, aggregator, momenta)
    sent = self._by_coordinate(updates, losses)
    server = self._server.with_numbers(numbers)
    received, momenta = receive(server, state, sent, drawn)
    shardings = self._received_shardings(received), self.shardings.momenta
    return lax.with_sharding_constraint((received, momenta), shardings)

  def _step(
    self, variables, opt_state, aggregator, momenta, received, drawn, numbers
  ):
    if not isinstance(received, Sent):
      received = self._by_coordinate(*received)
    state = ServerState(variables, opt_state, aggregator, momenta)
    server = self._server.with_numbers(numbers)
    return next_model(server, state, received, drawn)

  def _by_coordinate(self, updates: Updates, losses: jax.Array) -> Sent:
    """Takes rows that are spread by client, and spreads them by coordinate."""
    by_coordinate = self._placement.by_coordinate(updates, lead=1)
    updates = lax.with_sharding_constraint(updates, by_coordinate)
    n = self._clients
    sent = Sent(jax.tree.map(lambda u: u[:n], updates), losses[:n])
    if self._server_trains:
      sent = sent._replace(server_update=jax.tree.map(lambda u: u[n], updates))
    return sent

  def _received_shardings(self, received: Sent) -> Sent:
    """Returns the shardings of what the server receives."""
    by_coordinate = self._placement.by_coordinate
    return received._replace(
      updates=by_coordinate(received.updates, lead=1),
      losses=self._placement.everywhere,
      server_update=by_coordinate(received.server_update),
    )
