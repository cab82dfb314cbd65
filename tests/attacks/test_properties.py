"""The properties of `lca.testing`, for every attack of this package."""

import functools

import pytest
from attack_cases import ON_EXAMPLES, OPTIONS

from lca import attacks, testing
from lca.testing.attacks import attack_subject

# Properties that attacks lack on purpose.
EXCEPTIONS = {}


@functools.cache
def subject(name, knowledge):
  options = {k: v for k, v in OPTIONS[name].items() if k != 'aggregate'}
  attack = attacks.from_function(
    getattr(attacks, name), knowledge=knowledge, **options
  )
  return attack_subject(
    attack, knowledge=knowledge, except_for=EXCEPTIONS.get(name, {})
  )


def knows(name):
  return getattr(attacks, name).reads != 'row'


@pytest.mark.parametrize('name', OPTIONS)
@pytest.mark.parametrize('knowledge', ['all', 'byzantine'])
def test_every_attack_has_the_properties(name, knowledge):
  if knowledge == 'byzantine' and not knows(name):
    pytest.skip("it reads no other client's update")
  attack = subject(name, knowledge)
  report = attack.report()
  assert not report.failures, str(report)
  excepted = {x.name for x in report.results if x.status == 'excepted'}
  assert excepted == {*EXCEPTIONS.get(name, {})}
