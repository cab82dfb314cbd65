"""Tells what a round needs of each device's memory, before it runs.

A device holds the whole model to train with, the examples of its share of the
clients in two rounds (one trains, the next one is read), and the updates that
these clients send. Beside that comes either what a chunk of clients needs
while it trains, or what the server's step needs: then each device has its
share of the coordinates, of all updates and of the server's state (see
`lca.stacked.sharding`).
"""

import contextlib
import math
import os
import pathlib
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from lca.federated.evaluation import BLOCK_BYTES
from lca.federated.simulation import Simulation
from lca.typing import PyTree

_FLOAT = 4  # bytes of a float32
_LABEL = 4  # bytes of an int32

_HELD = ('model', 'examples', 'updates', 'state', 'rule')


class Plan(NamedTuple):
  """Bytes on each device in a round.

  Attributes:
    model: parameters and batch statistics, to train with.
    examples: of two rounds, and of the test set.
    updates: of the clients that trained on the device.
    state: its share of the server's model, of what the server's optimiser
      remembers, and of the workers' momenta.
    rule: its share of what the rule remembers; like the momenta, it is written
      to in place.
    training: beside these, while a chunk of clients trains.
    server: beside these, in the server's step.
    sent: to other devices; not held.
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
  def held(self) -> int:
    """Bytes that are held through the whole round."""
    return sum(getattr(self, name) for name in _HELD)

  @property
  def total(self) -> int:
    """Bytes at most at the same time."""
    return self.held + max(self.training, self.server)

  def __str__(self):
    parts = ', '.join(f'{name} {size(getattr(self, name))}' for name in _HELD)
    return (
      f'each device holds {size(self.held)} ({parts}) and needs '
      f'{size(self.training)} more to train a chunk of clients, '
      f"{size(self.server)} more in the server's step"
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
  update_bytes: int = _FLOAT,
  moments: int = 2,
  server_models: int = 1,
  rule_updates: int = 0,
) -> Plan:
  """Returns what a round needs, from its numbers alone.

  Args:
    clients: in a round.
    parameters: of the model, with its batch statistics.
    examples: of the largest client.
    example_bytes: of an input and its label.
    devices: of the mesh.
    chunk_size: clients that train at the same time on a device.
    batch_size: examples whose gradients are computed at once, of a client that
      has as many.
    activation_bytes: that a forward pass keeps of an example for the backward
      pass.
    test_examples: in the test set.
    update_bytes: of a number in an update.
    moments: that the clients' optimiser keeps of each parameter: Adam's two.
    server_models: that the server keeps from round to round: its own, and
      what its optimiser remembers.
    rule_updates: that the rule remembers, LEGATO's window less one, say.

  Returns:
    The plan. An attack's own rows and what a compiler adds are not in it, and
    of `sent`, the inner products of n updates, `[n, n]`, are those of one
    layer.

  Raises:
    ValueError: no clients, devices or chunk.

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
  rows = -(-clients // devices)
  model = _FLOAT * parameters
  state = server_models * model // devices
  rule = rule_updates * parameters * update_bytes // devices
  share = clients * parameters * update_bytes // devices
  products = _FLOAT * clients**2
  # A trained copy, its gradient, and the optimiser's.
  trained = (2 + moments) * model
  updates = rows * parameters * update_bytes
  test = min(test_examples * example_bytes, 2 * BLOCK_BYTES) // devices
  others = (devices - 1) / devices
  return Plan(
    model=model,
    examples=2 * rows * examples * example_bytes + test,
    updates=updates,
    state=state,
    rule=rule,
    training=_width(rows, chunk_size)
    * (trained + min(batch_size, examples) * activation_bytes),
    server=state + products + (share if devices > 1 else 0),
    sent=round(others * (updates + model + 2 * products)),
  )


def _width(clients: int, chunk_size: int) -> int:
  """Returns the width of chunks that are as even as they can be."""
  return -(-clients // -(-clients // chunk_size))


def of(simulation: Simulation) -> Plan:
  """Returns what a round of a simulation needs; compiles it.

  Args:
    simulation: whose compiled programs tell `training` and `server`.

  Returns:
    The plan; `training` is infinite where the compiler itself has refused.
  """
  data, state = simulation.data, simulation.abstract_state
  devices, spec = simulation.placement.mesh.size, data.dataset.train.input_spec
  plan = on_paper(
    clients=simulation.clients_per_device * devices,
    parameters=sum(x.size for x in jax.tree.leaves(state.variables)),
    examples=data.max_examples,
    example_bytes=math.prod(spec.shape) * spec.dtype.itemsize + _LABEL,
    test_examples=len(data.dataset.test),
    devices=devices,
    update_bytes=simulation.update_dtype.itemsize,
  )._replace(
    state=_on_each_device(state._replace(aggregator=())),
    rule=_on_each_device(state.aggregator),
  )
  try:
    train, apply = map(_used, simulation.programs)
  except jax.errors.JaxRuntimeError as error:
    _check_exhausted(error)
    return plan._replace(training=math.inf)
  made = apply.output_size_in_bytes - apply.alias_size_in_bytes
  return plan._replace(
    training=train.temp_size_in_bytes, server=made + apply.temp_size_in_bytes
  )


def _used(program: jax.stages.Compiled):
  """Returns the compiler's account of a program's memory."""
  used = program.memory_analysis()
  if used is None:
    raise ValueError(
      f'the compiler of {jax.default_backend()!r} does not say what memory a '
      'program needs'
    )
  return used


def _on_each_device(tree: PyTree) -> int:
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def _check_exhausted(error: Exception) -> None:
  """Raises an error again unless it says, as a TPU's does, "no room"."""
  if 'RESOURCE_EXHAUSTED' not in str(error):
    raise error


def check(simulation: Simulation, limit: float) -> Plan:
  """Checks that a round fits.

  Args:
    simulation: what is to run.
    limit: of each device, in bytes: see `memory_limit`.

  Returns:
    The plan.

  Raises:
    ValueError: it does not fit. The message tells the chunk size that does.
  """
  plan = of(simulation)
  if plan.total <= limit:
    return plan
  chunk_size = _largest_chunk(simulation, plan, limit)
  advice = (
    f'parallel.chunk_size={chunk_size} fits'
    if chunk_size
    else 'no parallel.chunk_size does, but more devices may, or less of '
    'server.clients_per_round, client.batch_size or parallel.microbatch_size, '
    "or client.update_dtype='bfloat16'"
  )
  raise ValueError(
    f'a round does not fit into the {size(limit)} of a device: {plan}; {advice}'
  )


def _largest_chunk(simulation: Simulation, plan: Plan, limit: float) -> int:
  """Finds the largest chunk size that fits, 0 where none does.

  The memory to train in grows with the chunk.
  """
  here, room = simulation.clients_per_device, limit - plan.held
  width = _width(here, simulation.placement.chunk_size)
  one = _to_train(simulation, 1) if width > 1 else math.inf
  if max(one, plan.server) > room:
    return 0
  # Where the compiler has refused, no client needs more than one does alone.
  refused = math.isinf(plan.training)
  each = one if refused else (plan.training - one) / (width - 1)
  # The last chunk, if it is shorter, is a program of its own beside the others;
  # and nothing is quite linear.
  chunk_size = max(
    w for w in range(1, width) if one + 1.1 * each * (w + here % w - 1) <= room
  )
  return chunk_size if _to_train(simulation, chunk_size) <= room else 1


def _to_train(simulation: Simulation, chunk_size: int) -> float:
  """Returns bytes beside what is held, infinite where the compiler refuses."""
  try:
    compiled = simulation.lower_training(chunk_size).compile()
  except jax.errors.JaxRuntimeError as error:
    _check_exhausted(error)
    return math.inf
  return _used(compiled).temp_size_in_bytes


def memory_limit(mesh: Mesh, jobs: int = 1) -> float:
  """Returns the bytes of each of this process's devices, as far as is known.

  Virtual devices of a CPU share the host's memory, and so do `jobs` processes.
  """
  devices = mesh.local_devices
  stats = [device.memory_stats() or {} for device in devices]
  if all('bytes_limit' in s for s in stats):
    return min(s['bytes_limit'] for s in stats)
  if devices[0].platform == 'cpu' and hasattr(os, 'sysconf'):
    host = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    for file in _CGROUP_LIMITS:
      # No file, or 'max' in it: the system grants all of the memory.
      with contextlib.suppress(OSError, ValueError):
        host = min(host, int(pathlib.Path(file).read_text()))
    return host / len(devices) / jobs
  return math.inf


# Of a container or a batch job, in versions 2 and 1.
_CGROUP_LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


def size(num_bytes: float) -> str:
  """Returns bytes as a person reads them.

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
