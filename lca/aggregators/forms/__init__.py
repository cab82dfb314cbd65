"""Combinators: functions from rules to rules.

    layerwise(rule)   applies a rule to every layer separately;
    cosine(rule)      replaces the rule's distance by the cosine distance, and
                      clips the updates to their median norm;
    chain(...)        applies pre-aggregators, then a rule;
    noisy(rule)       adds Gaussian noise to the rule's update;
    stateless(rule)   makes an Aggregator from a rule.

The layerwise cosine form of a distance-based rule, the method of García-Márquez
et al. 2025, is `layerwise(cosine(rule))`.
"""

from lca.aggregators.forms.chain import chain
from lca.aggregators.forms.cosine import cosine
from lca.aggregators.forms.layerwise import layerwise
from lca.aggregators.forms.noisy import noisy
from lca.aggregators.forms.stateless import stateless

__all__ = ['chain', 'cosine', 'layerwise', 'noisy', 'stateless']
