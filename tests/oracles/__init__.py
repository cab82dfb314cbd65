"""Slow, obvious float64 versions of the rules, written from the papers.

Nothing here imports jax or lca. A tree is a nested dict, or a list, of arrays
`[n, ...]`. A rule is a function of rows `[n, d]` in float64. It returns scores
`[n]` or weights `[n]` if it mixes clients, one row `[d]` if it works on every
coordinate, and a matrix `[k, n]` of weights if it is a pre-aggregator. What the
papers leave open (zero rows, rejected rows, medians, ties) follows the
definitions in `lca`'s documentation, not its code.

There is one file for each family; tests use everything as `oracles.NAME`.
"""

# ruff: noqa: F403
from .align_ins import *
from .averages import *
from .bulyan import *
from .clipping import *
from .clustering import *
from .coordinates import *
from .deep_sight import *
from .fl_detector import *
from .flame import *
from .flanders import *
from .forms import *
from .geometric import *
from .hdbscan import *
from .krum import *
from .lasa import *
from .learned_distance import *
from .legato import *
from .mixing import *
from .mixtures import *
from .multi_metrics import *
from .rflbat import *
from .rows import *
from .rules import *
from .spectral import *
from .subsets import *
from .trees import *
from .trust import *
