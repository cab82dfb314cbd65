"""Examines the rules of other systems with `lca.testing`.

    python -m benchmarks.foreign_rules [--output FILE]

Each rule is called as its system documents it, for 11 clients and f = 2, and
asked for the promise that its paper makes. A property that a rule lacks by
design is not asked for. The table has a line for each fault, with the smallest
example that was found. A system that is not installed is left out, with a line
that says so.
"""

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import pathlib
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

import lca
from lca import testing

F = 2
FROM_ZERO = {'shifted': 'norms are taken from zero'}
PIVOT = {'permutation': 'the first client is the pivot'}
TIES = {'permutation': 'clients with one score are told apart by their places'}


class Foreign(NamedTuple):
  """A rule of another system.

  Attributes:
    call: expression of the rule, as its system's users write it.
    function: from float32 rows `[n, d]` to `[d]`.
    promise: that of the rule's paper; see `lca.testing.check_rule`.
    except_for: properties that the rule lacks by design.
    f: the number of Byzantine rows in the examples.
  """

  call: str
  function: Callable[[np.ndarray], Any]
  promise: str = 'full'
  except_for: Mapping[str, str] = types.MappingProxyType({})
  f: int = F


def byzfl() -> Iterator[Foreign]:
  """Yields the rules of byzfl, which take arrays `[n, d]`."""
  made = functools.partial(_made, importlib.import_module('byzfl'))
  yield made('Average()', promise='none')
  yield made('Median()', promise='hull')
  yield made('TrMean(f=2)', promise='hull')
  yield made('Meamed(f=2)', promise='finite')
  yield made('Krum(f=2)')
  yield made('MultiKrum(f=2)')
  yield made('GeometricMedian()')
  yield made('MDA(f=2)')
  yield made('SMEA(f=2)')
  yield made('CAF(f=2)')
  yield made('MoNNA(f=2)', promise='none', except_for=PIVOT)
  yield made(
    'CenteredClipping(tau=1.0)', except_for=FROM_ZERO | {'scaled': 'tau'}
  )


def byzpy() -> Iterator[Foreign]:
  """Yields the rules of byzpy, which take lists of vectors."""
  rules = {
    'coordinate_wise.median.CoordinateWiseMedian()': ('hull', {}),
    'coordinate_wise.trimmed_mean.CoordinateWiseTrimmedMean(2)': ('hull', {}),
    'coordinate_wise.mean_of_medians.MeanOfMedians(2)': ('finite', {}),
    'geometric_wise.krum.Krum(2)': ('full', {}),
    'geometric_wise.krum.MultiKrum(2, 5)': ('full', {}),
    'geometric_wise.geometric_median.GeometricMedian()': ('full', {}),
    'geometric_wise.minimum_diameter_average.MinimumDiameterAveraging(2)': (
      'full',
      {},
    ),
    'geometric_wise.monna.MoNNA(2)': ('none', PIVOT),
    'geometric_wise.smea.SMEA(2)': ('full', {}),
    'norm_wise.caf.CAF(2)': ('full', {}),
    'norm_wise.comparative_gradient_elimination.'
    'ComparativeGradientElimination(2)': ('full', FROM_ZERO),
    'norm_wise.center_clipping.CenteredClipping(c_tau=1.0, M=1, init="zero")': (
      'full',
      FROM_ZERO | {'scaled': 'tau'},
    ),
  }
  for call, (promise, except_for) in rules.items():
    path, _, made = call.partition('(')
    module, _, name = path.rpartition('.')
    where = importlib.import_module(f'byzpy.aggregators.{module}')
    rule = eval(f'where.{name}({made}', {'where': where})

    def function(rows, rule=rule):
      return np.asarray(rule.aggregate([*rows]))

    yield Foreign(f'{name}({made}', function, promise, except_for)


