"""Searches for the worst case of rules and forms, and compares it with theory.

    python -m benchmarks.robustness --output=benchmarks/results/robustness

For n = 11 clients and f = 1 to 5 attackers, `lca.robustness.worst_case` moves
each rule in each form as far from the honest mean as it can. The unit is the
honest rows' mean squared distance from their mean, so that the number is a
lower bound on the rule's kappa (see `lca.theory`). For layerwise and cosine
forms, too, distances are those of the whole vector. The honest rows are

- `gaussian`: independent normal rows about a mean that is as long as they are
  from it,
- `heavy tails`: the same, with lengths of a multivariate Student t of 2 degrees
  of freedom,
- `updates`: what n clients of Fashion-MNIST send in round 3 of FedAvg, after an
  epoch each, for a CNN with the paper's layers and few features (2, 4 and 8 of
  32, 64 and 1,024),
- `any`: of 2 leaves of 3 numbers, which the search moves as well.

The first three have the same shapes. The record is written after every search,
and a run continues it.
"""

import functools
import itertools
import json
import operator
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from matplotlib import pyplot

import lca
from benchmarks import record
from configs import fashion_mnist
from lca import theory
from lca.aggregators import AGGREGATORS
from lca.experiment import host, train
from lca.report import style
from lca.robustness import worst_case
from lca.typing import Update, Updates

_OUTPUT = flags.DEFINE_string(
  'output', None, 'A folder for the record, its tables and the figure.'
)
_TABLES = flags.DEFINE_bool(
  'tables', False, 'Writes the tables and the figure of a record alone.'
)

N = 11
SEARCH = {'num_steps': 20, 'num_restarts': 8, 'num_generations': 300}
DATA = ('updates', 'gaussian', 'heavy tails')
ANY = 'any'


class Form(NamedTuple):
  """A rule in a form.

  Attributes:
    rule: its name.
    kind: `'plain'`, `'layerwise'`, `'cosine'` or `'layerwise cosine'`; the
      cosine forms may end in `' without clip'`.
    pre: name of a pre-aggregator, or empty.
  """

  rule: str
  kind: str = 'plain'
  pre: str = ''

  def __str__(self) -> str:
    before = f'{self.pre}, ' if self.pre else ''
    return f'{self.rule}, {before}{self.kind}'

  def make(self, f: int) -> Callable[[Updates], Update]:
    """Returns the rule for f attackers of `N` clients."""
    rule: Any = getattr(lca, self.rule)
    options = {
      'multi_krum': {'f': f, 'm': min(5, N - f)},
      'sign_guard': {'fraction': 1.0},
    }.get(self.rule, {} if self.rule in WITHOUT_F else {'f': f})
    if 'cosine' in self.kind:
      clip = None if self.kind.endswith('without clip') else 'median'
      rule = lca.cosine(rule, clip=clip)
    if self.pre:
      before = getattr(lca, self.pre)
      if self.pre != 'clip_to_median_norm':
        before = functools.partial(before, f=f)
      rule = lca.chain(before, rule)
    if 'layerwise' in self.kind:
      rule = lca.layerwise(rule)
    return functools.partial(rule, **options)

  def bound(self, f: int) -> float | None:
    """Returns the bound of `lca.theory`, or None if there is none."""
    known = self.pre in ('', *theory.PRE_BOUNDS) and 'cosine' not in self.kind
    if self.rule not in theory.BOUNDS or not known:
      return None
    pre = (self.pre,) if self.pre else ()
    try:
      return theory.kappa_bound(self.rule, N, f, pre=pre)
    except ValueError:
      return None


