"""Examines the rules of other systems with `lca.testing`.

    python -m benchmarks.foreign_rules [--systems NAME ...] [--output FILE]

Each rule is an expression that is evaluated as printed, for 11 clients of which
f = 2 are Byzantine, and is asked for the promise that its paper makes. `rows`
are the clients' updates, a float32 array `[n, d]`; `tensors` and `results` are
the same rows as byzpy and Flower take them. A property that a rule lacks by
design is not asked for. The table has a line for each fault, with the smallest
updates that were found.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import pathlib
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

import lca
from lca import testing

F = 2
SECONDS = 5  # that a call may take; most take milliseconds
FROM_ZERO = {'shifted': 'norms are taken from zero'}
CLIP = FROM_ZERO | dict.fromkeys(('scaled', 'identical'), 'tau is a length')
LENGTH = {'scaled': 'the smallest distance is a length'}
PIVOT = {'permutation': 'the first client is the pivot'}
TIES = {'permutation': 'clients with one score are told apart by their places'}

# The modules whose names the expressions use.
MODULES = {
  'byzfl': ['byzfl'],
  'byzpy': [
    'byzpy.aggregators.coordinate_wise.mean_of_medians',
    'byzpy.aggregators.coordinate_wise.median',
    'byzpy.aggregators.coordinate_wise.trimmed_mean',
    'byzpy.aggregators.geometric_wise.geometric_median',
    'byzpy.aggregators.geometric_wise.krum',
    'byzpy.aggregators.geometric_wise.minimum_diameter_average',
    'byzpy.aggregators.geometric_wise.monna',
    'byzpy.aggregators.geometric_wise.smea',
    'byzpy.aggregators.norm_wise.caf',
    'byzpy.aggregators.norm_wise.center_clipping',
    'byzpy.aggregators.norm_wise.comparative_gradient_elimination',
  ],
  'flwr': ['flwr.server.strategy.aggregate'],
  'flexclash': ['flexclash.pool'],
}
# Expressions with the promise and the exceptions.
RULES: dict[str, list[tuple[str, str, Mapping[str, str]]]] = {
  'byzfl': [
    ('Average()(rows)', 'none', {}),
    ('Median()(rows)', 'hull', {}),
    ('TrMean(f)(rows)', 'hull', {}),
    ('Meamed(f)(rows)', 'finite', {}),
    ('Krum(f)(rows)', 'full', {}),
    ('MultiKrum(f)(rows)', 'full', {}),
    ('GeometricMedian()(rows)', 'full', LENGTH),
    ('MDA(f)(rows)', 'full', {}),
    ('CAF(f)(rows)', 'full', {}),
    ('MoNNA(f)(rows)', 'none', PIVOT),
    ('CenteredClipping(tau=1.0)(rows)', 'full', CLIP),
  ],
  'byzpy': [
    ('CoordinateWiseMedian().aggregate([*tensors])', 'hull', {}),
    ('CoordinateWiseTrimmedMean(f).aggregate([*tensors])', 'hull', {}),
    ('MeanOfMedians(f).aggregate([*tensors])', 'finite', {}),
    ('Krum(f).aggregate([*tensors])', 'full', {}),
    ('MultiKrum(f, n - f).aggregate([*tensors])', 'full', {}),
    ('GeometricMedian().aggregate([*tensors])', 'full', LENGTH),
    ('MinimumDiameterAveraging(f).aggregate([*tensors])', 'full', {}),
    ('MoNNA(f).aggregate([*tensors])', 'none', PIVOT),
    ('SMEA(f).aggregate([*tensors])', 'full', {}),
    ('CAF(f).aggregate([*tensors])', 'full', {}),
    (
      'ComparativeGradientElimination(f).aggregate([*tensors])',
      'full',
      FROM_ZERO,
    ),
    (
      "CenteredClipping(c_tau=1.0, M=1, init='zero').aggregate([*tensors])",
      'full',
      CLIP,
    ),
  ],
  'flwr': [
    ('aggregate(results)[0]', 'none', {}),
    ('aggregate_median(results)[0]', 'hull', {}),
    ('aggregate_trimmed_avg(results, f / n)[0]', 'hull', {}),
    ('aggregate_krum(results, f, 0)[0]', 'full', {}),
    ('aggregate_krum(results, f, n - f)[0]', 'full', {}),
    (
      'aggregate_bulyan(results, f, aggregate_krum, to_keep=0)[0]',
      'full',
      TIES,
    ),
  ],
  'flexclash': [
    ('aggregated(median)', 'hull', {}),
    ('aggregated(trimmed_mean, trim_proportion=f / n)', 'hull', {}),
    ('aggregated(multikrum, f=f, m=1)', 'full', {}),
    ('aggregated(multikrum, f=f, m=n - f)', 'full', {}),
    ('aggregated(bulyan, f=f, m=f)', 'full', TIES),
  ],
}


def rule_of(system: str, expression: str) -> Callable[..., np.ndarray]:
  """Returns the rule of an expression: `(rows, f)`, or `(rows)` without f."""
  names: dict[str, Any] = {}
  for module in MODULES[system]:
    names |= vars(importlib.import_module(module))

  def with_f(rows: np.ndarray, f: int) -> np.ndarray:
    def aggregated(rule, **options):
      # flex-clash's rules read the server's dict, and write into it.
      server = {'weights': [[row] for row in rows]}
      rule(server, None, **options)
      return server['aggregated_weights'][0]

    known = {
      'rows': rows,
      'results': [([row], 1) for row in rows],
      'tensors': _tensors(rows),
      'aggregated': aggregated,
      'n': len(rows),
      'f': f,
    }
    with warnings.catch_warnings(), np.errstate(all='ignore'), _limited():
      warnings.simplefilter('ignore')
      # All names are global, as comprehensions need them.
      return np.asarray(eval(expression, names | known))

  if re.search(r'\bf\b', expression):
    return with_f
  return lambda rows: with_f(rows, F)


def _tensors(rows: np.ndarray) -> list[Any]:
  """Returns rows as PyTorch's tensors; as they are if it is not installed."""
  if importlib.util.find_spec('torch') is None:
    return [*rows]
  return [*importlib.import_module('torch').from_numpy(rows)]


