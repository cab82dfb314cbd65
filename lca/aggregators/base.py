"""What a rule is, and the two combinators that make the paper's variants.

A rule maps stacked updates, leaves `[n, ...]`, to one update. Most rules need
nothing but the clients' inner products: `gram_rule` makes such a rule from a
function on the `[n, n]` Gram matrix, and

    layerwise(rule)   applies a rule to every layer on its own,
    cosine(rule)      replaces its distance by the cosine distance, on updates
                      clipped to their median norm,

so that the layerwise cosine form of any distance-based rule is
`layerwise(cosine(rule))`.
"""

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from lca import geometry
from lca.typing import Gram, PyTree, Update, Updates

Info = dict[str, jax.Array]
Path = tuple[str, ...]
Scope = Literal['model', 'leaf', 'module', 'block'] | Callable[[Path], Hashable]

_COLLECTIONS = ('params', 'batch_stats')  # Flax's, over the same modules


class Verdict(NamedTuple):
  """What a Gram rule decides about the `n` clients.

  Attributes:
    weights: `[n]`, the aggregate is `mix(updates, weights)`.
    scores: `[n]`, lower is better, for rules that rank the clients.
  """

  weights: jax.Array
  scores: jax.Array | None = None

  def info(self, gram: Gram) -> Info:
    """The verdict by name: weights, scores, selected, rejected."""
    info = {'weights': self.weights}
    if self.scores is not None:
      info['scores'] = self.scores
    info['selected'] = self.weights > 0
    info['rejected'] = geometry.rejected_rows(gram)
    return info


class Rule:
  """A rule that can say what it decided; calling it gives the update alone."""

  def __call__(self, updates: Updates, **hyper: Any) -> Update:
    update, _ = self.explain(updates, **hyper)
    return update

  def explain(self, updates: Updates, **hyper: Any) -> tuple[Update, Info]:
    """Returns the update and what was decided (see `lca.explain`)."""
    raise NotImplementedError

  def __repr__(self) -> str:
    return self.__name__


class GramRule(Rule):
  """A rule that needs only the clients' inner products.

  Attributes:
    weigh: the function `(gram, **hyper) -> Verdict` it is made of.
  """

  def __init__(self, weigh: Callable[..., Verdict]):
    functools.update_wrapper(self, weigh)
    self.weigh = weigh
    _, *hyper = inspect.signature(weigh).parameters.values()
    self.__signature__ = _rule_signature(hyper)

  def explain(self, updates: Updates, **hyper: Any) -> tuple[Update, Info]:
    gram = _held_gram(updates)
    verdict = self.weigh(gram, **hyper)
    return geometry.mix(updates, verdict.weights), verdict.info(gram)


def _held_gram(updates: Updates) -> Gram:
  """Rules differentiate with the weights that they chose held fixed."""
  return geometry.gram(lax.stop_gradient(updates))


def gram_rule(weigh: Callable[..., Verdict]) -> GramRule:
  """Makes a rule of a function from the Gram matrix to the clients' weights.

  Args:
    weigh: `(gram, *, **hyper) -> Verdict`. Its hyper-parameters become the
      rule's. Name one `distance` and the rule has a cosine form, too.

  Returns:
    A rule `(updates, **hyper) -> update`.

  Examples:
    The update of the smallest norm, and its layerwise form:

    >>> import jax, jax.numpy as jnp, lca
    >>> @lca.gram_rule
    ... def smallest(gram):
    ...   norms = lca.geometry.norms(gram)
    ...   winner = jax.nn.one_hot(jnp.argmin(norms), len(gram))
    ...   return lca.Verdict(weights=winner, scores=norms)
    >>> updates = {'w': jnp.array([[3.], [2.]]), 'b': jnp.array([1., 4.])}
    >>> print(smallest(updates))
    {'b': Array(1., dtype=float32), 'w': Array([3.], dtype=float32)}
    >>> print(lca.layerwise(smallest)(updates))
    {'b': Array(1., dtype=float32), 'w': Array([2.], dtype=float32)}
  """
  return GramRule(weigh)


def _rule_signature(hyper: list[inspect.Parameter]) -> inspect.Signature:
  kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
  updates = inspect.Parameter('updates', kind, annotation=Updates)
  return inspect.Signature([updates, *hyper], return_annotation=Update)


def layerwise(rule: Callable[..., Any], by: Scope = 'leaf') -> Rule:
  r"""Applies a rule to every layer on its own (section 3.2 of the paper).

  .. math:: L F(V_1, \dots, V_n) = (F(V_{1,1}, \dots, V_{n,1}), \dots,
      F(V_{1,k}, \dots, V_{n,k}))

  where :math:`V_{i,j}` is client i's part in layer j. The paper's layer is one
  leaf of the pytree: a kernel and its bias are two layers.

  Args:
    rule: any function of stacked updates.
    by: what a layer is. `'leaf'`; `'module'`, the path without its last key;
      `'block'`, its first key; `'model'`, everything; or a function from the
      path, a tuple of strings, to a hashable that leaves of one layer share.
      Flax's collection (`params`, `batch_stats`) does not count as a key for
      `'module'` and `'block'`.

  Returns:
    A rule with the hyper-parameters of the given one. Its `explain` stacks
    what was decided: `[layers, n]`, layers in the order of their first leaf.

  Raises:
    TypeError: `rule` is an Aggregator, or layerwise already.
    ValueError: unknown `by`.

  References:
    García-Márquez et al., Improving (α, f)-Byzantine resilience in federated
    learning via layerwise aggregation and cosine distance, 2025.
  """
  return _Layerwise(rule, by)