WITHOUT_F = ('mean', 'median', 'geometric_median', 'medoid', 'sign_guard')
KINDS = ('plain', 'layerwise', 'cosine', 'layerwise cosine')
MAIN = [
  *(Form('krum', kind) for kind in KINDS),
  Form('median'),
  Form('trimmed_mean'),
  Form('geometric_median'),
]
FORMS = [
  *MAIN,
  *(Form('krum', f'{kind} without clip') for kind in KINDS[2:]),
  *(Form('krum', kind, 'clip_to_median_norm') for kind in KINDS[:2]),
  *(Form('krum', kind, 'nnm') for kind in KINDS[:2]),
  *(Form('multi_krum', kind) for kind in KINDS),
  *(Form('medoid', kind) for kind in KINDS),
  Form('geometric_median', 'layerwise'),
  *(Form(rule, pre='nnm') for rule in ('median', 'trimmed_mean')),
  Form('geometric_median', pre='nnm'),
  *(Form('median', pre=pre) for pre in ('clip_to_median_norm', 'arc')),
  Form('krum', pre='arc'),
  *(Form('bulyan', kind) for kind in KINDS),
  *(Form('mda', kind) for kind in KINDS),
  *map(Form, ('meamed', 'phocas', 'smea', 'caf', 'monna', 'dnc', 'cge')),
  *map(Form, ('sign_guard', 'mean')),
  *(Form(rule, 'layerwise') for rule in ('caf', 'monna', 'dnc', 'cge')),
]


def keeping_updates(n: int = 11) -> lca.Aggregator:
  """Returns the mean, with the updates of the last round as its state."""

  def init(params):
    return jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), params)

  def update(updates, state, **brought):
    del state, brought
    return lca.mean(updates), updates

  return lca.Aggregator(init, update)


def real_updates() -> Updates:
  """Returns the updates of a round of Fashion-MNIST, `[N, ...]`."""
  AGGREGATORS['keeping_updates'] = keeping_updates
  config = fashion_mnist.get_config('fedavg').unlock()
  config.model.features, config.model.hidden = (2, 4), (8,)
  config.server.clients_per_round = N
  config.client.local_epochs = 1
  config = config.copy_and_resolve_references().unlock()
  config.aggregator = {'name': 'keeping_updates', 'n': N}
  with tempfile.TemporaryDirectory() as workdir:
    simulation = train.set_up(config, workdir).simulation
  state = simulation.init()
  for round_idx in range(3):
    state, _ = simulation.run_round(state, round_idx)
  return jax.device_get(state.aggregator)


def random_rows(like: Updates, heavy: bool) -> Updates:
  """Returns rows about a mean that is as long as their deviations.

  Args:
    like: stacked pytree of the shapes, leaves `[N, ...]`.
    heavy: True for the lengths of a multivariate Student t.
  """
  rng = np.random.default_rng(0)
  lengths = np.sqrt(2 / rng.chisquare(2, N)) if heavy else np.ones(N)

  def draw(leaf):
    column = lengths.reshape(-1, *[1] * (leaf.ndim - 1))
    mean, rows = rng.normal(size=leaf.shape[1:]), rng.normal(size=leaf.shape)
    return np.asarray(mean + column * rows, np.float32)

  return jax.tree.map(draw, like)


def searches() -> list[tuple[str, Form, int]]:
  """Returns the data, the form and f of all searches, the main ones first."""
  asked = [
    *itertools.product(DATA, FORMS, [2]),
    *itertools.product(DATA, MAIN, [4, 1, 3, 5]),
    *itertools.product([ANY], [x for x in FORMS if x.bound(2)], [2]),
    *itertools.product([ANY], MAIN[4:], [4, 1, 3, 5]),
    *itertools.product([ANY], MAIN[:1], [4, 1, 3, 5]),
    *itertools.product(DATA, FORMS, [4, 1, 3, 5]),
  ]
  # Searches of a rule follow each other, because they share its compilation.
  places = {}
  for data, form, f in asked:
    places.setdefault((form, f, data == ANY), []).append(data)
  return [
    (data, form, f)
    for (form, f, _), names in places.items()
    for data in dict.fromkeys(names)
  ]


