"""The loop: rounds, evaluation, checkpoints, metrics."""

import datetime
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lca import aggregators, attacks, models
from lca import data as datasets
from lca.aggregators import Aggregator
from lca.experiment import host, optimizers
from lca.experiment.checkpoints import Checkpoints
from lca.experiment.rundir import ReadOnlyRunDirectory, RunDirectory
from lca.experiment.summary import Row, summarize
from lca.federated import clients, placement, plan
from lca.federated.placement import Placement
from lca.federated.population import Population, population_from
from lca.federated.round import Server, ServerState
from lca.federated.simulation import Simulation


class Experiment(NamedTuple):
  """A run that is ready to start, or to go on.

  Attributes:
    config: as given.
    directory: of the run.
    simulation: None if the run is finished.
    plan: what a round needs of each device; None likewise.
  """

  config: ConfigDict
  directory: RunDirectory
  simulation: Simulation | None
  plan: plan.Plan | None


def train_and_evaluate(
  config: ConfigDict, workdir: str | os.PathLike
) -> dict[str, Any]:
  """Runs a config in a directory, or goes on with the run that it holds.

  Args:
    config: see `configs/common.py` for the keys.
    workdir: of the run; see `lca.experiment.rundir` for what it will hold.

  Returns:
    The summary: `num_rounds`, and the five metrics of the paper's tables.

  Raises:
    ValueError, TypeError, OSError, ImportError: see `set_up`.
    OSError, CheckpointError, FloatingPointError: see `run`.
  """
  return run(set_up(config, workdir))


def set_up(
  config: ConfigDict, workdir: str | os.PathLike, jobs: int = 1
) -> Experiment:
  """Checks all that can be known before the training, and prepares it.

  What needs no data is checked first. The run gets its directory last, once
  nothing has been found wrong.

  Args:
    config: see `configs/common.py` for the keys.
    workdir: of the run.
    jobs: processes that share the host's memory, this one included.

  Returns:
    The experiment, for `run`.

  Raises:
    ValueError, TypeError: an option that cannot be, or does not apply; a
      workdir that holds another config's run; a round that does not fit into
      the devices' memory.
    OSError, ImportError: data that cannot be had, or a directory that cannot
      be written or is another process's.
  """
  _check_numbers(config)
  _check_on_nonfinite(config.train.on_nonfinite)
  aggregator = aggregators.make(config.aggregator)
  attack = attacks.make(config.attack)
  optimizer = _server_optimizer(config)
  _check_client(config)
  num_clients = config.data.num_clients
  if num_clients is None:  # to be found in the data, of any size as yet
    num_clients = sys.maxsize
  population = _population(config, num_clients)
  _check_layers(config)
  _check_partition(config)
  mesh = placement.clients_mesh(config.parallel.mesh)
  root = config.data.root_examples > 0
  _check_aggregator(aggregator, population.clients_per_round, root)
  server = Server(
    aggregator=aggregator,
    optimizer=optimizer,
    attack=attack,
    momentum=_momentum(config),
    batch_stats=_batch_stats(config),
    layers=config.eval.layers,
  )
  server.check_examples(root)
  chunk_size = config.parallel.chunk_size
  if chunk_size is None:
    chunk_size = placement.default_chunk_size(jax.default_backend())
  _check_clients_part(config, mesh, chunk_size)
  # Where the draw decides who attacks, it is among the clients in the data.
  sampled = population.num_byzantine is None
  if not sampled:
    _check_without_the_dropped(config, aggregator, population)
  weights = _weights(config)
  here = RunDirectory if jax.process_index() == 0 else ReadOnlyRunDirectory
  directory = here(workdir, config.to_dict())
  if directory.finished(config.num_rounds):
    return Experiment(config, directory, None, None)
  data = _federated_data(config)
  population = _population(config, data.num_clients)
  if sampled:
    _check_without_the_dropped(config, aggregator, population)
  dataset = data.dataset
  classifier = _classifier(
    config, dataset.num_classes, (dataset.mean, dataset.std), weights
  )
  simulation = Simulation(
    data=data,
    population=population,
    classifier=classifier,
    train=_clients_part(config, classifier),
    server=server,
    seed=config.seed,
    placement=Placement(mesh, chunk_size, config.eval.batch_size),
  )
  needed = plan.check(simulation, plan.memory_limit(mesh, jobs))
  directory.open()
  return Experiment(config, directory, simulation, needed)


