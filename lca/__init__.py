"""Byzantine-robust federated learning in JAX.

An aggregation rule is a plain function of `updates`, a pytree whose leaves are
`[n, ...]`: one row per client, the client's parameters minus the server's.

    update = lca.layerwise(lca.cosine(lca.krum))(updates, f=2)

Rules and attacks need JAX and NumPy alone. `lca.data`, `lca.models`,
`lca.federated`, `lca.experiment` and `lca.report` need more packages (`pip
install 'lca[all]'`), so that they are imported on first use.
"""

from typing import TYPE_CHECKING, Any

from lca import aggregators, attacks, geometry
from lca.aggregators import (
  Aggregator,
  Predictor,
  Rule,
  Verdict,
  chain,
  cosine,
  explain,
  gram_rule,
  layerwise,
  noisy,
  rules,
  stateless,
)
from lca.aggregators import make as make_aggregator
from lca.aggregators.rules import *
from lca.registry import import_module
from lca.stacked.geometry import distances, gram, mix
from lca.stacked.trees import stack
from lca.version import __version__ as __version__

if TYPE_CHECKING:
  from lca import certificates as certificates
  from lca import data as data
  from lca import experiment as experiment
  from lca import federated as federated
  from lca import models as models
  from lca import privacy as privacy
  from lca import report as report
  from lca import robustness as robustness
  from lca import testing as testing
  from lca import theory as theory

__all__ = [
  'Aggregator',
  'Predictor',
  'Rule',
  'Verdict',
  'aggregators',
  'attacks',
  'chain',
  'cosine',
  'distances',
  'explain',
  'geometry',
  'gram',
  'gram_rule',
  'layerwise',
  'make_aggregator',
  'mix',
  'noisy',
  'stack',
  'stateless',
]
__all__ += rules.__all__

# Modules that `__getattr__` below imports on first use.
_IMPORTED_LATER = (
  'certificates',
  'data',
  'experiment',
  'federated',
  'models',
  'privacy',
  'report',
  'robustness',
  'testing',
  'theory',
)


def __getattr__(name: str) -> Any:
  if name not in _IMPORTED_LATER:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return import_module(f'{__name__}.{name}')


def __dir__() -> list[str]:
  return sorted([*__all__, *_IMPORTED_LATER])
