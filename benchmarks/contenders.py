"""Makes the calls to time: all forms of all rules, other systems, limits.

The limits are the speeds at which this machine reads memory and multiplies
matrices.
"""

import dataclasses
import functools
import inspect
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import lca
from benchmarks import figures, others
from lca.aggregators import RULES
from lca.stacked import sharding

THRESHOLD = 10.0
"""The threshold of the clipping rules, about the updates' norm on tree a."""

Row = figures.Row


@dataclasses.dataclass
class Contender:
  """A call to time, or the reason why there is none.

  Attributes:
    rule: name of the group.
    form: form of the rule, such as `'layerwise cosine'`.
    who: `'lca'`, or the name of another system.
    call: returns when its result is computed; None if there is no call.
    facts: entries of the row that are known before the call is timed, such as
      `compile_s`, or `error` where there is no call.
  """

  rule: str
  form: str
  who: str
  call: Callable[[], Any] | None
  facts: Row = dataclasses.field(default_factory=dict)


def compiled(
  rule: str, form: str, facts: Row, function: Callable[..., Any], *args: Any
) -> Contender:
  """Compiles a function of lca, and measures compile time and memory.

  An aggregator takes its state as the last argument and returns the new one as
  the last result. As in a simulation, the state's memory is donated: the new
  state may be written into it.

  Args:
    rule: see `Contender`.
    form: see `Contender`.
    facts: see `Contender`.
    function: the function to compile.
    args: the arguments of every call.

  Returns:
    A contender, without a call if the function does not compile.
  """
  facts = dict(facts)
  has_state = facts.get('kind') == 'aggregator'
  donated = (len(args) - 1,) if has_state else ()
  jax.clear_caches()
  start = time.perf_counter()
  try:
    program = jax.jit(function, donate_argnums=donated).lower(*args).compile()
  except Exception as error:  # goes into the row; the others are still measured
    error_facts = facts | {'error': message_of(error)}
    return Contender(rule, form, 'lca', None, error_facts)
  facts['compile_s'] = time.perf_counter() - start
  if memory := program.memory_analysis():
    devices = jax.device_count()
    facts['temporary_bytes'] = devices * memory.temp_size_in_bytes
    # Results that were written into donated arguments take no memory.
    new_bytes = memory.output_size_in_bytes - memory.alias_size_in_bytes
    facts['result_bytes'] = devices * new_bytes
  arguments = list(args)

  def call():
    result = jax.block_until_ready(program(*arguments))
    if has_state:
      arguments[-1] = result[-1]

  return Contender(rule, form, 'lca', call, facts)


def message_of(error: Exception) -> str:
  """Returns an error's type and the first line of its message."""
  lines = str(error).strip().splitlines() or ['']
  text = re.sub(r'/\S*/', '', lines[0])  # no folders of this machine
  return f'{type(error).__name__}: {text[:120]}'


@dataclasses.dataclass(frozen=True)
class Case:
  """A rule with its hyper-parameters.

  Attributes:
    label: the rule's name; if a rule has several cases, a comma and the
      difference of this case follow.
    hyper: hyper-parameters, which are bound when the rule is compiled.
    brings: the names of those arguments that the round passes to the rule:
      `'key'`, `'server_update'`, `'params'` or none.
    kind: `'rule'`; `'pre'`, a rule that returns stacked updates;
      `'aggregator'`, a factory; or `'chain'`, a pre-aggregator and Krum.
    most_layers: the largest number of layers with which the layerwise forms are
      timed. On larger trees one call would take minutes.
  """

  label: str
  hyper: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  brings: tuple[str, ...] = ()
  kind: str = 'rule'
  most_layers: int = 1000

  @property
  def name(self) -> str:
    """The rule's name in lca."""
    return self.label.split(',')[0]


