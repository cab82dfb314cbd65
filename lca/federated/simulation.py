"""One federated round: sample, train, attack, aggregate, apply."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lca.aggregators import (
  Aggregator,
  LegatoState,
  Scope,
  layer_names,
  normalized_norms,
)
from lca.attacks import Attack
from lca.data import ClientData, FederatedDataset
from lca.federated.clients import (
  LocalGradient,
  pad_rows,
  train_clients,
  with_momentum,
)
from lca.federated.randomness import Purpose, key_for
from lca.models import Classifier
from lca.stacked import geometry
from lca.stacked.sharding import AXIS, by_coordinate
from lca.typing import PyTree

BATCH_STATS = ('rule', 'mean', 'server')

# A block of test images: one that holds the whole test set stays on the
# devices, of several each is read while the one before is tested.
BLOCK_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Population:
  """Who may be drawn for a round, and who of them attacks.

  Attributes:
    num_clients: of the population.
    clients_per_round: drawn without replacement.
    num_attackers: Byzantine clients in the population.
    num_byzantine: how many of them take part in every round; None leaves it to
      the draw.
    drop_rate: the chance that an honest client that was drawn does not answer;
      attackers always do.
  """

  num_clients: int
  clients_per_round: int
  num_attackers: int = 0
  num_byzantine: int | None = 0
  drop_rate: float = 0.0

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
    if not 0 <= self.drop_rate < 1:
      raise ValueError(f'drop_rate={self.drop_rate} must lie in [0, 1)')
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

  def dropped(
    self, seed: int, round_idx: int, byzantine: np.ndarray
  ) -> jax.Array:
    """`[n]` mask of a round's clients that do not answer.

    Args:
      seed: of the run.
      round_idx: of the round.
      byzantine: `[n]` mask, from `sample`.
    """
    if not self.drop_rate:
      return jnp.zeros(len(byzantine), bool)
    key = key_for(seed, Purpose.DROP, round_idx)
    draws = jax.random.uniform(key, byzantine.shape)
    return (draws < self.drop_rate) & ~byzantine

  def most_dropped(self, seed: int, num_rounds: int) -> tuple[int, int]:
    """A round in which the most clients do not answer, and how many those are.

    The size of the population matters only where `num_byzantine` is None.
    """
    n, population = self.clients_per_round, self
    if self.num_byzantine is not None:  # which rows attack, not who, counts
      population = dataclasses.replace(
        self, num_clients=n, num_attackers=self.num_byzantine
      )

    # Attackers, who always answer, are counted too: to know them is slow, and
    # only the rounds of the largest counts need it.
    def count(round_idx):
      return jnp.sum(self.dropped(seed, round_idx, np.zeros(n, bool)))

    at_most = np.asarray(lax.map(count, jnp.arange(num_rounds)))
    worst, most = 0, -1
    for round_idx in np.argsort(-at_most, kind='stable').tolist():
      if at_most[round_idx] <= most:
        break
      _, byzantine = population.sample(seed, round_idx)
      found = int(jnp.sum(self.dropped(seed, round_idx, byzantine)))
      if found > most:
        worst, most = round_idx, found
    return worst, most


class ServerState(NamedTuple):
  """What the server carries from round to round.

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


class Programs(NamedTuple):
  """What the devices run in a round.

  Attributes:
    train: the clients' part.
    apply: the server's.
  """

  train: jax.stages.Compiled
  apply: jax.stages.Compiled


class _Draw(NamedTuple):
  """Who trains in a round, and their examples, which a thread reads."""

  round_idx: int
  ids: np.ndarray
  byzantine: np.ndarray
  dropped: np.ndarray
  clients: Future[tuple[ClientData, jax.Array]]


