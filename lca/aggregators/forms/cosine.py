"""Cosine forms: a rule on directions, with lengths clipped to their median."""

import inspect
from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax import lax

from lca.aggregators.base import (
  GramRule,
  Info,
  P,
  Rule,
  Verdict,
  hyper_of,
  rule_name,
  rule_signature,
)
from lca.aggregators.forms.chain import Chain, MixedChain
from lca.aggregators.forms.layerwise import Layerwise
from lca.stacked import geometry
from lca.typing import Gram, Update, Updates


def cosine(
  rule: GramRule[P],
  *,
  clip: Literal['median'] | None = 'median',
  clip_by: Literal['scope', 'leaf'] = 'scope',
  median: geometry.Median = 'interpolated',
) -> Rule[P]:
  r"""Gives a rule the cosine distance, on updates clipped to the median norm.

  .. math:: d(x_i, x_j) = 1 - \cos\theta_{ij}, \qquad
      \hat x_i = \min(1, \mathrm{med}_j \|x_j\| / \|x_i\|)\, x_i

  The cosine ignores lengths, so the clip is what keeps a long update from
  passing for its short neighbour. It multiplies the rule's weights, after
  the rule has decided: directions, and so the decision, do not depend on it,
  and no clipped copy of the updates is made.

  Args:
    rule: a rule with a `distance` keyword.
    clip: `'median'`, or None for no clip (the paper's ablation, section 5.2).
    clip_by: `'scope'` clips what the rule sees as a whole; `'leaf'` every leaf
      to the median norm of that leaf, as the paper's published code does.
    median: `'interpolated'` or, as the published code has it, `'lower'`.

  Returns:
    A rule with the hyper-parameters of `rule`, less `distance` and `power`.
    (A type checker lets these two pass; the call raises.) A zero row is at
    distance 2 from every nonzero row and 0 from another zero row (NaN in the
    published code).

  Raises:
    TypeError: `rule` has no distance; or is layerwise, as the paper's method is
      `layerwise(cosine(rule))`; or a chain, of which each step has its own.
    ValueError: unknown `clip`, `clip_by` or `median`, or a way to clip with
      `clip=None`.
  """
  if isinstance(rule, Layerwise):
    inner = rule_name(rule.rule)
    raise TypeError(
      f'cosine({rule}) has no meaning: write layerwise(cosine({inner}))'
    )
  if isinstance(rule, (Chain, MixedChain)):
    raise TypeError(f'cosine({rule}) has no meaning: give it to the steps')
  if not isinstance(rule, GramRule) or 'distance' not in hyper_of(rule):
    raise TypeError(f'cosine needs a rule with a distance: {rule_name(rule)}')
  _check_option('clip', clip, ('median', None))
  _check_option('clip_by', clip_by, ('scope', 'leaf'))
  _check_option('median', median, ('interpolated', 'lower'))
  if clip is None and (clip_by, median) != ('scope', 'interpolated'):
    raise ValueError('clip_by and median do not apply with clip=None')

  with_distance = cast(Callable[..., Verdict], rule.weigh)

  def weigh(gram: Gram, *args: P.args, **hyper: P.kwargs) -> Verdict:
    verdict = with_distance(gram, *args, distance='cosine', **hyper)
    if clip is None or clip_by == 'leaf':
      return verdict
    return verdict._replace(factors=geometry.clip_factors(gram, median))

  cosine_rule = GramRule(weigh, combine=rule.combine)
  cosine_rule.__name__ = f'cosine({rule})'
  cosine_rule.__doc__ = rule.__doc__
  cosine_rule.__signature__ = rule_signature(
    p for k, p in hyper_of(rule).items() if k not in ('distance', 'power')
  )
  if clip is not None and clip_by == 'leaf':
    return _LeafClipped(cosine_rule, median)
  return cosine_rule


def _check_option(name: str, value: Any, known: tuple[Any, ...]) -> None:
  if value not in known:
    raise ValueError(f'{name} must be one of {known}, got {value!r}')


class _LeafClipped(Rule[P]):
  """Mixes every leaf of rows that are clipped to that leaf's median norm."""

  def __init__(self, rule: GramRule[P], median: geometry.Median):
    self.rule = rule
    self.median: geometry.Median = median
    self.__name__, self.__doc__ = rule.__name__, rule.__doc__
    self.__signature__ = inspect.signature(rule)

  def explain(
    self, updates: Updates, *args: P.args, **hyper: P.kwargs
  ) -> tuple[Update, Info]:
    leaves, treedef = jax.tree.flatten(updates)
    gram = geometry.gram(updates)
    verdict = self.rule.weigh(gram, *args, **hyper)
    rejected = geometry.rejected_rows(gram)
    lengths = jnp.stack([geometry.norms_gram(leaf) for leaf in leaves])
    factors = jax.vmap(
      lambda gram: geometry.clip_factors(gram, self.median, rejected)
    )(lax.stop_gradient(lengths))
    of_all = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (len(leaves), *x.shape)), verdict
    )
    clipped = of_all._replace(factors=factors)
    parts = self.rule.combine(leaves, clipped, *args, **hyper)
    info = verdict.info(gram)
    del info['weights']  # every leaf has its own
    return jax.tree.unflatten(treedef, parts), info
