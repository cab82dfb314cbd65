"""The properties of `lca.testing`, for every rule of this package.

The same code examines the rules of its users.
"""

import functools

import jax
import pytest
from cases import ONCE, SHORT, Case, num_clients, params

import lca
from lca import testing
from lca.testing import rule_properties
from lca.testing.rules import rule_subject

FROM_ZERO = 'lengths, cosines or signs are taken from zero'
PIVOT = 'the first client is the pivot'
TIES = 'clients with one score are told apart by their places'
# Properties that rules lack on purpose, by the rule, by 'cosine' for all cosine
# forms, or by the case.
EXCEPTIONS = {
  'cosine': {'shifted': FROM_ZERO},
  'monna': {'permutation': PIVOT},
  'bulyan': {'permutation': TIES},
  'cge': {'shifted': FROM_ZERO},
  'sign_majority': {'shifted': FROM_ZERO},
  'foolsgold': {'shifted': FROM_ZERO},
  'fltrust': {'shifted': FROM_ZERO, 'identical': 'zero rows have no trust'},
  'flame': {'shifted': FROM_ZERO, 'scaled': 'the cosines are of models'},
  'align_ins': {'shifted': FROM_ZERO},
  'multi_metrics': {'shifted': FROM_ZERO},
  'sign_guard': {'shifted': FROM_ZERO},
  'geometric_median-euclidean-leaf': {'scaled': 'nu is a length'},
  'sign_guard-euclidean-leaf': {'permutation': TIES},
  'lasa': {'shifted': FROM_ZERO, 'identical': 'small entries become zero'},
}
# These take the most time. tests/test_contract.py has derivatives of all rules,
# and tests/test_preconditions.py their limits.
THOROUGH = ('limits', 'sharding', 'gradient')


@functools.cache
def subject(case):
  """Returns the rule in this form as a subject of the tests."""

  def with_f(updates, *, f):
    hyper = case.spec.hyper(num_clients(updates), f)
    hyper |= {'f': f} if 'f' in hyper else {}
    return case.rule(updates, **brought(updates), **hyper)

  def brought(updates):
    if case.name == 'fltrust':
      return {'server_update': lca.median(jax.lax.stop_gradient(updates))}
    if case.name in ('flame', 'align_ins'):
      return {'params': params(updates)}
    return {}

  f = case.bad_rows(11)
  told = 'f' in case.spec.hyper(11, f)
  rule = with_f if told else lambda updates: with_f(updates, f=f)
  rule.__name__ = str(case)
  except_for = {}
  for key in (case.name, case.kind, str(case)):
    except_for |= EXCEPTIONS.get(key, {})
  return rule_subject(
    rule, f=f, promise=case.spec.promise, except_for=except_for
  )


def all_cases():
  for tested in rule_properties.RULE_PROPERTIES:
    for case in SHORT:
      promised = tested.promises in (None, (case.spec.promise,))
      # CAF divides rounding by the gap between two eigenvalues: under vmap its
      # sums run in another order, and move it by 5e-5.
      unstable = (case.name, tested.name) == ('caf', 'vmap')
      if promised and not unstable:
        quick = case in ONCE and tested.name not in THOROUGH
        quick |= case in (KRUM, MEDIAN)
        yield pytest.param(
          case,
          tested,
          id=f'{tested.name}-{case}',
          marks=() if quick else pytest.mark.thorough,
        )


KRUM, MEDIAN = (Case(name, 'euclidean', 'model') for name in ('krum', 'median'))


@pytest.mark.parametrize(('case', 'tested'), [*all_cases()])
def test_every_rule_has_the_properties(case, tested):
  rule = subject(case)
  result = rule.test(tested)
  excepted = tested.name in rule.except_for
  assert result.status == ('excepted' if excepted else 'held'), str(
    testing.Report(rule.about, (result,))
  )