def run(folder: pathlib.Path) -> None:
  """Makes all searches that the record of a folder lacks."""
  path = folder / 'robustness.json'
  environment = record.environment(with_others=False)
  about = {'environment': environment, 'search': SEARCH, 'n': N, 'values': {}}
  if path.exists():
    about = json.loads(path.read_text())
  values, rows = about['values'], {}
  updates = real_updates()
  rows['updates'] = updates
  rows['gaussian'] = random_rows(updates, heavy=False)
  rows['heavy tails'] = random_rows(updates, heavy=True)
  small = {'a': np.zeros((N, 3)), 'b': np.zeros((N, 3))}
  rows[ANY] = random_rows(small, heavy=False)
  about['parameters'] = sum(x[0].size for x in jax.tree.leaves(updates))
  rule_of = functools.cache(lambda form, f: form.make(f))
  for data, form, f in searches():
    name = f'{data} | {form} | {f}'
    if name in values:
      continue
    rule = rule_of(form, f)
    try:
      jax.eval_shape(rule, rows[data])
    except ValueError:
      continue
    honest = jax.tree.map(operator.itemgetter(slice(N - f)), rows[data])
    found = worst_case(
      rule, honest, f, key=jax.random.key(0), move_honest=data == ANY, **SEARCH
    )
    values[name] = {
      'value': found.value,
      'start': found.start,
      'method': found.method,
      'generations': SEARCH['num_generations'],
      'best start': max(value[0] for value in found.tries.values()),
      'best ascent': max(value[1] for value in found.tries.values()),
    }
    print(name, values[name], flush=True)
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(about, indent=1) + '\n')
    temporary.replace(path)


def write_tables(folder: pathlib.Path) -> None:
  """Writes the tables and the figure of a folder's record."""
  about = json.loads((folder / 'robustness.json').read_text())
  values = about['values']
  lines = [
    '# The worst cases found, in units of the honest spread squared',
    '',
    f'n = {about["n"]}, {about["parameters"]:,} parameters. Each number is a '
    'lower bound on the worst case. `any` moves the honest rows, too. The '
    'bound is that of `lca.theory`, over all rows. An asterisk marks searches '
    f'of fewer than {SEARCH["num_generations"]} generations; "inf" are values '
    'above 1e6.',
  ]
  for f in range(1, 6):
    rows = []
    for form in FORMS:
      found = [values.get(f'{data} | {form} | {f}') for data in (*DATA, ANY)]
      if any(found):
        cells = [str(form), *map(cell, found), number(form.bound(f))]
        rows.append(f'| {" | ".join(cells)} |')
    if rows:
      head = ['rule and form', *DATA, ANY, 'bound']
      lines += ['', f'## f = {f}', '', f'| {" | ".join(head)} |']
      lines += ['| --- |' + ' ---: |' * (len(head) - 1), *rows]
  (folder / 'robustness.md').write_text('\n'.join(lines) + '\n')
  draw(values, folder / 'breakdown.png')


def cell(found: dict[str, Any] | None) -> str:
  """Returns a value of the record for a table."""
  if not found:
    return ''
  mark = '*' if found['generations'] < SEARCH['num_generations'] else ''
  return number(found['value']) + mark


def number(value: float | None) -> str:
  """Returns a number for a table; nothing for None."""
  if value is None:
    return ''
  return 'inf' if value > 1e6 else f'{value:.3g}'


def draw(values: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
  """Draws the worst distances against f / n, and the bounds beside them."""
  with style.applied(columns=2):
    figure, panels = pyplot.subplots(1, 3, sharey=True)
    for axes, data in zip(panels, DATA, strict=True):
      for i, form in enumerate(MAIN):
        found = {
          f: values[name]['value']
          for f in range(1, 6)
          if (name := f'{data} | {form} | {f}') in values
        }
        bounds = {f: form.bound(f) for f in range(1, 6) if form.bound(f)}
        look = style.line(i)
        axes.plot(
          [f / N for f in found],
          np.sqrt([*found.values()]),
          marker='o',
          markersize=3,
          label=str(form),
          **look,
        )
        axes.plot(
          [f / N for f in bounds],
          np.sqrt([*bounds.values()]),
          color=look['color'],
          linewidth=0.5,
          alpha=0.6,
        )
      axes.set(title=data, xlabel='f / n', yscale='log')
    panels[0].set_ylabel('distance, in honest spreads')
    style.place_legends(figure)
    figure.savefig(path)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  host.use_all_cores()
  folder = pathlib.Path(_OUTPUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  if not _TABLES.value:
    run(folder)
  write_tables(folder)


if __name__ == '__main__':
  flags.mark_flag_as_required('output')
  app.run(main)