def run(
  experiment: Experiment, stopping: Callable[[], bool] = lambda: False
) -> dict[str, Any] | None:
  """Runs the rounds that are missing.

  Args:
    experiment: from `set_up`.
    stopping: asked after every round; if it says so, that round is saved and
      was the last one for now.

  Returns:
    The summary, which also stands in the run's directory; None of a run that
    was stopped.

  Raises:
    OSError, CheckpointError: what must be written cannot be, or the checkpoints
      are not of this run, or damaged.
    FloatingPointError: a round's aggregate is not finite, and
      `config.train.on_nonfinite` is 'stop'.
  """
  config, directory, simulation, _ = experiment
  if simulation is None:
    return directory.summary()
  with directory:
    rows = _run_rounds(config, directory, simulation, stopping)
    if len(rows) < config.num_rounds:
      return None
    summary = {'num_rounds': len(rows), **summarize(rows)}
    directory.finish(summary)
  return summary


def _run_rounds(
  config: ConfigDict,
  directory: RunDirectory,
  simulation: Simulation,
  stopping: Callable[[], bool],
) -> list[Row]:
  """Rounds, until it is told to stop or there are enough; all are saved."""
  with Checkpoints(
    directory.checkpoints, directory.config, config.checkpoint.keep
  ) as checkpoints:
    state, rows = checkpoints.restore(simulation.init())
    directory.start(rows, simulation.more_metrics)
    first, start = len(rows), time.monotonic()
    for round_idx in range(first, config.num_rounds):
      state, row = _round(simulation, state, round_idx, config)
      rows.append(row)
      directory.add(row)
      if row['nonfinite'] and config.train.on_nonfinite == 'stop':
        raise FloatingPointError(_not_finite(simulation, row))
      now = time.monotonic()
      seconds = (now - start) / max(1, round_idx - first)
      host.say(_line(row, config.num_rounds, seconds))
      if round_idx == first:  # whose compilation is no pace
        start = now
      stop = host.any_process(stopping())
      if stop or _due(row['round'], config.checkpoint.every, config.num_rounds):
        checkpoints.save(state, rows)
      if stop:
        break
  return rows


def _round(
  simulation: Simulation,
  state: ServerState,
  round_idx: int,
  config: ConfigDict,
) -> tuple[ServerState, Row]:
  row = {'round': round_idx + 1}
  last = row['round'] == config.num_rounds
  state, metrics = simulation.run_round(state, round_idx, last)
  if _due(row['round'], config.eval.every, config.num_rounds):
    row |= simulation.evaluate(state)
  return state, row | metrics


def _due(round_number: int, every: int, last: int) -> bool:
  return round_number % every == 0 or round_number == last


def _not_finite(simulation: Simulation, row: Row) -> str:
  ids = simulation.attackers(row['round'] - 1)
  attackers = f'the attackers were clients {ids}' if ids else 'nobody attacked'
  return (
    f'in round {row["round"]} the aggregate has {row["nonfinite"]} entries '
    f'that are not finite; {row["rejected"]} updates were not, or too large, '
    f'and {row.get("dropped", 0)} did not come; '
    f'{attackers}. With train.on_nonfinite=continue the run goes on'
  )


def _line(row: Row, num_rounds: int, seconds: float) -> str:
  """What a person sees of a round, where one takes so many seconds."""
  left = datetime.timedelta(
    seconds=round(seconds * (num_rounds - row['round']))
  )
  metrics = '  '.join(
    f'{name.replace("_", " ")} {row[name]:.4f}'
    for name in ('test_loss', 'test_accuracy', 'train_loss')
    if name in row
  )
  return (
    f'round {row["round"]:>{len(str(num_rounds))}}/{num_rounds}  {metrics}  '
    f'{1 / seconds:.2g} rounds/s  {left} left'
  )


