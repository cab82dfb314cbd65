"""What is timed: every form of every rule, other systems, the limits."""

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

THRESHOLD = 10.0  # of the clipping rules; about the updates' norm on tree a

Row = figures.Row


@dataclasses.dataclass
class Contender:
  """One row to be: a call, or the reason why there is none.

  Attributes:
    rule: the group's name.
    form: of the rule, such as `'layerwise cosine'`.
    who: `'lca'`, or another system.
    call: returns when the result is there.
    facts: what is known before a call is timed.
  """

  rule: str
  form: str
  who: str
  call: Callable[[], Any] | None
  facts: Row = dataclasses.field(default_factory=dict)


def compiled(
  rule: str, form: str, facts: Row, function: Callable[..., Any], *args: Any
) -> Contender:
  """Compiles a function of ours, or says why it does not.

  An aggregator's last argument is its state, which it gives back last, and may
  write to in place as it does in a simulation's rounds.
  """
  facts = dict(facts)
  remembers = facts.get('kind') == 'aggregator'
  donated = (len(args) - 1,) if remembers else ()
  jax.clear_caches()
  start = time.perf_counter()
  try:
    program = jax.jit(function, donate_argnums=donated).lower(*args).compile()
  except Exception as error:  # a row says so, the others are still measured
    return Contender(rule, form, 'lca', None, facts | {'error': said(error)})
  facts['compile_s'] = time.perf_counter() - start
  if memory := program.memory_analysis():
    devices = jax.device_count()
    facts['temporary_bytes'] = devices * memory.temp_size_in_bytes
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    facts['result_bytes'] = devices * made
  before = list(args)

  def call():
    result = jax.block_until_ready(program(*before))
    if remembers:
      before[-1] = result[-1]

  return Contender(rule, form, 'lca', call, facts)


def said(error: Exception) -> str:
  lines = str(error).strip().splitlines() or ['']
  text = re.sub(r'/\S*/', '', lines[0])  # no folders of this machine
  return f'{type(error).__name__}: {text[:120]}'


@dataclasses.dataclass(frozen=True)
class Case:
  """A rule with its hyper-parameters.

  Attributes:
    label: its name, and after a comma what is special.
    hyper: bound when it is compiled.
    brings: arguments of a round, of `key` and `server_update`.
    kind: `'rule'`; `'pre'`, which returns stacked updates; `'aggregator'`, a
      factory; or `'chain'`, a pre-aggregator and Krum.
    most_layers: layerwise is left out on trees of more, where one call would
      take minutes.
  """

  label: str
  hyper: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  brings: tuple[str, ...] = ()
  kind: str = 'rule'
  most_layers: int = 1000

  @property
  def name(self) -> str:
    return self.label.split(',')[0]


def cases(n: int) -> list[Case]:
  """Every rule of lca."""
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
    if name not in names
  ]


def find_rule(case: Case) -> Callable[..., Any]:
  """The case's function in lca."""
  rule = getattr(lca, case.name)
  return lca.chain(rule, lca.krum) if case.kind == 'chain' else rule


