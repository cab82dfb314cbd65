"""Makes tables of what `benchmarks.aggregators` measured, and checks its goals.

A row is a dict, as the record holds it: `rule`, `form`, `who` (`'lca'` or
another system), `kind`, and `ms` or `error`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]

MATMUL = 4096
"""Rows of the square matrices whose product is the limit of arithmetic."""

READ = (16384, 8192)
"""Shape of the matrix that is read for the limit of memory: half a GiB of
float32, more than any cache."""


class Results:
  """The rows of a tree, and the numbers that follow from them.

  Args:
    n: number of clients.
    columns: parameters of the tree.
    rows: what was measured.
  """

  def __init__(self, n: int, columns: int, rows: Sequence[Row]):
    self.rows = rows
    self.update_bytes = 4 * columns
    self.bytes = n * self.update_bytes
    self.gram_flops = 2 * n * n * columns
    self.n = n

  def row(self, rule: str, form: str, who: str = 'lca') -> Row | None:
    """Returns the row of a rule's form, or None if it has no time."""
    for row in self.rows:
      if (row['rule'], row['form'], row['who']) == (rule, form, who):
        return row if 'ms' in row else None
    return None

  def ms(self, rule: str, form: str, who: str = 'lca') -> float | None:
    """Returns the milliseconds of a rule's form, or None."""
    row = self.row(rule, form, who)
    return row and row['ms']

  def limit(self, form: str) -> float | None:
    """Returns the least milliseconds that any system took for a limit."""
    times = [
      row['best_ms']
      for row in self.rows
      if (row['rule'], row['form']) == ('limit', form) and 'ms' in row
    ]
    return min(times, default=None)

  def bandwidth(self) -> float | None:
    """Returns the bytes that this machine reads in a millisecond."""
    ms = self.limit('read')
    return ms and 4 * math.prod(READ) / ms

  def arithmetic(self) -> float | None:
    """Returns the floating-point operations of this machine a millisecond."""
    ms = self.limit('matmul')
    return ms and 2 * MATMUL**3 / ms

  def floor(self, row: Row) -> float | None:
    """Returns the milliseconds that a kernel takes at this machine's limit.

    Inner products are limited by arithmetic. A weighted sum is limited by
    reading the rows of nonzero weight and writing the result.
    """
    if row['rule'] == 'gram':
      return _divided(self.gram_flops, self.arithmetic())
    used = {'all rows': self.n, 'half of the rows': self.n // 2, 'one row': 1}
    moved = (used[row['form']] + 1) * self.update_bytes  # 1 is the result
    return _divided(moved, self.bandwidth())

  def extra(self, row: Row) -> float | None:
    """Returns the memory beside the updates, in units of the updates' size."""
    if 'temporary_bytes' not in row:
      return None
    return (row['temporary_bytes'] + row['result_bytes']) / self.bytes


def _divided(a: float | None, b: float | None) -> float | None:
  """Returns a / b, or None if one of them was not measured."""
  return None if a is None or b is None else a / b


def number(value: float | None, digits: int = 2) -> str:
  """Returns a number as text, without decimals from 100 on; '' for None."""
  if value is None:
    return ''
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:,.{digits}f}'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table of Markdown."""
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def kernel_table(results: Results) -> str:
  """Returns the table of kernels, with their share of this machine's limits."""
  lines = []
  for row in results.rows:
    if row.get('kind') == 'kernel':
      floor, ms = results.floor(row), row.get('ms')
      share = _divided(floor, ms)
      lines.append(
        [
          f'{row["rule"]}, {row["form"]}'.removesuffix(', kernel'),
          time_of(row),
          number(floor),
          '' if share is None else f'{share:.0%}',
          _beside(results, row),
        ]
      )
  header = ('kernel', 'ms', 'floor, ms', 'share', 'others, ms')
  speeds = (
    f'Read: {number(_divided(results.bandwidth(), 1e6))} GB/s. '
    f'Matrix product of {MATMUL}: '
    f'{number(_divided(results.arithmetic(), 1e6))} GFLOP/s.'
  )
  return f'{speeds}\n\n{table(header, lines)}' if lines else ''


def rule_table(results: Results) -> str:
  """Returns the table of all forms of all rules."""
  lines = [
    [
      _with_hyper(row),
      row['form'],
      number(row.get('compile_s')),
      time_of(row),
      number(results.extra(row)),
      _beside(results, row),
    ]
    for row in results.rows
    if row.get('kind') in ('rule', 'pre', 'aggregator')
  ]
  header = ('rule', 'form', 'compile, s', 'ms', 'extra memory', 'others, ms')
  return table(header, lines) if lines else ''


def _with_hyper(row: Row) -> str:
  hyper = (f'{name}={value:g}' for name, value in row['hyper'].items())
  return ', '.join([row['rule'], *hyper])


def time_of(row: Row) -> str:
  """Returns a row's milliseconds as text, or its error."""
  if 'ms' not in row:
    return row['error'].replace('|', '/')
  return number(row['ms'], 1) + '*' * row['first_call_alone']


def _beside(results: Results, ours: Row) -> str:
  """Returns the other systems' times, and how many times lca's they are."""
  others = []
  for row in results.rows:
    same = (row['rule'], row['form']) == (ours['rule'], ours['form'])
    if same and row['who'] != 'lca':
      ratio = _divided(row.get('ms'), ours.get('ms'))
      times = '' if ratio is None else f' ({number(ratio)}x)'
      others.append(f'{row["who"]} {time_of(row)}{times}')
  return '; '.join(others)