_POSITIVE = (
  'num_rounds',
  'eval.every',
  'eval.batch_size',
  'checkpoint.every',
  'checkpoint.keep',
)


def _check_numbers(config: ConfigDict) -> None:
  for key in _POSITIVE:
    value = functools.reduce(getattr, key.split('.'), config)
    if value < 1:
      raise ValueError(f'{key} must be at least 1, got {value}')
  if not 0 <= config.seed < 2**32:  # what a PRNG key tells apart
    raise ValueError(f'seed must lie in [0, 2**32), got {config.seed}')


def _check_on_nonfinite(value: str) -> None:
  if value not in ('stop', 'continue'):
    raise ValueError(
      f"train.on_nonfinite must be 'stop' or 'continue', got {value!r}"
    )


def _check_layers(config: ConfigDict) -> None:
  layers, rule = config.eval.layers, config.aggregator
  if layers:
    aggregators.layer_names({}, layers)  # raises of an unknown scope
  if layers and rule.name == 'legato' and rule.scope != layers:
    raise ValueError(
      f'eval.layers={layers!r} must be aggregator.scope={rule.scope!r}: the '
      'factors are those of its layers'
    )


def _check_aggregator(aggregator: Aggregator, n: int, root: bool) -> None:
  """Traces the rule on n clients, so that it raises what it would raise."""

  def one_round(updates):
    return aggregator.update(
      updates,
      aggregator.init(updates[0]),
      key=jax.random.key(0),
      weights=jnp.ones(n),
      server_update=updates[0] if root else None,
    )

  updates = jax.ShapeDtypeStruct((n, 1), jnp.float32)
  update, _ = jax.eval_shape(one_round, updates)
  if update.shape != updates.shape[1:]:
    raise ValueError(
      f'the aggregator makes {update.shape} of updates {updates.shape}'
    )


def _check_without_the_dropped(
  config: ConfigDict, aggregator: Aggregator, population: Population
) -> None:
  """Runs the rule without as many clients as ever do not answer in a round."""
  if not population.drop_rate:
    return
  worst, missing = population.most_dropped(config.seed, config.num_rounds)
  if not missing:
    return
  attack, n = population.num_byzantine or 0, population.clients_per_round
  rule, rate = config.aggregator, population.drop_rate
  if 'f' in rule and rule.f < missing + attack:
    raise ValueError(
      f'aggregator.f={rule.f} is too small for client.drop_rate={rate}: of the '
      f'{n} clients of round {worst + 1}, {missing} do not answer'
      + (f' and {attack} attack' if attack else '')
    )
  answered = jnp.arange(n) >= missing
  rows = jax.random.normal(jax.random.key(0), (n, 1))
  update, _ = aggregator.update(
    jnp.where(answered[:, None], rows, jnp.nan),
    aggregator.init(rows[0]),
    key=jax.random.key(0),
    weights=answered.astype(jnp.float32),
    server_update=rows[0] if config.data.root_examples else None,
  )
  if not jnp.all(jnp.isfinite(update)):
    name = rule.name
    hint = " unless aggregator.weights='examples'" if name == 'mean' else ''
    raise ValueError(
      f'client.drop_rate={rate}: {name} does not go without {missing} of {n} '
      f'clients{hint}, as many as do not answer in round {worst + 1}'
    )


def _population(config: ConfigDict, num_clients: int) -> Population:
  return population_from(
    config.server, config.attack, num_clients, config.client.drop_rate
  )


_SOURCE_KEYS = ('archive_dir', 'data_dir', 'image_size')
_SPREAD_KEYS = ('min_examples', 'root_examples')


def _check_partition(config: ConfigDict) -> None:
  keys = config.data.to_dict()
  for key in ('name', *_SOURCE_KEYS, *_SPREAD_KEYS):
    keys.pop(key, None)
  datasets.partitions.check(keys.pop('partition'), **keys)


def _federated_data(config: ConfigDict) -> datasets.FederatedDataset:
  keys = config.data.to_dict()
  source = {k: keys.pop(k) for k in _SOURCE_KEYS if k in keys}
  dataset = datasets.load(keys.pop('name'), **source)
  return datasets.federate(dataset, seed=config.seed, **keys)


