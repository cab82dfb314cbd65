"""Rounds that never hold the updates of all clients: `parallel.stream`.

A round of n clients stacks their updates, `[n, ...]`. Where these do not fit
into memory, the round runs in groups of clients and blocks of coordinates:

1. The clients train group by group, and each group's rows go to a file.
2. A pass over the file, some coordinates of all rows at a time, sums up the
   rows' inner products, from which the rule decides.
3. Another pass combines the rows by this decision.

The memory is that of a group and of a block, and of the `[layers, n, n]` inner
products if the rule reads norms or products. Results differ from those of a
stacked round by rounding alone. A rule that needs no inner products skips pass
2, unless an attack reads coordinate by coordinate; without such an attack the
mean, whose weights are known beforehand, needs no file. `check` refuses what
needs all numbers of all rows at once.
"""

import functools
import math
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lca.aggregators import ROUND_BRINGS
from lca.aggregators.forms import two_passes
from lca.attacks import base as attacks
from lca.federated.round import Aggregate
from lca.federated.row_file import RowFile, check_folder
from lca.federated.server import Server, ServerState
from lca.federated.simulation import Simulation
from lca.federated.streamed_steps import StreamedSteps

GROUP_BYTES = 2**26
"""Bytes of the updates of clients that train as one group, at most, unless the
chunks that train at once have more."""


def check(server: Server, has_root: bool, folder: str | None) -> None:
  """Checks that a round can be streamed.

  Args:
    server: the parts of the server's step.
    has_root: True if the server has examples of its own.
    folder: of the file with the updates; None takes the system's.

  Raises:
    ValueError: it cannot; the message says what is in the way, and why.
  """
  for in_the_way, why in _obstacles(server, has_root):
    if in_the_way:
      raise ValueError(
        'parallel.stream=True does not hold the updates of all clients at '
        f'once: {why}; leave parallel.stream out or change that'
      )
  attacks.check_reads(server.attack.reads)
  check_folder(folder or tempfile.gettempdir())


def _obstacles(server, has_root):
  """Yields pairs: True if something is in the way, and the reason."""
  yield (
    jax.process_count() > 1,
    'the run has several processes, which share no file',
  )
  yield (
    server.momentum,
    f'client.momentum={server.momentum} needs a row for every client of the '
    'population',
  )
  yield server.forensics, 'eval.forensics compares all coordinates of all rows'
  yield server.attack.reads == 'all', _ATTACK_READS
  yield (
    server.attack.adaptive is not None,
    'the attack adapts before all clients train',
  )
  given: dict[str, Any] = dict.fromkeys(ROUND_BRINGS, 0)
  why = ''
  try:
    two_passes.of_aggregator(server.aggregator, given)
  except ValueError as error:
    why = str(error)
  yield why, why
  yield has_root, 'data.root_examples trains a row of the server itself'
  yield (
    server.batch_stats != 'rule',
    f"model.batch_stats={server.batch_stats!r} is not 'rule'",
  )


_ATTACK_READS = (
  'the attack reads all coordinates of all rows (an attack of your own that '
  'reads less may say so, see lca.attacks.update_attack)'
)


