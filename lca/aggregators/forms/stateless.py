"""Makes aggregators with an empty state from rules."""

from collections.abc import Callable, Mapping
from typing import Any

from lca.aggregators.base import (
  Aggregator,
  ExplainedUpdate,
  explain,
  hyper_of,
  rule_name,
)
from lca.aggregators.brought import ROUND_BRINGS
from lca.typing import Update

_REMEDIES = {
  'server_update': (
    ', or in a simulation set data.root_examples, so that the server trains on '
    'examples of its own'
  )
}


def stateless(rule: Callable[..., Update], **hyper: Any) -> Aggregator:
  """Makes an Aggregator with an empty state from a rule.

  Args:
    rule: function of stacked updates.
    **hyper: hyper-parameters of the rule, bound for every round. Arguments that
      a round brings (`lca.aggregators.ROUND_BRINGS`) are passed on if the rule
      names them and they are not bound here. `stateless` checks the names when
      it is called; a type checker does not.

  Returns:
    An Aggregator. Its `update` raises a TypeError if the round does not bring
    an argument that the rule requires.

  Raises:
    TypeError: the rule does not have one of the hyper-parameters, or a required
      one is missing.

  Examples:
    >>> import jax.numpy as jnp, lca
    >>> aggregator = lca.stateless(lca.krum, f=1)
    >>> state = aggregator.init(jnp.zeros(1))
    >>> updates = jnp.array([[0.], [1.], [1.], [1.], [9.]])
    >>> update, state = aggregator.update(updates, state)
    >>> print(update)
    [1.]
  """
  parameters = hyper_of(rule)
  name = rule_name(rule)
  if unknown := sorted(set(hyper) - set(parameters)):
    raise TypeError(
      f'{name} has no options {unknown}; it takes {sorted(parameters)}'
    )
  required = {k for k, p in parameters.items() if p.default is p.empty}
  bound = {k for k, value in hyper.items() if value is not None}
  if missing := sorted(required - bound - set(ROUND_BRINGS)):
    raise TypeError(f'{name} needs {missing}, which have no default')
  wanted = [k for k in ROUND_BRINGS if k in parameters and k not in hyper]

  def options(brought):
    given = {k: brought[k] for k in wanted if brought.get(k) is not None}
    for lacking in sorted(required & set(wanted) - set(given)):
      raise TypeError(
        f'{name} needs {lacking} from the round: pass {lacking}= to update'
        f'{_REMEDIES.get(lacking, "")}'
      )
    return given

  return Aggregator(lambda params: (), RuleUpdate(rule, hyper, options))


class RuleUpdate(ExplainedUpdate):
  """The update of an Aggregator that applies a rule in every round.

  Attributes:
    rule: the rule.
    hyper: the hyper-parameters that are bound for every round.
    options: a function from the arguments that a round brings, by name, to the
      further hyper-parameters of that round.
  """

  def __init__(
    self,
    rule: Callable[..., Update],
    hyper: Mapping[str, Any],
    options: Callable[[Mapping[str, Any]], dict[str, Any]],
  ):
    # Descriptions of runs find `rule` and `hyper` in this closure by name.
    def explain_update(updates, state, **brought):
      update, info = explain(rule)(updates, **hyper, **options(brought))
      return update, state, info

    super().__init__(explain_update)
    self.rule, self.hyper, self.options = rule, hyper, options