def _weights(config: ConfigDict) -> str | os.PathLike:
  """The pretrained ones' file; '' draws them, as of a model that has none."""
  model = config.model
  if 'pretrained' not in model or not model.pretrained:
    return ''
  return models.find_pretrained(model.pretrained)


def _batch_stats(config: ConfigDict) -> str:
  """Who aggregates them; of a model without any there is nothing to choose."""
  return config.model.batch_stats if 'batch_stats' in config.model else 'rule'


def _check_clients_part(
  config: ConfigDict, mesh: Mesh, chunk_size: int
) -> None:
  """Builds it for data of any kind, so that it raises what it would raise."""
  classifier = _classifier(config, num_classes=1, pixels=((0.0,), (1.0,)))
  placement.train_clients(_clients_part(config, classifier), mesh, chunk_size)


_CLASSIFIER_KEYS = ('resize', 'crop')


def _classifier(
  config: ConfigDict,
  num_classes: int,
  pixels: tuple[tuple[float, ...], tuple[float, ...]],
  weights: str | os.PathLike = '',
) -> models.Classifier:
  """The model for data with such classes and such a mean and deviation."""
  keys = config.model.to_dict()
  options = {k: keys.pop(k) for k in _CLASSIFIER_KEYS if k in keys}
  keys.pop('pretrained', None)  # the weights' name or file
  keys.pop('batch_stats', None)  # the simulation's
  module = models.make(keys, num_classes)
  pixels = models.PIXELS.get(config.model.name, pixels)
  return models.Classifier(
    module, *pixels, pretrained=weights, dtype=config.client.dtype, **options
  )


def _clients_part(
  config: ConfigDict, classifier: models.Classifier
) -> clients.LocalGradient:
  keys = config.client.to_dict()
  microbatch_size = config.parallel.microbatch_size
  if microbatch_size is None:
    microbatch_size = placement.default_microbatch_size(
      jax.default_backend(), batch_stats='batch_stats' in config.model
    )
  shared = {
    'losses': classifier.losses,
    'batch_size': keys['batch_size'],
    'microbatch_size': microbatch_size,
    'update_dtype': keys['update_dtype'],
  }
  if keys['mode'] == 'gradient':
    return clients.LocalGradient(**shared)
  return clients.LocalTraining(
    **shared,
    optimizer=optimizers.make(keys['optimizer'], keys['learning_rate']),
    local_epochs=keys['local_epochs'],
  )


_DTYPES = ('float32', 'bfloat16')
_ALL_CLIENTS_KEYS = {
  'mode',
  'batch_size',
  'drop_rate',
  'dtype',
  'update_dtype',
}
_CLIENT_KEYS = {
  'training': {'optimizer', 'learning_rate', 'local_epochs'},
  'gradient': {'momentum'},
}


def _check_client(config: ConfigDict) -> None:
  """The client's keys must be those of its mode."""
  keys = config.client.to_dict()
  mode = keys['mode']
  if mode not in _CLIENT_KEYS:
    raise ValueError(
      f'client.mode must be one of {sorted(_CLIENT_KEYS)}, got {mode!r}'
    )
  if other := set(keys) ^ (_CLIENT_KEYS[mode] | _ALL_CLIENTS_KEYS):
    raise ValueError(
      f'client.mode={mode!r} does not go with these keys, or lack of them: '
      f'{sorted(other)}'
    )
  for key in ('dtype', 'update_dtype'):
    if keys[key] not in _DTYPES:
      raise ValueError(
        f'client.{key} must be one of {_DTYPES}, got {keys[key]!r}'
      )
  momentum = _momentum(config)
  if not 0 <= momentum < 1:
    raise ValueError(f'client.momentum must lie in [0, 1), got {momentum}')


def _momentum(config: ConfigDict) -> float:
  """The workers'; who trains on its own has none."""
  return config.client.momentum if config.client.mode == 'gradient' else 0.0


def _server_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  keys = config.server.to_dict()
  del keys['clients_per_round']
  return optimizers.make(keys.pop('optimizer'), **keys)
