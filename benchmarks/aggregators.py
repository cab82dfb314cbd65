"""The rules in milliseconds, beside this machine's limits and other systems.

    python -m benchmarks.aggregators --output DIR

n = 100 stacked float32 updates of the paper's CNN (tree a), of an
EfficientNet-B0 with a new head of 10 classes (tree b), and, where it is asked
for, of LEGATO's CNN (tree c); f = 1 and m = 5 as in the first paper, f = 10 for
the coordinate-wise rules. Each rule is measured in every form that it has.
byzfl, byzpy, flex-clash and PyTorch run beside it where they are installed: the
same values, in the same process, with as many threads. Aggregators are measured
with the state of 12 rounds.

A rule's forms and its contenders are called in turns, so that a drift of the
machine meets them all; every time is the median of the calls after a first one
that does not count. What takes more than --budget seconds is called less often,
and once when the first call alone takes longer (a * in the tables). Compiling
is tracing, lowering and compiling with empty caches. Extra memory is what XLA
allocates beside the updates, for the result and in between.

With --devices=2 the same cores are two JAX devices, as `main.py` has them: each
has its share of the coordinates, and memory is that of both.

--output writes after every group of rows; the same command goes on where it
stopped.
"""

import dataclasses
import functools
import inspect
import json
import os
import pathlib
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import linen as nn
from jax.sharding import PartitionSpec as P

import lca
from benchmarks import figures, others
from lca import clients, models, rundir, sharding
from lca.aggregators import RULES

_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write to.')
_RULES = flags.DEFINE_list(
  'rules', ['.*'], 'Which groups: regular expressions for the whole name.'
)
_TREES = flags.DEFINE_list('trees', ['a', 'b'], 'Which trees: a, b, c.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Calls behind a median.', 1)
_N = flags.DEFINE_integer('n', 100, 'Clients.', 10)
_BUDGET = flags.DEFINE_float('budget', 20, 'Seconds for the calls of a row.')
_OTHERS = flags.DEFINE_bool('others', True, 'Run the other systems as well.')
_DEVICES = flags.DEFINE_integer(
  'devices', 1, 'JAX devices that share the cores and the coordinates.', 1
)

_THRESHOLD = 10.0  # of the clipping rules; about the updates' norm on tree a
_PAUSE = 0.05  # in seconds; pools of threads spin for a while after a call

Row = figures.Row


# The trees.


def cnn(**options: Any) -> Any:
  """Shapes of the layerwise cosine paper's CNN, as lca trains it."""
  return _trainable(models.CNN(num_classes=10, **options), (28, 28, 1))


def efficientnet_b0() -> Any:
  """Shapes of the trainable parameters of an EfficientNet-B0."""
  return _trainable(models.EfficientNet(num_classes=10), (224, 224, 3))


def _trainable(module: nn.Module, image: Sequence[int]) -> Any:
  x = jax.ShapeDtypeStruct((1, *image), jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  return jax.tree.map(lambda leaf: leaf.shape, {'params': variables['params']})


def legato_cnn() -> Any:
  """Shapes of LEGATO's CNN on 28 x 28 images (Varma et al. 2021, Table I)."""
  return cnn(padding='VALID')


TREES = {
  'a': ('CNN', cnn),
  'b': ('EfficientNet-B0', efficientnet_b0),
  'c': ("LEGATO's CNN", legato_cnn),
}


def stacked(shapes: Any, n: int) -> Any:
  """Updates: a common direction, noise, and a client of ten times the norm."""
  rng, devices = np.random.default_rng(0), jax.device_count()

  def leaf(shape):
    noise = rng.standard_normal((n, *shape), np.float32)
    noise += 0.3 * rng.standard_normal(shape, np.float32)
    noise *= 0.008
    noise[-1] *= 10
    return jax.device_put(noise, sharding.by_coordinate(noise.shape, devices))

  return jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))


