"""Local training: of one client, and of many at once.

Clients hold different numbers of examples, in arrays padded to the same length
`S`. Padding never changes a result: the last batch of an epoch is short, as in
a DataLoader, and a client with fewer steps stops when it is done.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lca.data import ClientData
from lca.typing import PyTree, Updates

LossFn = Callable[[PyTree, jax.Array, jax.Array], jax.Array]
"""`(variables, images [b, ...], labels [b]) -> losses [b]`."""


@dataclasses.dataclass(frozen=True)
class LocalTraining:
  """A client's part of a round (García-Márquez et al. 2025, section 2.1).

  Attributes:
    losses: of a batch, per example.
    optimizer: fresh in every round.
    batch_size: of a step, in examples.
    local_epochs: passes over the client's data, each in a new random order.
    microbatch_size: a step sums the gradients of so many examples at a time.
      Smaller ones need less memory and, on CPUs, less time: they stay in the
      cache, and a short last batch costs no more than it must. None takes the
      batch as a whole. It changes a result by rounding alone.
  """

  losses: LossFn
  optimizer: optax.GradientTransformation
  batch_size: int
  local_epochs: int
  microbatch_size: int | None = None

  def __post_init__(self):
    for name in ('batch_size', 'local_epochs', 'microbatch_size'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f'{name} must be at least 1, got {value}')

  def __call__(
    self, variables: PyTree, data: ClientData, key: jax.Array
  ) -> tuple[PyTree, jax.Array]:
    """Trains one client.

    Args:
      variables: the server's, a Flax dict with `'params'`.
      data: one client's: images `[S, ...]`, labels `[S]`, num_examples `[]`.
      key: decides the order of the examples.

    Returns:
      The update, client minus server, and the mean training loss `[]` over all
      of the epochs. A client without examples returns zeros.
    """

    def epoch(i, carry):
      order = shuffled(
        jax.random.fold_in(key, i), len(data.labels), data.num_examples
      )
      step = functools.partial(self._step, data, order)
      num_steps = -(-data.num_examples // self.batch_size)
      return lax.fori_loop(0, num_steps, step, carry)

    opt_state = self.optimizer.init(variables['params'])
    start = (variables, opt_state, jnp.zeros(()))
    trained, _, loss = lax.fori_loop(0, self.local_epochs, epoch, start)
    seen = jnp.maximum(data.num_examples * self.local_epochs, 1)
    return jax.tree.map(jnp.subtract, trained, variables), loss / seen

  def _step(self, data, order, i, carry):
    variables, opt_state, total = carry
    start = i * self.batch_size
    stop = jnp.minimum(start + self.batch_size, data.num_examples)
    loss, grads = self._loss_and_gradient(variables, data, order, start, stop)
    grads = jax.tree.map(lambda g: g / (stop - start), grads)
    updates, opt_state = self.optimizer.update(
      grads, opt_state, variables['params']
    )
    params = optax.apply_updates(variables['params'], updates)
    return {**variables, 'params': params}, opt_state, total + loss

  def _loss_and_gradient(self, variables, data, order, start, stop):
    """Sums over the examples `order[start:stop]`."""
    size = min(self.microbatch_size or self.batch_size, self.batch_size)

    def loss(params, positions):
      rows = order[jnp.minimum(positions, len(order) - 1)]
      losses = self.losses(
        {**variables, 'params': params}, data.images[rows], data.labels[rows]
      )
      return jnp.sum(jnp.where(positions < stop, losses, 0))

    def part(i, totals):
      positions = start + i * size + jnp.arange(size)
      sums = jax.value_and_grad(loss)(variables['params'], positions)
      return jax.tree.map(jnp.add, totals, sums)

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, variables['params'])
    if size == self.batch_size:
      return part(0, zeros)
    return lax.fori_loop(0, -(-(stop - start) // size), part, zeros)


def shuffled(key: jax.Array, size: int, count: jax.Array) -> jax.Array:
  """A random order of `range(count)`, then the rest of `range(size)`.

  The order does not depend on `size`: every position has a random number of
  its own, whatever the length of the array it stands in.
  """
  positions = jnp.arange(size)
  draws = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(
    positions
  )
  return jnp.lexsort((draws, positions >= count))


def default_chunk_size(backend: str) -> int:
  """How many clients one vmap holds: few where caches are what counts."""
  return 1 if backend == 'cpu' else 32


def default_microbatch_size(backend: str) -> int | None:
  """See `LocalTraining`; accelerators take the batch as a whole."""
  return 32 if backend == 'cpu' else None


def clients_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with one axis, `'clients'`, over all devices or some of them."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh(
    (len(devices),), ('clients',), (AxisType.Auto,), devices=devices
  )


TrainClients = Callable[
  [PyTree, ClientData, jax.Array, jax.Array], tuple[Updates, jax.Array]
]


def train_clients(
  train: LocalTraining, mesh: Mesh, chunk_size: int
) -> TrainClients:
  """Spreads local training over devices, and over chunks on each device.

  Args:
    train: one client's training.
    mesh: with an axis `'clients'`.
    chunk_size: how many clients one vmap holds. Memory is bounded by the
      chunk; the results do not depend on it, but for rounding.

  Returns:
    A jitted function `(variables, data, client_ids, key) -> (updates, losses)`
    over `n` clients, stacked along the first axis of `data` and `client_ids`.
    Each client's key is `key` with its id folded in. The updates, leaves
    `[n, ...]`, and the mean training losses, `[n]`, are sharded along
    `'clients'`. `n` must be a multiple of the devices: see `place_clients`.

  Raises:
    ValueError: a chunk size below 1.
  """
  if chunk_size < 1:
    raise ValueError(f'chunk_size must be at least 1, got {chunk_size}')

  # Without check_vma=False a gradient with respect to the replicated variables
  # would be summed over the devices.
  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(), P('clients'), P('clients'), P()),
    out_specs=P('clients'),
    check_vma=False,
  )
  def on_each_device(variables, data, client_ids, key):
    def one(client):
      data, client_id = client
      return train(variables, data, jax.random.fold_in(key, client_id))

    chunks = -(-len(client_ids) // chunk_size)
    width = -(-len(client_ids) // chunks)  # as even as the chunks can be
    return lax.map(
      one, (data, client_ids), batch_size=None if width == 1 else width
    )

  return on_each_device


def place_clients(tree: PyTree, mesh: Mesh) -> PyTree:
  """Shards arrays `[n, ...]` over the mesh, zero rows added until n divides.

  A client of zeros has no examples, so it takes no steps.
  """
  sharding = NamedSharding(mesh, P('clients'))

  def place(x):
    return jax.device_put(pad_rows(x, mesh.shape['clients']), sharding)

  return jax.tree.map(place, tree)


def pad_rows(x: np.ndarray, multiple: int) -> np.ndarray:
  """Adds rows of zeros until `multiple` divides their number."""
  missing = -len(x) % multiple
  if not missing:
    return x  # without a copy
  return np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
