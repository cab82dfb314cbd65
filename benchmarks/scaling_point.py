"""Measures one point of `benchmarks.scaling` in a process of its own.

    python -m benchmarks.scaling_point '{"rule": "Krum", "n": 20, ...}'

The argument is a point as JSON; the last line of the output is its row. This
module is apart from `benchmarks.scaling` because `benchmarks.aggregators`,
whose `measure` times the calls, defines flags of the same names.
"""

import dataclasses
import json
import pathlib
import re
import sys
from typing import Any

import jax

from benchmarks import aggregators, contenders, trees
from lca.experiment import host
from lca.federated import placement

RULES = {
  'mean': ('mean', 'plain'),
  'median': ('median', 'plain'),
  'trimmed mean': ('trimmed_mean', 'plain'),
  'Krum': ('krum', 'plain'),
  'layerwise Krum': ('krum', 'layerwise'),
  'layerwise cosine Krum': ('krum', 'layerwise cosine'),
  'Bulyan': ('bulyan', 'plain'),
  'geometric median': ('geometric_median', 'plain'),
  'LEGATO': ('legato', 'plain'),
}
"""The label of a rule's `contenders.Case` and its form, by the rule's name."""


def contender_of(point: dict[str, Any]) -> contenders.Contender:
  """Compiles the rule of a point on updates of the point's size.

  The updates have equal leaves. LEGATO starts with a full log, and its facts
  have `state_bytes`, the size of its state on one device.

  Args:
    point: the fields of a `benchmarks.scaling.Point`.
  """
  label, form = RULES[point['rule']]
  case = next(c for c in contenders.cases(point['n']) if c.label == label)
  if case.kind == 'aggregator':
    case = dataclasses.replace(case, hyper={'window': point['window']})
  rule = dict(contenders.forms(case, contenders.find_rule(case)))[form]
  layers = point['layers']
  updates = trees.stacked([(point['d'] // layers,)] * layers, point['n'])
  if case.kind != 'aggregator':
    return contenders.compiled(
      label, form, {}, lambda updates: rule(updates, **case.hyper), updates
    )
  state = rule.init([leaf[0] for leaf in updates])
  step = jax.jit(rule.update, donate_argnums=1)
  for _ in range(point['window']):
    _, state = step(updates, state)
  parts = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(state)]
  facts = {'kind': case.kind, 'state_bytes': sum(x.nbytes for x in parts)}
  return contenders.compiled(label, form, facts, rule.update, updates, state)


def measure(point: dict[str, Any], repeats: int, budget: float) -> dict:
  """Returns the row of a point: its fields, times and memory.

  `memory_bytes` is what the call needs on one device beside the updates: the
  state, the temporaries and the result, as XLA allocates them. `resident_bytes`
  checks this number: it is by how much the memory of the process grew in the
  calls, and it counts all devices, but no state. It is None where the system
  cannot tell.

  Args:
    point: the fields of a `benchmarks.scaling.Point`.
    repeats: see `benchmarks.aggregators.measure`.
    budget: see `benchmarks.aggregators.measure`.
  """
  contender = contender_of(point)
  before = _forget_peak()
  (row,) = aggregators.measure([contender], repeats, budget)
  peak = _peak()
  if 'error' in row:
    return point | {'error': row['error']}
  on_all = row['temporary_bytes'] + row['result_bytes']
  state = row.get('state_bytes', 0)
  kept = ('ms', 'best_ms', 'runs', 'first_call_alone', 'compile_s')
  return {
    **point,
    **{key: row[key] for key in kept},
    'memory_bytes': on_all // point['devices'] + state,
    'resident_bytes': peak and peak - before,
  }


def _forget_peak() -> int:
  """Makes the peak of memory start anew, and returns the memory in use."""
  references = pathlib.Path('/proc/self/clear_refs')
  if references.exists():
    references.write_text('5')
  return host.resident_bytes()


def _peak() -> int | None:
  """Returns the largest memory of this process since `_forget_peak`."""
  status = pathlib.Path('/proc/self/status')
  text = status.read_text() if status.exists() else ''
  match = re.search(r'VmHWM:\s*(\d+) kB', text)
  return 1024 * int(match[1]) if match else None


def main(argv: list[str]) -> None:
  asked = json.loads(argv[1])
  point = asked['point']
  jax.config.update('jax_num_cpu_devices', point['devices'])
  with jax.set_mesh(placement.clients_mesh()):
    row = measure(point, asked['repeats'], asked['budget'])
  print(json.dumps(row))


if __name__ == '__main__':
  main(sys.argv)
