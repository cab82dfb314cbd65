"""The server's part of a round: from the clients' updates to the next model."""

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lca.aggregators import Aggregator, Scope, explain
from lca.aggregators.base import Info
from lca.attacks import NO_ATTACK, Attack
from lca.attacks.base import keep_updates
from lca.federated import forensics, metrics
from lca.federated.clients import with_momentum
from lca.federated.optimizer import AnyOptimizer, numbers_of, with_numbers
from lca.stacked import geometry
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
  """

  variables: PyTree
  opt_state: optax.OptState
  aggregator: PyTree
  momenta: PyTree


class Sent(NamedTuple):
  """The results of local training in one round.

  Attributes:
    updates: the `n` clients' updates of all variables, leaves `[n, ...]`, as
      they were trained; or, from `receive`, as they arrive.
    losses: `[n]` mean training losses in nats.
    server_update: the server's update from its own examples; None if it has
      none.
  """

  updates: Updates
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
  """

  ids: jax.Array | np.ndarray
  byzantine: jax.Array | np.ndarray
  num_examples: jax.Array | np.ndarray
  attack_key: jax.Array
  rule_key: jax.Array
  answered: jax.Array | np.ndarray | None = None


def server_init(
  server: Server, variables: PyTree, update: Update, num_clients: int
) -> ServerState:
  """Returns the server's state before the first round.

  Args:
    server: the parts of the server's step.
    variables: the initial model.
    update: a tree shaped like one client's update; its values are not used.
    num_clients: number of clients in the population.
  """
  momenta = ()
  if server.momentum:
    momenta = jax.tree.map(
      lambda x: jnp.zeros((num_clients, *x.shape), x.dtype), variables['params']
    )
  return ServerState(
    variables=variables,
    opt_state=server.optimizer.init(variables['params']),
    aggregator=server.aggregator.init(server.for_rule(update)),
    momenta=momenta,
  )


def server_step(
  server: Server, state: ServerState, sent: Sent, drawn: Round
) -> tuple[ServerState, dict[str, Any]]:
  """Turns the results of a round's local training into the next model.

  Worker momentum, missing answers and the attack change the updates
  (`receive`). The server aggregates the rows that it receives, takes one step
  of its optimiser, and measures the round (`next_model`).

  Args:
    server: the parts of the server's step.
    state: the state after the previous round.
    sent: the results of the round's local training.
    drawn: the clients of the round, and its other random draws.

  Returns:
    The next state, and the metrics by name (see `lca.federated.metrics`). With
    `server.forensics` they have an entry `'forensics'`, a dict of evidence.
  """
  received, momenta = receive(server, state, sent, drawn)
  state = state._replace(momenta=momenta)
  return next_model(server, state, received, drawn)


def receive(
  server: Server, state: ServerState, sent: Sent, drawn: Round
) -> tuple[Sent, PyTree]:
  """Returns what the server receives, and the clients' new momenta.

  Args:
    server, state, sent, drawn: see `server_step`.

  Returns:
    The same results with the updates that arrive at the server, and the
    momenta of all clients.
  """
  # 1. Worker momentum: a client sends a moving average of its updates.
  updates, momenta = sent.updates, state.momenta
  if server.momentum:
    updates, momenta = _with_momentum(server, momenta, updates, drawn)

  # 2. Missing answers: the row of a client that does not answer becomes NaN.
  if (answered := drawn.answered) is not None:
    updates = jax.tree.map(
      lambda x: jnp.where(
        answered.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan
      ),
      updates,
    )

  # 3. Attack: Byzantine clients replace their rows. They may call `aggregate`
  # to see what the server would make of any updates.
  updates = server.attack.on_updates(
    updates,
    byzantine=drawn.byzantine,
    key=drawn.attack_key,
    aggregate=lambda updates: aggregate(server, state, updates, sent, drawn)[0],
    **server.attack.numbers,
  )
  return sent._replace(updates=updates), momenta


