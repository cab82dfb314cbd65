"""Slow, obvious float64 versions of the rules, written from the papers.

Nothing here imports jax or lca. A tree is a nested dict, or a list, of arrays
`[n, ...]`. A rule is a function of rows `[n, d]` in float64: to scores `[n]`
or to weights `[n]`, of those that mix clients; to one row `[d]`, of those that
work on every coordinate; to a matrix `[k, n]` of weights, of those that give
clients back. What the papers leave open (zero rows, rejected rows, medians,
ties) follows the definitions stated in `lca`'s documentation, not its code.

There is one file for each family; tests reach everything as `oracles.NAME`.
"""

# ruff: noqa: F403
from .averages import *
from .bulyan import *
from .clipping import *
from .clustering import *
from .coordinates import *
from .forms import *
from .geometric import *
from .krum import *
from .lasa import *
from .legato import *
from .mixing import *
from .rows import *
from .rules import *
from .spectral import *
from .subsets import *
from .trees import *
from .trust import *