def cases(n: int) -> list[Case]:
  """Returns a case for every rule of lca, and several for some.

  Rules that are not listed here get `f=1` if they take `f`. Rules that take the
  model's function are left out: these updates belong to no model.
  """
  f, many, m = {'f': 1}, {'f': max(1, n // 10)}, {'m': 5}
  threshold = {'threshold': THRESHOLD}
  known = [
    Case('mean'),
    Case('krum', f),
    Case('multi_krum', f | m),
    Case('medoid'),
    Case('cge', f),
    Case('monna', f),
    Case('mda', f),
    Case('smea', f, most_layers=20),  # eigenvalues by subset and by layer
    Case('median'),
    Case('trimmed_mean', many),
    Case('meamed', many),
    Case('sign_majority', {'theta': n // 5}),
    Case('bulyan', f),
    Case('bulyan_trimmed', f | m),
    Case('geometric_median'),
    Case('caf', f),
    Case('dnc', f),
    Case(
      'dnc, 10,000 coordinates',
      f | {'subsample_dim': 10_000, 'num_iters': 5},
      ('key',),
    ),
    Case('foolsgold'),
    Case('fltrust', {}, ('server_update',)),
    Case('flame', {}, ('params',)),
    Case('align_ins', {}, ('params',)),
    Case('sign_guard', {}, ('key',)),
    Case('lasa'),
    Case('centered_clip', threshold, kind='aggregator'),
    Case('clipped_clustering', kind='aggregator'),
    Case('legato', kind='aggregator'),
    Case('clip_to_median_norm', kind='pre'),
    Case('nnm', f, kind='pre'),
    Case('bucketing', {}, ('key',), 'pre'),
    Case('static_clip', threshold, kind='pre'),
    Case('arc', f, kind='pre'),
    Case('nnm, then krum', f, kind='chain'),
    Case('bucketing, then krum', f, ('key',), 'chain'),
    Case('arc, then krum', f, kind='chain'),
  ]
  names = {case.name for case in known}
  rest = {name: inspect.signature(rule) for name, rule in RULES.items()}
  return known + [
    Case(name, f if 'f' in signature.parameters else {})
    for name, signature in rest.items()
    if name not in names and 'predict' not in signature.parameters
  ]


def find_rule(case: Case) -> Callable[..., Any]:
  """Returns the case's function in lca."""
  rule = getattr(lca, case.name)
  return lca.chain(rule, lca.krum) if case.kind == 'chain' else rule


def forms(case: Case, rule: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
  """Yields the forms that a rule has: plain, layerwise, cosine and both.

  A rule with an option `by` is layerwise itself, and only its plain form is
  yielded.
  """
  by_layer_itself = 'by' in inspect.signature(rule).parameters
  if case.kind == 'aggregator':
    rule = rule(**case.hyper)  # an init and an update
  yield 'plain', rule
  if by_layer_itself:
    return
  layered = case.kind != 'pre' and _or_error(lca.layerwise, rule)
  # `lca.layerwise` returns coordinate-wise rules as they are.
  if layered and layered is not rule:
    yield 'layerwise', layered
  simple = case.kind in ('rule', 'pre')
  takes = inspect.signature(rule).parameters if simple else ()
  if 'distance' in takes:
    by_cosine = _or_error(lca.cosine, rule)
    yield 'cosine', by_cosine
    if layered:
      yield 'layerwise cosine', _or_error(lca.layerwise, by_cosine)


def _or_error(make, rule):
  """Returns `make(rule)`; if this raises, a rule that raises the same error.

  The error is then reported in a row, like an error in compiling.
  """
  try:
    return make(rule)
  except Exception as error:
    reason = error

  def failing(*args, **kwargs):
    raise reason

  return failing


def ours(case: Case, rule: Callable[..., Any], updates: Any) -> list[Contender]:
  """Compiles all forms of a rule on these updates."""
  first = jax.tree.map(lambda leaf: leaf[0], updates)
  per_round = {
    'key': jax.random.key(1),
    'server_update': first,
    'params': first,
  }
  brought = {name: per_round[name] for name in case.brings}
  kind = 'rule' if case.kind == 'chain' else case.kind
  facts = {'kind': kind, 'hyper': dict(case.hyper)}

  def contender(form, rule):
    if case.kind == 'aggregator':
      init, update = getattr(rule, 'init', None), getattr(rule, 'update', rule)
      function = functools.partial(_with_key, update)
      state = _state_after_rounds(
        function, init(first) if init else (), updates
      )
      return compiled(case.label, form, facts, function, updates, state)

    def function(updates, brought):
      return rule(updates, **case.hyper, **brought)

    return compiled(case.label, form, facts, function, updates, brought)

  few = len(jax.tree.leaves(updates)) <= case.most_layers
  return [
    contender(form, rule)
    for form, rule in forms(case, rule)
    if few or not form.startswith('layerwise')
  ]


def _with_key(update, updates, state):
  return update(updates, state, key=jax.random.key(1))


_ROUNDS = 12
"""The number of rounds that fills LEGATO's log and other short memories."""


def _state_after_rounds(function, state, updates):
  """Returns the state of an aggregator after `_ROUNDS` rounds."""
  step = jax.jit(lambda updates, state: function(updates, state)[1])
  for _ in range(_ROUNDS):
    state = step(updates, state)
  return jax.block_until_ready(state)


def theirs(calls: others.Calls, label: str) -> list[Contender]:
  """Returns the calls that other systems have for a rule."""
  return [
    Contender(label, form, who, call, {'kind': 'other'})
    for (name, form), by_system in calls.items()
    if name == label
    for who, call in by_system.items()
  ]


def kernels(updates: Any, calls: others.Calls) -> list[Contender]:
  """Compiles the passes over the parameters that rules consist of."""
  n = lca.geometry.num_clients(updates)
  of_all = np.linspace(0.5, 1.5, n, dtype=np.float32) / n
  weights = {
    'all rows': of_all,
    'half of the rows': np.where(np.arange(n) % 2, of_all, 0),
    'one row': np.where(np.arange(n) == n // 2, np.float32(1), 0),
  }
  kernel = {'kind': 'kernel'}
  contenders = [compiled('gram', 'kernel', kernel, lca.gram, updates)]
  for form, w in weights.items():
    w = jax.device_put(w.astype(np.float32), P())
    contenders.append(compiled('mix', form, kernel, lca.mix, updates, w))
  return contenders + theirs(calls, 'gram') + theirs(calls, 'mix')


def limits(with_torch: bool) -> list[Contender]:
  """Makes the calls that show how fast this machine reads and multiplies.

  `read` is the product of a large matrix and a vector, which takes as long as
  reading the matrix. `matmul` is the product of two square matrices.
  """
  by_row, whole = P(sharding.AXIS), P()
  square = np.ones((figures.MATMUL, figures.MATMUL), np.float32)
  matrix = jax.device_put(np.ones(figures.READ, np.float32), by_row)
  vector = jax.device_put(np.ones(figures.READ[1], np.float32), whole)
  left, right = (jax.device_put(square, place) for place in (by_row, whole))
  limit = {'kind': 'limit'}
  with_jax = [
    compiled('limit', 'read', limit, jnp.dot, matrix, vector),
    compiled('limit', 'matmul', limit, jnp.dot, left, right),
  ]
  if not with_torch:
    return with_jax
  import torch

  x, v, a = (
    torch.from_dlpack(array)
    for array in jax.device_put((matrix, vector, left), jax.devices()[0])
  )
  return [
    *with_jax,
    Contender('limit', 'read', 'torch sum', x.sum, limit),
    Contender('limit', 'read', 'torch', lambda: x @ v, limit),
    Contender('limit', 'matmul', 'torch', lambda: a @ a, limit),
  ]
