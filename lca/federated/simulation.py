"""Federated training of a classifier, one round at a time.

`Simulation.run_round` is the place to begin. A round runs three compiled
programs: `train`, in which the clients train, and the two halves of
`lca.federated.round.server_step`: `receive`, in which Byzantine clients attack,
and `step`, in which the server makes the next model. A long round calls `train`
several times, each time for some of the clients (`lca.federated.training`).
"""

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lca.aggregators import layer_names
from lca.data import FederatedDataset
from lca.federated import metrics
from lca.federated.attackers import attackers_training
from lca.federated.clients import LocalGradient, LocalTraining
from lca.federated.drawing import Drawing
from lca.federated.evaluation import Evaluation
from lca.federated.placement import Placement, place_parts, with_shardings
from lca.federated.population import Population
from lca.federated.randomness import Purpose, key_for
from lca.federated.server import Round, Server, ServerState, server_init
from lca.federated.server_programs import ServerPrograms
from lca.federated.training import Clients, RoundTraining, Start
from lca.models import Classifier
from lca.typing import PyTree


class Programs(NamedTuple):
  """The programs of a round: jitted functions, lowered, or compiled.

  Attributes:
    train: trains the clients, or some of them (`RoundTraining`).
    attack: trains attackers in their own way; None if they have none.
    receive: changes their updates, as Byzantine clients do; None if nothing
      changes them (`ServerPrograms`).
    step: makes the next model (`ServerPrograms`).
  """

  train: Any
  attack: Any | None
  receive: Any | None
  step: Any


class _PreparedRound(NamedTuple):
  """A round that has been drawn, and whose examples a thread reads."""

  round_idx: int
  drawn: Round
  clients: Future[Clients]


