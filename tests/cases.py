"""The table of the rules under test, and the cases that the tests run.

A rule is added with one line in `RULES`; its float64 oracle is in `oracles/`.
"""

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import oracles
import pytest

import lca

BYZANTINE = {4: 0, 11: 4, 25: 11, 100: 20}  # n -> the f that rules are given


def few(n, f):
  """Returns an f for which the oracles have few subsets to compare."""
  return min(f, {25: 2, 100: 1}.get(n, f))


def with_f(n, f):
  return {'f': f}


def without(n, f):
  return {}


class Spec(NamedTuple):
  """A rule under test.

  Attributes:
    hyper: function `(n, f) -> hyper-parameters`.
    cosine: True if the rule has a cosine form.
    promise: the promise in docs/rules.md about any f rows: 'full', 'hull',
      'finite' or 'none'.
    takes_one: True if the result is one client's row.
    layers: True if the layerwise rule differs from the rule.
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
  # The pivot is client 0, which is trusted.
  'monna': Spec(with_f, cosine=True, promise='none'),
  'mda': Spec(lambda n, f: {'f': few(n, f)}, cosine=True),
  'smea': Spec(lambda n, f: {'f': few(n, f)}),
  'median': Spec(without, promise='hull', layers=False),
  'trimmed_mean': Spec(with_f, promise='hull', layers=False),
  'meamed': Spec(with_f, promise='finite', layers=False),
  'phocas': Spec(with_f, promise='finite', layers=False),
  'sign_majority': Spec(
    lambda n, f: {'theta': n // 2}, promise='none', layers=False
  ),
  'bulyan': Spec(lambda n, f: {'f': min(f, (n - 3) // 4)}, cosine=True),
  'bulyan_trimmed': Spec(
    lambda n, f: {'f': f, 'm': n - f, 'trim': min(f, (n - f - 1) // 3)},
    cosine=True,
  ),
  # The oracle iterates until convergence, which is slow near a client's row.
  'geometric_median': Spec(lambda n, f: {'num_iters': 2000}),
  'caf': Spec(with_f),
  'dnc': Spec(with_f, promise='finite'),
  'foolsgold': Spec(without, promise='none'),
  'flame': Spec(without),
  'align_ins': Spec(without, promise='finite'),
  'multi_metrics': Spec(without, promise='finite'),
  'rflbat': Spec(without, promise='finite'),
  'fltrust': Spec(without),
  'sign_guard': Spec(lambda n, f: {'fraction': 1.0}),
  'lasa': Spec(without),
}

# These rules evaluate a model, which the pool's trees are not. They keep the
# contract in their own tests.
OF_MODELS = {'deep_sight': Spec(without)}


class Case(NamedTuple):
  """A rule in one form: its name, its distance and its scope."""

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
    """True if the result is one client's row, bit for bit."""
    return self.spec.takes_one and self.kind == 'euclidean'

  @property
  def plain(self):
    """The rule or its cosine form, applied to the whole model."""
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
    """Returns how many rows the tests may spoil."""
    return min(self.hyper(n).get('f', BYZANTINE[n]), BYZANTINE[n])

  def extra(self, tree):
    """Returns the arguments that the rule needs beside the updates."""
    if self.name == 'fltrust':
      return {'server_update': server_update(tree)}
    if self.name in ('flame', 'align_ins'):
      return {'params': params(tree)}
    return {}

  def eager(self, tree):
    return lca.explain(self.rule)(
      tree, **self.extra(tree), **self.hyper(num_clients(tree))
    )

  def __call__(self, tree, **extra):
    """Returns the update and the info of the jitted rule."""
    return run(self, num_clients(tree))(tree, extra or self.extra(tree))


TRACES = collections.Counter()


@functools.cache
def run(case, n):
  """Returns a jitted `(tree, extra) -> (update, info)`, shared by all tests."""

  def traced(tree, extra):
    TRACES[case, n, signature(tree)] += 1
    return lca.explain(case.rule)(tree, **extra, **case.hyper(n))

  return jax.jit(traced)


def signature(tree):
  """Returns the shapes and dtypes, on which a compilation depends."""
  return str(jax.tree.map(lambda x: (x.shape, x.dtype), tree))


def traces(case, tree):
  """Returns how often the rule was traced for arrays like these."""
  return TRACES[case, num_clients(tree), signature(tree)]


def num_clients(tree):
  return len(jax.tree.leaves(tree)[0])


def server_update(tree):
  """Returns the coordinate-wise median: a minority cannot spoil it."""
  return jax.tree.map(
    lambda x: oracles.coordinate_median(np.asarray(x)).astype(x.dtype), tree
  )


def params(tree):
  """Returns a model, whose entries are whole numbers in every dtype."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.integers(-4, 5, size=x.shape[1:]).astype(x.dtype), tree
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
  """Marks cases `thorough`, except those whose rule is in `except_for`."""
  return [
    case
    if case[0] in except_for  # the rule's name
    else pytest.param(case, marks=pytest.mark.thorough)
    for case in cases
  ]


SHORT = cases_of('model', 'leaf')
# Every rule once, in the scope with the most to compile.
ONCE = [case for case in SHORT if case.by == 'leaf' or not case.spec.layers]


def mostly_once(cases):
  """Marks cases `thorough` unless they are in `ONCE`."""
  return [
    case if case in ONCE else pytest.param(case, marks=pytest.mark.thorough)
    for case in cases
  ]


MOST = mostly_once(SHORT)
FULL = [case for case in SHORT if case.spec.promise == 'full']
# Rules that mix only rows that are not rejected, and so stay finite.
ROBUST = [
  case
  for case in SHORT
  if case in FULL
  or case.name in ('dnc', 'foolsgold', 'align_ins', 'multi_metrics', 'rflbat')
]
SELECTING = [*oracles.SCORES, *oracles.OBJECTIVES, 'bulyan']

cases = functools.partial(pytest.mark.parametrize, 'case', ids=str)
