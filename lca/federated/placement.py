"""Where a round runs: meshes of devices, chunks of clients, places of arrays.

A round spreads arrays in three ways. The model that clients start from is
whole on every device. Clients and their updates are spread by client, each
device with its share of the rows. What the server computes with is spread by
coordinate (see `lca.stacked.sharding`).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lca.federated.clients import LocalGradient
from lca.stacked.sharding import AXIS, by_coordinate
from lca.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Placement:
  """The devices that a round is spread over, and how much each does at once.

  Attributes:
    mesh: with an axis `'clients'`; see `clients_mesh`.
    chunk_size: how many clients one vmap holds.
    eval_batch_size: how many test examples a device takes at once.
  """

  mesh: Mesh
  chunk_size: int
  eval_batch_size: int

  @property
  def everywhere(self) -> NamedSharding:
    """The sharding of an array that every device has a copy of."""
    return NamedSharding(self.mesh, P())

  @property
  def by_client(self) -> NamedSharding:
    """The sharding of an array whose first axis is clients."""
    return NamedSharding(self.mesh, P(AXIS))

  def by_coordinate(self, tree: PyTree, lead: int = 0) -> PyTree:
    """Returns the shardings of arrays that are spread by coordinate.

    Args:
      tree: of arrays, or of their shapes.
      lead: how many leading axes are rows, which stay whole.
    """

    def one(x):
      spec = by_coordinate(x.shape, self.mesh.size, lead)
      return NamedSharding(self.mesh, spec)

    return jax.tree.map(one, tree)


def clients_mesh(num_devices: int | None = None) -> Mesh:
  """Makes a mesh with one axis, `'clients'`, over as many devices a process.

  Args:
    num_devices: of all processes; None is all there are.

  Raises:
    ValueError: there are not so many, or the processes cannot share them.
  """
  everywhere, processes = jax.devices(), jax.process_count()
  if num_devices is None:
    num_devices = len(everywhere)
  each, rest = divmod(num_devices, processes)
  if rest or not 1 <= each <= jax.local_device_count():
    raise ValueError(
      f'a mesh of {num_devices} devices cannot be had: it takes a multiple of '
      f'the {processes} processes, and there are {len(everywhere)} devices'
    )
  devices = [
    device
    for process in range(processes)
    for device in jax.local_devices(process)[:each]
  ]
  return jax.make_mesh(
    (num_devices,), (AXIS,), (AxisType.Auto,), devices=devices
  )


def default_chunk_size(backend: str) -> int:
  """Returns how many clients one vmap holds: one on CPUs, to stay in cache."""
  return 1 if backend == 'cpu' else 32


def default_microbatch_size(
  backend: str, batch_stats: bool = False
) -> int | None:
  """Returns the default of `LocalGradient.microbatch_size`.

  Accelerators take the batch as a whole, and so must, on every backend, a
  model with batch statistics.
  """
  return 32 if backend == 'cpu' and not batch_stats else None


def train_clients(
  train: LocalGradient, mesh: Mesh, chunk_size: int
) -> jax.stages.Wrapped:
  """Spreads the clients' work over devices, and over chunks on each device.

  Args:
    train: one client's part.
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
    in_specs=(P(), P(AXIS), P(AXIS), P()),
    out_specs=P(AXIS),
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
  sharding = NamedSharding(mesh, P(AXIS))

  def place(x):
    return jax.device_put(pad_rows(x, mesh.shape[AXIS]), sharding)

  return jax.tree.map(place, tree)


def place_parts(part: Callable[[int], PyTree], mesh: Mesh) -> PyTree:
  """Shards arrays `[n, ...]` over the mesh, made one device's part at a time.

  The host never holds more than one part, and makes only the parts of this
  process's devices.

  Args:
    part: `part(i)` makes the rows of the mesh's device i, as many for each.
    mesh: with an axis `'clients'`.
  """
  parts = [
    jax.device_put(part(i), device)
    for i, device in enumerate(mesh.devices.flat)
    if device.process_index == jax.process_index()
  ]

  def join(*parts):
    width, *shape = parts[0].shape
    return jax.make_array_from_single_device_arrays(
      (width * mesh.size, *shape), NamedSharding(mesh, P(AXIS)), list(parts)
    )

  return jax.tree.map(join, *parts)


def pad_rows(x: np.ndarray, multiple: int) -> np.ndarray:
  """Adds rows of zeros until `multiple` divides their number."""
  missing = -len(x) % multiple
  if not missing:
    return x  # without a copy
  return np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))


def placed(shapes: PyTree, places: PyTree) -> PyTree:
  """Returns shapes and dtypes that also say where the arrays lie.

  Args:
    shapes: of arrays, or of their shapes.
    places: shardings, one of each array or one of all.
  """
  if isinstance(places, NamedSharding):
    places = jax.tree.map(lambda _: places, shapes)
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    shapes,
    places,
  )
