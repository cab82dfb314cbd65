"""Aggregation rules over stacked pytrees, their combinators, and `make`.

The definitions of the two papers are in these places. Most definitions of the
layerwise cosine paper (García-Márquez et al. 2025) have no equation number; the
section is given instead.

    layerwise cosine paper                 here
    Eq. 1, the aggregation function        `base.Rule`
    Eq. 2, the mean of the updates         `rules/mean.py`
    2.4 and 4.3, Krum and its score s(i)   `rules/krum.py`: `krum`
    4.3, Bulyan (m = 5)                    `rules/krum.py`: `multi_krum`
    2.4, Bulyan with a trimmed mean        `rules/bulyan.py`: `bulyan_trimmed`
    2.4 and 4.3, GeoMed                    `rules/krum.py`: `medoid`
    3.2, layerwise application             `forms/layerwise.py`
    3.2, cosine distance                   `forms/cosine.py`
    3.2, median gradient clipping          `forms/cosine.py`, as a factor on the
                                           weights; `rules/clipping.py`:
                                           `clip_to_median_norm`, on its own

    LEGATO (Varma et al. 2021)             here
    Eq. 2, normalised layer norms          `lca/stacked/layer_norms.py`
    Algorithm 2                            `rules/legato.py`
"""

from lca.aggregators import rules
from lca.aggregators.base import (
  Aggregator,
  FunctionRule,
  GramRule,
  Rule,
  Verdict,
  explain,
  gram_rule,
)
from lca.aggregators.brought import ROUND_BRINGS, Predictor
from lca.aggregators.forms import cosine, layerwise, noisy, stateless
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
  'Predictor',
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
  'noisy',
  'normalized_norms',
  'stateless',
]
__all__ += rules.__all__