def forms(case: Case, rule: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
  """The rule's forms by name: plain, layerwise, cosine and both."""
  by_layer_itself = 'by' in inspect.signature(rule).parameters
  if case.kind == 'aggregator':
    rule = rule(**case.hyper)  # an init and an update
  yield 'plain', rule
  if by_layer_itself:
    return
  layered = case.kind != 'pre' and _or_error(lca.layerwise, rule)
  if layered and layered is not rule:  # coordinate-wise rules are layerwise
    yield 'layerwise', layered
  simple = case.kind in ('rule', 'pre')
  takes = inspect.signature(rule).parameters if simple else ()
  if 'distance' in takes:
    turned = _or_error(lca.cosine, rule)
    yield 'cosine', turned
    if layered:
      yield 'layerwise cosine', _or_error(lca.layerwise, turned)


def _or_error(make, rule):
  """Calls `make`, or returns a rule that raises what it raised."""
  try:
    return make(rule)
  except Exception as error:
    reason = error

  def failing(*args, **kwargs):
    raise reason

  return failing


def ours(case: Case, rule: Callable[..., Any], updates: Any) -> list[Contender]:
  """Compiles all forms of a rule."""
  first = jax.tree.map(lambda leaf: leaf[0], updates)
  per_round = {'key': jax.random.key(1), 'server_update': first}
  brought = {name: per_round[name] for name in case.brings}
  kind = 'rule' if case.kind == 'chain' else case.kind
  facts = {'kind': kind, 'hyper': dict(case.hyper)}

  def one(form, rule):
    if case.kind == 'aggregator':
      init, update = getattr(rule, 'init', None), getattr(rule, 'update', rule)
      function = functools.partial(_with_key, update)
      state = _remembered(function, init(first) if init else (), updates)
      return compiled(case.label, form, facts, function, updates, state)

    def function(updates, brought):
      return rule(updates, **case.hyper, **brought)

    return compiled(case.label, form, facts, function, updates, brought)

  few = len(jax.tree.leaves(updates)) <= case.most_layers
  return [
    one(form, rule)
    for form, rule in forms(case, rule)
    if few or not form.startswith('layerwise')
  ]


def _with_key(update, updates, state):
  return update(updates, state, key=jax.random.key(1))


_ROUNDS = 12  # after which a short memory is full


def _remembered(function, state, updates):
  """The state of an aggregator that has run for a while."""
  step = jax.jit(lambda updates, state: function(updates, state)[1])
  for _ in range(_ROUNDS):
    state = step(updates, state)
  return jax.block_until_ready(state)


def theirs(calls: others.Calls, label: str) -> list[Contender]:
  """What other systems have of a rule."""
  return [
    Contender(label, form, who, call, {'kind': 'other'})
    for (name, form), found in calls.items()
    if name == label
    for who, call in found.items()
  ]


def kernels(updates: Any, calls: others.Calls) -> list[Contender]:
  """The passes over the parameters."""
  n = lca.geometry.num_clients(updates)
  every = np.linspace(0.5, 1.5, n, dtype=np.float32) / n
  weights = {
    'all rows': every,
    'half of the rows': np.where(np.arange(n) % 2, every, 0),
    'one row': np.where(np.arange(n) == n // 2, np.float32(1), 0),
  }
  kernel = {'kind': 'kernel'}
  found = [compiled('gram', 'kernel', kernel, lca.gram, updates)]
  for form, w in weights.items():
    w = jax.device_put(w.astype(np.float32), P())
    found.append(compiled('mix', form, kernel, lca.mix, updates, w))
  return found + theirs(calls, 'gram') + theirs(calls, 'mix')


def limits(with_torch: bool) -> list[Contender]:
  """Reading much memory, and multiplying large matrices, as fast as it goes."""
  by_row, whole = P(sharding.AXIS), P()
  square = np.ones((figures.MATMUL, figures.MATMUL), np.float32)
  much = jax.device_put(np.ones(figures.READ, np.float32), by_row)
  vector = jax.device_put(np.ones(figures.READ[1], np.float32), whole)
  left, right = (jax.device_put(square, place) for place in (by_row, whole))
  limit = {'kind': 'limit'}
  found = [
    compiled('limit', 'read', limit, jnp.dot, much, vector),
    compiled('limit', 'matmul', limit, jnp.dot, left, right),
  ]
  if not with_torch:
    return found
  import torch

  x, v, a = (
    torch.from_dlpack(array)
    for array in jax.device_put((much, vector, left), jax.devices()[0])
  )
  return [
    *found,
    Contender('limit', 'read', 'torch sum', x.sum, limit),
    Contender('limit', 'read', 'torch', lambda: x @ v, limit),
    Contender('limit', 'matmul', 'torch', lambda: a @ a, limit),
  ]