class Simulation:
  """Federated training of a classifier, one round at a time.

  Each device of the mesh trains its share of the clients. In the server's step,
  each device works on its share of the coordinates of all updates (see
  `lca.stacked.sharding`). All randomness is folded from the seed (see
  `lca.federated.randomness`), so the result of a round does not depend on which
  rounds this process has run before.

  While a round trains, a thread reads the examples of the next round's clients
  and puts them on the devices. So the devices hold the training examples of two
  rounds, and two blocks of test examples and of those held out for validation.
  The rest of a memory-mapped data set stays on disk.

  Attributes:
    data: the examples of every client, and the test set.
    drawing: draws the rounds, and reads the examples of their clients.
    classifier: the model and its loss.
    placement: the devices that a round is spread over.
    clients_per_device: number of clients that each device trains in a round, or
      in a group of a streamed round (`lca.federated.streaming`).
      The server counts as a client if it has examples of its own. If the number
      of clients is not a multiple of the number of devices, clients without
      examples fill the remaining places.

  Args:
    data: the examples of every client, and the test set.
    population: draws the clients of each round.
    classifier: the model and its loss.
    train: computes a client's update.
    server: the parts of the server's step, the attack among them.
    seed: seed of the run.
    placement: the devices to spread a round over.
    initial: variables of the model to start from; None takes the classifier's
      own, which the seed may decide.
    attackers: computes an attacker's update, if the attack has a `training`.
    by_class: True measures the test accuracy of each class.

  Raises:
    ValueError: `server.batch_stats` is `'server'`, but the data hold no
      examples of the server's own.
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
    initial: PyTree | None = None,
    attackers: LocalTraining | None = None,
    by_class: bool = False,
  ):
    server.check_examples(data.server_id is not None)
    server = server.for_model(classifier, data.dataset)
    self.data, self.classifier, self.placement = data, classifier, placement
    self.drawing = Drawing(data, population, server.attack, seed)
    self._population = population
    self._train, self._server, self._seed = train, server, seed
    self._initial = initial
    self._shapes = jax.eval_shape(
      lambda: self._initial_state(self._initial_variables())
    )
    at_once = self._trained_at_once()
    self.clients_per_device = -(-at_once // placement.devices)  # rounded up
    self._on_server = self._server_programs()
    self._training = RoundTraining(
      train,
      placement,
      self._shapes.variables,
      data.gathered_shapes(self.clients_per_device * placement.devices),
      attackers
      and attackers_training(
        attackers, server.attack, data.dataset, classifier
      ),
      self.drawing.places(self.clients_per_device),
    )
    self._evaluation = Evaluation(
      classifier, data, placement, server.attack, by_class
    )
    self._reader = ThreadPoolExecutor(1, thread_name_prefix='reader')
    self._next: _PreparedRound | None = None

  def _trained_at_once(self) -> int:
    """Returns the number of clients whose updates are in memory at once."""
    return self.clients_per_round + (self.data.server_id is not None)

  def _server_programs(self) -> Any:
    """Makes the programs of the server's part of a round."""
    return ServerPrograms(
      self._server,
      self.placement,
      self._shapes,
      clients=self.clients_per_round,
      server_trains=self.data.server_id is not None,
      clients_drop=self._population.drop_rate > 0,
    )

  def init(self) -> ServerState:
    """Returns the state before the first round."""
    variables = jax.device_put(
      self._initial_variables(), self.placement.everywhere
    )
    start = jax.jit(
      self._initial_state, out_shardings=self._on_server.shardings
    )
    return start(variables)

  def _initial_variables(self):
    if self._initial is not None:
      return self._initial
    dataset = self.data.dataset
    spec = dataset.train.input_spec
    key = key_for(self._seed, Purpose.INIT)
    variables = self.classifier.init(key, spec)
    self.classifier.check_classes(variables, spec, dataset.num_classes)
    return variables

  def _initial_state(self, variables):
    update = self._train.to_update_dtype(variables)
    num_clients = self._population.num_clients
    memory = self.drawing.memory
    return server_init(self._server, variables, update, num_clients, memory)

  @functools.cached_property
  def abstract_state(self) -> ServerState:
    """The shapes, dtypes and shardings of the state."""
    return self._state_shapes

  @property
  def _state_shapes(self) -> ServerState:
    """The shapes, dtypes and shardings of the state of one run."""
    return with_shardings(self._shapes, self._on_server.shardings)

  @property
  def update_dtype(self) -> jnp.dtype:
    """The dtype of the numbers in a client's update."""
    return jnp.result_type(*jax.tree.leaves(self._update_shapes['params']))

  @property
  def clients_per_round(self) -> int:
    """The number of clients in a round, without the server."""
    return self._population.clients_per_round

  @property
  def seeds_per_device(self) -> int:
    """The number of runs that a device works for."""
    return 1

  @property
  def model_shapes(self) -> PyTree:
    """The shapes of the variables of one model."""
    return self._shapes.variables

  @property
  def _update_shapes(self) -> PyTree:
    """The shapes of one client's update."""
    return jax.eval_shape(self._train.to_update_dtype, self._shapes.variables)

  @functools.cached_property
  def _metric_names(self) -> list[str]:
    """The names of all numbers in the metrics of a round, in their order."""
    shapes = self._measured_shapes()
    metric_shapes = {k: x for k, x in shapes.items() if k != 'forensics'}
    tree, layers = self._shapes.variables, self._server.layers
    names = []
    if layers is not None:
      names = layer_names(self._server.for_rule(tree), layers)
    return metrics.columns(metric_shapes, names)

  def _measured_shapes(self) -> dict[str, Any]:
    """Returns the shapes of a round's metrics, by name."""
    return self._lowered.step.out_info[1]

  @property
  def evidence_layers(self) -> list[str] | None:
    """The names of the layers in a round's evidence; None without evidence."""
    if not self._server.forensics:
      return None
    return layer_names(self._server.for_rule(self._shapes.variables))

  @property
  def more_metrics(self) -> list[str]:
    """The names of the metrics that only some runs have, in their order."""
    more = [name for name in self._metric_names if name not in metrics.ALWAYS]
    return [*more, *self._evaluation.columns]

  @functools.cached_property
  def programs(self) -> Programs:
    """The programs of a round, compiled on first access.

    On CPUs they are compiled side by side. Elsewhere the compiler may measure
    kernels on the device, and must not be disturbed.
    """
    lowered = self._lowered
    on_cpu = jax.default_backend() == 'cpu'
    with ThreadPoolExecutor(len(lowered) if on_cpu else 1) as pool:
      return Programs(*pool.map(lambda each: each and each.compile(), lowered))

  @functools.cached_property
  def _lowered(self) -> Programs:
    """The programs of a round before their compilation."""
    return Programs(
      self.lower_training(self.placement.chunk_size),
      self._training.lower_attackers(self._shapes.attack),
      *self._on_server.lower(
        self.abstract_state, self._training.results, self._draw(0)
      ),
    )

  def lower_training(self, chunk_size: int) -> jax.stages.Lowered:
    """Lowers the program in which the clients train.

    Args:
      chunk_size: number of clients that a device trains at once; it may differ
        from the simulation's own.
    """
    return self._training.function(chunk_size).lower(*self._training.arguments)

  def run_round(
    self,
    state: ServerState,
    round_idx: int,
    last: bool = False,
    report: Callable[[int], object] = lambda clients: None,
  ) -> tuple[ServerState, dict[str, Any]]:
    """Runs one round.

    Args:
      state: the state after the previous round. Its `aggregator` and `momenta`
        are overwritten in place; afterwards use those of the new state.
      round_idx: index of the round, from 0. It decides all random draws.
      last: True if no round follows, so that no examples need to be read ahead.
      report: is called now and then in a long round, with the number of clients
        that have trained. It is not called in a run of several processes.

    Returns:
      The new state, and the metrics as numbers (see `lca.federated.metrics`):
      `train_loss`, `byzantine`, `rejected`, `nonfinite` and `more_metrics`. If
      the server has `forensics`, the entry `'forensics'` holds the evidence of
      the round as NumPy arrays, and the `ids` of its clients.
    """
    # 1. Take the round that was prepared, and let the thread prepare the next.
    prepared, self._next = self._next, None
    if prepared is None or prepared.round_idx != round_idx:
      prepared = self._prepare(round_idx)
    if not last:
      self._next = self._prepare(round_idx + 1)

    # 2. Get the programs.
    if jax.config.jax_disable_jit:  # pyright: ignore
      # Programs that are compiled ahead of time cannot run without jit. The
      # plain functions can then be debugged step by step.
      server = self._on_server
      training = self._training.function(), self._training.attackers_function
      programs = Programs(*training, server.receive, server.step)
    else:
      programs = self.programs

    # 3. Clients train, from a copy of the model on every device.
    start, clients = self._start(state, round_idx), prepared.clients.result()
    updates, losses, kept = self._training.enqueue(
      *programs[:2], start, clients
    )
    state = state._replace(attack={**state.attack, **kept})

    # 4. Byzantine clients attack, and the server makes the next model.
    drawn, numbers = prepared.drawn, self._server.numbers
    if programs.receive is not None:
      updates, momenta = programs.receive(
        *state, updates, losses, drawn, numbers
      )
      state = state._replace(momenta=momenta)
    state, measured = programs.step(*state, updates, losses, drawn, numbers)
    del updates  # so that their memory is free once the step is taken

    # 5. The host waits for the devices, which have all their work by now.
    n = self.clients_per_round
    self._training.wait(lambda trained: report(min(trained, n)))
    return state, self._as_numbers(measured, drawn)

  def _start(self, state: ServerState, round_idx: int) -> Start:
    """Returns what all clients of a round start from."""
    return Start(
      *(self.everywhere(state), *self._training_keys(round_idx)),
      self._on_every_device(state.attack),
    )

  def _as_numbers(self, measured, drawn) -> Any:
    """Returns the metrics of a round as `run_round` returns them."""
    measured = jax.device_get(measured)
    return metrics.as_numbers(measured, self._metric_names, drawn.ids)

  def _training_keys(self, round_idx: int) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of the training, and of the attackers' examples."""
    return self.drawing.training_key(round_idx), self.drawing.examples_key

  def _draw(self, round_idx: int) -> Round:
    """Draws a round."""
    return self.drawing.draw(round_idx)

  def _prepare(self, round_idx: int) -> _PreparedRound:
    """Draws a round and lets the thread begin to read its examples."""
    drawn = self._draw(round_idx)
    clients = self._reader.submit(self._read, drawn)
    return _PreparedRound(round_idx, drawn, clients)

  def _read(self, drawn: Round):
    """Puts the examples of a round on the mesh, with the attack's changes.

    The server's own examples, if it has any, follow those of the clients.

    Returns:
      The stacked examples, the `[rows]` ids of the clients, and the attackers
      if they train in their own way. There are `clients_per_device` rows for
      each device.
    """
    width = self.clients_per_device
    part = functools.partial(self.drawing.read, drawn, width)
    return place_parts(part, self.placement.mesh)

  def evaluate(self, state: ServerState) -> dict[str, float]:
    """Tests the model of a state; see `Evaluation.evaluate`."""
    model, memory = self.everywhere(state), state.memory
    return self._evaluation.evaluate(model, self._on_every_device(memory))

  def confusion(self, state: ServerState) -> np.ndarray:
    """Counts predictions of a state's model; see `Evaluation.confusion`."""
    return self._evaluation.confusion(self.everywhere(state))

  def everywhere(self, state: ServerState) -> PyTree:
    """Returns the model of a state, with a copy on every device."""
    return self._on_every_device(state.variables)

  def _on_every_device(self, tree: PyTree) -> PyTree:
    return jax.device_put(tree, self.placement.everywhere)