class _Layerwise(Rule):
  """See `layerwise`."""

  def __init__(self, rule: Callable[..., Any], by: Scope):
    if isinstance(rule, _Layerwise):
      raise TypeError(f'{rule} is layerwise already')
    if not callable(rule):
      raise TypeError(f'layerwise needs a rule, got {type(rule).__name__}')
    self.rule, self.key = rule, _grouping(by)
    self.__name__ = f'layerwise({rule_name(rule)})'
    self.__doc__ = rule.__doc__
    self.__signature__ = inspect.signature(rule)

  def explain(self, updates: Updates, **hyper: Any) -> tuple[Update, Info]:
    geometry.num_clients(updates)
    leaves, treedef = jax.tree.flatten(updates)
    groups = group_leaves(updates, self.key).values()
    layers = [[leaves[i] for i in group] for group in groups]
    parts, info = self._explain_layers(layers, hyper)
    out = [None] * len(leaves)
    for group, part in zip(groups, parts, strict=True):
      for i, leaf in zip(group, part, strict=True):
        out[i] = leaf
    return jax.tree.unflatten(treedef, out), info

  def _explain_layers(self, layers, hyper):
    if isinstance(self.rule, GramRule):
      # One batch of [n, n] problems instead of one trace per layer.
      grams = jnp.stack([_held_gram(layer) for layer in layers])
      weigh = functools.partial(self.rule.weigh, **hyper)
      verdicts = jax.vmap(weigh)(grams)
      parts = map(geometry.mix, layers, verdicts.weights)
      return parts, jax.vmap(Verdict.info)(verdicts, grams)
    decisions = [explain(self.rule)(layer, **hyper) for layer in layers]
    parts, infos = zip(*decisions, strict=True)
    return parts, jax.tree.map(lambda *rows: jnp.stack(rows), *infos)


def _grouping(by: Scope) -> Callable[[Path], Hashable]:
  known = {
    'model': lambda path: (),
    'leaf': lambda path: path,
    'module': lambda path: _without_collection(path)[:-1],
    'block': lambda path: _without_collection(path)[:1],
  }
  if callable(by):
    return by
  if by not in known:
    raise ValueError(f'scope must be one of {sorted(known)}, got {by!r}')
  return known[by]


def _without_collection(path: Path) -> Path:
  return path[1:] if path[:1] and path[0] in _COLLECTIONS else path


def group_leaves(
  tree: PyTree, key: Callable[[Path], Hashable]
) -> dict[Hashable, list[int]]:
  """Positions of the tree's leaves by layer, layers in order of appearance."""
  groups: dict[Hashable, list[int]] = {}
  for i, (path, _) in enumerate(jax.tree.leaves_with_path(tree)):
    names = tuple(jax.tree_util.keystr((k,), simple=True) for k in path)
    groups.setdefault(key(names), []).append(i)
  return groups