def next_model(
  server: Server, state: ServerState, received: Sent, drawn: Round
) -> tuple[ServerState, dict[str, Any]]:
  """Makes the next model of the updates that the server has received.

  Args:
    server, drawn: see `server_step`.
    state: the state after the previous round, with this round's momenta.
    received: from `receive`.

  Returns:
    See `server_step`.
  """
  # 4. Aggregation: the server makes one update of all rows, in the dtypes of
  # the model (updates may be stored in narrower ones).
  updates = received.updates
  update, aggregator_state, info = aggregate(
    server, state, updates, received, drawn
  )
  update = jax.tree.map(lambda u, x: u.astype(x.dtype), update, state.variables)

  # 5. The optimiser's step on the parameters. optax expects gradients, which
  # point away from the update.
  gradient = jax.tree.map(jnp.negative, update['params'])
  params = state.variables['params']
  step, opt_state = server.optimizer.update(gradient, state.opt_state, params)
  variables = {'params': optax.apply_updates(params, step)}

  # 6. Batch statistics bypass the optimiser: their update is added.
  floored = None
  if 'batch_stats' in state.variables:
    variables['batch_stats'], floored = _add_statistics(
      state.variables['batch_stats'], update['batch_stats']
    )

  # 7. Metrics, and the state for the next round.
  result = metrics.RoundResult(
    losses=received.losses,
    byzantine=drawn.byzantine,
    answered=drawn.answered,
    updates=updates,
    for_rule=server.for_rule(updates),
    update=update,
    variables=variables,
    info=info,
    floored=floored,
    layers=server.layers,
  )
  state = ServerState(variables, opt_state, aggregator_state, state.momenta)
  measured: OrderedDict[str, Any] = metrics.measure(result)
  if server.forensics:
    measured['forensics'] = forensics.evidence(result)
  return state, measured


def aggregate(
  server: Server, state: ServerState, updates: Updates, sent: Sent, drawn: Round
) -> tuple[Update, PyTree, Info]:
  """Aggregates any updates as the server would in this round.

  Args:
    server: the parts of the server's step.
    state: the state after the previous round.
    updates: the updates to aggregate, leaves `[n, ...]`; `sent.updates` are not
      used.
    sent: the results of the round's local training, for the server's own
      update.
    drawn: the clients of the round, and its other random draws.

  Returns:
    The aggregate, the aggregator's next state, and what the rule decided (see
    `lca.explain`).

  Raises:
    ValueError: `server.batch_stats` is `'server'`, but `sent` has no update of
      the server's own.
  """
  server_update = sent.server_update
  server.check_examples(server_update is not None)

  # A client that does not answer has weight 0.
  weights = drawn.num_examples
  if drawn.answered is not None:
    weights = jnp.where(drawn.answered, weights, 0)
  update, aggregator_state, info = explain(server.aggregator)(
    server.for_rule(updates),
    state.aggregator,
    key=drawn.rule_key,
    weights=weights.astype(jnp.float32),
    server_update=(
      None if server_update is None else server.for_rule(server_update)
    ),
    params=server.for_rule(state.variables),
    client_ids=drawn.ids,
  )

  # Batch statistics, unless the rule has aggregated them with the parameters.
  if server.batch_stats != 'rule' and 'batch_stats' in updates:
    if server.batch_stats == 'server':
      assert server_update is not None  # by `check_examples`
      statistics = server_update['batch_stats']
    else:
      # The mean over the clients whose statistics are finite; NaN if none are.
      rows = updates['batch_stats']
      finite = ~geometry.rejected_rows(geometry.norms_gram(rows))
      shares = jnp.where(jnp.any(finite), finite / jnp.sum(finite), jnp.nan)
      statistics = geometry.mix(rows, shares)
    update = update | {'batch_stats': statistics}
  return update, aggregator_state, info


def _with_momentum(server, momenta, updates, drawn):
  """Applies worker momentum to the parameters' updates.

  The momentum of a client that does not answer stays unchanged.
  """
  ids = drawn.ids
  if drawn.answered is not None:
    # `with_momentum` stores nothing for an id beyond the last client's.
    num_clients = len(jax.tree.leaves(momenta)[0])
    ids = jnp.where(drawn.answered, ids, num_clients)
  momenta, params = with_momentum(
    momenta, updates['params'], ids, server.momentum
  )
  return updates | {'params': params}, momenta


def _add_statistics(batch_stats, update):
  """Adds an update to batch statistics and raises negative variances to 0.

  Returns:
    The new statistics, and the number of variances that were negative.
  """
  added = jax.tree.map(jnp.add, batch_stats, update)
  floored = jax.tree.map_with_path(
    lambda path, x: jnp.maximum(x, 0) if path[-1].key == 'var' else x, added
  )
  counts = jax.tree.map(lambda old, new: jnp.sum(old < new), added, floored)
  return floored, jnp.sum(jnp.stack(jax.tree.leaves(counts)))
