"""Times the rules beside this machine's limits and beside other systems.

    python -m benchmarks.aggregators --output DIR

The input is n = 100 stacked float32 updates of the layerwise cosine paper's CNN
(tree a) and of an EfficientNet-B0 with a new head of 10 classes (tree b);
--trees=c adds LEGATO's CNN. The rules have f = 1 and m = 5 as in the layerwise
cosine paper, and coordinate-wise rules f = 10. Each rule is measured in every
form that it has. Aggregators start from the state that they have after 12
rounds. byzfl, byzpy, flex-clash and PyTorch run beside lca if they are
installed: on the same values, in the same process, with as many threads.

The forms of a rule and the other systems take turns, so that a drift of the
machine's speed affects all of them. A time is the median of the calls after a
first one, which does not count. Calls that would take more than --budget
seconds together are made less often. If the first call alone takes longer, it
is the only one and counts, with a * in the tables. Compile times are those of
tracing, lowering and compiling with empty caches. Extra memory is what XLA
allocates beside the updates, for the result and for temporaries.

With --devices=2 the same cores are two JAX devices, as in `main.py`. Each
device has its share of the coordinates, and memory is the sum over both.

The record in --output is written after every group of rows, and the same
command goes on where it stopped.
"""

import functools
import os
import re
import resource
import statistics
import time
from collections.abc import Sequence

import jax
from absl import app, flags

from benchmarks import figures, others, trees
from benchmarks.contenders import (
  THRESHOLD,
  Contender,
  cases,
  find_rule,
  kernels,
  limits,
  message_of,
  ours,
  theirs,
)
from benchmarks.record import Record
from lca.federated import placement

_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write to.')
_RULES = flags.DEFINE_list(
  'rules', ['.*'], 'Groups to time: regular expressions for the whole name.'
)
_TREES = flags.DEFINE_list('trees', ['a', 'b'], 'Trees of updates: a, b, c.')
_REPEATS = flags.DEFINE_integer(
  'repeats', 5, 'Calls that a median is taken of.', 1
)
_N = flags.DEFINE_integer('n', 100, 'Clients.', 10)
_BUDGET = flags.DEFINE_float('budget', 20, 'Seconds for the calls of a row.')
_OTHERS = flags.DEFINE_bool('others', True, 'Run the other systems as well.')
_DEVICES = flags.DEFINE_integer(
  'devices', 1, 'JAX devices that share the cores and the coordinates.', 1
)

# Seconds to wait before each call: pools of threads spin for a while after one.
_PAUSE = 0.05

Row = figures.Row


# Timing.


def measure(
  contenders: Sequence[Contender], repeats: int, budget: float
) -> list[Row]:
  """Calls the contenders in turns, and returns a row of the table for each.

  Args:
    contenders: the contenders to time.
    repeats: number of calls of each contender after its first call.
    budget: seconds for the calls of a contender.
  """
  first = [_seconds(contender) for contender in contenders]
  runs: list[list[float]] = [[] for _ in contenders]
  for turn in range(1, repeats + 1):
    for contender, alone, times in zip(contenders, first, runs, strict=True):
      if alone is not None and turn * alone <= budget:
        times.append(_seconds(contender))
  return [
    _row(contender, alone, times)
    for contender, alone, times in zip(contenders, first, runs, strict=True)
  ]


def _seconds(contender: Contender) -> float | None:
  """Returns the seconds of one call, or None if there is nothing to call.

  If the call raises, the contender gets the error and is not called again.
  """
  if contender.call is None:
    return None
  time.sleep(_PAUSE)
  start = time.perf_counter()
  try:
    contender.call()
  except Exception as error:  # goes into the row; the others are still measured
    contender.call, contender.facts['error'] = None, message_of(error)
    return None
  return time.perf_counter() - start


def _row(
  contender: Contender, alone: float | None, times: Sequence[float | None]
) -> Row:
  row = {
    'rule': contender.rule,
    'form': contender.form,
    'who': contender.who,
    **contender.facts,
  }
  if 'error' not in row:
    # If there are no other calls, the first call counts.
    row['first_call_alone'] = not times
    times = times or [alone]
    row['ms'] = 1000 * statistics.median(times)
    row['best_ms'] = 1000 * min(times)
    row['runs'] = len(times)
  return row


# The trees and their groups of rows.


def _settings() -> Row:
  """Returns the flags that a record's numbers depend on."""
  return {
    'n': _N.value,
    'repeats': _REPEATS.value,
    'budget': _BUDGET.value,
    'others': _OTHERS.value,
  }


def _chosen(group: str) -> bool:
  return any(re.fullmatch(pattern, group) for pattern in _RULES.value)


def run_tree(record: Record, tree: str) -> None:
  """Measures those groups of a tree that are not in the record yet."""
  n = _N.value
  updates = trees.stacked(trees.TREES[tree][1](), n)
  leaves = jax.tree.leaves(updates)
  record.columns[tree] = (sum(x[0].size for x in leaves), len(leaves))
  groups = record.groups.setdefault(tree, {})
  calls = _calls(leaves, n)

  def contenders(case):
    return ours(case, find_rule(case), updates) + theirs(calls, case.label)

  makers = {'kernels': lambda: kernels(updates, calls) + limits(_torch())}
  for case in cases(n):
    makers[case.label] = functools.partial(contenders, case)
  for label, make in makers.items():
    if _chosen(label) and label not in groups:
      groups[label] = _group(label, make)
      record.write()
      _show(tree, groups[label])


def _torch() -> bool:
  return _OTHERS.value and others.installed('torch')


def _calls(leaves, n):
  """Returns the calls of other systems on these updates, see `others.calls`."""
  if not _torch():
    return {}
  hyper = {'f': 1, 'f_many': max(1, n // 10), 'm': 5, 'threshold': THRESHOLD}
  # PyTorch reads arrays of one device. Arrays on this device are not copied.
  leaves = jax.device_put(leaves, jax.devices()[0])
  return others.calls(others.Data(leaves), hyper)


def _group(label, make):
  """Measures the contenders that `make` returns; its error becomes a row."""
  try:
    contenders = make()
  except Exception as error:  # goes into the row; the others are still measured
    facts = {'kind': 'rule', 'hyper': {}, 'error': message_of(error)}
    contenders = [Contender(label, 'plain', 'lca', None, facts)]
  return measure(contenders, _REPEATS.value, _BUDGET.value)


def _show(tree: str, rows: Sequence[Row]) -> None:
  for row in rows:
    name = f'({tree}) {row["rule"]}, {row["form"]}, {row["who"]}'
    compiling = figures.number(row.get('compile_s'))
    compiled_in = f', compiled in {compiling} s' if compiling else ''
    unit = ' ms' if 'ms' in row else ''
    print(
      f'{name:56} {figures.time_of(row):>10}{unit}{compiled_in}', flush=True
    )


def _limit_memory() -> None:
  """Makes allocations beyond 0.9 of the memory fail.

  A call that needs too much memory then raises an error, which goes into its
  row. Without the limit the system would kill the process.
  """
  total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  _, hard = resource.getrlimit(resource.RLIMIT_DATA)
  resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * total), hard))


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  _limit_memory()
  jax.config.update('jax_num_cpu_devices', _DEVICES.value)
  record = Record(_OUTPUT.value, _settings())
  with jax.set_mesh(placement.clients_mesh()):
    for tree in _TREES.value:
      run_tree(record, tree)
  record.write()
  print(f'\n{record.markdown()}')


if __name__ == '__main__':
  app.run(main)