# The goals, which were set before anything was measured.


@dataclasses.dataclass(frozen=True)
class Goal:
  """A number and its bound.

  Attributes:
    text: what the number is.
    figure: the number; None where it was not measured.
    bound: bound of the number.
    at_least: True if the number is to be at least the bound, False if it is to
      be at most the bound.
    where: remark on the number, such as which row it comes from.
  """

  text: str
  figure: float | None
  bound: float
  at_least: bool
  where: str = ''

  def line(self) -> list[str]:
    """Returns the cells of the goal's line in a table."""
    sign = 'at least' if self.at_least else 'at most'
    bound = f'{sign} {self.bound:g}'
    if self.figure is None:
      return [self.text, bound, '', 'not measured']
    met = (
      self.figure >= self.bound if self.at_least else self.figure <= self.bound
    )
    figure = f'{number(self.figure)} {self.where}'.strip()
    return [self.text, bound, figure, 'met' if met else '**not met**']


def goals(results: Mapping[str, Results]) -> list[Goal]:
  """Returns all goals of the trees that were measured.

  Args:
    results: the results of each tree, by the tree's name.
  """
  all_goals = []
  for tree, of in results.items():
    all_goals += _kernel_goals(tree, of)
  if 'a' in results:
    all_goals += _speed_goals(results['a'])
    all_goals.append(_most(results['a'], 'a', 'compile, s', 5, _compile_s))
  if 'b' in results:
    all_goals += _tree_b_goals(results['b'])
  for tree, of in results.items():
    all_goals += _memory_goals(tree, of)
  return all_goals


def _kernel_goals(tree: str, of: Results) -> list[Goal]:
  kernel_goals = []
  for row in of.rows:
    if row.get('kind') == 'kernel':
      name = f'({tree}) {row["rule"]}, {row["form"]}: times its floor'
      ratio = _divided(row.get('ms'), of.floor(row))
      name = name.replace(', kernel', '')
      kernel_goals.append(Goal(name, ratio, 1.5, False))
  return kernel_goals


def _speed_goals(of: Results) -> list[Goal]:
  best = 'layerwise cosine'
  # The last number says how many times as fast as the other system lca must be.
  bounds = (
    ('krum', 'plain', 'byzfl', 5),
    ('krum', 'plain', 'flexclash', 25),
    ('krum', 'plain', 'byzpy', 2.5),
    ('krum', best, 'torch by client', 2),
    ('krum', best, 'torch', 2),
    ('median', 'plain', 'torch', 8),
    ('trimmed_mean', 'plain', 'byzfl', 15),
    ('geometric_median', 'plain', 'byzfl', 6),
  )
  speed_goals = [
    Goal(
      f'(a) {rule}, {form}: times as fast as {who}',
      _divided(of.ms(rule, form, who), of.ms(rule, form)),
      bound,
      True,
    )
    for rule, form, who, bound in bounds
  ]
  ratio = _divided(of.ms('krum', best), of.ms('krum', 'plain'))
  name = f'(a) krum, {best}: times plain krum'
  return [*speed_goals, Goal(name, ratio, 1.1, False)]


def _tree_b_goals(of: Results) -> list[Goal]:
  best = 'layerwise cosine'
  theirs = of.ms('krum', best, 'torch Gram by leaf')
  ratio = _divided(theirs, of.ms('krum', best))
  name = f"(b) krum, {best}: times as fast as PyTorch's Gram by leaf alone"
  row = of.row('krum', best)
  medians = [of.row(r, 'plain') for r in ('median', 'trimmed_mean', 'meamed')]
  slowest = max((_compile_s(of, r) for r in medians if r), default=None)
  return [
    Goal(name, ratio, 0.9, True),
    Goal(f'(b) krum, {best}: compile, s', row and row['compile_s'], 15, False),
    Goal('(b) medians: compile, s', slowest, 30, False),
  ]


def _memory_goals(tree: str, of: Results) -> list[Goal]:
  text = 'extra memory'
  return [
    _most(of, tree, f'rules: {text}', 0.5, Results.extra, ('rule',)),
    _most(
      of, tree, f'aggregators: {text}', 0.5, Results.extra, ('aggregator',)
    ),
    _most(of, tree, f'pre-aggregators: {text}', 1.1, Results.extra, ('pre',)),
  ]


def _most(of, tree, text, bound, figure, kinds=('rule', 'aggregator', 'pre')):
  """Returns a goal for the largest number among the rows of some kinds.

  The goal's remark names the row with this number, and says how many rows miss
  the bound.
  """
  figures = [
    (value, f'{row["rule"]}, {row["form"]}')
    for row in of.rows
    if row.get('kind') in kinds and (value := figure(of, row)) is not None
  ]
  text = f'({tree}) {text}'
  if not figures:
    return Goal(text, None, bound, False)
  value, name = max(figures)
  missed = sum(value > bound for value, _ in figures)
  more = f'; {missed} of {len(figures)} miss it' if missed else ''
  return Goal(text, value, bound, False, f'({name}{more})')


def _compile_s(of: Results, row: Row) -> float | None:
  """Returns the seconds that a row's function took to compile."""
  return row.get('compile_s')
