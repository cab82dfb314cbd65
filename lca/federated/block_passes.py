"""A streamed round's passes over the rows, some coordinates at a time."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from lca.aggregators.forms.two_passes import TwoPasses
from lca.federated.placement import Placement
from lca.federated.row_file import Block, blocks_of
from lca.federated.server import Server
from lca.stacked import gram_passes, sharding, sums
from lca.typing import Gram, PyTree, Update

BLOCK_BYTES = 2**26
"""Bytes of the coordinates that the server works on at once, at most."""

ReadBlocks = Callable[[list[Block]], Iterable[tuple[Block, np.ndarray]]]
"""A function that yields blocks and their numbers, `[n, width]`."""


class BlockPasses:
  """The passes over the rows of a round, block by block.

  All methods that make a pass take `read`, which yields blocks, and `context`:
  the draws of the round, the `[n]` mask of the rows that are rejected before an
  attack, and the numbers of the attack. An attack that reads coordinate by
  coordinate takes place whenever a block has been read.

  Attributes:
    blocks: the blocks of all coordinates.

  Args:
    server: the parts of the server's step.
    placement: the devices.
    update: the shapes of one client's update.
    clients: number of clients in a round, `n`.
    layers: the indices of the leaves of each layer.
    passes: a function from the model and the draws of a round to the rule.
  """

  def __init__(
    self,
    server: Server,
    placement: Placement,
    update: Update,
    clients: int,
    layers: list[list[int]],
    passes: Callable[..., TwoPasses],
  ):
    self._attack, self._mesh = server.attack, placement.mesh
    self._spread = placement.by_coordinate(update)
    self._leaves, self._structure = jax.tree.flatten(update)
    self._clients, self._layers, self._passes = clients, layers, passes
    self._layer_of = {leaf: k for k, x in enumerate(layers) for leaf in x}
    self.blocks = blocks_of(update, clients, BLOCK_BYTES)

  def squares(self, read: ReadBlocks, context: tuple[Any, ...]) -> PyTree:
    """Returns the rows' squared norms by leaf, a tree of `[n]`."""
    totals = self._zeros(len(self._leaves), self._clients)
    for block, rows in self._placed(read, self.blocks):
      totals[block.leaf] = self._add_squares(
        totals[block.leaf], rows, block.columns, *context
      )
      totals[block.leaf].block_until_ready()
    return jax.tree.unflatten(self._structure, totals)

  def grams(
    self, read: ReadBlocks, context: tuple[Any, ...]
  ) -> tuple[Gram, PyTree]:
    """Returns the inner products of each layer's rows, and the squared norms.

    Returns:
      `[layers, n, n]`, as from `lca.stacked.geometry.grams`, and the squared
      norms by leaf, a tree of `[n]`.
    """
    n = self._clients
    products = self._zeros(len(self._layers), n, n)
    squares = self._zeros(len(self._leaves), n)
    for block, rows in self._placed(read, self.blocks):
      layer, leaf = self._layer_of[block.leaf], block.leaf
      products[layer], squares[leaf] = jax.block_until_ready(
        self._add_products(
          products[layer], squares[leaf], rows, block.columns, *context
        )
      )
    search = gram_passes.first_search(jnp.stack(products))
    while gram_passes.needs_pass(search):
      search = gram_passes.choose_rows(search)
      parts = self._parts(read, context, search)
      search = gram_passes.with_parts(search, parts)
    squares = jax.tree.unflatten(self._structure, squares)
    return cast(Gram, gram_passes.found(search)), squares

  def _parts(self, read, context, search):
    """Makes the pass that a search for the central rows needs."""
    lost = np.asarray(search.lost)
    parts = list(jnp.zeros_like(search.parts))
    blocks = [x for x in self.blocks if lost[self._layer_of[x.leaf]]]
    for block, rows in self._placed(read, blocks):
      layer = self._layer_of[block.leaf]
      central = search.shares[layer], search.middle[layer]
      parts[layer] = self._add_parts(
        parts[layer], rows, block.columns, *context, *central
      )
      parts[layer].block_until_ready()
    return jnp.stack(parts)

  def combine(
    self,
    read: ReadBlocks,
    context: tuple[Any, ...],
    variables: PyTree,
    decision: PyTree,
  ) -> Update:
    """Returns the aggregate of the rows, spread by coordinate.

    Args:
      read, context: see the class.
      variables: the model.
      decision: the rule's, from `TwoPasses.decide`.
    """
    leaves = [np.empty(x.shape, x.dtype) for x in self._leaves]
    for block, rows in self._placed(read, self.blocks):
      layer = np.int32(self._layer_of[block.leaf])
      part = self._combine(
        rows, block.columns, *context, variables, decision, layer
      )
      flat = leaves[block.leaf].reshape(-1)
      flat[block.start : block.stop] = np.asarray(part)[: block.columns]
    update = jax.tree.unflatten(self._structure, leaves)
    return jax.device_put(update, self._spread)

  def _zeros(self, number, *shape):
    """Returns a number of arrays of zeros, in the dtype of sums."""
    dtype = sums.wide(jnp.result_type(*self._leaves))
    return [jnp.zeros(shape, dtype) for _ in range(number)]

  def _placed(
    self, read: ReadBlocks, blocks: list[Block]
  ) -> Iterator[tuple[Block, jax.Array]]:
    """Yields blocks and their numbers, spread over the devices."""
    for block, rows in read(blocks):
      spec = sharding.by_coordinate(rows.shape, self._mesh.size)
      yield block, jax.device_put(rows, NamedSharding(self._mesh, spec))

  def _received(self, rows, columns, drawn, rejected, numbers):
    """Returns some columns of the rows that the server receives.

    Args:
      rows: a block, `[n, width]`.
      columns: the number of its columns; all others stay zero.
      drawn, rejected, numbers: the context.
    """
    if self._attack.reads != 'coordinate':
      return rows
    # An honest row that is rejected is so in all of its columns.
    byzantine = jnp.asarray(drawn.byzantine)
    sent = jnp.where((rejected & ~byzantine)[:, None], jnp.nan, rows)
    attacked = self._attack.on_updates(
      sent, byzantine=byzantine, key=drawn.attack_key, **numbers
    )
    inside = jnp.arange(rows.shape[1]) < columns
    return jnp.where(byzantine[:, None] & inside, attacked, rows)

  # The programs, each for a block ---------------------------------------------

  @functools.cached_property
  def _add_squares(self):
    def add(total, rows, columns, *context):
      return total + sums.squares(self._received(rows, columns, *context))

    return jax.jit(add, donate_argnums=0)

  @functools.cached_property
  def _add_products(self):
    def add(total, squares, rows, columns, *context):
      new = sums.products(self._received(rows, columns, *context))
      return total + new, squares + jnp.diagonal(new)

    return jax.jit(add, donate_argnums=(0, 1))

  @functools.cached_property
  def _add_parts(self):
    def add(total, rows, columns, drawn, rejected, numbers, shares, middle):
      rows = self._received(rows, columns, drawn, rejected, numbers)
      (parts,) = sums.parts_products(
        [[rows]], jnp.array([True]), shares[None], middle[None]
      )
      return total + parts

    return jax.jit(add, donate_argnums=0)

  @functools.cached_property
  def _combine(self):
    def combine(
      rows, columns, drawn, rejected, numbers, variables, decision, layer
    ):
      rows = self._received(rows, columns, drawn, rejected, numbers)
      of_layer = jax.tree.map(
        lambda x: lax.dynamic_slice_in_dim(x, layer, 1), decision
      )
      return self._passes(variables, drawn).combine(rows, of_layer)

    return jax.jit(combine)
