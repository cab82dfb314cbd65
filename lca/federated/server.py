"""The parts of the server's step, its state, and the draws of a round."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lca.aggregators import Aggregator, Predictor, Scope
from lca.attacks import NO_ATTACK, Attack
from lca.attacks.base import keep_updates
from lca.data import ClientData, Dataset
from lca.federated.optimizer import AnyOptimizer, numbers_of, with_numbers
from lca.models import Classifier
from lca.typing import PyTree, Update, Updates

BATCH_STATS = ('rule', 'mean', 'server')
"""The ways to aggregate batch statistics; see `Server.batch_stats`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
  """The parts of the server's step, which are the same in every round.

  Attributes:
    aggregator: aggregates the updates.
    optimizer: applies the aggregate to the parameters. SGD with learning rate 1
      adds the aggregate to the model.
    attack: changes the Byzantine clients' labels and updates, before the server
      receives the updates.
    momentum: worker momentum of the clients (see `clients.with_momentum`), in
      [0, 1); 0 keeps no momenta.
    batch_stats: how to aggregate the updates of a model's batch statistics.
      `'rule'` aggregates them along with the parameters. `'mean'` takes a plain
      mean over the clients whose statistics are finite. `'server'` takes the
      update that the server computes from its own examples. In all cases the
      result is added to the model's statistics, and negative running variances
      are set to 0.
    layers: scope of the layers to measure (see `lca.layerwise`). Their
      normalised norms become metrics, and their factors if the rule has any.
      None measures no layers.
    forensics: True adds evidence about every client in every layer to the
      metrics (see `lca.federated.forensics`).
    detection: True measures how well the rule tells attackers from honest
      clients.
    predict: the model as a function of its variables, for rules that ask for it
      (see `for_model`); None if there is none.

  Raises:
    ValueError: `batch_stats` is unknown.
  """

  aggregator: Aggregator
  optimizer: AnyOptimizer
  attack: Attack = NO_ATTACK
  momentum: float = 0.0
  batch_stats: str = 'rule'
  layers: Scope | None = None
  forensics: bool = False
  detection: bool = False
  predict: Predictor | None = None

  def __post_init__(self):
    if self.batch_stats not in BATCH_STATS:
      raise ValueError(
        f'model.batch_stats must be one of {BATCH_STATS}, '
        f'got {self.batch_stats!r}'
      )

  def check_examples(self, has_examples: bool) -> None:
    """Checks that the server has examples of its own if it needs them.

    Args:
      has_examples: True if the server has examples of its own.

    Raises:
      ValueError: the server needs examples and has none.
    """
    if self.batch_stats == 'server' and not has_examples:
      raise ValueError(
        "model.batch_stats='server' needs examples of the server's own: set "
        'data.root_examples to a positive number'
      )

  def for_model(self, classifier: Classifier, dataset: Dataset) -> 'Server':
    """Returns these parts with `predict` of a model and its data."""
    spec, values = dataset.train.input_spec, dataset.input_range
    assert values is not None  # by `Dataset`
    predict = Predictor(classifier.logits, spec, values)
    return dataclasses.replace(self, predict=predict)

  @property
  def numbers(self) -> dict[str, Any]:
    """Numbers that a compiled program takes as arguments; see `with_numbers`.

    They are those of the attack, and the learning rate of an `Optimizer`.
    """
    return {
      'attack': dict(self.attack.numbers),
      'optimizer': numbers_of(self.optimizer),
    }

  def with_numbers(self, numbers: Mapping[str, Any]) -> 'Server':
    """Returns these parts with other values of `numbers`."""
    return dataclasses.replace(
      self,
      attack=self.attack._replace(numbers=numbers['attack']),
      optimizer=with_numbers(self.optimizer, numbers['optimizer']),
    )

  @property
  def changes_updates(self) -> bool:
    """False if the updates of all clients that answer arrive unchanged."""
    attacks = self.attack.on_updates is not keep_updates
    return attacks or self.momentum > 0

  def for_rule(self, tree: PyTree) -> PyTree:
    """Returns the part of variables or updates that the rule works on."""
    if self.batch_stats == 'rule':
      return tree
    return {'params': tree['params']}


class ServerState(NamedTuple):
  """The state that the server carries from round to round.

  Attributes:
    variables: the model, a Flax dict with `'params'` and maybe `'batch_stats'`.
    opt_state: state of the server's optimiser, over `'params'`.
    aggregator: state of the aggregator.
    momenta: the clients' momenta, like `'params'` but stacked, `[num_clients,
      ...]`; `()` without momentum.
    attack: what the attackers keep from round to round: `'last_change'`, the
      model less the one before, like `variables`, and zeros before the first
      round, if the attack needs it; and `'memory'`, if the attack adapts (see
      `lca.attacks.Attack`).
  """

  variables: PyTree
  opt_state: optax.OptState
  aggregator: PyTree
  momenta: PyTree
  attack: Mapping[str, PyTree] = {}

  @property
  def memory(self) -> dict[str, PyTree]:
    """The memory of an attack that adapts, by its name; {} if it does not."""
    return memory_in(self.attack)


def memory_in(kept: Mapping[str, PyTree]) -> dict[str, PyTree]:
  """Returns the memory among what attackers keep (`ServerState.attack`)."""
  return {name: x for name, x in kept.items() if name == 'memory'}


class Sent(NamedTuple):
  """The results of local training in one round.

  Attributes:
    updates: the `n` clients' updates of all variables, leaves `[n, ...]`, as
      they were trained; or, from `receive`, as they arrive. None in a round
      that does not hold them.
    losses: `[n]` mean training losses in nats.
    server_update: the server's update from its own examples; None if it has
      none.
  """

  updates: Updates | None
  losses: jax.Array
  server_update: Update | None = None


class Round(NamedTuple):
  """The random draws for one round of `n` clients.

  Attributes:
    ids: `[n]` ids of the clients.
    byzantine: `[n]` mask of the clients that attack.
    num_examples: `[n]` numbers of examples that the clients hold.
    attack_key: PRNG key for the attack.
    rule_key: PRNG key for the aggregation rule.
    answered: `[n]` mask of the clients that answer; None in a run in which
      every client always answers.
    attacker: the true examples of the first attacker, none if nobody attacks;
      None unless the attack needs a loss.
  """

  ids: jax.Array | np.ndarray
  byzantine: jax.Array | np.ndarray
  num_examples: jax.Array | np.ndarray
  attack_key: jax.Array
  rule_key: jax.Array
  answered: jax.Array | np.ndarray | None = None
  attacker: ClientData | None = None


def server_init(
  server: Server,
  variables: PyTree,
  update: Update,
  num_clients: int,
  memory: PyTree = None,
) -> ServerState:
  """Returns the server's state before the first round.

  Args:
    server: the parts of the server's step.
    variables: the initial model.
    update: a tree shaped like one client's update; its values are not used.
    num_clients: number of clients in the population.
    memory: of an attack that adapts; None if it does not.
  """
  momenta = ()
  if server.momentum:
    momenta = jax.tree.map(
      lambda x: jnp.zeros((num_clients, *x.shape), x.dtype), variables['params']
    )
  attack = {}
  if server.attack.needs_last_change:
    attack['last_change'] = jax.tree.map(jnp.zeros_like, variables)
  if memory is not None:
    attack['memory'] = memory
  return ServerState(
    variables=variables,
    opt_state=server.optimizer.init(variables['params']),
    aggregator=server.aggregator.init(server.for_rule(update)),
    momenta=momenta,
    attack=attack,
  )