def cosine(
  rule: GramRule,
  *,
  clip: Literal['median'] | None = 'median',
  clip_by: Literal['scope', 'leaf'] = 'scope',
  median: geometry.Median = 'interpolated',
) -> Rule:
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
    A rule with the remaining hyper-parameters of `rule`. A zero row is at
    distance 2 from every nonzero row and 0 from another zero row (NaN in the
    published code).

  Raises:
    TypeError: `rule` has no distance, or is layerwise: the paper's method is
      `layerwise(cosine(rule))`.
    ValueError: unknown `clip`, `clip_by` or `median`, or a way to clip with
      `clip=None`.
  """
  if isinstance(rule, _Layerwise):
    inner = rule_name(rule.rule)
    raise TypeError(
      f'cosine({rule}) has no meaning: write layerwise(cosine({inner}))'
    )
  if not isinstance(rule, GramRule) or 'distance' not in _hyper(rule):
    raise TypeError(f'cosine needs a rule with a distance: {rule_name(rule)}')
  _check_option('clip', clip, ('median', None))
  _check_option('clip_by', clip_by, ('scope', 'leaf'))
  _check_option('median', median, ('interpolated', 'lower'))
  if clip is None and (clip_by, median) != ('scope', 'interpolated'):
    raise ValueError('clip_by and median do not apply with clip=None')

  def weigh(gram, **hyper):
    verdict = rule.weigh(gram, distance='cosine', **hyper)
    if clip is None or clip_by == 'leaf':
      return verdict
    factors = geometry.clip_factors(gram, median)
    return verdict._replace(weights=verdict.weights * factors)

  cosine_rule = GramRule(weigh)
  cosine_rule.__name__ = f'cosine({rule})'
  cosine_rule.__doc__ = rule.__doc__
  cosine_rule.__signature__ = _rule_signature(
    [p for name, p in _hyper(rule).items() if name not in ('distance', 'power')]
  )
  if clip is not None and clip_by == 'leaf':
    return _LeafClipped(cosine_rule, median)
  return cosine_rule


def _check_option(name: str, value: Any, known: tuple[Any, ...]) -> None:
  if value not in known:
    raise ValueError(f'{name} must be one of {known}, got {value!r}')


class _LeafClipped(Rule):
  """Mixes every leaf from rows clipped to the median norm of that leaf."""

  def __init__(self, rule: GramRule, median: geometry.Median):
    self.rule, self.median = rule, median
    self.__name__, self.__doc__ = rule.__name__, rule.__doc__
    self.__signature__ = inspect.signature(rule)

  def explain(self, updates: Updates, **hyper: Any) -> tuple[Update, Info]:
    grams = jax.tree.map(_held_gram, updates)
    total = functools.reduce(jnp.add, jax.tree.leaves(grams))
    verdict = self.rule.weigh(total, **hyper)
    rejected = geometry.rejected_rows(total)

    def mix(leaf, gram):
      factors = geometry.clip_factors(gram, self.median, rejected)
      return geometry.mix(leaf, verdict.weights * factors)

    return jax.tree.map(mix, updates, grams), verdict.info(total)


def explain(rule: Callable[..., Any]) -> Callable[..., tuple[Update, Info]]:
  """Makes a rule return `(update, info)`: what it gives, and what it decided.

  Args:
    rule: any function of stacked updates.

  Returns:
    A function with the same arguments. `info` holds those that apply of
    `weights`, `scores`, `selected` and `rejected`, each `[n]`, or
    `[layers, n]` under `layerwise`; nothing of it applies to a plain function.

  Raises:
    TypeError: `rule` is not a function, such as an Aggregator.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> updates = jnp.array([[0.], [1.], [1.], [1.], [9.]])
    >>> update, info = lca.explain(lca.krum)(updates, f=1)
    >>> print(update, info['selected'])
    [1.] [False  True False False False]
  """
  if isinstance(rule, Rule):
    return rule.explain
  if not callable(rule):
    raise TypeError(f'explain needs a rule, got {type(rule).__name__}')
  return lambda updates, **hyper: (rule(updates, **hyper), {})


def rule_name(rule: Callable[..., Any]) -> str:
  """The name that messages give a rule."""
  return getattr(rule, '__name__', None) or repr(rule)


def _hyper(rule: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """The rule's parameters beside the updates."""
  _, *hyper = inspect.signature(rule).parameters.items()
  return dict(hyper)


class UpdateFn(Protocol):
  """The signature of `Aggregator.update`."""

  def __call__(
    self,
    updates: Updates,
    state: PyTree,
    *,
    key: jax.Array | None = None,
    weights: jax.Array | None = None,
    server_update: Update | None = None,
  ) -> tuple[Update, PyTree]: ...


class Aggregator(NamedTuple):
  """A possibly stateful aggregation, an optax-like pair of pure functions.

  Attributes:
    init: `init(params) -> state`, given a tree shaped like one update.
    update: `update(updates, state, *, key=None, weights=None,
      server_update=None) -> (update, state)`.
  """

  init: Callable[[PyTree], PyTree]
  update: UpdateFn


_PER_ROUND = ('key', 'weights', 'server_update')


def stateless(rule: Callable[..., Update], **hyper: Any) -> Aggregator:
  """Makes an Aggregator with an empty state of a rule.

  Args:
    rule: a function of stacked updates.
    **hyper: its hyper-parameters, bound for every round. What a round brings
      (`key`, `weights`, `server_update`) is passed on if the rule names it and
      it is not bound here.

  Returns:
    An Aggregator. Its `update` raises a TypeError when the round lacks what
    the rule requires.

  Raises:
    TypeError: a hyper-parameter that the rule does not have, or one that it
      requires and that is missing.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> aggregator = lca.stateless(lca.krum, f=1)
    >>> state = aggregator.init(jnp.zeros(1))
    >>> updates = jnp.array([[0.], [1.], [1.], [1.], [9.]])
    >>> update, state = aggregator.update(updates, state)
    >>> print(update)
    [1.]
  """
  parameters = _hyper(rule)
  name = rule_name(rule)
  if unknown := sorted(set(hyper) - set(parameters)):
    raise TypeError(f'{name} takes {sorted(parameters)}, not {unknown}')
  required = {k for k, p in parameters.items() if p.default is p.empty}
  if missing := sorted(required - set(hyper) - set(_PER_ROUND)):
    raise TypeError(f'{name} needs {missing}')
  wanted = [k for k in _PER_ROUND if k in parameters and k not in hyper]

  def update(updates, state, *, key=None, weights=None, server_update=None):
    brought = {'key': key, 'weights': weights, 'server_update': server_update}
    given = {k: brought[k] for k in wanted if brought[k] is not None}
    if lacking := sorted(required & set(wanted) - set(given)):
      raise TypeError(f'{name} needs {lacking} from the round')
    return rule(updates, **hyper, **given), state

  return Aggregator(init=lambda params: (), update=update)
