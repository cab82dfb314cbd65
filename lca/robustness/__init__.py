"""Searches for the worst that attackers can do to a rule.

`worst_case` searches for the worst rows of f Byzantine clients, `kappa` gives
the robustness coefficient that n rows prove, and `breakdown` the worst case
against the number of attackers. All are lower bounds; `lca.theory` has upper
bounds.
"""

from lca.robustness.measures import breakdown, kappa
from lca.robustness.search import Objective, Worst, worst_case

__all__ = ['Objective', 'Worst', 'breakdown', 'kappa', 'worst_case']
