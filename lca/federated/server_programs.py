"""The programs of the server's part of a round, and their place on devices.

Attack and rule are two programs, so that a sweep over both compiles each attack
once and each rule once, and not all of their combinations.
"""

import functools

import jax
from jax import lax

from lca.federated.placement import Placement, with_shardings
from lca.federated.round import next_model, receive
from lca.federated.server import Round, Sent, Server, ServerState
from lca.typing import PyTree, Updates

# The positions of arguments that a program may overwrite.
_AGGREGATOR, _MOMENTA, _UPDATES = 2, 3, 5


class ServerPrograms:
  """The two halves of `lca.federated.round.server_step` on a mesh.

  Clients train on one device each. The server works on some coordinates of all
  clients on each device (see `lca.stacked.sharding`), so the first program of
  the two redistributes the updates.

  Attributes:
    shardings: those of the state's arrays.
    donated: the positions of the arguments that are donated to `receive`, and
      to `step`.

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
    shardings = placement.by_coordinate(state)
    memory = jax.tree.map(lambda _: placement.everywhere, state.memory)
    self.shardings = shardings._replace(
      momenta=placement.by_coordinate(state.momenta, lead=1),
      attack={**shardings.attack, **memory},
    )
    in_place = (_UPDATES,) if placement.devices == 1 else ()
    self.donated = (_MOMENTA, *in_place), (_AGGREGATOR, _MOMENTA)

  @functools.cached_property
  def receive(self) -> jax.stages.Wrapped | None:
    """A jitted function that makes what the server receives.

    `(variables, opt_state, aggregator, momenta, attack, updates, losses, drawn,
    numbers) -> (updates, momenta)`: the fields of the state, the results
    of all rows that have trained (the clients, maybe the server, and rows that
    fill up the last devices), the draws of the round, and `Server.numbers`. The
    momenta are donated, so that XLA updates them in place. So are the updates
    on a single device; on several, the results are spread in another way. None
    if nothing changes the updates.
    """
    if not self._changes_updates:
      return None
    return jax.jit(self._receive, donate_argnums=self.donated[0])

  @functools.cached_property
  def step(self) -> jax.stages.Wrapped:
    """A jitted function that makes the next model.

    `(variables, opt_state, aggregator, momenta, attack, updates, losses, drawn,
    numbers) -> (state, metrics)`, with the updates and the momenta of
    `receive` if there is one. The aggregator's state and the momenta are
    donated.
    """
    return jax.jit(
      self._step,
      donate_argnums=self.donated[1],
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
    receiving, stepping = self.arguments(state, trained, drawn)
    with jax.set_mesh(self._placement.mesh):
      return (
        None if self.receive is None else self.receive.lower(*receiving),
        self.step.lower(*stepping),
      )

  def arguments(
    self, state: ServerState, trained: tuple[Updates, jax.Array], drawn: Round
  ) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...]]:
    """Returns the arguments of `receive` and of `step` for `lower`.

    Args:
      state, trained, drawn: see `lower`.
    """
    updates, losses = trained
    received, numbers = updates, self._server.numbers
    if self.receive is not None:
      spread = self._placement.by_coordinate(updates, lead=1)
      received = with_shardings(updates, spread)
    return (
      (*state, updates, losses, drawn, numbers),
      (*state, received, losses, drawn, numbers),
    )

  def _receive(self, *arguments):
    server, state, updates, sent, drawn = self._parts(
      self._placement.from_clients, *arguments
    )
    received, momenta = receive(server, state, sent, drawn)
    # The rows after the clients' stay as they are.
    updates = jax.tree.map(
      lambda rows, new: rows.at[: self._clients].set(new),
      updates,
      received.updates,
    )
    momenta = lax.with_sharding_constraint(momenta, self.shardings.momenta)
    return self._by_coordinate(updates), momenta

  def _step(self, *arguments):
    spread = self._by_coordinate
    if self.receive is None:
      spread = self._placement.from_clients
    server, state, _, received, drawn = self._parts(spread, *arguments)
    return next_model(server, state, received, drawn)

  def _parts(
    self,
    spread,
    variables,
    opt_state,
    aggregator,
    momenta,
    attack,
    updates,
    losses,
    drawn,
    numbers,
  ):
    """Returns what both programs need of their arguments (see `receive`).

    Args:
      spread: spreads the updates by coordinate.

    Returns:
      The server with its numbers, the state, the updates of all rows spread by
      coordinate, the clients' part of them, and the draws.
    """
    state = ServerState(variables, opt_state, aggregator, momenta, attack)
    updates = spread(updates)
    sent = self._sent(updates, losses)
    return self._server.with_numbers(numbers), state, updates, sent, drawn

  def _by_coordinate(self, updates: Updates) -> Updates:
    """Keeps rows spread by coordinate."""
    by_coordinate = self._placement.by_coordinate(updates, lead=1)
    return lax.with_sharding_constraint(updates, by_coordinate)

  def _sent(self, updates: Updates, losses: jax.Array) -> Sent:
    """Returns the rows of the clients, and the row of the server."""
    n = self._clients
    sent = Sent(jax.tree.map(lambda u: u[:n], updates), losses[:n])
    if self._server_trains:
      sent = sent._replace(server_update=jax.tree.map(lambda u: u[n], updates))
    return sent
