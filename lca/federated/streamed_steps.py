"""The server's programs in a streamed round (`lca.federated.streaming`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lca.aggregators.base import Info
from lca.aggregators.forms import two_passes
from lca.aggregators.forms.two_passes import TwoPasses
from lca.federated.block_passes import BlockPasses, ReadBlocks
from lca.federated.placement import Placement, with_shardings
from lca.federated.round import (
  Aggregate,
  apply_update,
  brought,
  known_to_attackers,
  without_answer,
)
from lca.federated.row_file import Block
from lca.federated.row_sum import RowSum
from lca.federated.server import Round, Sent, Server, ServerState
from lca.stacked import geometry, gram_passes, sums
from lca.stacked.trees import group_leaves, grouping
from lca.typing import PyTree, Update, Updates


class StreamedSteps:
  """The programs of a streamed round's server, and the passes that they make.

  Attributes:
    shardings: those of the state's arrays.
    needs_one: True if the clients' rows are summed up as they come, so that no
      block is needed.

  Args:
    server: the parts of the server's step.
    placement: the devices.
    state: the state's shapes.
    update: the shapes of one client's update.
    clients: number of clients in a round, `n`.
    drawn: any round's draws.
  """

  def __init__(
    self,
    server: Server,
    placement: Placement,
    state: ServerState,
    update: Update,
    clients: int,
    drawn: Round,
  ):
    self._server, self._placement = server, placement
    self._update, self._clients = update, clients
    self.shardings = placement.by_coordinate(state)
    passes = self._in_two_passes(state.variables, drawn)
    self._needs = passes.needs
    self._by_column = server.attack.reads == 'coordinate'
    self.needs_one = passes.needs_one and not self._by_column
    # The leaves of each layer.
    key = passes.key or grouping('model')
    self._layers = list(group_leaves(update, key).values())
    self._sum = RowSum(placement, update)
    self._passes = BlockPasses(
      server, placement, update, clients, self._layers, self._in_two_passes
    )

  @property
  def block_bytes(self) -> int:
    """The bytes on a device that the server works on at once, about."""
    # A block that is read, one that is placed, and what is made of it.
    block = max(x.width * x.dtype.itemsize for x in self.blocks)
    products = len(self._layers) * self._clients * self._wide.itemsize
    spread = self._clients * 3 * block // self._placement.devices
    return spread + self._clients * 2 * products

  @property
  def blocks(self) -> list[Block]:
    """The blocks that the rows are read in."""
    return self._passes.blocks

  def _in_two_passes(self, variables, drawn) -> TwoPasses:
    given = brought(self._server, variables, None, drawn)
    return two_passes.of_aggregator(self._server.aggregator, given)

  # The last program -----------------------------------------------------------

  @functools.cached_property
  def step(self) -> jax.stages.Wrapped:
    """A jitted function that applies the aggregate and measures the round.

    `(state, aggregated, losses, drawn, numbers) -> (state, metrics)`.
    """

    def apply(state, aggregated, losses, drawn, numbers):
      server = self._server.with_numbers(numbers)
      sent = Sent(None, losses)
      return apply_update(server, state, aggregated, sent, drawn)

    out = self.shardings, self._placement.everywhere
    return jax.jit(apply, out_shardings=out)

  def lower(
    self, state: ServerState, trained: PyTree, drawn: Round
  ) -> tuple[None, jax.stages.Lowered]:
    """Lowers `step`; see `ServerPrograms.lower`."""
    n = self._clients
    losses = jax.ShapeDtypeStruct((n,), trained[1].dtype)
    squares = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((n,), sums.wide(x.dtype)), self._update
    )
    spread = self._placement.by_coordinate(self._update)
    with jax.set_mesh(self._placement.mesh):
      grams = self._gram_shapes(squares)
      _, info = jax.eval_shape(self._decide, grams, state.variables, drawn)
      update = with_shardings(self._update, spread)
      aggregated = Aggregate(update, info, squares)
      lowered = self.step.lower(
        state, aggregated, losses, drawn, self._server.numbers
      )
    return None, lowered

  def _gram_shapes(self, squares):
    if self._needs != 'products':
      return jax.eval_shape(self._grams, squares)

    def made(products):
      return gram_passes.found(gram_passes.first_search(products))

    n, dtype = self._clients, self._wide
    shape = len(self._layers), n, n
    return jax.eval_shape(made, jax.ShapeDtypeStruct(shape, dtype))

  @property
  def _wide(self):
    """The dtype of sums over coordinates."""
    return sums.wide(jnp.result_type(*jax.tree.leaves(self._update)))

  # A group of clients ---------------------------------------------------------

  def arrive(
    self, updates: Updates, state: ServerState, drawn: Round, start: int
  ) -> tuple[Updates, PyTree]:
    """Makes what the server receives of a group of clients.

    An attack that reads single rows takes place here.

    Args:
      updates: the group's updates, leaves `[k, ...]`; rows beyond the round's
        last client are not used. They are overwritten.
      state: the state before the round.
      drawn: the draws of the round.
      start: position of the group's first client in the round.

    Returns:
      The rows, and their squared norms by leaf, a tree of `[k]`.
    """
    positions = start + np.arange(len(jax.tree.leaves(updates)[0]))
    rows = np.minimum(positions, self._clients - 1)
    byzantine = np.asarray(drawn.byzantine)[rows] & (positions < self._clients)
    answered = drawn.answered
    if answered is not None:
      answered = np.asarray(answered)[rows]
    given = {'key': drawn.attack_key, **self._server.numbers['attack']}
    given |= known_to_attackers(self._server, state, drawn)
    return self._arrive(updates, byzantine, answered, positions, given)

  @functools.cached_property
  def _arrive(self):
    def arrive(updates, byzantine, answered, positions, given):
      updates = self._placement.from_clients(updates)
      if answered is not None:
        updates = without_answer(updates, answered)
      if not self._by_column:
        updates = self._server.attack.on_updates(
          updates, byzantine=byzantine, positions=positions, **given
        )
      return updates, jax.tree.map(sums.squares, updates)

    return jax.jit(arrive, donate_argnums=0)

  # From the rows to one update ------------------------------------------------

  def start_sum(self, state: ServerState, drawn: Round) -> tuple[RowSum, Info]:
    """Returns the sum of no rows, and what the rule has decided.

    Only if `needs_one`.
    """
    verdict, info = self._decide(self._grams(), state.variables, drawn)
    self._sum.start(np.asarray(verdict.scaled_weights[0]))
    return self._sum, info

  def aggregate(
    self, read: ReadBlocks, state: ServerState, drawn: Round, squares: PyTree
  ) -> Aggregate:
    """Aggregates the rows of a file.

    Args:
      read: yields blocks and their numbers.
      state: the state after the previous round.
      drawn: the draws of the round.
      squares: squared norms of the rows by leaf, from `arrive`.

    Returns:
      The aggregate, with the squared norms of the rows after an attack.
    """
    # A row that is not finite in some coordinates is rejected in all of them.
    rejected = geometry.rejected_squares(geometry.total_squares(squares))
    context = drawn, rejected, self._server.numbers['attack']
    if self._needs == 'products':
      grams, squares = self._passes.grams(read, context)
    else:
      if self._by_column:
        squares = self._passes.squares(read, context)
      grams = self._grams(squares)
    decision, info = self._decide(grams, state.variables, drawn)
    update = self._passes.combine(read, context, state.variables, decision)
    return Aggregate(update, info, squares)

  def _grams(self, squares=None):
    """Returns the Gram matrices of a rule that reads no products.

    Args:
      squares: squared norms of the rows by leaf, if it reads them.

    Returns:
      `[layers, n, n]`, or None if the rule reads nothing.
    """
    if self._needs == 'nothing':
      return None
    leaves = jax.tree.leaves(squares)
    return jnp.stack(
      [
        jnp.diag(geometry.total_squares([leaves[k] for k in layer]))
        for layer in self._layers
      ]
    )

  @functools.cached_property
  def _decide(self):
    n = self._clients

    def decide(grams, variables, drawn):
      if grams is None:  # inside the program it takes no memory
        grams = jnp.zeros((len(self._layers), n, n))
      return self._in_two_passes(variables, drawn).decide(grams)

    return jax.jit(decide)
