"""Stacked updates over devices: by client to train, by coordinate to aggregate.

Training spreads the first axis of leaves `[n, ...]` over a mesh's axis
`'clients'`. What the server does with them needs every client's value of a
coordinate side by side, and there are many more coordinates than clients: each
device then has all rows and its share of the columns. Under such a mesh,

    with jax.set_mesh(mesh):
      update = jax.jit(rule)(updates)

every device works on its own columns, and of inner products and the like,
`[n, n]` numbers, the devices' sums are added up. Without one, nothing here has
an effect. A result differs from one device's by rounding alone.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from lca.typing import PyTree

AXIS = 'clients'


def by_coordinate(shape: Sequence[int], devices: int, lead: int = 1) -> P:
  """How an array is spread, so that its rows are whole on every device's part.

  Args:
    shape: `[*rows, ...]`.
    devices: of the mesh's axis.
    lead: how many axes are rows, which are not split.

  Returns:
    Over the longest of the other axes that the devices divide. Where there is
    none, as of a bias with a few entries, every device has a copy.

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


def sum_over_devices(
  function: Callable[..., jax.Array],
  leaves: Sequence[jax.Array],
  whole: PyTree = (),
) -> jax.Array:
  """Adds up what a function makes of each device's coordinates.

  Args:
    function: `(leaves, whole)` to an array that is additive over coordinates.
      Where some leaves are spread and others are not, a device may see zeros
      in the place of a leaf, which must add nothing.
    leaves: `[n, ...]`.
    whole: what each device has all of.

  Returns:
    The sum, the same on every device.
  """
  specs = [_spec(leaf) for leaf in leaves]
  if all(spec == P() for spec in specs):
    return function(leaves, whole)

  def local(leaves, whole):
    first = lax.axis_index(AXIS) == 0
    leaves = [  # what every device has a copy of counts on one of them
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
  """Lets each device work on its coordinates of all leaves.

  Args:
    function: `(leaves, whole)` to one `[*rows, ...]` of each leaf `[n, ...]`.
    leaves: its first argument.
    whole: what each device has all of.
    lead: how many axes the rows of the results are.
  """
  specs = [_spec(leaf) for leaf in leaves]
  if all(spec == P() for spec in specs):
    return function(leaves, whole)
  outs = [P(*[None] * lead, *spec[1:]) if spec else spec for spec in specs]
  return _shard_map(function, in_specs=(specs, P()), out_specs=outs)(
    leaves, whole
  )


def whole_on_each_device(x: jax.Array) -> jax.Array:
  """Lets each device compute all of an array, where that beats sending it."""
  if _num_devices() == 1:
    return x
  return lax.with_sharding_constraint(x, P())


# Nobody differentiates through it: see `check_vma` in `lca.federated.clients`.
_shard_map = functools.partial(jax.shard_map, check_vma=False)


def _spec(leaf: jax.Array) -> P:
  devices = _num_devices()
  return by_coordinate(leaf.shape, devices) if devices > 1 else P()


def _num_devices() -> int:
  """That share the coordinates; 1 inside a part of one of them."""
  mesh = jax.sharding.get_abstract_mesh()
  if AXIS not in mesh.axis_names or AXIS in mesh.manual_axes:
    return 1
  return mesh.shape[AXIS]
