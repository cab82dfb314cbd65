"""Aggregation rules over stacked pytrees, their combinators, and `make`."""

from lca.aggregators.averages import cge, monna
from lca.aggregators.base import (
  Aggregator,
  FunctionRule,
  GramRule,
  Rule,
  Verdict,
  explain,
  gram_rule,
)
from lca.aggregators.bulyan import bulyan, bulyan_trimmed
from lca.aggregators.chain import chain
from lca.aggregators.clipping import (
  arc,
  centered_clip,
  clip_to_median_norm,
  static_clip,
)
from lca.aggregators.clustering import clipped_clustering, sign_guard
from lca.aggregators.combinators import cosine, layerwise, stateless
from lca.aggregators.coordinates import (
  meamed,
  median,
  sign_majority,
  trimmed_mean,
)
from lca.aggregators.geometric import geometric_median
from lca.aggregators.krum import krum, medoid, multi_krum
from lca.aggregators.lasa import lasa
from lca.aggregators.layers import Scope, layer_names
from lca.aggregators.legato import LegatoState, legato, normalized_norms
from lca.aggregators.make import AGGREGATORS, PRE_AGGREGATORS, RULES, make
from lca.aggregators.mean import mean
from lca.aggregators.mixing import bucketing, nnm
from lca.aggregators.spectral import caf, dnc
from lca.aggregators.subsets import mda, smea
from lca.aggregators.trust import fltrust, foolsgold

__all__ = [
  'AGGREGATORS',
  'PRE_AGGREGATORS',
  'RULES',
  'Aggregator',
  'FunctionRule',
  'GramRule',
  'LegatoState',
  'Rule',
  'Scope',
  'Verdict',
  'arc',
  'bucketing',
  'bulyan',
  'bulyan_trimmed',
  'caf',
  'centered_clip',
  'cge',
  'chain',
  'clip_to_median_norm',
  'clipped_clustering',
  'cosine',
  'dnc',
  'explain',
  'fltrust',
  'foolsgold',
  'geometric_median',
  'gram_rule',
  'krum',
  'lasa',
  'layer_names',
  'layerwise',
  'legato',
  'make',
  'mda',
  'meamed',
  'mean',
  'median',
  'medoid',
  'monna',
  'multi_krum',
  'nnm',
  'normalized_norms',
  'sign_guard',
  'sign_majority',
  'smea',
  'stateless',
  'static_clip',
  'trimmed_mean',
]
