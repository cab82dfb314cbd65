"""A round of the server: from what the clients send to the next model."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lca.aggregators import Aggregator, Scope, explain
from lca.aggregators.base import Info
from lca.attacks import NO_ATTACK, Attack
from lca.federated import metrics
from lca.federated.clients import with_momentum
from lca.stacked import geometry
from lca.typing import PyTree, Update, Updates

BATCH_STATS = ('rule', 'mean', 'server')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
  """Takes the clients' updates to the model, in every round alike.

  Attributes:
    aggregator: of the updates.
    optimizer: over the parameters; SGD with learning rate 1 adds the aggregate
      to the model.
    attack: of the Byzantine clients, before the server receives anything.
    momentum: of the clients (see `clients.with_momentum`); 0 keeps none.
    batch_stats: chooses how a model's batch statistics are aggregated: by the
      `'rule'`, along with the parameters; as a plain `'mean'` over the clients
      whose statistics are finite; or not at all, if the `'server'` takes its
      own, from its own examples. In all cases they are added to the model's,
      and running variances floored at 0.
    layers: the scope of the layers (see `lca.layerwise`) whose normalised
      norms, and factors if the rule has any, are among the metrics; None for
      none of them.

  Raises:
    ValueError: an unknown `batch_stats`.
  """

  aggregator: Aggregator
  optimizer: optax.GradientTransformation
  attack: Attack = NO_ATTACK
  momentum: float = 0.0
  batch_stats: str = 'rule'
  layers: Scope | None = None

  def __post_init__(self):
    if self.batch_stats not in BATCH_STATS:
      raise ValueError(
        f'model.batch_stats must be one of {BATCH_STATS}, '
        f'got {self.batch_stats!r}'
      )

  def check_examples(self, there: bool) -> None:
    """Checks that the server has examples of its own if it needs them.

    Args:
      there: True if it has some.

    Raises:
      ValueError: it needs them and has none.
    """
    if self.batch_stats == 'server' and not there:
      raise ValueError(
        "model.batch_stats='server' needs data.root_examples of the server"
      )

  def for_rule(self, tree: PyTree) -> PyTree:
    """Returns the part of the variables, or of updates, that the rule sees."""
    if self.batch_stats == 'rule':
      return tree
    return {'params': tree['params']}


class ServerState(NamedTuple):
  """Holds all that the server carries from round to round.

  Attributes:
    variables: of the model, a Flax dict with `'params'` and maybe
      `'batch_stats'`.
    opt_state: of the server's optimiser, over `'params'`.
    aggregator: the aggregator's state.
    momenta: of the clients' `'params'`, `[num_clients, ...]`; `()` without
      momentum.
  """

  variables: PyTree
  opt_state: optax.OptState
  aggregator: PyTree
  momenta: PyTree


class Sent(NamedTuple):
  """Holds the results of a round's training.

  Attributes:
    updates: of the `n` clients, stacked `[n, ...]`, like the variables.
    losses: `[n]`, their mean training losses in nats.
    server_update: the server's own, from its own examples; None without any.
  """

  updates: Updates
  losses: jax.Array
  server_update: Update | None = None


class Round(NamedTuple):
  """Holds what was drawn for a round of `n` clients.

  Attributes:
    ids: `[n]`, which clients they are.
    byzantine: `[n]` mask of those that attack.
    num_examples: `[n]`, how many each holds.
    attack_key: decides what the attack draws.
    rule_key: decides what the rule draws.
    answered: `[n]` mask of those that answer; None if everybody always does.
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
  """Returns the state before the first round.

  Args:
    server: what happens in every round.
    variables: of the model to start from.
    update: a tree like one client's update, of any values.
    num_clients: of the population.
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
) -> tuple[ServerState, dict[str, jax.Array]]:
  """Takes the model through one round.

  The clients' updates pass, in this order, through their momentum, the drop
  out of clients that do not answer, and the attack. The server aggregates what
  it has received and takes one step of its optimiser.

  Args:
    server: what happens in every round.
    state: after the round before.
    sent: what the round's training has computed.
    drawn: who took part.

  Returns:
    The new state, and the metrics by name (see `lca.federated.metrics`).
  """
  updates, momenta = sent.updates, state.momenta
  if server.momentum:
    updates, momenta = _with_momentum(server, momenta, updates, drawn)
  if (answered := drawn.answered) is not None:
    # A client that does not answer is a row of NaN.
    updates = jax.tree.map(
      lambda x: jnp.where(
        answered.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan
      ),
      updates,
    )

  # The attack may ask what the server would make of any updates.
  updates = server.attack.on_updates(
    updates,
    byzantine=drawn.byzantine,
    key=drawn.attack_key,
    aggregate=lambda updates: aggregate(server, state, updates, sent, drawn)[0],
  )
  update, memory, info = aggregate(server, state, updates, sent, drawn)
  update = jax.tree.map(  # updates may be stored in less than the model is
    lambda u, x: u.astype(x.dtype), update, state.variables
  )

  # optax takes gradients, which point the other way.
  gradient = jax.tree.map(jnp.negative, update['params'])
  params = state.variables['params']
  step, opt_state = server.optimizer.update(gradient, state.opt_state, params)
  variables = {'params': optax.apply_updates(params, step)}
  floored = None
  if 'batch_stats' in state.variables:
    variables['batch_stats'], floored = _add_statistics(
      state.variables['batch_stats'], update['batch_stats']
    )

  seen = metrics.Seen(
    losses=sent.losses,
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
  state = ServerState(variables, opt_state, memory, momenta)
  return state, metrics.measure(seen)


def aggregate(
  server: Server, state: ServerState, updates: Updates, sent: Sent, drawn: Round
) -> tuple[Update, PyTree, Info]:
  """Aggregates some updates as the server would in this round.

  Args:
    server: what happens in every round.
    state: after the round before.
    updates: `[n, ...]`, in the place of those that were sent.
    sent: what the round's training has computed.
    drawn: who took part.

  Returns:
    The aggregate, the aggregator's next state, and what the rule decided.

  Raises:
    ValueError: the server is to take its own batch statistics, but it has sent
      no update of its own.
  """
  weights = drawn.num_examples
  if drawn.answered is not None:
    weights = jnp.where(drawn.answered, weights, 0)
  own = sent.server_update
  server.check_examples(own is not None)
  update, memory, info = explain(server.aggregator)(
    server.for_rule(updates),
    state.aggregator,
    key=drawn.rule_key,
    weights=weights.astype(jnp.float32),
    server_update=None if own is None else server.for_rule(own),
    params=server.for_rule(state.variables),
    client_ids=drawn.ids,
  )
  if server.batch_stats != 'rule' and 'batch_stats' in updates:
    if server.batch_stats == 'server':
      assert own is not None  # by `check_examples`
      statistics = own['batch_stats']
    else:  # the mean over the clients whose statistics are finite
      rows = updates['batch_stats']
      finite = ~geometry.rejected_rows(geometry.norms_gram(rows))
      shares = jnp.where(jnp.any(finite), finite / jnp.sum(finite), jnp.nan)
      statistics = geometry.mix(rows, shares)
    update = update | {'batch_stats': statistics}
  return update, memory, info


def _with_momentum(server, momenta, updates, drawn):
  """Applies worker momentum; who does not answer keeps its own as it was."""
  num_clients = len(jax.tree.leaves(momenta)[0])
  ids = drawn.ids
  if drawn.answered is not None:
    ids = jnp.where(drawn.answered, ids, num_clients)
  momenta, params = with_momentum(
    momenta, updates['params'], ids, server.momentum
  )
  return updates | {'params': params}, momenta


def _add_statistics(batch_stats, update):
  """Returns the sum with variances of at least 0, and how many were below."""
  moved = jax.tree.map(jnp.add, batch_stats, update)
  floored = jax.tree.map_with_path(
    lambda path, x: jnp.maximum(x, 0) if path[-1].key == 'var' else x, moved
  )
  below = jax.tree.map(lambda old, new: jnp.sum(old < new), moved, floored)
  return floored, jnp.sum(jnp.stack(jax.tree.leaves(below)))
