"""One federated round: sample, train, attack, aggregate, apply."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from lca import geometry
from lca.aggregators import (
  Aggregator,
  LegatoState,
  Scope,
  layer_names,
  normalized_norms,
)
from lca.attacks import Attack
from lca.clients import (
  LocalGradient,
  pad_rows,
  place_clients,
  train_clients,
  with_momentum,
)
from lca.data import FederatedDataset
from lca.models import Classifier
from lca.randomness import Purpose, key_for
from lca.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Population:
  """Who may be drawn for a round, and who of them attacks.

  Attributes:
    num_clients: of the population.
    clients_per_round: drawn without replacement.
    num_attackers: Byzantine clients in the population.
    num_byzantine: how many of them take part in every round; None leaves it to
      the draw.
  """

  num_clients: int
  clients_per_round: int
  num_attackers: int = 0
  num_byzantine: int | None = 0

  def __post_init__(self):
    n, attackers = self.clients_per_round, self.num_attackers
    if not 1 <= n <= self.num_clients:
      raise ValueError(
        f'clients_per_round={n} must lie between 1 and the population of '
        f'{self.num_clients} clients'
      )
    if not 0 <= attackers <= self.num_clients:
      raise ValueError(
        f'num_attackers={attackers} must lie between 0 and the population of '
        f'{self.num_clients} clients'
      )
    if self.num_byzantine is None:
      return
    if not 0 <= self.num_byzantine <= min(n, attackers):
      raise ValueError(
        f'num_byzantine={self.num_byzantine} must lie between 0 and the '
        f'smaller of clients_per_round={n} and num_attackers={attackers}'
      )
    honest = self.num_clients - attackers
    if n - self.num_byzantine > honest:
      raise ValueError(
        f'a round needs {n - self.num_byzantine} honest clients, but there '
        f'are {honest}: {self.num_clients} less num_attackers={attackers}'
      )

  def attackers(self, seed: int) -> np.ndarray:
    """`[num_clients]` mask of the attackers, the same for a whole run."""
    key = key_for(seed, Purpose.ATTACKERS)
    mask = np.zeros(self.num_clients, bool)
    order = np.asarray(jax.random.permutation(key, self.num_clients))
    mask[order[: self.num_attackers]] = True
    return mask

  def sample(self, seed: int, round_idx: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a round's clients.

    Returns:
      Their ids `[n]`, in random order, and the mask `[n]` of the Byzantine.
    """
    drawn, shuffled = jax.random.split(key_for(seed, Purpose.SAMPLE, round_idx))
    order = np.asarray(jax.random.permutation(drawn, self.num_clients))
    attackers = self.attackers(seed)
    if self.num_byzantine is None:
      ids = order[: self.clients_per_round]
    else:
      byzantine = order[attackers[order]][: self.num_byzantine]
      num_honest = self.clients_per_round - self.num_byzantine
      honest = order[~attackers[order]][:num_honest]
      ids = np.concatenate([byzantine, honest])
    ids = np.asarray(jax.random.permutation(shuffled, ids))
    return ids, attackers[ids]


class ServerState(NamedTuple):
  """What the server carries from round to round.

  Attributes:
    variables: of the model, a Flax dict with `'params'`.
    opt_state: of the server's optimiser, over `'params'`.
    aggregator: the aggregator's state.
    momenta: of the clients, `[num_clients, ...]`; `()` without momentum.
  """

  variables: PyTree
  opt_state: optax.OptState
  aggregator: PyTree
  momenta: PyTree


