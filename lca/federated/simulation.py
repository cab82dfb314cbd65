"""A simulation: clients train, some attack, and a server aggregates."""

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lca.aggregators import layer_names
from lca.data import ClientData, FederatedDataset
from lca.federated import evaluation, metrics
from lca.federated.clients import LocalGradient
from lca.federated.placement import (
  Placement,
  place_parts,
  placed,
  train_clients,
)
from lca.federated.population import Population
from lca.federated.randomness import Purpose, key_for
from lca.federated.round import (
  Round,
  Sent,
  Server,
  ServerState,
  server_init,
  server_step,
)
from lca.models import Classifier


class Programs(NamedTuple):
  """Holds the programs that the devices run in a round.

  Attributes:
    train: the clients' part.
    apply: the server's.
  """

  train: jax.stages.Compiled
  apply: jax.stages.Compiled


class _Ahead(NamedTuple):
  """A round that was drawn, and its clients' examples, which a thread reads."""

  round_idx: int
  drawn: Round
  clients: Future[tuple[ClientData, jax.Array]]


class Simulation:
  """Federated training of a classifier, one round at a time.

  Each device of the mesh trains its share of the clients, and then has its
  share of the coordinates of what the server does with all of them (see
  `lca.stacked.sharding`). All randomness is folded from the seed (see
  `lca.federated.randomness`), so a round's result does not depend on the
  rounds that this process has seen.

  While a round trains, a thread reads the examples of the next one's clients
  and puts them on the devices. So the devices hold the examples of two rounds,
  and two blocks of test examples. No more of the data set is in memory if it
  is memory-mapped.

  Attributes:
    data: what every client holds, and the test set.
    placement: as below.
    clients_per_device: how many train on each device in a round. The server
      is one of them if it has examples of its own, and where the devices do
      not divide their number, clients without examples fill up the rest.

  Args:
    data: as the attribute.
    population: whom a round draws.
    classifier: the model and its loss.
    train: a client's part of a round.
    server: the server's part of a round, and the attack.
    seed: of the run.
    placement: over which devices a round is spread.

  Raises:
    ValueError: the server is to take its own batch statistics, but it has no
      examples of its own.
  """

  def __init__(
    self,
    *,
    data: FederatedDataset,
    population: Population,
    classifier: Classifier,
    train: LocalGradient,
    server: Server,
    seed: int,
    placement: Placement,
  ):
    server.check_examples(data.server_id is not None)
    self.data, self.placement = data, placement
    self._population, self._classifier = population, classifier
    self._train, self._server, self._seed = train, server, seed
    mesh = placement.mesh
    trainers = population.clients_per_round + (data.server_id is not None)
    self.clients_per_device = -(-trainers // mesh.size)
    self._shapes = jax.eval_shape(lambda: self._start(self._variables()))
    self._places = placement.by_coordinate(self._shapes)._replace(
      momenta=placement.by_coordinate(self._shapes.momenta, lead=1)
    )
    self._poison = jax.jit(
      functools.partial(
        server.attack.on_labels, num_classes=data.dataset.num_classes
      )
    )
    self._test = evaluation.make_tester(classifier, mesh)
    self._test_blocks = evaluation.make_blocks(
      data.dataset.test, mesh, placement.eval_batch_size
    )
    self._reader = ThreadPoolExecutor(1, thread_name_prefix='reader')
    self._ahead: _Ahead | None = None

  def init(self) -> ServerState:
    """Returns the state before the first round."""
    variables = jax.device_put(self._variables(), self.placement.everywhere)
    return jax.jit(self._start, out_shardings=self._places)(variables)

  def _variables(self):
    dataset = self.data.dataset
    spec = dataset.train.input_spec
    key = key_for(self._seed, Purpose.INIT)
    variables = self._classifier.init(key, spec)
    self._classifier.check_classes(variables, spec, dataset.num_classes)
    return variables

  def _start(self, variables):
    update = self._train.as_sent(variables)
    num_clients = self._population.num_clients
    return server_init(self._server, variables, update, num_clients)

  def attackers(self, round_idx: int) -> list[int]:
    """Returns the ids of a round's Byzantine clients."""
    ids, byzantine = self._population.sample(self._seed, round_idx)
    return sorted(ids[byzantine].tolist())

  @functools.cached_property
  def abstract_state(self) -> ServerState:
    """Shapes, dtypes and places of the state."""
    return placed(self._shapes, self._places)

  @property
  def update_dtype(self) -> jnp.dtype:
    """The dtype of the numbers in a client's update."""
    params = self._shapes.variables['params']
    one = jax.eval_shape(self._train.as_sent, params)
    return jnp.result_type(*jax.tree.leaves(one))

  @functools.cached_property
  def _metrics(self) -> list[str]:
    """The names of all metrics, as the server's step returns them."""
    _, step = self._lowered
    _, found = step.out_info
    tree, layers = self._shapes.variables, self._server.layers
    names = []
    if layers is not None:
      names = layer_names(self._server.for_rule(tree), layers)
    return metrics.columns(found, names)

  @property
  def more_metrics(self) -> list[str]:
    """The names of the metrics that not every run has, in their order."""
    return [name for name in self._metrics if name not in metrics.ALWAYS]

  @functools.cached_property
  def programs(self) -> Programs:
    """A round's programs, compiled when they are first asked for."""
    train, apply = self._lowered
    return Programs(train.compile(), apply.compile())

  @functools.cached_property
  def _lowered(self) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
    training = self.lower_training(self.placement.chunk_size)
    updates, losses = placed(training.out_info, self.placement.by_client)
    with jax.set_mesh(self.placement.mesh):
      applying = self._step.lower(
        *self.abstract_state, updates, losses, self._draw(0)
      )
    return training, applying

  @functools.cached_property
  def _step(self) -> jax.stages.Wrapped:
    """The server's part of a round, jitted."""
    return jax.jit(
      self._apply,
      donate_argnames=('aggregator', 'momenta'),
      out_shardings=(self._places, self.placement.everywhere),
    )

  def lower_training(self, chunk_size: int) -> jax.stages.Lowered:
    """Lowers the clients' part of a round, in chunks of any size."""
    mesh, spec = self.placement.mesh, self.data.dataset.train.input_spec
    rows = self.clients_per_device * mesh.size
    examples = (rows, self.data.max_examples)
    numbers = jax.ShapeDtypeStruct((rows,), jnp.int32)
    inputs = jax.ShapeDtypeStruct((*examples, *spec.shape), spec.dtype)
    labels = jax.ShapeDtypeStruct(examples, jnp.int32)
    clients = ClientData._make([inputs, labels, numbers])
    return train_clients(self._train, mesh, chunk_size).lower(
      placed(self._shapes.variables, self.placement.everywhere),
      *placed((clients, numbers), self.placement.by_client),
      key_for(self._seed, Purpose.TRAIN, 0),
    )

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
      The new state and the metrics (see `lca.federated.metrics`): `train_loss`,
      `byzantine`, `rejected`, `nonfinite` and `more_metrics`.
    """
    ahead, self._ahead = self._ahead, None
    if ahead is None or ahead.round_idx != round_idx:
      ahead = self._read_ahead(round_idx)
    if not last:
      self._ahead = self._read_ahead(round_idx + 1)
    if jax.config.jax_disable_jit:  # pyright: ignore
      # Programs that are compiled ahead of time refuse to run without jit. The
      # functions can then be debugged step by step.
      mesh, chunk_size = self.placement.mesh, self.placement.chunk_size
      train, apply = train_clients(self._train, mesh, chunk_size), self._step
    else:
      train, apply = self.programs
    updates, losses = train(
      jax.device_put(state.variables, self.placement.everywhere),
      *ahead.clients.result(),
      key_for(self._seed, Purpose.TRAIN, round_idx),
    )
    state, found = apply(*state, updates, losses, ahead.drawn)
    numbers = [
      number
      for metric in jax.device_get(found).values()
      for number in metric.reshape(-1).tolist()
    ]
    return state, dict(zip(self._metrics, numbers, strict=True))

  def _draw(self, round_idx: int) -> Round:
    ids, byzantine = self._population.sample(self._seed, round_idx)
    answered = None
    if self._population.drop_rate:
      answered = ~np.asarray(
        self._population.dropped(self._seed, round_idx, byzantine)
      )
    return Round(
      ids=ids,
      byzantine=byzantine,
      num_examples=self.data.num_examples[ids],
      attack_key=key_for(self._seed, Purpose.ATTACK, round_idx),
      rule_key=key_for(self._seed, Purpose.AGGREGATE, round_idx),
      answered=answered,
    )

  def _read_ahead(self, round_idx: int) -> _Ahead:
    drawn = self._draw(round_idx)
    clients = self._reader.submit(self._read, drawn)
    return _Ahead(round_idx, drawn, clients)

  def _read(self, drawn: Round):
    """Puts the clients' examples, and after them the server's, on the mesh."""
    ids, byzantine = np.asarray(drawn.ids), np.asarray(drawn.byzantine)
    if self.data.server_id is not None:
      ids = np.append(ids, self.data.server_id)
      byzantine = np.append(byzantine, False)
    width = self.clients_per_device

    def part(i):
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
      return data._replace(labels=labels), client_ids

    return place_parts(part, self.placement.mesh)

  def _apply(
    self, variables, opt_state, aggregator, momenta, updates, losses, drawn
  ):
    """The server's step on the rows of all that have trained."""
    # From each device its clients, to each its columns.
    columns = self.placement.by_coordinate(updates, lead=1)
    updates = lax.with_sharding_constraint(updates, columns)
    n = self._population.clients_per_round
    sent = Sent(jax.tree.map(lambda u: u[:n], updates), losses[:n])
    if self.data.server_id is not None:
      sent = sent._replace(server_update=jax.tree.map(lambda u: u[n], updates))
    state = ServerState(variables, opt_state, aggregator, momenta)
    return server_step(self._server, state, sent, drawn)

  def evaluate(self, state: ServerState) -> dict[str, float]:
    """Returns exact means over the test set: `test_loss`, `test_accuracy`."""
    variables = jax.device_put(state.variables, self.placement.everywhere)
    size = len(self.data.dataset.test)
    return evaluation.evaluate(self._test, variables, self._test_blocks, size)
