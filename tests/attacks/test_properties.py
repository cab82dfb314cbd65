"""The properties of `lca.testing`, for every attack of this package."""

import pytest
from attack_cases import OPTIONS

from lca import attacks, testing


@pytest.mark.parametrize('name', OPTIONS)
# tests/attacks/test_knowledge.py has the attackers' knowledge, too.
@pytest.mark.parametrize(
  'knowledge',
  ['all', pytest.param('byzantine', marks=pytest.mark.thorough)],
)
def test_every_attack_has_the_properties(name, knowledge):
  function = getattr(attacks, name)
  if knowledge == 'byzantine' and function.reads == 'row':
    pytest.skip("it reads no other client's update")
  # A round brings the rule that the attack may try.
  options = {k: v for k, v in OPTIONS[name].items() if k != 'aggregate'}
  testing.check_attack(
    attacks.from_function(function, knowledge=knowledge, **options),
    knowledge=knowledge,
  )
