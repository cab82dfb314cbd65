"""Plans the memory that a round needs on each device, before it runs.

Throughout a round, a device holds a copy of the model, the examples of its
share of the clients for two rounds (the round that trains and the next one,
which is read), and the updates of these clients. In addition, it needs memory
either to train a chunk of clients, or for the server's step, in which it holds
its share of the coordinates of all updates and of the server's state (see
`lca.stacked.sharding`).

`of` asks the compiler about a simulation's programs; `on_paper` estimates the
memory from a few numbers.
"""

import contextlib
import math
import os
import pathlib
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from lca.federated.evaluation import BLOCK_BYTES
from lca.federated.placement import chunk_width
from lca.federated.simulation import Simulation
from lca.federated.streaming import StreamedSimulation
from lca.typing import PyTree

_FLOAT = 4  # bytes of a float32
_LABEL = 4  # bytes of an int32

_RESIDENT = ('model', 'examples', 'updates', 'state', 'rule')


class Plan(NamedTuple):
  """The bytes that a round needs on each device.

  Attributes:
    model: parameters and batch statistics of the model that clients start from.
    examples: examples of the device's clients in two rounds, of the test set,
      and of those held out for validation.
    updates: updates of the device's clients; in a streamed round, of those of
      two groups.
    state: the device's share of the server's model, of its optimiser's state
      and of the clients' momenta.
    rule: the device's share of the aggregator's state.
    training: additional memory while a chunk of clients trains.
    server: additional memory in the server's step.
    sent: bytes sent to other devices in a round; not part of the memory.
  """

  model: int
  examples: int
  updates: int
  state: int
  rule: int
  training: int
  server: int
  sent: int

  @property
  def resident(self) -> int:
    """The bytes that stay on a device throughout a round."""
    return sum(getattr(self, name) for name in _RESIDENT)

  @property
  def total(self) -> int:
    """The largest number of bytes in use at the same time."""
    return self.resident + max(self.training, self.server)

  def __str__(self):
    parts = ', '.join(
      f'{name} {size(getattr(self, name))}' for name in _RESIDENT
    )
    return (
      f'each device holds {size(self.resident)} ({parts}); in addition, '
      f'training a chunk of clients needs {size(self.training)}, the '
      f"server's step {size(self.server)}"
    )