def flwr() -> Iterator[Foreign]:
  """Yields Flower's functions, which take the clients' lists of arrays."""
  where = importlib.import_module('flwr.server.strategy.aggregate')

  def call(text: str, promise: str = 'full', **more: Any) -> Foreign:
    def function(rows):
      names = {'results': [([row], 1) for row in rows]}
      return eval(f'where.{text}', {'where': where} | names)[0]

    return Foreign(text, function, promise, **more)

  yield call('aggregate(results)', 'none')
  yield call('aggregate_median(results)', 'hull')
  yield call('aggregate_trimmed_avg(results, 0.2)', 'hull')
  yield call('aggregate_krum(results, 2, 0)')
  yield call('aggregate_krum(results, 2, 5)')
  yield call(
    'aggregate_bulyan(results, 2, where.aggregate_krum, to_keep=0)',
    except_for=TIES,
  )


def flexclash() -> Iterator[Foreign]:
  """Yields flex-clash's functions, which write into the server's dict."""
  where = importlib.import_module('flexclash.pool')

  def call(text: str, promise: str = 'full', **more: Any) -> Foreign:
    name, _, options = text.partition('(')

    def function(rows):
      server = {'weights': [[row] for row in rows]}
      options_ = f'dict({options}'
      getattr(where, name)(server, None, **eval(options_))
      return np.asarray(server['aggregated_weights'][0])

    return Foreign(text, function, promise, **more)

  yield call('median()', 'hull')
  yield call('trimmed_mean(trim_proportion=0.2)', 'hull')
  yield call('multikrum(f=2, m=1)')
  yield call('multikrum(f=2, m=5)')
  yield call('bulyan(f=2, m=5)', except_for=TIES)
  yield call('geomed()')
  yield call('clip(clip_threshold=1.0)', 'none')


def _made(module: Any, call: str, **more: Any) -> Foreign:
  """Returns a rule that is an object of a module."""
  return Foreign(call, eval(f'module.{call}', {'module': module}), **more)


SYSTEMS = {'byzfl': byzfl, 'byzpy': byzpy, 'flwr': flwr, 'flexclash': flexclash}


def examine(foreign: Foreign) -> testing.Report:
  """Returns the report on a rule, whose name becomes its expression."""

  def function(rows):
    with warnings.catch_warnings(), np.errstate(all='ignore'):
      warnings.simplefilter('ignore')
      return np.asarray(foreign.function(rows))

  function.__name__ = foreign.call
  return testing.check_rule(
    testing.from_numpy(function),
    f=foreign.f if foreign.promise != 'none' else 0,
    promise=foreign.promise,
    except_for=foreign.except_for,
    on_failure='return',
  )


def lines(system: str) -> Iterator[str]:
  """Yields the lines of the table about a system."""
  if importlib.util.find_spec(system) is None:
    yield f'| {system} | not installed | | | |'
    return
  version = importlib.metadata.version(system)
  for foreign in SYSTEMS[system]():
    report = examine(foreign)
    start = f'| {system} {version} | `{foreign.call}` | {foreign.promise} |'
    if not report.failures:
      yield f'{start} none | |'
    for fault in report.failures:
      shown = fault.code.split('updates = ')[1].rpartition('\n')[0]
      shown = ' '.join(shown.split())
      yield f'{start} {fault.name}: {fault.message} | `{shown}` |'


def main() -> None:
  """Prints the table, and writes it to a file if one is named."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--output', type=pathlib.Path)
  parser.add_argument('--systems', nargs='+', default=[*SYSTEMS])
  args = parser.parse_args()
  logging.disable(logging.WARNING)
  table = [
    '| system | rule | promise | fault | updates |',
    '| --- | --- | --- | --- | --- |',
  ]
  for system in args.systems:
    for line in lines(system):
      print(line, flush=True)
      table.append(line)
  title = f'Rules of other systems under `lca.testing` of lca {lca.__version__}'
  if args.output:
    args.output.write_text('\n'.join([f'# {title}', '', *table, '']))


if __name__ == '__main__':
  main()
