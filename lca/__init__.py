"""Byzantine-robust federated learning in JAX.

Rules are plain functions over stacked pytrees, leaves `[n, ...]`, one row per
client, client minus server:

    update = lca.layerwise(lca.cosine(lca.krum))(updates, f=2)
"""

from lca import geometry
from lca.aggregators import (
  Aggregator,
  Rule,
  Verdict,
  cge,
  clip_to_median_norm,
  cosine,
  explain,
  gram_rule,
  krum,
  layerwise,
  mda,
  mean,
  medoid,
  monna,
  multi_krum,
  smea,
  stateless,
)
from lca.aggregators import make as make_aggregator
from lca.geometry import distances, gram, mix

__version__ = '0.1.0'

__all__ = [
  'Aggregator',
  'Rule',
  'Verdict',
  'cge',
  'clip_to_median_norm',
  'cosine',
  'distances',
  'explain',
  'geometry',
  'gram',
  'gram_rule',
  'krum',
  'layerwise',
  'make_aggregator',
  'mda',
  'mean',
  'medoid',
  'mix',
  'monna',
  'multi_krum',
  'smea',
  'stateless',
]