# What is called.


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
  """Compiles a function of ours, or says why it does not."""
  facts = dict(facts)
  jax.clear_caches()
  start = time.perf_counter()
  try:
    program = jax.jit(function).lower(*args).compile()
  except Exception as error:  # a row says so, the others are still measured
    return Contender(rule, form, 'lca', None, facts | {'error': _said(error)})
  facts['compile_s'] = time.perf_counter() - start
  if memory := program.memory_analysis():
    devices = jax.device_count()
    facts['temporary_bytes'] = devices * memory.temp_size_in_bytes
    facts['result_bytes'] = devices * memory.output_size_in_bytes

  def call():
    jax.block_until_ready(program(*args))

  return Contender(rule, form, 'lca', call, facts)


def _said(error: Exception) -> str:
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
  threshold = {'threshold': _THRESHOLD}
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
  """The passes over the parameters, and what limits them."""
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
  found += theirs(calls, 'gram') + theirs(calls, 'mix')
  return found + _limits()


def _limits() -> list[Contender]:
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
  if not (_OTHERS.value and others.installed('torch')):
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


# How it is timed.


def measure(
  contenders: Sequence[Contender], repeats: int, budget: float
) -> list[Row]:
  """Calls the contenders in turns, and makes a row of each."""
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
  """One call; None when there is nothing to call."""
  if contender.call is None:
    return None
  time.sleep(_PAUSE)
  start = time.perf_counter()
  try:
    contender.call()
  except Exception as error:  # a row says so, the others are still measured
    contender.call, contender.facts['error'] = None, _said(error)
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
    row['first_call_alone'] = not times
    times = times or [alone]
    row['ms'] = 1000 * statistics.median(times)
    row['best_ms'] = 1000 * min(times)
    row['runs'] = len(times)
  return row


# The run.


