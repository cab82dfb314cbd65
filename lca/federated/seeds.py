"""Several runs that differ in their seed alone, as one run of stacked arrays.

A small model leaves an accelerator idle for most of a round. Here the programs
of a round are vmapped over seeds: every array has a leading axis with an entry
for each run. The devices form a mesh with the axes `'seeds'` and `'clients'`.
The devices of one row share some seeds, as all devices share the one seed of a
`Simulation`. A run has the same draws and examples as by itself, and the same
results but for rounding.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lca.federated.placement import place_parts
from lca.federated.server import Round, ServerState
from lca.federated.simulation import Programs, Simulation
from lca.stacked.sharding import AXIS
from lca.typing import PyTree

SEEDS = 'seeds'
"""The mesh's axis that the seeds are spread over."""


def seeds_mesh(mesh: Mesh, seeds: int) -> Mesh:
  """Divides the devices of a mesh among seeds.

  Args:
    mesh: mesh with an axis `'clients'`.
    seeds: number of seeds.

  Returns:
    The same devices with the axes `'seeds'` and `'clients'`, of which the first
    is as long as possible if its length must divide both the number of devices
    and that of the seeds.

  Examples:
    >>> from lca.federated.placement import clients_mesh
    >>> [dict(seeds_mesh(clients_mesh(8), k).shape) for k in (4, 3)]
    [{'seeds': 4, 'clients': 2}, {'seeds': 1, 'clients': 8}]
  """
  rows = math.gcd(seeds, mesh.size)
  devices = mesh.devices.reshape(rows, -1)
  return Mesh(devices, (SEEDS, AXIS), axis_types=(AxisType.Auto,) * 2)


