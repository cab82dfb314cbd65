"""Aggregation rules over stacked pytrees, their combinators, and `make`."""

from lca.aggregators import rules
from lca.aggregators.base import (
  ROUND_BRINGS,
  Aggregator,
  FunctionRule,
  GramRule,
  Rule,
  Verdict,
  explain,
  gram_rule,
)
from lca.aggregators.forms import cosine, layerwise, stateless
from lca.aggregators.forms.chain import chain
from lca.aggregators.make import make
from lca.aggregators.rules import *
from lca.aggregators.rules import AGGREGATORS, PRE_AGGREGATORS, RULES
from lca.aggregators.rules.legato import LegatoState
from lca.stacked.layer_norms import normalized_norms
from lca.stacked.trees import Scope, layer_names

__all__ = [
  'AGGREGATORS',
  'PRE_AGGREGATORS',
  'ROUND_BRINGS',
  'RULES',
  'Aggregator',
  'FunctionRule',
  'GramRule',
  'LegatoState',
  'Rule',
  'Scope',
  'Verdict',
  'chain',
  'cosine',
  'explain',
  'gram_rule',
  'layer_names',
  'layerwise',
  'make',
  'normalized_norms',
  'stateless',
]
__all__ += rules.__all__