class Simulation:
  """Federated training of a classifier, one round at a time.

  Clients train on all devices of the mesh; the server's work runs on the first
  one. All randomness is folded from the seed (see `lca.randomness`), so a
  round's result does not depend on the rounds that this process has seen.

  Attributes:
    data: what every client holds, and the test set.

  Args:
    data: as the attribute.
    population: whom a round draws.
    classifier: the model and its loss.
    train: a client's part of a round.
    attack: of the Byzantine clients.
    aggregator: of the updates.
    optimizer: the server's; SGD with learning rate 1 adds the aggregate to the
      model.
    momentum: of the clients (see `clients.with_momentum`); 0 keeps none.
    layers: the scope of the layers (see `lca.layerwise`) whose normalised
      norms and, under LEGATO, robustness factors are among a round's metrics;
      None for none of it.
    seed: of the run.
    mesh: with an axis `'clients'`.
    chunk_size: how many clients one vmap holds.
    eval_batch_size: test images a batch.
  """

  def __init__(
    self,
    *,
    data: FederatedDataset,
    population: Population,
    classifier: Classifier,
    train: LocalGradient,
    attack: Attack,
    aggregator: Aggregator,
    optimizer: optax.GradientTransformation,
    momentum: float = 0.0,
    layers: Scope | None = None,
    seed: int,
    mesh: Mesh,
    chunk_size: int,
    eval_batch_size: int,
  ):
    self.data, self._population, self._seed = data, population, seed
    self._classifier, self._optimizer = classifier, optimizer
    self._attack, self._aggregator = attack, aggregator
    self._momentum, self._layers = momentum, layers
    self._mesh = mesh
    self._server = SingleDeviceSharding(mesh.devices.flat[0])
    self._train = train_clients(train, mesh, chunk_size)
    self._poison = jax.jit(
      functools.partial(attack.on_labels, num_classes=data.dataset.num_classes)
    )
    self._apply = jax.jit(self._apply_updates)
    self._test = _tester(classifier, mesh)
    self._test_set = _test_batches(data, mesh, eval_batch_size)

  def init(self) -> ServerState:
    """The state before the first round."""
    image_shape = self.data.dataset.train.images.shape[1:]
    key = key_for(self._seed, Purpose.INIT)
    variables = jax.jit(self._classifier.init, static_argnums=1)(
      key, image_shape
    )
    if list(variables) != ['params']:
      raise ValueError(
        f'the model has {sorted(variables)}, but only params can be trained'
      )
    momenta = ()
    if self._momentum:
      num_clients = self._population.num_clients
      momenta = jax.tree.map(
        lambda x: jnp.zeros((num_clients, *x.shape), x.dtype), variables
      )
    state = ServerState(
      variables=variables,
      opt_state=self._optimizer.init(variables['params']),
      aggregator=self._aggregator.init(variables),
      momenta=momenta,
    )
    return jax.device_put(state, self._server)

  def attackers(self, round_idx: int) -> list[int]:
    """The ids of a round's Byzantine clients."""
    ids, byzantine = self._population.sample(self._seed, round_idx)
    return sorted(ids[byzantine].tolist())

  @functools.cached_property
  def layer_metrics(self) -> list[str]:
    """The names of the layers' metrics, in their order."""
    if self._layers is None:
      return []
    state = jax.eval_shape(self.init)
    names = layer_names(state.variables, self._layers)
    legato = isinstance(state.aggregator, LegatoState)
    tables = ('norm', 'factor') if legato else ('norm',)
    return [f'{table}/{name}' for table in tables for name in names]

  def run_round(
    self, state: ServerState, round_idx: int
  ) -> tuple[ServerState, dict[str, float]]:
    """Runs one round.

    Args:
      state: after the round before.
      round_idx: counted from 0; decides all that is random in the round.

    Returns:
      The new state, and `train_loss`, the mean local training loss of the
      honest clients in nats, `byzantine`, how many attacked, `rejected`, how
      many updates were not finite or too large to be (see `lca.geometry`),
      `nonfinite`, how many entries of the aggregate are not finite, and those
      of the layers where they were asked for.
    """
    ids, byzantine = self._population.sample(self._seed, round_idx)
    n, server = len(ids), self.data.server_id
    trainers = ids if server is None else np.append(ids, server)
    data = self.data.gather(trainers)
    data.labels[:n] = self._poison(
      data.labels[:n],
      byzantine=byzantine,
      client_ids=ids,
      key=key_for(self._seed, Purpose.LABELS),
    )
    clients = place_clients((data, trainers.astype(np.int32)), self._mesh)
    variables = jax.device_put(state.variables, NamedSharding(self._mesh, P()))
    key = key_for(self._seed, Purpose.TRAIN, round_idx)
    updates, losses = self._train(variables, *clients, key)
    updates = jax.device_put(updates, self._server)
    state, layers, counts = self._apply(
      state,
      updates,
      ids,
      byzantine,
      data.num_examples[:n],
      key_for(self._seed, Purpose.ATTACK, round_idx),
      key_for(self._seed, Purpose.AGGREGATE, round_idx),
    )
    honest = np.asarray(losses)[:n][~byzantine]
    metrics = {
      'train_loss': float(honest.mean()) if honest.size else float('nan'),
      'byzantine': int(byzantine.sum()),
      **{name: int(count) for name, count in counts.items()},
    }
    names, values = self.layer_metrics, np.asarray(layers).tolist()
    return state, metrics | dict(zip(names, values, strict=True))

  def _apply_updates(
    self, state, updates, ids, byzantine, num_examples, attack_key, key
  ):
    n, server_update, momenta = len(byzantine), None, state.momenta
    if self.data.server_id is not None:
      server_update = jax.tree.map(lambda u: u[n], updates)
    updates = jax.tree.map(lambda u: u[:n], updates)
    if self._momentum:
      momenta, updates = with_momentum(momenta, updates, ids, self._momentum)

    def aggregate(updates):
      return self._aggregator.update(
        updates,
        state.aggregator,
        key=key,
        weights=num_examples.astype(jnp.float32),
        server_update=server_update,
      )

    updates = self._attack.on_updates(
      updates,
      byzantine=byzantine,
      key=attack_key,
      aggregate=lambda updates: aggregate(updates)[0],
    )
    update, aggregator = aggregate(updates)
    # optax takes gradients, which point the other way.
    gradient = jax.tree.map(jnp.negative, update['params'])
    params = state.variables['params']
    step, opt_state = self._optimizer.update(gradient, state.opt_state, params)
    params = optax.apply_updates(params, step)
    state = ServerState({'params': params}, opt_state, aggregator, momenta)
    squares = geometry.norms_gram(updates)
    counts = {
      'rejected': jnp.sum(geometry.rejected_rows(squares)),
      'nonfinite': sum(
        jnp.sum(~jnp.isfinite(x)) for x in jax.tree.leaves(update)
      ),
    }
    return state, self._of_layers(updates, aggregator), counts

  def _of_layers(self, updates, aggregator):
    """The values of `layer_metrics`."""
    if self._layers is None:
      return jnp.zeros(0)
    norms = normalized_norms(updates, self._layers)
    if not isinstance(aggregator, LegatoState):
      return norms
    return jnp.concatenate([norms, aggregator.factors])

  def evaluate(self, state: ServerState) -> dict[str, float]:
    """Exact means over the test set: `test_loss` in nats, `test_accuracy`."""
    variables = jax.device_put(state.variables, NamedSharding(self._mesh, P()))
    loss, correct = self._test(variables, *self._test_set)
    size = len(self.data.dataset.test)
    return {
      'test_loss': float(loss) / size,
      'test_accuracy': float(correct) / size,
    }


def _test_batches(data, mesh, batch_size):
  """The test set on the mesh, `[batches, batch, ...]`, and weights 0 or 1."""
  test = data.dataset.test
  devices = mesh.shape['clients']
  batch_size = min(batch_size, -(-len(test) // devices))
  sharding = NamedSharding(mesh, P('clients'))

  def place(x):
    padded = pad_rows(x, batch_size * devices)
    batches = padded.reshape(-1, batch_size, *x.shape[1:])
    return jax.device_put(batches, sharding)

  weights = np.ones(len(test), np.float32)
  return place(test.images), place(test.labels), place(weights)


def _tester(classifier, mesh):
  """A jitted function: the sums of the loss and of correct predictions."""

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(), P('clients'), P('clients'), P('clients')),
    out_specs=P(),
    check_vma=False,
  )
  def test(variables, images, labels, weights):
    sums = lax.map(
      lambda batch: classifier.test(variables, *batch),
      (images, labels, weights),
    )
    return lax.psum(jax.tree.map(jnp.sum, sums), 'clients')

  return test


def population_from(
  server: Mapping[str, Any], attack: Mapping[str, Any], num_clients: int
) -> Population:
  """Reads a Population from `config.server` and `config.attack`.

  Raises:
    ValueError: numbers that do not fit together, each named.
  """
  n = server['clients_per_round']
  if attack['name'] == 'none':
    return Population(num_clients, n)
  if attack['sampled'] == ('num_byzantine' in attack):
    raise ValueError(
      'either attack.sampled, and the draw decides how many attack, or '
      'attack.num_byzantine: compose the preset with or without _sampled'
    )
  num_byzantine = None if attack['sampled'] else attack['num_byzantine']
  return Population(num_clients, n, attack['num_attackers'], num_byzantine)