class Simulation:
  """Federated training of a classifier, one round at a time.

  Each device of the mesh trains its share of the clients, and then has its
  share of the coordinates of what the server does with all of them (see
  `lca.stacked.sharding`). All randomness is folded from the seed (see
  `lca.federated.randomness`), so a
  round's result does not depend on the rounds that
  this process has seen.

  While a round trains, a thread reads the examples of the next one's clients
  and puts them on the devices. So the devices hold the examples of two rounds,
  and two blocks of test images. No more of the data set is in memory if it is
  memory-mapped.

  Attributes:
    data: what every client holds, and the test set.
    mesh: as below.
    chunk_size: as below.
    clients_per_device: how many train on each device in a round. The server
      is one of them if it has examples of its own, and where the devices do
      not divide their number, clients without examples fill up the rest.

  Args:
    data: as the attribute.
    population: whom a round draws.
    classifier: the model and its loss.
    train: a client's part of a round.
    attack: of the Byzantine clients.
    aggregator: of the updates.
    optimizer: the server's; SGD with learning rate 1 adds the aggregate to the
      model.
    batch_stats: who aggregates a model's batch statistics: the `'rule'`, along
      with the parameters; a plain `'mean'` over the clients whose statistics
      are finite; or nobody, if the `'server'` takes its own, from its own
      examples. In all cases they are added to the model's, and running
      variances floored at 0.
    momentum: of the clients (see `clients.with_momentum`); 0 keeps none.
    layers: the scope of the layers (see `lca.layerwise`) whose normalised
      norms and, under LEGATO, robustness factors are among a round's metrics;
      None for none of it.
    seed: of the run.
    mesh: with an axis `'clients'`.
    chunk_size: how many clients one vmap holds.
    eval_batch_size: test images a batch.

  Raises:
    ValueError: an unknown `batch_stats`, or the server's without examples of
      its own.
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
    batch_stats: str = 'rule',
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
    check_batch_stats(batch_stats, data.server_id is not None)
    self._batch_stats = batch_stats
    self._momentum, self._layers = momentum, layers
    self._clients_part = train
    self.mesh, self.chunk_size = mesh, chunk_size
    trainers = population.clients_per_round + (data.server_id is not None)
    self.clients_per_device = -(-trainers // mesh.size)
    self._shapes = jax.eval_shape(lambda: self._start(self._variables()))
    self._places = self._spread(self._shapes)
    self._everywhere = NamedSharding(mesh, P())
    self._by_client = NamedSharding(mesh, P(AXIS))
    self._poison = jax.jit(
      functools.partial(attack.on_labels, num_classes=data.dataset.num_classes)
    )
    self._apply = jax.jit(
      self._apply_updates,
      donate_argnames=('aggregator', 'momenta'),
      out_shardings=(self._places, self._everywhere, self._everywhere),
    )
    self._test = _tester(classifier, mesh)
    self._test_blocks = _test_blocks(data, mesh, eval_batch_size)
    self._reader = ThreadPoolExecutor(1, thread_name_prefix='reader')
    self._next: _Draw | None = None

  def init(self) -> ServerState:
    """The state before the first round."""
    variables = jax.device_put(self._variables(), self._everywhere)
    return jax.jit(self._start, out_shardings=self._places)(variables)

  def _variables(self):
    dataset = self.data.dataset
    spec = dataset.train.input_spec
    key = key_for(self._seed, Purpose.INIT)
    variables = self._classifier.init(key, spec)
    self._classifier.check_classes(variables, spec, dataset.num_classes)
    return variables

  def _start(self, variables):
    momenta = ()
    if self._momentum:
      num_clients = self._population.num_clients
      momenta = jax.tree.map(
        lambda x: jnp.zeros((num_clients, *x.shape), x.dtype),
        variables['params'],
      )
    return ServerState(
      variables=variables,
      opt_state=self._optimizer.init(variables['params']),
      aggregator=self._aggregator.init(
        self._clients_part.as_sent(self._for_rule(variables))
      ),
      momenta=momenta,
    )

  def _spread(self, state):
    """Where the arrays of a state lie: by coordinate, momenta by their own."""
    places = jax.tree.map(functools.partial(self._by_coordinate, 0), state)
    momenta = jax.tree.map(
      functools.partial(self._by_coordinate, 1), state.momenta
    )
    return places._replace(momenta=momenta)

  def _by_coordinate(self, lead, x):
    spec = by_coordinate(x.shape, self.mesh.size, lead)
    return NamedSharding(self.mesh, spec)

  def attackers(self, round_idx: int) -> list[int]:
    """The ids of a round's Byzantine clients."""
    ids, byzantine = self._population.sample(self._seed, round_idx)
    return sorted(ids[byzantine].tolist())

  @functools.cached_property
  def more_metrics(self) -> list[str]:
    """The names of the metrics that not every run has, in their order."""
    state = self._shapes
    metrics = ['dropped'] if self._population.drop_rate else []
    if 'batch_stats' in state.variables:
      metrics.append('floored')
    if self._layers is None:
      return metrics
    names = layer_names(self._for_rule(state.variables), self._layers)
    legato = isinstance(state.aggregator, LegatoState)
    tables = ('norm', 'factor') if legato else ('norm',)
    return metrics + [f'{table}/{name}' for table in tables for name in names]

  @functools.cached_property
  def abstract_state(self) -> ServerState:
    """Shapes, dtypes and places of the state."""
    return jax.tree.map(_placed, self._shapes, self._places)

  @property
  def update_dtype(self) -> jnp.dtype:
    """Of the numbers in a client's update."""
    params = self._shapes.variables['params']
    one = jax.eval_shape(self._clients_part.as_sent, params)
    return jnp.result_type(*jax.tree.leaves(one))

  @functools.cached_property
  def programs(self) -> Programs:
    """A round's, compiled when they are first asked for."""
    training = self.lower_training(self.chunk_size)
    updates, losses = jax.tree.map(
      lambda x: _placed(x, self._by_client), training.out_info
    )
    ids, byzantine = self._population.sample(self._seed, 0)
    key = key_for(self._seed, Purpose.AGGREGATE, 0)
    with jax.set_mesh(self.mesh):
      applying = self._apply.lower(
        *self.abstract_state,
        updates,
        losses,
        ids,
        byzantine,
        np.zeros_like(byzantine),
        self.data.num_examples[ids],
        key,
        key,
      )
    return Programs(training.compile(), applying.compile())

  def lower_training(self, chunk_size: int) -> jax.stages.Lowered:
    """The clients' part of a round, in chunks of any size."""
    train = train_clients(self._clients_part, self.mesh, chunk_size)
    rows = self.clients_per_device * self.mesh.size
    examples = (rows, self.data.max_examples)
    spec = self.data.dataset.train.input_spec
    clients = ClientData(
      jax.ShapeDtypeStruct((*examples, *spec.shape), spec.dtype),
      jax.ShapeDtypeStruct(examples, jnp.int32),
      jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    variables = jax.tree.map(
      lambda x: _placed(x, self._everywhere), self._shapes.variables
    )
    clients, client_ids = jax.tree.map(
      lambda x: _placed(x, self._by_client), (clients, clients.num_examples)
    )
    key = key_for(self._seed, Purpose.TRAIN, 0)
    return train.lower(variables, clients, client_ids, key)

  def run_round(
    self, state: ServerState, round_idx: int, last: bool = False
  ) -> tuple[ServerState, dict[str, float]]:
    """Runs one round.

    Args:
      state: after the round before. What the rule and the workers remember
        is written to in place: ask the new state for it.
      round_idx: counted from 0; decides all that is random in the round.
      last: no round follows, whose clients would be read meanwhile.

    Returns:
      The new state, and `train_loss`, the mean local training loss of the
      honest clients that answered in nats, `byzantine`, how many attacked,
      `rejected`, how many of the updates that came were not finite or too large
      to be (see `lca.geometry`), `nonfinite`, how many entries of the aggregate
      are not finite, and `more_metrics`: `dropped`, how many clients did not
      answer, `floored`, how many running variances would have become negative,
      and those of the layers where they were asked for.
    """
    draw, self._next = self._next, None
    if draw is None or draw.round_idx != round_idx:
      draw = self._draw(round_idx)
    if not last:
      self._next = self._draw(round_idx + 1)
    variables = jax.device_put(state.variables, self._everywhere)
    updates, losses = self.programs.train(
      variables,
      *draw.clients.result(),
      key_for(self._seed, Purpose.TRAIN, round_idx),
    )
    state, counts, values = self.programs.apply(
      *state,
      updates,
      losses,
      draw.ids,
      draw.byzantine,
      draw.dropped,
      self.data.num_examples[draw.ids],
      key_for(self._seed, Purpose.ATTACK, round_idx),
      key_for(self._seed, Purpose.AGGREGATE, round_idx),
    )
    metrics = {name: int(count) for name, count in counts.items()}
    names = ['train_loss', *(m for m in self.more_metrics if m not in metrics)]
    values = np.asarray(values).tolist()
    return state, metrics | dict(zip(names, values, strict=True))

  def _draw(self, round_idx: int) -> _Draw:
    ids, byzantine = self._population.sample(self._seed, round_idx)
    dropped = np.asarray(
      self._population.dropped(self._seed, round_idx, byzantine)
    )
    clients = self._reader.submit(self._read, ids, byzantine)
    return _Draw(round_idx, ids, byzantine, dropped, clients)

  def _read(self, ids: np.ndarray, byzantine: np.ndarray):
    """The clients' examples, and after them the server's, on the mesh.

    A device's at a time, so that the host has no second copy of them all, and
    only those of this process's devices.
    """
    if self.data.server_id is not None:
      ids, byzantine = np.append(ids, self.data.server_id), [*byzantine, False]
    width = self.clients_per_device

    def part(i, device):
      own = slice(i * width, (i + 1) * width)
      data = self.data.gather(ids[own], rows=width)
      client_ids = np.resize(ids[own], width).astype(np.int32)
      attack = np.zeros(width, bool)
      attack[: len(ids[own])] = byzantine[own]
      labels = self._poison(
        data.labels,
        byzantine=attack,
        client_ids=client_ids,
        key=key_for(self._seed, Purpose.LABELS),
      )
      return jax.device_put((data._replace(labels=labels), client_ids), device)

    parts = [
      part(i, device)
      for i, device in enumerate(self.mesh.devices.flat)
      if device.process_index == jax.process_index()
    ]

    def join(*parts):
      shape = (width * self.mesh.size, *parts[0].shape[1:])
      return jax.make_array_from_single_device_arrays(
        shape, self._by_client, parts
      )

    return jax.tree.map(join, *parts)

  def _apply_updates(
    self,
    variables,
    opt_state,
    aggregator,
    momenta,
    updates,
    losses,
    ids,
    byzantine,
    dropped,
    num_examples,
    attack_key,
    key,
  ):
    # From each device its clients, to each its columns.
    columns = jax.tree.map(functools.partial(self._by_coordinate, 1), updates)
    updates = lax.with_sharding_constraint(updates, columns)
    n, server_update = len(byzantine), None
    if self.data.server_id is not None:
      server_update = jax.tree.map(lambda u: u[n], updates)
    updates = jax.tree.map(lambda u: u[:n], updates)
    if self._momentum:
      # A client that does not answer keeps its momentum as it was.
      trained = jnp.where(dropped, self._population.num_clients, ids)
      momenta, params = with_momentum(
        momenta, updates['params'], trained, self._momentum
      )
      updates = updates | {'params': params}
    for_rule = None if server_update is None else self._for_rule(server_update)

    def aggregate(updates):
      update, remembered = self._aggregator.update(
        self._for_rule(updates),
        aggregator,
        key=key,
        weights=jnp.where(dropped, 0, num_examples).astype(jnp.float32),
        server_update=for_rule,
      )
      return update | self._statistics(updates, server_update), remembered

    if self._population.drop_rate:  # nor do the attackers see what never came
      updates = jax.tree.map(functools.partial(_without, dropped), updates)
    updates = self._attack.on_updates(
      updates,
      byzantine=byzantine,
      key=attack_key,
      aggregate=lambda updates: aggregate(updates)[0],
    )
    update, remembered = aggregate(updates)
    # Of rows that are stored in less than the model is.
    update = jax.tree.map(lambda u, x: u.astype(x.dtype), update, variables)
    # optax takes gradients, which point the other way.
    gradient = jax.tree.map(jnp.negative, update['params'])
    params = variables['params']
    step, opt_state = self._optimizer.update(gradient, opt_state, params)
    variables = variables | {'params': optax.apply_updates(params, step)}
    rejected = geometry.rejected_rows(geometry.norms_gram(updates))
    counts = {
      'byzantine': jnp.sum(byzantine),
      'rejected': jnp.sum(rejected & ~dropped),
      'nonfinite': sum(
        jnp.sum(~jnp.isfinite(x)) for x in jax.tree.leaves(update)
      ),
    }
    if self._population.drop_rate:
      counts['dropped'] = jnp.sum(dropped)
    honest = ~(byzantine | dropped)
    values = [jnp.sum(jnp.where(honest, losses[:n], 0)) / jnp.sum(honest)]
    if 'batch_stats' in variables:
      moved = jax.tree.map(
        jnp.add, variables['batch_stats'], update['batch_stats']
      )
      variables['batch_stats'], counts['floored'] = _with_floor(moved)
    if self._layers is not None:
      values.append(normalized_norms(self._for_rule(updates), self._layers))
      if isinstance(remembered, LegatoState):
        values.append(remembered.factors)
    state = ServerState(variables, opt_state, remembered, momenta)
    return state, counts, jnp.concatenate(list(map(jnp.atleast_1d, values)))

  def _for_rule(self, tree):
    """What the rule aggregates of the model's variables, or of updates."""
    if self._batch_stats == 'rule':
      return tree
    return {'params': tree['params']}

  def _statistics(self, updates, server_update):
    """The batch statistics' update where that is not the rule's."""
    if self._batch_stats == 'rule' or 'batch_stats' not in updates:
      return {}
    if self._batch_stats == 'server':
      return {'batch_stats': server_update['batch_stats']}
    stats = updates['batch_stats']
    finite = ~geometry.rejected_rows(geometry.norms_gram(stats))
    shares = jnp.where(jnp.any(finite), finite / jnp.sum(finite), jnp.nan)
    return {'batch_stats': geometry.mix(stats, shares)}

  def evaluate(self, state: ServerState) -> dict[str, float]:
    """Exact means over the test set: `test_loss` in nats, `test_accuracy`."""
    variables = jax.device_put(state.variables, self._everywhere)
    sums, testing = np.zeros(2), (0, 0)
    for block in self._test_blocks:
      examples = block()  # read while the block before is tested
      sums += jax.device_get(testing)
      testing = self._test(variables, *examples)
    loss, correct = sums + jax.device_get(testing)
    size = len(self.data.dataset.test)
    return {
      'test_loss': float(loss) / size,
      'test_accuracy': float(correct) / size,
    }


def check_batch_stats(batch_stats: str, root: bool) -> None:
  """Who aggregates them must be known, and the server have examples for it."""
  if batch_stats not in BATCH_STATS:
    raise ValueError(
      f'model.batch_stats must be one of {BATCH_STATS}, got {batch_stats!r}'
    )
  if batch_stats == 'server' and not root:
    raise ValueError(
      "model.batch_stats='server' needs data.root_examples of the server"
    )


def _without(dropped, rows):
  """Rows of NaN in place of those that do not come."""
  column = dropped.reshape(-1, *[1] * (rows.ndim - 1))
  return jnp.where(column, jnp.nan, rows)


def _placed(x, sharding):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _with_floor(batch_stats):
  """Variances made 0 where they are negative, and how many those were."""
  flat = traverse_util.flatten_dict(batch_stats)
  variances = {path: x for path, x in flat.items() if path[-1] == 'var'}
  floored = {path: jnp.maximum(x, 0) for path, x in variances.items()}
  count = sum(jnp.sum(x < 0) for x in variances.values())
  return traverse_util.unflatten_dict(flat | floored), count


def _test_blocks(
  data: FederatedDataset, mesh: Mesh, batch_size: int
) -> list[Callable[[], tuple[jax.Array, ...]]]:
  """Functions that put the test set on the mesh, block by block.

  A block is images and labels `[batches, batch, ...]` and weights 0 or 1.
  """
  test = data.dataset.test
  devices = mesh.shape[AXIS]
  batch_size = min(batch_size, -(-len(test) // devices))
  at_once = batch_size * devices
  batches = -(-len(test) // at_once)
  spec = test.input_spec
  batch_bytes = at_once * math.prod(spec.shape) * spec.dtype.itemsize
  num_blocks = -(-batches // max(1, BLOCK_BYTES // batch_bytes))
  size = at_once * -(-batches // num_blocks)  # as even as the blocks can be
  sharding = NamedSharding(mesh, P(AXIS))

  def place(start):
    rows = np.arange(start, min(start + size, len(test)))
    weights = np.ones(len(rows), np.float32)
    return tuple(
      jax.device_put(
        pad_rows(x, size).reshape(-1, batch_size, *x.shape[1:]), sharding
      )
      for x in (test.read(rows), test.labels[rows], weights)
    )

  starts = range(0, len(test), size)
  blocks = [functools.partial(place, start) for start in starts]
  return blocks if len(blocks) > 1 else [functools.cache(blocks[0])]


def _tester(classifier, mesh):
  """A jitted function: the sums of the loss and of correct predictions."""

  @jax.jit
  @functools.partial(
    jax.shard_map,
    mesh=mesh,
    in_specs=(P(), P(AXIS), P(AXIS), P(AXIS)),
    out_specs=P(),
    check_vma=False,
  )
  def test(variables, images, labels, weights):
    sums = lax.map(
      lambda batch: classifier.test(variables, *batch),
      (images, labels, weights),
    )
    return lax.psum(jax.tree.map(jnp.sum, sums), AXIS)

  return test


def population_from(
  server: Mapping[str, Any],
  attack: Mapping[str, Any],
  num_clients: int,
  drop_rate: float = 0.0,
) -> Population:
  """Reads a Population from `config.server` and `config.attack`.

  Where `attack['num_attackers']` is None, a fifth of the clients attack.

  Raises:
    ValueError: numbers that do not fit together, each named.
  """
  n = server['clients_per_round']
  if attack['name'] == 'none':
    return Population(num_clients, n, drop_rate=drop_rate)
  if attack['sampled'] == ('num_byzantine' in attack):
    raise ValueError(
      'either attack.sampled, and the draw decides how many attack, or '
      'attack.num_byzantine: compose the preset with or without _sampled'
    )
  num_byzantine = None if attack['sampled'] else attack['num_byzantine']
  attackers = attack['num_attackers']
  if attackers is None:
    attackers = num_clients // 5
  if not attackers:
    raise ValueError(
      f'attack.name={attack["name"]!r} needs attackers, but of the '
      f'{num_clients} clients there are attack.num_attackers=0'
    )
  return Population(num_clients, n, attackers, num_byzantine, drop_rate)
