"""Bounds on what attackers can do to aggregation rules, from theory.

`lca.robustness` searches for the worst that attackers can do, and so bounds it
from below; this module bounds it from above. A search that exceeds a bound here
has found a mistake, in the rule, in the search or in the bound.

A rule F is :math:`(f, \\kappa)`-robust (Allouah et al. 2023) if for all rows
:math:`x_1, \\dots, x_n` and for every set S of n - f of them

.. math:: \\|F(x_1, \\dots, x_n) - \\bar x_S\\|^2 \\le \\frac{\\kappa}{|S|}
    \\sum_{i \\in S} \\|x_i - \\bar x_S\\|^2, \\quad
    \\bar x_S = \\frac{1}{|S|} \\sum_{i \\in S} x_i

Rules are named as in `lca.aggregators.RULES`. Nothing here computes with JAX.
"""

from lca.theory.bounds import BOUNDS, PRE_BOUNDS, kappa_bound, lower_bound
from lca.theory.conditions import (
  CONDITIONS,
  breakdown_point,
  check,
  feasible,
  krum_eta,
  krum_sine,
  largest_f,
)

__all__ = [
  'BOUNDS',
  'CONDITIONS',
  'PRE_BOUNDS',
  'breakdown_point',
  'check',
  'feasible',
  'kappa_bound',
  'krum_eta',
  'krum_sine',
  'largest_f',
  'lower_bound',
]
