"""Aggregation rules over stacked pytrees, their combinators, and `make`."""

from lca.aggregators.averages import cge, monna
from lca.aggregators.base import (
  Aggregator,
  GramRule,
  Rule,
  Scope,
  Verdict,
  cosine,
  explain,
  gram_rule,
  layerwise,
  stateless,
)
from lca.aggregators.clipping import clip_to_median_norm
from lca.aggregators.krum import krum, medoid, multi_krum
from lca.aggregators.make import RULES, make
from lca.aggregators.mean import mean
from lca.aggregators.subsets import mda, smea

__all__ = [
  'RULES',
  'Aggregator',
  'GramRule',
  'Rule',
  'Scope',
  'Verdict',
  'cge',
  'clip_to_median_norm',
  'cosine',
  'explain',
  'gram_rule',
  'krum',
  'layerwise',
  'make',
  'mda',
  'mean',
  'medoid',
  'monna',
  'multi_krum',
  'smea',
  'stateless',
]