class SeedsSimulation(Simulation):
  """A `Simulation` of several runs, whose states are stacked.

  The leaves of a state are `[seeds, ...]`. `run_round` takes and returns such a
  state, and returns a list with the metrics of each run.

  Attributes:
    runs: the simulation of each run. It draws the clients of its run, and tests
      the model of a state from `state_of`.

  Args:
    runs: simulations of one process that differ in seed and data alone. Their
      states have the same shapes, and so have their data (see
      `FederatedDataset.length`).
    **parts: those of the first run, see `Simulation`. The devices of its
      placement are divided among the seeds.
  """

  def __init__(self, runs: Sequence[Simulation], **parts: Any):
    self.runs = runs
    placement = parts.pop('placement')
    mesh = seeds_mesh(placement.mesh, len(runs))
    placement = dataclasses.replace(placement, mesh=mesh)
    super().__init__(**parts, placement=placement)
    self._training.blank_results = jax.jit(
      jax.vmap(self._training.blank_results, axis_size=len(runs)),
      out_shardings=self._by_seed(AXIS),
    )
    # What does not depend on the seed is made once.
    for run in runs:
      run._metric_names = self._metric_names
      run._evaluation = runs[0]._evaluation.held_out(run.data)

  def init(self) -> ServerState:
    """Returns the states before the first round."""
    return self.stack([run.init() for run in self.runs])

  def stack(self, states: Sequence[ServerState]) -> ServerState:
    """Stacks the states of all runs, in their order."""
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    return jax.device_put(stacked, _shardings(self.abstract_state))

  def state_of(
    self, states: ServerState, i: int, whole: bool = True
  ) -> ServerState:
    """Returns the state of run i, on the devices as `runs[i]` has it.

    Args:
      states: the stacked states.
      i: position of the run.
      whole: False returns the model and what the attackers keep, and `()` for
        the rest.
    """
    shardings = _shardings(self.runs[i].abstract_state)
    if not whole:
      states, shardings = (
        ServerState(tree.variables, (), (), (), tree.attack)
        for tree in (states, shardings)
      )
    return jax.device_put(_of(states, i), shardings)

  @property
  def seeds_per_device(self) -> int:
    """The number of runs that a device works for."""
    return len(self.runs) // self.placement.mesh.shape[SEEDS]

  @functools.cached_property
  def abstract_state(self) -> ServerState:
    """The shapes, dtypes and shardings of the stacked states."""
    return self._stacked(self._state_shapes)

  @functools.cached_property
  def _lowered(self) -> Programs:
    """The programs of a round of all seeds before their compilation."""
    on_server, state = self._on_server, self._state_shapes
    receiving, stepping = on_server.arguments(
      state, self._training.results, self.runs[0].drawing.draw(0)
    )
    changes, decides = on_server.donated
    received = _shardings(self._stacked((stepping[5], state.momenta)))
    stepped = _shardings(self.abstract_state), self._by_seed()
    training = self._training
    attack = training.attackers_function
    return Programs(
      self.lower_training(self.placement.chunk_size),
      attack
      and self._lower(
        attack,
        training.attackers_arguments(self._shapes.attack),
        1,
        training.attackers_donated,
        (*[self._by_seed(AXIS)] * 2, self._by_seed()),
      ),
      on_server.receive
      and self._lower(on_server.receive, receiving, 1, changes, received),
      self._lower(on_server.step, stepping, 1, decides, stepped),
    )

  def lower_training(self, chunk_size: int) -> jax.stages.Lowered:
    """Lowers the program in which all runs' clients train."""
    training = self._training
    return self._lower(
      training.function(chunk_size),
      training.arguments,
      3,
      training.donated,
      self._by_seed(AXIS),
    )

  def _lower(
    self,
    function: Callable[..., Any],
    arguments: Sequence[PyTree],
    shared: int,
    donated: Sequence[int],
    out_shardings: Any,
  ) -> jax.stages.Lowered:
    """Lowers a program of one run as that of all runs.

    Args:
      function: of one run.
      arguments: of one run, or their shapes.
      shared: number of arguments, the last ones, that all runs share.
      donated: positions of the arguments that are overwritten.
      out_shardings: of the results.
    """
    own = len(arguments) - shared
    axes = (0,) * own + (None,) * shared
    program = jax.jit(
      jax.vmap(function, axes, spmd_axis_name=SEEDS),
      donate_argnums=donated,
      out_shardings=out_shardings,
    )
    with jax.set_mesh(self.placement.mesh):
      return program.lower(*self._stacked(arguments[:own]), *arguments[own:])

  def _stacked(self, shapes: PyTree) -> PyTree:
    """Returns the shapes of arrays that are stacked over the seeds."""

    def stacked(x):
      spec = getattr(getattr(x, 'sharding', None), 'spec', P())
      shape = len(self.runs), *x.shape
      sharding = self._by_seed(*spec)
      return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

    return jax.tree.map(stacked, shapes)

  def _by_seed(self, *axes: str | None) -> NamedSharding:
    """Returns a sharding whose first axis is spread over the seeds."""
    return NamedSharding(self.placement.mesh, P(SEEDS, *axes))

  # What a round takes of each run ---------------------------------------------

  def everywhere(self, state: ServerState) -> PyTree:
    """Returns the models of all states, each on all devices of its row."""
    return self._on_every_device(state.variables)

  def _on_every_device(self, tree: PyTree) -> PyTree:
    return jax.device_put(tree, self._by_seed())

  def _training_keys(self, round_idx: int) -> tuple[jax.Array, jax.Array]:
    return _stack([run._training_keys(round_idx) for run in self.runs])

  def _draw(self, round_idx: int) -> Round:
    return _stack([run.drawing.draw(round_idx) for run in self.runs])

  def _read(self, drawn: Round):
    width, seeds = self.clients_per_device, self.seeds_per_device

    def device_part(i):
      row, column = divmod(i, self.placement.devices)
      of_row = range(row * seeds, (row + 1) * seeds)
      return _stack(
        [
          self.runs[k].drawing.read(_of(drawn, k), width, column)
          for k in of_row
        ]
      )

    return place_parts(device_part, self.placement.mesh, (SEEDS, AXIS))

  def _measured_shapes(self) -> dict[str, Any]:
    shapes = super()._measured_shapes()
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes
    )

  def _as_numbers(self, measured, drawn) -> list[dict[str, Any]]:
    measured = jax.device_get(measured)
    return [
      super(SeedsSimulation, self)._as_numbers(_of(measured, k), _of(drawn, k))
      for k in range(len(self.runs))
    ]


def _of(tree: PyTree, k: int) -> PyTree:
  """Returns entry k of all arrays."""
  return jax.tree.map(lambda x: x[k], tree)


def _stack(trees: Sequence[PyTree]) -> PyTree:
  """Stacks arrays of the host, and keys."""

  def stack(*x):
    return (np if isinstance(x[0], np.ndarray) else jnp).stack(x)

  return jax.tree.map(stack, *trees)


def _shardings(shapes: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x.sharding, shapes)
