"""Placement of a round on devices: meshes, chunks of clients, shardings.

A round spreads arrays over the devices in three ways:

- everywhere: every device has a copy (the model that clients start from);
- by client: each device has some rows (examples, and updates in training);
- by coordinate: each device has some coordinates of all rows (all arrays in the
  server's step; see `lca.stacked.sharding`).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lca.federated.clients import LocalGradient
from lca.stacked.sharding import AXIS, by_coordinate, from_clients
from lca.typing import PyTree, Updates


@dataclasses.dataclass(frozen=True)
class Placement:
  """The devices that a round is spread over, and how much each does at once.

  Attributes:
    mesh: mesh with an axis `'clients'`; see `clients_mesh`.
    chunk_size: number of clients that a device trains at once, in one vmap.
    eval_batch_size: number of examples that a device tests at once.
  """

  mesh: Mesh
  chunk_size: int
  eval_batch_size: int

  @property
  def devices(self) -> int:
    """The number of devices that share the clients of a run."""
    return self.mesh.shape[AXIS]

  @property
  def everywhere(self) -> NamedSharding:
    """The sharding of an array of which every device has a copy."""
    return NamedSharding(self.mesh, P())

  @property
  def by_client(self) -> NamedSharding:
    """The sharding of an array whose first axis is spread over the devices."""
    return NamedSharding(self.mesh, P(AXIS))

  def by_coordinate(self, tree: PyTree, lead: int = 0) -> PyTree:
    """Returns the shardings of arrays that are spread by coordinate.

    Args:
      tree: pytree of arrays, or of their shapes.
      lead: number of leading axes that are not split, such as 1 for stacked
        updates.
    """

    def sharding(x):
      spec = by_coordinate(x.shape, self.devices, lead)
      return NamedSharding(self.mesh, spec)

    return jax.tree.map(sharding, tree)

  def from_clients(self, updates: Updates) -> Updates:
    """Spreads stacked updates by coordinate that are spread by client.

    Args:
      updates: leaves `[n, ...]`; n must be a multiple of the number of devices.
    """
    return jax.tree.map(lambda x: from_clients(x, self.mesh), updates)


def clients_mesh(num_devices: int | None = None) -> Mesh:
  """Makes a mesh with one axis, `'clients'`.

  Every process contributes the same number of devices.

  Args:
    num_devices: number of devices over all processes; None takes all devices.

  Raises:
    ValueError: `num_devices` is below 1, is no multiple of the number of
      processes, or exceeds the devices.
  """
  all_devices, processes = jax.devices(), jax.process_count()
  if num_devices is None:
    num_devices = len(all_devices)
  each, rest = divmod(num_devices, processes)
  if rest or not 1 <= each <= jax.local_device_count():
    raise ValueError(
      f'cannot make a mesh of {num_devices} devices: the number must be a '
      f'positive multiple of the number of processes, {processes}, and at most '
      f'the number of devices, {len(all_devices)}'
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
  """Returns the default of `Placement.chunk_size`.

  It is 1 on CPUs, where a wide vmap would not stay in cache, and 32 elsewhere.
  """
  return 1 if backend == 'cpu' else 32


def default_microbatch_size(
  backend: str, batch_stats: bool = False
) -> int | None:
  """Returns the default of `LocalGradient.microbatch_size`.

  It is 32 on CPUs. It is None, which does not split a batch, on accelerators
  and for models with batch statistics.

  Args:
    backend: `'cpu'`, `'gpu'` or `'tpu'`.
    batch_stats: True if the model has batch statistics.
  """
  return 32 if backend == 'cpu' and not batch_stats else None


def chunk_width(clients: int, chunk_size: int) -> int:
  """Returns how many clients a chunk holds if chunks are nearly equal.

  Args:
    clients: number of clients of a device.
    chunk_size: the largest size of a chunk.

  Examples:
    >>> chunk_width(9, chunk_size=4)
    3
  """
  return -(-clients // -(-clients // chunk_size))


def train_clients(
  train: LocalGradient, mesh: Mesh, chunk_size: int
) -> jax.stages.Wrapped:
  """Makes the function that trains the clients of a round, all or some of them.

  Each device trains its rows in chunks, one chunk after the other. A call
  trains some of the chunks, so that a long round can be several calls of the
  same compiled program, and the host sees which of them have ended.

  Args:
    train: computes one client's update.
    mesh: mesh with an axis `'clients'`.
    chunk_size: number of clients that a device trains at once, in one vmap. A
      larger chunk needs more memory. The result changes only by rounding.

  Returns:
    A jitted function `(variables, data, client_ids, key, updates, losses,
    start, stop, numbers=None) -> (updates, losses)`. `data` and `client_ids`
    are stacked over `n` clients; `n` must be a multiple of the number of
    devices (see `place_clients`). The id of a client is folded into `key` for
    its training. Each device trains chunks `start` to `stop - 1` of its clients
    (see `chunk_width`), and writes the results into its rows of the updates,
    leaves `[n, ...]`, and of the mean training losses, `[n]`, which are spread
    by client. `blank_results` makes those of the first call. The memory of
    `updates` is used again, so that the argument cannot be read afterwards. A
    `stop` beyond the last chunk stands for the end. `numbers` are other values
    of `train.numbers`.

  Raises:
    ValueError: `chunk_size` is below 1.
  """
  if chunk_size < 1:
    raise ValueError(f'chunk_size must be at least 1, got {chunk_size}')

  # Without check_vma=False, shard_map sums the gradient with respect to the
  # replicated variables over the devices: a wrong result without an error.
  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(), P(AXIS), P(AXIS), P(), P(AXIS), P(AXIS), P(), P(), P()),
    out_specs=P(AXIS),
    check_vma=False,
  )
  def on_each_device(
    variables, data, client_ids, key, updates, losses, start, stop, numbers
  ):
    part = train.with_numbers(numbers)

    def train_one(client):
      data, client_id = client
      return part(variables, data, jax.random.fold_in(key, client_id))

    width = chunk_width(len(client_ids), chunk_size)
    whole, rest = divmod(len(client_ids), width)

    def train_chunk(size, i, results):
      """Trains chunk i, of `size` clients."""
      first = i * width
      clients = jax.tree.map(
        lambda x: lax.dynamic_slice_in_dim(x, first, size), (data, client_ids)
      )
      if width == 1:
        clients = jax.tree.map(lambda x: x[0], clients)
        new = jax.tree.map(lambda x: x[None], train_one(clients))
      else:
        new = jax.vmap(train_one)(clients)
      return jax.tree.map(
        lambda x, y: lax.dynamic_update_slice_in_dim(x, y, first, axis=0),
        results,
        new,
      )

    # The chunks of full width, and then the shorter last one, if there is one:
    # a loop of one step, or of none if it is not yet this chunk's turn.
    results = lax.fori_loop(
      start,
      jnp.minimum(stop, whole),
      functools.partial(train_chunk, width),
      (updates, losses),
    )
    if rest:
      results = lax.fori_loop(
        whole,
        jnp.minimum(stop, whole + 1),
        functools.partial(train_chunk, rest),
        results,
      )
    return results

  @functools.partial(jax.jit, donate_argnames='updates')
  def train_some(
    variables, data, client_ids, key, updates, losses, start, stop, numbers=None
  ):
    numbers = train.numbers if numbers is None else numbers
    return on_each_device(
      variables, data, client_ids, key, updates, losses, start, stop, numbers
    )

  return train_some


def blank_results(
  mesh: Mesh, update: PyTree, clients: int
) -> jax.stages.Wrapped:
  """Makes the function that returns the results of clients yet to be trained.

  Args:
    mesh: mesh with an axis `'clients'`.
    update: one client's update, or its shapes.
    clients: number of clients, `n`.

  Returns:
    A jitted function `() -> (updates, losses)` of zeros, for the function of
    `train_clients`.
  """

  def zeros():
    updates = jax.tree.map(
      lambda x: jnp.zeros((clients, *x.shape), x.dtype), update
    )
    return updates, jnp.zeros(clients)

  return jax.jit(zeros, out_shardings=NamedSharding(mesh, P(AXIS)))


def place_clients(tree: PyTree, mesh: Mesh) -> PyTree:
  """Puts arrays `[n, ...]` on the mesh, spread by client.

  Rows of zeros are added until the number of rows is a multiple of the number
  of devices. These rows are clients without examples, which take no steps.

  Args:
    tree: pytree of host arrays.
    mesh: mesh with an axis `'clients'`.
  """
  sharding = NamedSharding(mesh, P(AXIS))

  def place(x):
    return jax.device_put(pad_rows(x, mesh.shape[AXIS]), sharding)

  return jax.tree.map(place, tree)


def place_parts(
  part: Callable[[int], PyTree], mesh: Mesh, axes: Sequence[str] = (AXIS,)
) -> PyTree:
  """Puts arrays on the mesh, device by device.

  The host holds the rows of one device at a time, and a process makes only the
  rows of its own devices.

  Args:
    part: `part(i)` returns a pytree with the rows of device i of the mesh. The
      number of rows is the same for all devices.
    mesh: mesh with an axis `'clients'`.
    axes: the mesh axis that each of the leading axes is spread over.
  """
  parts = [
    jax.device_put(part(i), device)
    for i, device in enumerate(mesh.devices.flat)
    if device.process_index == jax.process_index()
  ]

  def join(*parts):
    shape = list(parts[0].shape)
    for axis, name in enumerate(axes):
      shape[axis] *= mesh.shape[name]
    return jax.make_array_from_single_device_arrays(
      tuple(shape), NamedSharding(mesh, P(*axes)), list(parts)
    )

  return jax.tree.map(join, *parts)


def pad_rows(x: np.ndarray, multiple: int) -> np.ndarray:
  """Adds rows of zeros until the number of rows is a multiple of `multiple`.

  Examples:
    >>> pad_rows(np.ones(3), 2).tolist()
    [1.0, 1.0, 1.0, 0.0]
  """
  missing = -len(x) % multiple
  if not missing:
    return x  # without a copy
  return np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))


def with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
  """Adds shardings to shapes and dtypes, for lowering a program.

  Args:
    shapes: pytree of arrays, or of their shapes.
    shardings: a sharding for each array, or a single one for all of them.

  Returns:
    A pytree of `jax.ShapeDtypeStruct`.
  """
  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _: shardings, shapes)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )
