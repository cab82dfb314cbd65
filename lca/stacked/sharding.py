"""Stacked updates over devices: by client to train, by coordinate to aggregate.

Training spreads the first axis of leaves `[n, ...]`, the clients, over the
mesh's axis `'clients'`. An aggregation rule compares the clients in every
coordinate, and there are many more coordinates than clients. For aggregation
each device therefore holds all rows, but only its share of the coordinates. The
coordinates are spread over the same axis, in spite of its name `'clients'`.
Under such a mesh,

    with jax.set_mesh(mesh):
      update = jax.jit(rule)(updates)

every device works on its own coordinates. Where a rule sums over coordinates,
as for `[n, n]` inner products, the devices' sums are added up. Without a mesh
the functions here just call their argument. Results on several devices differ
from those on one device by rounding alone.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lca.typing import PyTree

AXIS = 'clients'
"""The mesh's axis, over which either clients or coordinates are spread."""

_EXCHANGED = 2**23  # bytes of a leaf's rows that a device exchanges at once


def by_coordinate(shape: Sequence[int], devices: int, lead: int = 1) -> P:
  """Returns the partition of an array that gives each device some coordinates.

  The longest axis that the number of devices divides is split. If there is no
  such axis, as for a bias with a few entries, every device has a copy. The
  leading axes, such as the clients, are never split.

  Args:
    shape: `[*rows, ...]`, the array's shape.
    devices: number of devices along the mesh's axis.
    lead: number of leading axes that are not split.

  Examples:
    >>> tuple(by_coordinate((100, 3, 3, 32, 64), devices=8))
    (None, None, None, None, 'clients')
    >>> tuple(by_coordinate((100, 10), devices=8))
    ()
  """
  axes = [
    axis
    for axis in range(lead, len(shape))
    if shape[axis] and shape[axis] % devices == 0
  ]
  if not axes:
    return P()
  longest = max(axes, key=lambda axis: shape[axis])
  return P(*[None] * longest, AXIS)


def from_clients(leaf: jax.Array, mesh: Mesh) -> jax.Array:
  """Spreads a leaf by coordinate that is spread by client.

  The devices exchange a few rows at a time, so that they need little more
  memory than for the result. XLA's own exchange of all rows at once needs three
  times as much (jaxlib 0.10, on CPU).

  Args:
    leaf: `[n, ...]`, of which each device has n / devices rows.
    mesh: mesh with an axis `'clients'`.

  Returns:
    The same array, spread as `by_coordinate` says.
  """
  devices = mesh.shape[AXIS]
  spec = by_coordinate(leaf.shape, devices)
  if devices == 1 or spec == P():
    return lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))
  axis = len(spec) - 1  # that is split

  def exchange(rows):
    count, row_bytes = len(rows), rows[0].size * rows.dtype.itemsize
    at_once = min(max(1, _EXCHANGED // row_bytes), count)

    def exchange_some(i, result):
      start = jnp.minimum(i * at_once, count - at_once)
      some = lax.dynamic_slice_in_dim(rows, start, at_once)
      some = lax.all_to_all(some, AXIS, axis, 0, tiled=True)
      some = some.reshape(devices, at_once, *some.shape[1:])
      return lax.dynamic_update_slice_in_dim(result, some, start, axis=1)

    shape = list(rows.shape)
    shape[axis] //= devices
    result = jnp.zeros((devices, *shape), rows.dtype)
    steps = -(-count // at_once)
    result = lax.fori_loop(0, steps, exchange_some, result)
    return result.reshape(devices * count, *shape[1:])

  return jax.shard_map(
    exchange, mesh=mesh, in_specs=P(AXIS), out_specs=spec, check_vma=False
  )(leaf)


def sum_over_devices(
  function: Callable[..., jax.Array],
  leaves: Sequence[jax.Array],
  whole: PyTree = (),
) -> jax.Array:
  """Sums a function of the coordinates over the devices that share them.

  Args:
    function: `function(leaves, whole)` returns an array that is a sum over
      coordinates. It gets a device's part of every leaf. A leaf that is not
      spread is given to the first device. The other devices get zeros in place
      of this leaf, and the function must return a term of zero for them.
    leaves: `[n, ...]` each.
    whole: arguments that every device gets whole.

  Returns:
    The sum, the same on every device.
  """
  specs = [_spec(leaf) for leaf in leaves]
  if all(spec == P() for spec in specs):
    return function(leaves, whole)

  def local(leaves, whole):
    first = lax.axis_index(AXIS) == 0
    leaves = [  # a leaf of which every device has a copy must count once
      leaf if spec != P() else jnp.where(first, leaf, 0)
      for leaf, spec in zip(leaves, specs, strict=True)
    ]
    return lax.psum(function(leaves, whole), AXIS)

  return _shard_map(local, in_specs=(specs, P()), out_specs=P())(
    list(leaves), whole
  )


def on_each_device(
  function: Callable[[list[jax.Array], PyTree], list[jax.Array]],
  leaves: list[jax.Array],
  whole: PyTree = (),
  lead: int = 0,
) -> list[jax.Array]:
  """Applies a function to each device's own coordinates of all leaves.

  Args:
    function: `function(leaves, whole)` returns an array `[*rows, ...]` for each
      leaf `[n, ...]`, and works on each coordinate by itself.
    leaves: `[n, ...]` each.
    whole: arguments that every device gets whole.
    lead: number of leading axes, `rows`, of the results.

  Returns:
    `[*rows, ...]` for each leaf, spread as the leaf is.
  """
  specs = [_spec(leaf) for leaf in leaves]
  if all(spec == P() for spec in specs):
    return function(leaves, whole)
  # In a result the leading axes take the place of the axis n.
  outs = [P(*[None] * lead, *spec[1:]) if spec else spec for spec in specs]
  return _shard_map(function, in_specs=(specs, P()), out_specs=outs)(
    leaves, whole
  )


def whole_on_each_device(x: jax.Array) -> jax.Array:
  """Makes each device compute a whole array instead of exchanging its parts."""
  if _num_devices() == 1:
    return x
  return lax.with_sharding_constraint(x, P())


def by_row(x: jax.Array) -> jax.Array:
  """Spreads the rows of an array over the devices, if these divide them."""
  devices = _num_devices()
  if devices == 1 or len(x) % devices:
    return x
  return lax.with_sharding_constraint(x, P(AXIS))


# `check_vma=False` changes gradients that are taken inside of the function (see
# `lca.federated.placement`). None is: callers differentiate the whole call.
_shard_map = functools.partial(jax.shard_map, check_vma=False)


def _spec(leaf: jax.Array) -> P:
  """Returns the partition of a leaf, `P()` if every device holds all of it."""
  devices = _num_devices()
  return by_coordinate(leaf.shape, devices) if devices > 1 else P()


def _num_devices() -> int:
  """Returns the number of devices that share the coordinates.

  Inside the function of a `shard_map` the result is 1, because this function
  works on the coordinates of a single device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if AXIS not in mesh.axis_names or AXIS in mesh.manual_axes:
    return 1
  return mesh.shape[AXIS]