def on_paper(
  *,
  clients: int,
  parameters: int,
  examples: int,
  example_bytes: int,
  devices: int,
  chunk_size: int = 1,
  batch_size: int = 0,
  activation_bytes: int = 0,
  test_examples: int = 0,
  validation_examples: int = 0,
  update_bytes: int = _FLOAT,
  moments: int = 2,
  server_models: int = 1,
  rule_updates: int = 0,
) -> Plan:
  """Estimates the memory of a round from a few numbers.

  The estimate leaves out memory that the compiler adds, and the rows that an
  attack makes.

  Args:
    clients: clients in a round.
    parameters: parameters of the model, and its batch statistics.
    examples: number of examples of the client that holds most examples.
    example_bytes: bytes of an input and its label.
    devices: devices of the mesh.
    chunk_size: clients that a device trains at once.
    batch_size: examples whose gradients are computed at once, if a client has
      as many.
    activation_bytes: bytes that the forward pass keeps of an example for the
      backward pass.
    test_examples: examples in the test set.
    validation_examples: training examples held out for validation.
    update_bytes: bytes of a number in an update, such as 2 for bfloat16.
    moments: numbers that the clients' optimiser keeps of each parameter, such
      as 2 for Adam.
    server_models: copies of the model that the server keeps from round to
      round: its own, and those in its optimiser's state.
    rule_updates: updates that the aggregator keeps from round to round, such as
      LEGATO's window less one.

  Returns:
    The plan. For `sent`, the `[n, n]` inner products are counted for one layer.

  Raises:
    ValueError: `clients`, `devices` or `chunk_size` is below 1.

  Examples:
    >>> plan = on_paper(
    ...   clients=10_000, parameters=10**9, examples=100, example_bytes=150_532,
    ...   devices=1024, update_bytes=2)
    >>> print(size(plan.updates), size(plan.server), size(plan.total))
    20 GB 19.9 GB 44.2 GB
  """
  if min(clients, devices, chunk_size) < 1:
    raise ValueError(
      f'clients, devices and chunk_size must be at least 1, got {clients}, '
      f'{devices} and {chunk_size}'
    )
  rows = -(-clients // devices)  # clients of a device
  model = _FLOAT * parameters
  state = server_models * model // devices
  rule = rule_updates * parameters * update_bytes // devices
  share = clients * parameters * update_bytes // devices
  products = _FLOAT * clients**2  # the Gram matrix
  # A client's copy of the model, its gradient, and the optimiser's moments.
  client = (2 + moments) * model
  updates = rows * parameters * update_bytes
  tested = sum(
    min(number * example_bytes, 2 * BLOCK_BYTES) // devices
    for number in (test_examples, validation_examples)
  )
  to_others = (devices - 1) / devices  # the part that leaves a device
  return Plan(
    model=model,
    examples=2 * rows * examples * example_bytes + tested,
    updates=updates,
    state=state,
    rule=rule,
    training=chunk_width(rows, chunk_size)
    * (client + min(batch_size, examples) * activation_bytes),
    server=state + products + (share if devices > 1 else 0),
    sent=round(to_others * (updates + model + 2 * products)),
  )


def of(simulation: Simulation) -> Plan:
  """Returns the memory that a round of a simulation needs; compiles the round.

  Args:
    simulation: the simulation. The compiler reports `training` and `server` for
      its programs; the other numbers follow from the shapes of its arrays.

  Returns:
    The plan. `training` is infinite if the compiler refused the program because
    it does not fit.

  Raises:
    ValueError: the compiler does not report the memory of a program.
  """
  data, state = simulation.data, simulation.abstract_state
  devices, spec = simulation.placement.devices, data.dataset.train.input_spec
  seeds = simulation.seeds_per_device
  plan = on_paper(
    clients=seeds * simulation.clients_per_device * devices,
    parameters=sum(x.size for x in jax.tree.leaves(simulation.model_shapes)),
    examples=data.max_examples,
    example_bytes=math.prod(spec.shape) * spec.dtype.itemsize + _LABEL,
    test_examples=len(data.dataset.test),
    validation_examples=data.num_validation,
    devices=devices,
    update_bytes=simulation.update_dtype.itemsize,
  )
  plan = plan._replace(
    model=seeds * plan.model,
    state=_on_each_device(state._replace(aggregator=())),
    rule=_on_each_device(state.aggregator),
  )
  passes = 0
  if isinstance(simulation, StreamedSimulation):
    # A group trains while the rows of the group before are written.
    plan = plan._replace(updates=2 * plan.updates)
    passes = simulation.block_bytes
  try:
    programs = simulation.programs
    train = [_used(x) for x in (programs.train, programs.attack) if x]
    server = [_used(x) for x in (programs.receive, programs.step) if x]
  except jax.errors.JaxRuntimeError as error:
    _check_exhausted(error)
    return plan._replace(training=math.inf)
  return plan._replace(
    training=max(used.temp_size_in_bytes for used in train),
    # One program runs after the other. What the server receives takes the place
    # of the updates that were trained. Outputs that overwrite donated inputs in
    # place need no new memory.
    server=max(
      passes,
      *(
        used.output_size_in_bytes
        - used.alias_size_in_bytes
        + used.temp_size_in_bytes
        for used in server
      ),
    ),
  )


def _used(program: jax.stages.Compiled):
  """Returns the compiler's memory analysis of a program."""
  used = program.memory_analysis()
  if used is None:
    raise ValueError(
      f'the compiler for {jax.default_backend()!r} does not report how much '
      'memory a program needs'
    )
  return used


def _on_each_device(tree: PyTree) -> int:
  """Returns the bytes of a tree of sharded arrays on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _check_exhausted(error: Exception) -> None:
  """Raises an error again unless it says that memory is exhausted.

  The compiler for TPUs raises such an error for a program that does not fit.
  """
  if 'RESOURCE_EXHAUSTED' not in str(error):
    raise error


def check(simulation: Simulation, limit: float) -> Plan:
  """Checks that a round fits into the memory of each device.

  Args:
    simulation: the simulation to run.
    limit: memory of a device in bytes; see `memory_limit`.

  Returns:
    The plan.

  Raises:
    ValueError: a round does not fit. The message names a chunk size that fits,
      or what else to change.
  """
  plan = of(simulation)
  if plan.total <= limit:
    return plan
  chunk_size = _largest_chunk(simulation, plan, limit)
  streamed = isinstance(simulation, StreamedSimulation)
  advice = (
    f'parallel.chunk_size={chunk_size} fits'
    if chunk_size
    else 'no parallel.chunk_size fits; use more devices, lower '
    'server.clients_per_round, client.batch_size or parallel.microbatch_size, '
    "or set client.update_dtype='bfloat16'"
    + ('' if streamed else ', or parallel.stream=True if the rule allows it')
  )
  raise ValueError(
    f'a round does not fit into the {size(limit)} of a device: {plan}; {advice}'
  )


def _largest_chunk(simulation: Simulation, plan: Plan, limit: float) -> int:
  """Finds a large chunk size that fits; 0 if none does.

  The memory for training is taken to grow linearly with the chunk, between the
  compiler's reports for one client and for the simulation's own chunk size.
  """
  clients, room = simulation.clients_per_device, limit - plan.resident
  width = chunk_width(clients, simulation.placement.chunk_size)
  one = _training_bytes(simulation, 1) if width > 1 else math.inf
  if max(one, plan.server) > room:
    return 0
  # Each further client of a chunk is taken to need the same memory. If the
  # compiler refused the whole chunk, a single client's need is taken for it.
  refused = math.isinf(plan.training)
  further = one if refused else (plan.training - one) / (width - 1)
  # A shorter last chunk, of `clients % w` clients, is a part of the program of
  # its own, whose memory is added to that of the full chunks. The factor 1.1
  # allows for growth that is not quite linear.
  chunk_size = max(
    w
    for w in range(1, width)
    if one + 1.1 * further * (w - 1 + clients % w) <= room
  )
  return chunk_size if _training_bytes(simulation, chunk_size) <= room else 1


def _training_bytes(simulation: Simulation, chunk_size: int) -> float:
  """Returns the additional bytes to train chunks of a size.

  The result is infinite if the compiler refuses the program because it does not
  fit.
  """
  try:
    compiled = simulation.lower_training(chunk_size).compile()
  except jax.errors.JaxRuntimeError as error:
    _check_exhausted(error)
    return math.inf
  return _used(compiled).temp_size_in_bytes


def memory_limit(mesh: Mesh, jobs: int = 1) -> float:
  """Returns the memory in bytes of each of this process's devices.

  Virtual CPU devices share the host's memory, and so do `jobs` processes on the
  same host. The result is infinite if the memory is not known.

  Args:
    mesh: mesh of the devices.
    jobs: number of processes that share the host.
  """
  devices = mesh.local_devices
  stats = [device.memory_stats() or {} for device in devices]
  if all('bytes_limit' in s for s in stats):
    return min(s['bytes_limit'] for s in stats)
  if devices[0].platform == 'cpu' and hasattr(os, 'sysconf'):
    host = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    for file in _CGROUP_LIMITS:
      # Without such a file, or with 'max' in it, there is no limit.
      with contextlib.suppress(OSError, ValueError):
        host = min(host, int(pathlib.Path(file).read_text()))
    return host / len(devices) / jobs
  return math.inf


# Files with the memory limit of a container or a batch job: cgroups v2 and v1.
_CGROUP_LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


def size(num_bytes: float) -> str:
  """Returns a number of bytes with a unit and three digits.

  Examples:
    >>> print(size(1_625_866 * 4), size(4e13), size(0))
    6.5 MB 40 TB 0 B
  """
  if math.isinf(num_bytes):
    return 'more than there is'
  for unit in ('B', 'kB', 'MB', 'GB', 'TB'):
    if num_bytes < 999.5 or unit == 'TB':
      break
    num_bytes /= 1000
  return f'{num_bytes:.3g} {unit}'
