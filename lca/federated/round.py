"""The server's part of a round: from the clients' updates to the next model."""

import dataclasses
import functools
from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lca.aggregators import explain
from lca.aggregators.base import Info
from lca.data import ClientData
from lca.federated import forensics, metrics
from lca.federated.clients import with_momentum
from lca.federated.server import Round, Sent, Server, ServerState
from lca.stacked import geometry, sums
from lca.typing import PyTree, Update, Updates


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
  if drawn.answered is not None:
    updates = without_answer(updates, drawn.answered)

  # 3. Attack: Byzantine clients replace their rows. They may call `aggregate`
  # to see what the server would make of any updates.
  updates = server.attack.on_updates(
    updates,
    byzantine=drawn.byzantine,
    key=drawn.attack_key,
    aggregate=lambda updates: aggregate(server, state, updates, sent, drawn)[0],
    **known_to_attackers(server, state, drawn),
    **server.attack.numbers,
  )
  return sent._replace(updates=updates), momenta


def known_to_attackers(
  server: Server, state: ServerState, drawn: Round
) -> dict[str, Any]:
  """Returns what an attack on the updates is given of model and server."""
  known: dict[str, Any] = {}
  if server.attack.needs_last_change:
    known['last_change'] = state.attack['last_change']
  if server.attack.needs_loss:
    assert drawn.attacker is not None  # by `Drawing.draw`
    known['loss'] = functools.partial(
      loss_after, server, state.variables, drawn.attacker
    )
  return known


def loss_after(
  server: Server, variables: PyTree, examples: ClientData, update: Update
) -> jax.Array:
  """Returns the mean loss, in nats, of the model plus an aggregate.

  Args:
    server: has `predict`.
    variables: the model.
    examples: of one client; the loss is 0 if it has none.
    update: the aggregate.
  """
  assert server.predict is not None  # a `Simulation` sets it
  moved = {
    name: _add_statistics(variables[name], x)[0]
    if name == 'batch_stats'
    else jax.tree.map(jnp.add, variables[name], x)
    for name, x in update.items()
  }
  logits = server.predict({**variables, **moved}, jnp.asarray(examples.inputs))
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, examples.labels
  )
  counted = jnp.arange(len(losses)) < examples.num_examples
  total = jnp.sum(jnp.where(counted, losses, 0))
  return total / jnp.maximum(examples.num_examples, 1)


def without_answer(
  updates: Updates, answered: jax.Array | np.ndarray
) -> Updates:
  """Sets the rows of the clients that do not answer to NaN.

  Args:
    updates: stacked pytree, leaves `[n, ...]`.
    answered: `[n]` mask of the clients that answer.
  """

  def on_leaf(x):
    mask = answered.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(mask, x, jnp.nan)

  return jax.tree.map(on_leaf, updates)


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
  # 4. Aggregation: the server makes one update of all rows.
  updates = received.updates
  update, aggregator_state, info = aggregate(
    server, state, updates, received, drawn
  )
  state = state._replace(aggregator=aggregator_state)
  squares = jax.tree.map(sums.squares, updates)
  return apply_update(
    server, state, Aggregate(update, info, squares), received, drawn
  )


class Aggregate(NamedTuple):
  """The update that the server has made of a round's rows.

  Attributes:
    update: the update.
    info: what the rule decided; see `lca.explain`.
    squares: squared norms of the rows by leaf, a tree like the update with
      leaves `[n]`.
  """

  update: Update
  info: Info
  squares: PyTree


def apply_update(
  server: Server,
  state: ServerState,
  aggregated: Aggregate,
  received: Sent,
  drawn: Round,
) -> tuple[ServerState, dict[str, Any]]:
  """Applies the aggregate to the model, and measures the round.

  Args:
    server, drawn: see `server_step`.
    state: the state after the previous round, with this round's momenta and the
      aggregator's new state.
    aggregated: the aggregate, and what is known about it.
    received: from `receive`.

  Returns:
    See `server_step`.
  """
  # The aggregate in the dtypes of the model; updates may be stored in narrower
  # ones.
  update, updates = aggregated.update, received.updates
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
  held = updates is not None
  result = (metrics.RoundResult if held else metrics.WithoutUpdates)(
    losses=received.losses,
    byzantine=drawn.byzantine,
    answered=drawn.answered,
    updates=updates,
    for_rule=server.for_rule(updates) if held else None,
    squares=aggregated.squares,
    squares_for_rule=server.for_rule(aggregated.squares),
    update=update,
    variables=variables,
    info=aggregated.info,
    floored=floored,
    layers=server.layers,
    detection=server.detection,
  )
  if server.attack.needs_last_change:
    last_change = jax.tree.map(jnp.subtract, variables, state.variables)
    kept = {**state.attack, 'last_change': last_change}
    state = state._replace(attack=kept)
  state = state._replace(variables=variables, opt_state=opt_state)
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

  update, aggregator_state, info = explain(server.aggregator)(
    server.for_rule(updates),
    state.aggregator,
    **brought(server, state.variables, server_update, drawn),
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


def brought(
  server: Server,
  variables: PyTree,
  server_update: Update | None,
  drawn: Round,
) -> dict[str, Any]:
  """Returns what a round brings to a rule (`lca.aggregators.ROUND_BRINGS`)."""
  predict = model = server.predict
  if model is not None:
    # Variables that the rule does not work on have the server's values.
    predict = dataclasses.replace(
      model, function=lambda tree, x: model({**variables, **tree}, x)
    )
  # A client that does not answer has weight 0.
  weights = drawn.num_examples
  if drawn.answered is not None:
    weights = jnp.where(drawn.answered, weights, 0)
  if server_update is not None:
    server_update = server.for_rule(server_update)
  return {
    'key': drawn.rule_key,
    'weights': weights.astype(jnp.float32),
    'server_update': server_update,
    'params': server.for_rule(variables),
    'client_ids': drawn.ids,
    'predict': predict,
  }


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
