"""The rules under test, and what it means to follow an oracle.

A rule enters with one line of `RULES`; its float64 oracle lives in
`reference.py`.
"""

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest
import reference

import lca

BYZANTINE = {4: 0, 11: 4, 25: 11, 100: 20}  # the f that rules are given


def few(n, f):
  """An f that leaves the oracles few subsets to go through."""
  return min(f, {25: 2, 100: 1}.get(n, f))


def with_f(n, f):
  return {'f': f}


def without(n, f):
  return {}


class Spec(NamedTuple):
  """A rule under test.

  Attributes:
    hyper: its hyper-parameters, from n and f.
    cosine: whether it has a cosine form.
    promise: what docs/rules.md says of any f rows: 'full', 'hull', 'finite' or
      'none'.
    takes_one: whether the result is one client's row.
    layers: whether the layerwise rule differs from the rule.
  """

  hyper: Callable[[int, int], dict[str, int]]
  cosine: bool = False
  promise: str = 'full'
  takes_one: bool = False
  layers: bool = True


RULES = {
  'mean': Spec(without, promise='none', layers=False),
  'krum': Spec(with_f, cosine=True, takes_one=True),
  'multi_krum': Spec(lambda n, f: {'f': f, 'm': min(5, n - f)}, cosine=True),
  'medoid': Spec(without, cosine=True, takes_one=True),
  'cge': Spec(with_f),
  # By the pivot, client 0, which is trusted.
  'monna': Spec(with_f, cosine=True, promise='none'),
  'mda': Spec(lambda n, f: {'f': few(n, f)}, cosine=True),
  'smea': Spec(lambda n, f: {'f': few(n, f)}),
  'median': Spec(without, promise='hull', layers=False),
  'trimmed_mean': Spec(with_f, promise='hull', layers=False),
  'meamed': Spec(with_f, promise='finite', layers=False),
  'sign_majority': Spec(
    lambda n, f: {'theta': n // 2}, promise='none', layers=False
  ),
  'bulyan': Spec(lambda n, f: {'f': min(f, (n - 3) // 4)}, cosine=True),
  'bulyan_trimmed': Spec(
    lambda n, f: {'f': f, 'm': n - f, 'trim': min(f, (n - f - 1) // 3)},
    cosine=True,
  ),
  # The oracle goes to the end, which is slow near a client's row.
  'geometric_median': Spec(lambda n, f: {'num_iters': 2000}),
  'caf': Spec(with_f),
  'dnc': Spec(with_f, promise='finite'),
  'foolsgold': Spec(without, promise='none'),
  'fltrust': Spec(without),
  'sign_guard': Spec(lambda n, f: {'fraction': 1.0}),
  'lasa': Spec(without),
}
STAGES = {
  'bulyan': reference.bulyan,
  'bulyan_trimmed': reference.bulyan_trimmed,
}


class Case(NamedTuple):
  name: str
  kind: str
  by: str

  def __str__(self):
    return '-'.join(self)

  @property
  def spec(self):
    return RULES[self.name]

  @property
  def exact(self):
    """Whether the result is one client's row, bit for bit."""
    return self.spec.takes_one and self.kind == 'euclidean'

  @property
  def plain(self):
    """The rule or its cosine form, in no scope."""
    rule = getattr(lca, self.name)
    return lca.cosine(rule) if self.kind == 'cosine' else rule

  @property
  def rule(self):
    if self.by == 'model':
      return self.plain
    return lca.layerwise(self.plain, by=self.by)

  def hyper(self, n):
    return self.spec.hyper(n, BYZANTINE[n])

  def bad_rows(self, n):
    """How many rows may hold anything."""
    return min(self.hyper(n).get('f', BYZANTINE[n]), BYZANTINE[n])

  def extra(self, tree):
    """What a round brings beside the updates."""
    if self.name == 'fltrust':
      return {'server_update': server_update(tree)}
    return {}

  def eager(self, tree):
    return lca.explain(self.rule)(
      tree, **self.extra(tree), **self.hyper(num_clients(tree))
    )

  def __call__(self, tree, **extra):
    """The jitted rule: the update, and what was decided."""
    return run(self, num_clients(tree))(tree, extra or self.extra(tree))


TRACES = collections.Counter()


@functools.cache
def run(case, n):
  """`(tree, extra) -> (update, info)`; compiled once for all the tests."""

  def traced(tree, extra):
    TRACES[case, n, signature(tree)] += 1
    return lca.explain(case.rule)(tree, **extra, **case.hyper(n))

  return jax.jit(traced)


def signature(tree):
  """What a compilation depends on."""
  return str(jax.tree.map(lambda x: (x.shape, x.dtype), tree))


def traces(case, tree):
  """How often the rule was traced for arrays like these."""
  return TRACES[case, num_clients(tree), signature(tree)]


def num_clients(tree):
  return len(jax.tree.leaves(tree)[0])


def server_update(tree):
  """An update in the middle of the clients', whatever a minority holds."""
  return jax.tree.map(
    lambda x: reference.coordinate_median(np.asarray(x)).astype(x.dtype), tree
  )


def cases_of(*scopes, names=tuple(RULES)):
  return [
    Case(name, kind, by)
    for name in names
    for kind in ('euclidean', 'cosine')[: 1 + RULES[name].cosine]
    for by in scopes
    if by == 'model' or RULES[name].layers
  ]


def thorough(cases, except_for=()):
  """Cases that run with --thorough alone, but for the ones of some rules."""
  return [
    case
    if case[0] in except_for  # by name
    else pytest.param(case, marks=pytest.mark.thorough)
    for case in cases
  ]


SHORT = cases_of('model', 'leaf')
# Every rule once: in the scope that compiles to the most.
ONCE = [case for case in SHORT if case.by == 'leaf' or not case.spec.layers]


def mostly_once(cases):
  """All of them, the second scope only with --thorough."""
  return [
    case if case in ONCE else pytest.param(case, marks=pytest.mark.thorough)
    for case in cases
  ]


MOST = mostly_once(SHORT)
FULL = [case for case in SHORT if case.spec.promise == 'full']
# These mix acceptable rows alone, whether or not they promise a length.
ROBUST = [
  case for case in SHORT if case in FULL or case.name in ('dnc', 'foolsgold')
]
SELECTING = [*reference.SCORES, *reference.OBJECTIVES, 'bulyan']

cases = functools.partial(pytest.mark.parametrize, 'case', ids=str)


# Following an oracle -------------------------------------------------------

# float32 sums of n products, and norms of rounded squares: 1e-5 of the result,
# 2e-6 of the entries that are summed. Beyond that:
TOLERANCE = {
  # Weiszfeld's iteration stops where the weights move by less than 1e-6,
  # which may be a hundred times that away from where they would end.
  'geometric_median': 1e-4,
  # The top eigenvector is known to eps over the gap between the two largest
  # eigenvalues, a few percent of them, and a dozen steps add their errors up.
  # Where they do more than that, see `rounding_tolerance`.
  'caf': 1e-4,
}
# A distance from inner products is known to the root of eps times the norm:
# near a client's row, this is how well the geometric median is known.
NEAR_A_ROW = 5e-3


def check(case, tree, out, info, **extra):
  """`out` and `info` are what the oracle says, up to float32's rounding."""
  arrays = [array for _, array in reference.leaves(tree)]
  outs = [np.asarray(leaf) for leaf in jax.tree.leaves(out)]
  server = [a for _, a in reference.leaves(extra or case.extra(tree))]
  for layer, positions in enumerate(reference.groups(tree, case.by)):
    said = {
      k: np.asarray(v) if case.by == 'model' else np.asarray(v)[layer]
      for k, v in info.items()
    }
    own = [arrays[p] for p in positions]
    trusted = [server[p] for p in positions] if server else None
    check_scope(case, own, [outs[p] for p in positions], said, trusted)


def check_scope(case, arrays, outs, said, server=None):
  """As `check`, of one group of leaves."""
  rows = reference.rows_of(arrays)
  hyper = case.hyper(len(rows))
  if case.name == 'lasa':
    expected = reference.lasa(arrays, **hyper)
    close(case, outs, expected, np.where(np.isfinite(rows), rows, 0))
  elif case.name in reference.COLUMNS:
    expected = reference.COLUMNS[case.name](rows, **hyper)
    check_columns(case, rows, outs, expected, said)
  elif case.name in STAGES:
    check_stages(case, rows, outs, said)
  else:
    weights = expected_weights(case, rows, outs, said, server)
    clip = {'clip': 'median'} if case.kind == 'cosine' else {}
    expected = reference.combine(arrays, weights, **clip)
    if case.exact:
      for out, want in zip(outs, expected, strict=True):
        np.testing.assert_array_equal(out, want.astype(np.float32))
    else:
      used = weights > 0
      tolerance = None
      if case.name == 'geometric_median' and np.any(used):
        tolerance = check_geometric_median(rows, outs, weights)
      near_a_row = tolerance is not None  # which may be zero
      if case.name in ('caf', 'foolsgold'):
        tolerance = rounding_tolerance(case.name, rows, hyper)
      scale = weights[used] @ np.abs(rows[used])
      if near_a_row:
        scale = np.median(np.abs(rows[used]), axis=0)
      close(case, outs, expected, scale, tolerance)


def close(case, outs, expected, used, tolerance=None):
  """Compares to the size of the entries that are summed."""
  scale = np.max(np.abs(used), initial=0)
  tolerance = TOLERANCE.get(case.name, 2e-6) if tolerance is None else tolerance
  for out, want in zip(outs, expected, strict=True):
    np.testing.assert_allclose(
      out, want, rtol=max(1e-5, tolerance), atol=tolerance * scale
    )


def expected_weights(case, rows, outs, said, server):
  """The oracle's weights, or those of a choice as good."""
  n = len(rows)
  hyper = case.hyper(n)
  if server is not None:
    own = [a.ravel() for a in server]
    hyper = hyper | {'server': np.concatenate(own)}
  if case.name == 'mean':
    return reference.weights_of('mean', rows, hyper)
  np.testing.assert_array_equal(said['rejected'], reference.rejected(rows))
  if case.name == 'sign_guard':
    return check_sign_guard(rows, said, hyper)
  weights = reference.weights_of(case.name, rows, hyper, case.kind)
  if case.name in reference.SCORES:
    return check_selection(case, rows, said, weights)
  if case.name in reference.OBJECTIVES:
    return check_subset(case, rows, said, weights)
  if case.name == 'caf':
    return check_caf(rows, said, hyper, weights)
  if case.name == 'foolsgold':
    return check_foolsgold(rows, said, weights)
  return weights


def check_selection(case, rows, said, weights):
  """Checks who was selected; returns the weights without the clip.

  Two clients whose scores differ by less than float32 can tell may change
  places, so it is the scores of the selected that are compared.
  """
  n = len(rows)
  bad = reference.rejected(rows)
  if case.name == 'monna' and bad[0]:  # its pivot
    assert not np.any(said['selected'])
    return np.zeros(n)
  scores, _ = reference.scores_of(case.name, rows, case.hyper(n), case.kind)
  selected = said['selected']
  assert not np.any(selected & bad)
  assert np.sum(selected) == np.sum(weights > 0)
  if np.any(selected):
    finite = scores[np.isfinite(scores)]
    # Sums of 1e5 products in float32 have a relative error near 1e-6, and a
    # distance loses a digit to the cancellation of squared norms.
    slack = 1e-5 * (np.median(finite) if len(finite) else 0)
    slack += 1e-6 * n if case.kind == 'cosine' else 0
    if case.name == 'dnc':  # projections on a direction that is known to 1e-5
      slack += 1e-4 * np.max(finite)
    worst = np.max(scores[weights > 0])
    assert np.all(scores[selected] <= worst + slack)
    assert np.all(scores[~selected & ~bad] >= worst - slack)
    assert not np.any(np.isfinite(said['scores'][bad]))
  return selected / max(1, np.sum(selected))


def check_subset(case, rows, said, weights):
  """As `check_selection`, by the subsets' objective."""
  selected = said['selected']
  assert not np.any(selected & reference.rejected(rows))
  assert np.sum(selected) == np.sum(weights > 0)
  if np.any(selected):
    objective = reference.OBJECTIVES[case.name](rows, case.kind)
    best = objective(np.flatnonzero(weights))
    got = objective(np.flatnonzero(selected))
    # A difference of squared norms in float32, or of directions.
    size = np.max(np.sum(rows[selected] ** 2, axis=1))
    slack = 1e-6 * (len(rows) if case.kind == 'cosine' else size)
    assert got <= best * (1 + 1e-5) + slack
  return selected / max(1, np.sum(selected))


def check_sign_guard(rows, said, hyper):
  """The clusters may be any that some way to break ties ends in."""
  hyper = {k: v for k, v in hyper.items() if k != 'fraction'}
  passed, clusters = reference.sign_guard_choices(rows, slack=1e-6, **hyper)
  selected = said['selected']
  if clusters is None:  # too many ties to follow them all
    assert not np.any(selected & ~passed)
  else:
    assert any(np.array_equal(selected, passed & c) for c in clusters)
  share = selected / max(1, np.sum(selected))
  return share * reference.clip_factors(rows)


def check_geometric_median(rows, outs, weights):
  """By the objective; returns to what tolerance the point is known."""
  point = reference.weighted_sum(rows, weights)
  got = np.concatenate([out.ravel() for out in outs]).astype(float)
  best = reference.sum_of_distances(rows, point)
  size = np.median(np.linalg.norm(rows[weights > 0], axis=1))
  away = np.min(np.linalg.norm(rows[weights > 0] - point, axis=1))
  near_a_row = away <= 0.1 * size
  slack = 1e-6 * best + (1e-3 * len(rows) * size if near_a_row else 0)
  assert reference.sum_of_distances(rows, got) <= best + slack
  return NEAR_A_ROW if near_a_row else None


def check_caf(rows, said, hyper, weights):
  """Steps whose largest variances are as close as rounding are as good."""
  steps = reference.caf_steps(rows, **hyper)
  best = min(variance for variance, _ in steps)
  gaps = [
    (np.max(np.abs(other - said['weights'])), i)
    for i, (variance, other) in enumerate(steps)
    if variance <= best * (1 + 1e-4)
  ]
  return steps[min(gaps)[1]][1] if not np.any(np.isnan(weights)) else weights


def rounding_tolerance(name, rows, hyper):
  """What the rule itself makes of rows that are rounded as float32's sums.

  The steps of CAF can blow a rounding up a thousand times, and so do the
  logarithms of FoolsGold where directions nearly agree: nobody's error.
  """
  weights = reference.weights_of(name, rows, hyper)
  draws = np.random.default_rng(0).standard_normal((5, *rows.shape))
  moved = [
    np.sum(
      np.abs(reference.weights_of(name, rows * (1 + 1e-6 * x), hyper) - weights)
    )
    for x in draws
  ]
  return max(TOLERANCE.get(name, 2e-6), *moved)


def check_foolsgold(rows, said, weights):
  """Where all are alike, the weights are a matter of rounding."""
  bad = reference.rejected(rows)
  if np.max(reference.foolsgold_dissimilarities(rows)) > 1e-5 or np.all(bad):
    return weights
  assert np.all(said['weights'] >= 0) and not np.any(said['weights'][bad])
  np.testing.assert_allclose(np.sum(said['weights']), 1, rtol=1e-6)
  return said['weights'].astype(float)


def check_columns(case, rows, outs, expected, said):
  """As `close`, where a column's entries do not tie within rounding."""
  assert said == {}
  out = np.concatenate([leaf.ravel() for leaf in outs])
  finite = np.isfinite(expected)
  assert not np.any(np.isfinite(out[~finite]))
  sure = finite
  if case.name == 'meamed':
    count = len(rows) - case.hyper(len(rows))['f']
    sure = finite & ~reference.doubtful_columns(rows, count)
  scale = np.max(np.abs(expected[sure]), initial=0)
  if case.name == 'sign_majority':
    scale = np.max(np.abs(rows[:, sure]), initial=0)
  np.testing.assert_allclose(
    out[sure], expected[sure], rtol=1e-5, atol=2e-6 * scale
  )


def check_stages(case, rows, outs, said):
  """A selection first, then a rule on every coordinate of the selected."""
  n = len(rows)
  hyper = case.hyper(n)
  np.testing.assert_array_equal(said['rejected'], reference.rejected(rows))
  selected = said['selected']
  if case.name == 'bulyan_trimmed':
    weights = reference.weights_of(case.name, rows, hyper, case.kind)
    check_selection(case, rows, said, weights)
  else:
    matrix = reference.distance_matrix(rows, case.kind)
    near = matrix[np.isfinite(matrix)]
    # The error of a sum of float32 distances, as in `check_selection`.
    slack = 1e-5 * n * (np.median(near) if len(near) else 0)
    slack += 1e-6 * n if case.kind == 'cosine' else 0
    members = reference.bulyan_members(
      rows,
      kind=case.kind,
      prefer=np.flatnonzero(selected).tolist(),
      slack=slack,
      **hyper,
    )
    assert np.flatnonzero(selected).tolist() == sorted(members)
  members = np.flatnonzero(selected)
  if case.kind == 'cosine':
    with np.errstate(invalid='ignore'):  # of rejected rows, which are unused
      rows = rows * reference.clip_factors(rows)[:, None]
  expected = STAGES[case.name](rows, members, **hyper)
  sure = np.ones(len(expected), bool)
  if case.name == 'bulyan' and len(members) == n - 2 * hyper['f']:
    count = n - 4 * hyper['f']
    sure = ~reference.doubtful_columns(rows[members], count)
  scale = np.max(np.abs(rows[members]), initial=0)
  out = np.concatenate([leaf.ravel() for leaf in outs])
  np.testing.assert_allclose(
    out[sure], expected[sure], rtol=1e-5, atol=2e-6 * scale
  )


# Bad rows ------------------------------------------------------------------

REJECTED = {
  'nan': np.nan,
  'inf': np.inf,
  '-inf': -np.inf,
  '1e30': 1e30,
  '1.5e19': 1.5e19,
}
ACCEPTED = {'1e10': 1e10, '1e4': 1e4, 'zeros': 0.0, '1e-40': 1e-40}


def with_rows(tree, rows, kind):
  """`rows` of `tree` made to be of one kind of the contract."""
  if kind == 'copies':
    honest = next(i for i in range(100) if i not in rows)
    return reference.replace_rows(tree, rows, lambda leaf: leaf[honest])
  value = (REJECTED | ACCEPTED)[kind]
  return reference.replace_rows(tree, rows, lambda leaf: np.float32(value))


def worst_case(tree, rows, scale):
  """`rows` replaced by random directions of `scale` times the usual norm."""
  rng = np.random.default_rng(7)

  def change(leaf):
    return scale * rng.normal(size=leaf[rows].shape)

  return reference.replace_rows(tree, rows, change)


def at_random(n, count, seed=0):
  return np.random.default_rng([seed, n, count]).permutation(n)[:count]