@contextlib.contextmanager
def _limited() -> Iterator[None]:
  """Raises a TimeoutError in a call that takes longer than `SECONDS`."""

  def stop(*_):
    raise TimeoutError(f'it takes more than {SECONDS} s')

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def examine(system: str) -> Iterator[tuple[str, str, testing.Report]]:
  """Yields each rule's expression, its promise, and the report on it."""
  for expression, promise, except_for in RULES[system]:
    yield (
      expression,
      promise,
      testing.check_rule(
        testing.from_numpy(rule_of(system, expression)),
        f=0 if promise == 'none' else F,
        promise=promise,
        except_for=except_for,
        on_failure='return',
      ),
    )


def lines(system: str) -> Iterator[str]:
  """Yields the lines of the table about a system."""
  if importlib.util.find_spec(system) is None:
    yield f'| {system} | not installed | | | |'
    return
  version = importlib.metadata.version(system)
  for expression, promise, report in examine(system):
    start = f'| {system} {version} | `{expression}` | {promise} |'
    if not report.failures:
      yield f'{start} none | |'
    for fault in report.failures:
      message = fault.message.replace('|', '/')[:150]
      yield f'{start} {fault.name}: {message} | {_shown(fault.updates)} |'


def _shown(updates: Any) -> str:
  """Returns small updates as text, and the shapes of others."""
  arrays = jax.tree.leaves(updates)
  text = ', '.join(
    f'[{" ".join(f"{number:g}" for number in row)}]'
    for row in arrays[0].reshape(len(arrays[0]), -1).astype(float)
  )
  if len(arrays) == 1 and len(text) < 100:
    return text
  return f'{len(arrays[0])} rows of {sum(x[0].size for x in arrays)} numbers'


def main() -> None:
  """Prints the table, and writes it to a file if one is named."""
  summary, *_ = (__doc__ or '').splitlines()
  parser = argparse.ArgumentParser(description=summary)
  parser.add_argument('--output', type=pathlib.Path)
  parser.add_argument('--systems', nargs='+', default=[*RULES], choices=RULES)
  args = parser.parse_args()
  logging.disable(logging.WARNING)
  table = [
    f'# Rules of other systems under `lca.testing` of lca {lca.__version__}',
    '',
    '| system | rule | promise | fault | updates |',
    '| --- | --- | --- | --- | --- |',
  ]
  show = functools.partial(print, flush=True)
  for system in args.systems:
    for line in lines(system):
      show(line)
      table.append(line)
  if args.output:
    args.output.write_text('\n'.join([*table, '']))


if __name__ == '__main__':
  main()