class Record:
  """What was measured, and the files that hold it.

  Args:
    folder: where it goes; None writes nothing.

  Raises:
    ValueError: the folder holds another setting's or environment's record.
  """

  def __init__(self, folder: str | None):
    self.about = {'settings': settings(), 'environment': environment()}
    self.groups: dict[str, dict[str, list[Row]]] = {}
    self.columns: dict[str, tuple[int, int]] = {}
    self._folder = folder and pathlib.Path(folder)
    if self._folder and (self._folder / 'aggregators.json').exists():
      self._resume(json.loads((self._folder / 'aggregators.json').read_text()))

  def _resume(self, found):
    for key, value in self.about.items():
      if found[key] != json.loads(json.dumps(value)):
        raise ValueError(
          f'{self._folder} holds a record with other {key}: choose another '
          '--output'
        )
    self.groups = found['groups']
    self.columns = found['columns']

  def write(self) -> None:
    if not self._folder:
      return
    self._folder.mkdir(parents=True, exist_ok=True)
    raw = {**self.about, 'columns': self.columns, 'groups': self.groups}
    for name, text in (
      ('aggregators.json', json.dumps(raw, indent=1) + '\n'),
      ('aggregators.md', self.markdown()),
    ):
      temporary = self._folder / f'{name}.tmp'
      temporary.write_text(text)
      os.replace(temporary, self._folder / name)

  def results(self) -> dict[str, figures.Results]:
    n = self.about['settings']['n']
    return {
      tree: figures.Results(
        n,
        self.columns[tree][0],
        [row for rows in groups.values() for row in rows],
      )
      for tree, groups in self.groups.items()
    }

  def markdown(self) -> str:
    """All tables."""
    parts = ['# The rules in milliseconds', _described(self.about)]
    for tree, results in self.results().items():
      columns, leaves = self.columns[tree]
      title = f'## ({tree}) {TREES[tree][0]}'
      size = f'{columns:,} parameters in {leaves} leaves, n = {results.n}.'
      parts += [
        title,
        size,
        figures.kernel_table(results),
        figures.rule_table(results),
      ]
    header = ('goal', 'bound', 'measured', '')
    lines = [goal.line() for goal in figures.goals(self.results())]
    goal_note = 'The bounds are meant for n = 100 on a quiet machine.'
    parts += ['## Goals', goal_note, figures.table(header, lines)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def settings() -> Row:
  """What a record's figures depend on beside the environment."""
  return {
    'n': _N.value,
    'repeats': _REPEATS.value,
    'budget': _BUDGET.value,
    'others': _OTHERS.value,
  }


def environment() -> Row:
  """Versions, commit, and the machine."""
  about = rundir.environment()
  about['cpu'] = _cpu()
  about['cores'] = len(os.sched_getaffinity(0))
  if _OTHERS.value:
    names = [name for name in others.SYSTEMS if others.installed(name)]
    about['packages'] |= {name: metadata.version(name) for name in names}
  if _OTHERS.value and others.installed('torch'):
    import torch

    about['torch_threads'] = torch.get_num_threads()
  return about


def _cpu() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  text = info.read_text() if info.exists() else ''
  found = re.search(r'model name\s*:\s*(.*)', text)
  return found[1] if found else platform.processor()


def _described(about: Row) -> str:
  here, chosen = about['environment'], about['settings']
  shown = ('jax', 'numpy', *others.SYSTEMS)
  packages = here['packages']
  versions = ', '.join(f'{p} {packages[p]}' for p in shown if p in packages)
  threads = here.get('torch_threads')
  devices = len(here['devices'])
  on = f'{devices} device{"s" * (devices > 1)}'
  beside = f', PyTorch {threads} threads' if threads else ''
  return (
    f'{here["cpu"]}: {here["cores"]} cores, JAX {on} on all of them{beside}. '
    f'{versions}. Commit {here["commit"]}.\n\n'
    f'{chosen["repeats"]} calls a row, {chosen["budget"]:g} s at most. Times '
    'are medians, * marks a first call alone, and limits are the best of '
    "their calls. In brackets: how many times lca's time. Extra memory: "
    "results and temporaries, in units of the updates' size."
  )


def _chosen(group: str) -> bool:
  return any(re.fullmatch(pattern, group) for pattern in _RULES.value)


def run_tree(record: Record, tree: str) -> None:
  """Measures the groups of a tree that are not in the record yet."""
  n = _N.value
  updates = stacked(TREES[tree][1](), n)
  leaves = jax.tree.leaves(updates)
  record.columns[tree] = (sum(x[0].size for x in leaves), len(leaves))
  groups = record.groups.setdefault(tree, {})
  calls = _calls(leaves, n)
  makers = {'kernels': lambda: kernels(updates, calls)}
  for case in cases(n):
    makers[case.label] = functools.partial(
      lambda case: (
        ours(case, find_rule(case), updates) + theirs(calls, case.label)
      ),
      case,
    )
  for label, make in makers.items():
    if _chosen(label) and label not in groups:
      groups[label] = _group(label, make)
      record.write()
      _show(tree, groups[label])


def _calls(leaves, n):
  if not (_OTHERS.value and others.installed('torch')):
    return {}
  hyper = {'f': 1, 'f_many': max(1, n // 10), 'm': 5, 'threshold': _THRESHOLD}
  leaves = jax.device_put(leaves, jax.devices()[0])  # no copy of what is there
  return others.calls(others.Data(leaves), hyper)


def _group(label, make):
  try:
    contenders = make()
  except Exception as error:  # a row says so, the others are still measured
    facts = {'kind': 'rule', 'hyper': {}, 'error': _said(error)}
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
  """Too much memory shall be an error in a row, not the end of the process."""
  total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  _, hard = resource.getrlimit(resource.RLIMIT_DATA)
  resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * total), hard))


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  _limit_memory()
  jax.config.update('jax_num_cpu_devices', _DEVICES.value)
  record = Record(_OUTPUT.value)
  with jax.set_mesh(clients.clients_mesh()):
    for tree in _TREES.value:
      run_tree(record, tree)
  record.write()
  print(f'\n{record.markdown()}')


if __name__ == '__main__':
  app.run(main)
