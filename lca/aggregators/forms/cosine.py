"""The cosine form of a rule: cosine distances, and a clip to the median norm.

Section 3.2 of García-Márquez et al. 2025: "cosine distance" and "median
gradient clipping".
"""

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
from lca.aggregators.forms.noisy import Noisy
from lca.stacked import geometry
from lca.typing import Gram, Update, Updates


def cosine(
  rule: GramRule[P],
  *,
  clip: Literal['median'] | None = 'median',
  clip_by: Literal['scope', 'leaf'] = 'scope',
  median: geometry.Median = 'interpolated',
) -> Rule[P]:
  r"""Replaces a rule's distance by the cosine distance, and clips the updates.

  Section 3.2 of García-Márquez et al. 2025 defines the cosine distance and, as
  the cosine ignores lengths, clips every update to the median norm:

  .. math:: d(x_i, x_j) = 1 - \cos\theta_{ij}, \qquad
      \hat x_i = \min(1, \mathrm{med}_j \|x_j\| / \|x_i\|)\, x_i

  The clip keeps an enormous update from being selected at its full length
  because of its direction alone. It does not change directions, so the rule
  decides first and the clip multiplies its weights; no clipped copy of the
  updates is made.

  A zero row is at distance 2 from every nonzero row and at distance 0 from
  another zero row (NaN in the published code).

  Args:
    rule: a rule with a `distance` keyword.
    clip: `'median'`, or None for no clip (section 5.2 says how this fails).
    clip_by: `'scope'` clips each row to the median norm of what the rule sees,
      the layer under `layerwise`; `'leaf'` clips each leaf to the median norm
      of that leaf, as the published code does.
    median: of an even number of norms, `'interpolated'` is the mean of the
      middle pair, `'lower'` the lower one of the pair, as in the published
      code.

  Returns:
    A rule with the hyper-parameters of `rule`, except `distance` and `power`.
    (A type checker accepts these two; the call raises a TypeError.)

  Raises:
    TypeError: `rule` has no distance; or it is layerwise or noisy, as the
      paper's method is `layerwise(cosine(rule))`, and noise comes last; or it
      is a chain, whose steps have distances of their own.
    ValueError: `clip`, `clip_by` or `median` is unknown, or `clip_by` or
      `median` is given with `clip=None`.

  Examples:
    The third row has the most central direction and is far too long. It is
    selected, and clipped to the median norm:

    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[3., 4.], [4., 3.], [90., 90.], [4., -3.],
    ...                      [-3., 4.]])
    >>> print(lca.cosine(lca.krum)(updates, f=1).round(1))
    [3.5 3.5]
    >>> rule = lca.layerwise(lca.cosine(lca.krum))  # the paper's method

  References:
    García-Márquez et al., Improving (α, f)-Byzantine resilience in federated
    learning via layerwise aggregation and cosine distance, 2025.
  """
  if isinstance(rule, Layerwise):
    inner = rule_name(rule.rule)
    raise TypeError(
      f'cosine({rule}) is not defined: write layerwise(cosine({inner})) instead'
    )
  if isinstance(rule, Noisy):
    inner = rule_name(rule.rule)
    raise TypeError(
      f'cosine({rule}) is not defined: write noisy(cosine({inner})) instead'
    )
  if isinstance(rule, (Chain, MixedChain)):
    raise TypeError(
      f'cosine({rule}) is not defined: apply cosine to the steps instead'
    )
  if not isinstance(rule, GramRule) or 'distance' not in hyper_of(rule):
    raise TypeError(
      f'cosine needs a rule with a distance= option, got {rule_name(rule)}'
    )
  _check_option('clip', clip, ('median', None))
  _check_option('clip_by', clip_by, ('scope', 'leaf'))
  _check_option('median', median, ('interpolated', 'lower'))
  if clip is None and (clip_by, median) != ('scope', 'interpolated'):
    raise ValueError(
      f'clip_by={clip_by!r} and median={median!r} have no effect with '
      'clip=None: leave both out'
    )

  weigh_by_distance = cast(Callable[..., Verdict], rule.weigh)

  def weigh(gram: Gram, *args: P.args, **hyper: P.kwargs) -> Verdict:
    # d(x_i, x_j) = 1 - cos(theta_ij), in `geometry.distances`.
    verdict = weigh_by_distance(gram, *args, distance='cosine', **hyper)
    if clip is None or clip_by == 'leaf':
      return verdict
    # Median clipping: min(1, med_j ||x_j|| / ||x_i||).
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
  """Clips each leaf to that leaf's median norm, and combines the leaves."""

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
    # Each leaf has clip factors of its own; all share the rule's verdict.
    norms = jnp.stack([geometry.norms_gram(leaf) for leaf in leaves])
    factors = jax.vmap(
      lambda gram: geometry.clip_factors(gram, self.median, rejected)
    )(lax.stop_gradient(norms))
    per_leaf = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (len(leaves), *x.shape)), verdict
    )
    clipped = per_leaf._replace(factors=factors)
    parts = self.rule.combine(leaves, clipped, *args, **hyper)
    info = verdict.info(gram)
    del info['weights']  # they differ from leaf to leaf
    return jax.tree.unflatten(treedef, parts), info