class StreamedSimulation(Simulation):
  """A `Simulation` whose rounds never hold the updates of all clients.

  `run_round` reads no examples of the next round ahead, but those of the next
  group.

  Args:
    folder: of the file with the updates; None takes that of the system for
      temporary files.
    **parts: see `Simulation`.

  Raises:
    ValueError: the round cannot be streamed, or the folder takes no file, or
      has too little room.
  """

  def __init__(self, *, folder: str | None = None, **parts: Any):
    has_root = parts['data'].server_id is not None
    check(parts['server'], has_root, folder)
    self._folder = folder or tempfile.gettempdir()
    super().__init__(**parts)
    if not self._steps.needs_one:
      n = self.clients_per_round
      check_folder(self._folder, n * self._row_bytes)

  @property
  def block_bytes(self) -> int:
    """The bytes that the server works on at once in a pass, about."""
    return 0 if self._steps.needs_one else self._steps.block_bytes

  @property
  def _row_bytes(self):
    return sum(
      math.prod(x.shape) * x.dtype.itemsize
      for x in jax.tree.leaves(self._update_shapes)
    )

  def _trained_at_once(self) -> int:
    """Returns the number of clients of a group."""
    at_once = self.placement.chunk_size * self.placement.devices
    fitting = GROUP_BYTES // self._row_bytes // at_once * at_once
    return min(max(at_once, fitting), self.clients_per_round)

  def _server_programs(self) -> StreamedSteps:
    n, shapes = self.clients_per_round, self._shapes
    return StreamedSteps(
      self._server,
      self.placement,
      shapes,
      self._update_shapes,
      n,
      self._draw(0),
    )

  @property
  def _steps(self) -> StreamedSteps:
    return self._on_server

  def run_round(
    self,
    state: ServerState,
    round_idx: int,
    last: bool = False,
    report: Callable[[int], object] = lambda clients: None,
  ) -> tuple[ServerState, dict[str, Any]]:
    """Runs one round; see `Simulation.run_round`.

    Raises:
      OSError: the disk is full.
    """
    del last
    drawn, steps = self._draw(round_idx), self._steps
    n = self.clients_per_round
    train = functools.partial(
      self._train_groups, state, round_idx, drawn, report
    )
    with jax.set_mesh(self.placement.mesh):
      if steps.needs_one:
        total, info = steps.start_sum(state, drawn)
        losses, squares = train(total.add)
        aggregated = Aggregate(total.result(), info, squares)
      else:
        with RowFile(self._folder, steps.blocks, n) as file:
          losses, squares = train(file.write)
          read = functools.partial(self._ahead, file.read)
          aggregated = steps.aggregate(read, state, drawn, squares)
      info, squares = jax.device_get(aggregated[1:])
      aggregated = aggregated._replace(info=info, squares=squares)
      state, measured = self.programs.step(
        state, aggregated, losses, drawn, self._server.numbers
      )
    return state, self._as_numbers(measured, drawn)

  def _train_groups(self, state, round_idx, drawn, report, keep):
    """Trains all clients, group by group.

    Args:
      keep: is called with the position of a group's first row, and with the
        rows, leaves `[k, ...]`; those beyond the round's last row do not count.

    Returns:
      The `[n]` losses, and the squared norms by leaf, a tree of `[n]`.
    """
    n = self.clients_per_round
    group = self.clients_per_device * self.placement.devices
    start_from, parts = self._start(state, round_idx), []

    def finish(start, updates, *measured):
      rows = slice(0, min(group, n - start))
      keep(start, updates)
      parts.append(jax.tree.map(lambda x: np.asarray(x)[rows], measured))
      report(min(start + group, n))

    pending = []
    for start, clients in self._groups(drawn, group):
      updates, losses, _ = self._training.enqueue(
        self.programs.train,
        self.programs.attack,
        start_from,
        clients,
        calls=1,
      )
      updates, squares = self._steps.arrive(updates, state, drawn, start)
      pending.append((start, updates, losses, squares))
      # While this group trains, the rows of the one before are kept.
      if len(pending) > 1:
        finish(*pending.pop(0))
    finish(*pending.pop())
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)

  def _groups(self, drawn, group):
    """Yields the first row of each group, and its clients' examples."""

    def read(start):
      rows = slice(start, start + group)
      return self._read(
        drawn._replace(ids=drawn.ids[rows], byzantine=drawn.byzantine[rows])
      )

    return self._ahead(read, range(0, len(drawn.ids), group))

  def _ahead(self, read, items):
    """Yields each item and `read(item)`; a thread reads one item ahead."""
    reading = [self._reader.submit(read, item) for item in items[:1]]
    for i, item in enumerate(items):
      result = reading.pop().result()
      reading += [self._reader.submit(read, x) for x in items[i + 1 : i + 2]]
      yield item, result
