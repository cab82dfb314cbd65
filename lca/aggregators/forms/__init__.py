"""Functions from rules to rules.

    layerwise(rule)   applies a rule to every layer on its own,
    cosine(rule)      replaces its distance by the cosine distance, on updates
                      clipped to their median norm,
    chain(...)        applies pre-aggregators, then a rule,
    stateless(rule)   makes an Aggregator of a rule.

The layerwise cosine form of any distance-based rule is
`layerwise(cosine(rule))`.
"""

from lca.aggregators.forms.chain import chain
from lca.aggregators.forms.cosine import cosine
from lca.aggregators.forms.layerwise import layerwise
from lca.aggregators.forms.stateless import stateless

__all__ = ['chain', 'cosine', 'layerwise', 'stateless']
