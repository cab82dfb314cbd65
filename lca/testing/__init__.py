"""Tests of rules and attacks, of this library or of anybody's.

    from lca import testing

    testing.check_rule(my_rule, f=2, promise='full')
    test_my_rule = testing.rule_tests(my_rule, f=2, promise='full')

`check_rule` raises an error that names the properties that a rule lacks, each
with a small example as code to paste. The second line, in a test file, makes
one test of each property. `from_numpy` makes a rule of a function of NumPy
arrays, such as another system's. `check_attack` and `attack_tests` do the same
for attacks.
"""

from lca.testing import attack_properties as attack_properties
from lca.testing import rule_properties as rule_properties
from lca.testing.attacks import attack_tests, check_attack
from lca.testing.checking import PropertyFailed, Report, Result
from lca.testing.numpy_rules import from_numpy
from lca.testing.rules import check_rule, rule_tests

__all__ = [
  'PropertyFailed',
  'Report',
  'Result',
  'attack_tests',
  'check_attack',
  'check_rule',
  'from_numpy',
  'rule_tests',
]
