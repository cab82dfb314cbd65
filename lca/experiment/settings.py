"""Turns a config into the parts of a run: data, clients, attack, rule, server.

    settings = from_config(config)   # checks and builds all that needs no data
    parts = settings.parts()         # reads the data and builds the rest

`lca.experiment.simulator` makes the same `Settings` from Python objects.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from lca import aggregators, attacks, models
from lca import data as datasets
from lca.aggregators import Aggregator
from lca.attacks import Attack
from lca.experiment import (
  checks,
  client_parts,
  kept_models,
  optimizers,
  reading,
  sections,
)
from lca.experiment.parts import Parts
from lca.experiment.sections import DEFAULTS
from lca.federated import placement, streaming
from lca.federated.clients import LocalGradient, LocalTraining
from lca.federated.optimizer import Optimizer
from lca.federated.placement import Placement
from lca.federated.population import Population, population_from
from lca.federated.server import Server
from lca.registry import options_of
from lca.typing import PyTree

__all__ = ['DEFAULTS', 'Parts', 'Settings', 'from_config', 'make']


Module = Callable[[int], nn.Module]
"""A function that makes a Flax module for a number of classes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A run, checked and built as far as possible without its data.

  `classifier` and `client` are provisional: the number of classes, and mean and
  deviation of the inputs, come from the data. `parts` replaces them.

  Attributes:
    config: the complete config as nested dicts that JSON can write.
    run: seed and number of rounds.
    train: what the loop does after a round that is not finite.
    eval: when and how the model is tested.
    checkpoint: when the state is saved, and how many checkpoints are kept.
    placement: the devices that a round is spread over.
    population: a function from the number of clients to the population.
    client: a client's part of a round, with the provisional classifier. Where
      its microbatch size is None, `parts` chooses the default for the model.
    classifier: the model and its loss, for one class and without the data's
      mean and deviation.
    module: a function from the number of classes to the model's module.
    pixels: mean and deviation that the model expects of its inputs; None takes
      the data's.
    server: the server's part of a round, and the attack before it.
    load: reads the data set.
    federate: spreads the data set over the clients.
    attackers: an attacker's part of a round, like `client`; None if the attack
      has no training of its own.
    initial: a function from a model's shapes to the variables to start from;
      None takes the model's own.
    stream: see `Parts.stream`.
  """

  config: dict[str, Any]
  run: sections.Run
  train: sections.Train
  eval: sections.Eval
  checkpoint: sections.Checkpoint
  placement: Placement
  population: Callable[[int], Population]
  client: LocalGradient
  classifier: models.Classifier
  module: Module
  pixels: tuple[tuple[float, ...], tuple[float, ...]] | None
  server: Server
  load: Callable[[], datasets.Dataset]
  federate: Callable[[datasets.Dataset], datasets.FederatedDataset]
  attackers: LocalTraining | None = None
  initial: Callable[[PyTree], PyTree] | None = None
  stream: dict[str, Any] | None = None

  def parts(self) -> Parts:
    """Reads the data and returns the parts.

    Raises:
      ValueError, OSError, ImportError: the data cannot be read or spread over
        the clients, or they leave fewer clients than a round needs.
    """
    data = self.federate(self.load())
    dataset = data.dataset
    mean, std = self.pixels or (dataset.mean, dataset.std)
    classifier = dataclasses.replace(
      self.classifier,
      module=self.module(dataset.num_classes),
      mean=mean,
      std=std,
    )
    shapes = checks.check_model(classifier, dataset)
    microbatch_size = self.client.microbatch_size
    if microbatch_size is None:
      microbatch_size = placement.default_microbatch_size(
        jax.default_backend(), batch_stats='batch_stats' in shapes
      )
    of_model = functools.partial(
      dataclasses.replace,
      losses=classifier.losses,
      microbatch_size=microbatch_size,
    )
    return Parts(
      data=data,
      population=self._population(data.num_clients),
      classifier=classifier,
      train=of_model(self.client),
      server=self.server,
      seed=self.run.seed,
      placement=self.placement,
      initial=self.initial and self.initial(shapes),
      attackers=self.attackers and of_model(self.attackers),
      by_class=self.eval.by_class,
      stream=self.stream,
    )

  def _population(self, clients_left: int) -> Population:
    """Returns the population of the clients that the data leave.

    Args:
      clients_left: clients with at least `data.min_examples` examples.
    """
    data = self.config['data']
    num_clients, min_examples = data['num_clients'], data['min_examples']
    try:
      population = self.population(clients_left)
    except ValueError as error:
      if num_clients in (None, clients_left):
        raise
      raise ValueError(
        f'{error}: data.min_examples={min_examples} dropped '
        f'{num_clients - clients_left} of the data.num_clients={num_clients}, '
        'because they hold fewer examples; lower data.min_examples or '
        'server.clients_per_round, or choose another partition'
      ) from None
    # With attack.sampled, who attacks decides the number of dropouts, and the
    # number of clients decides who attacks. `make` has checked all other runs.
    if population.num_byzantine is None:
      checks.check_dropouts(self.config, self.server.aggregator, population)
    return population


def from_config(config: Mapping[str, Any]) -> Settings:
  """Checks a config and makes the settings that it describes.

  Args:
    config: nested dicts, or a ConfigDict; see `lca.experiment.sections` for the
      keys. Keys that it leaves out have the values of `DEFAULTS`.

  Returns:
    The settings.

  Raises:
    ValueError, TypeError: an impossible value, an option that does not apply,
      or an unknown key; the message names the nearest one.
    OSError, ImportError: pretrained weights that cannot be loaded.
  """
  config = reading.complete(config)
  source, model = dict(config['data']), dict(config['model'])
  # Setting data.partition without its preset leaves the keys of the partition
  # that was there before. The message names the preset that replaces them.
  partition, known = source['partition'], datasets.PARTITIONS
  of_any = {key for name in known for key in known.parameters(name)}
  of_source = reading.source_keys(source['name'])
  allowed = {*known.parameters(partition), *_SHARED_DATA_KEYS, *of_source}
  if others := sorted(source.keys() & of_any - allowed):
    raise TypeError(
      f'data.partition={partition!r} takes no {", ".join(others)}: compose the '
      f'preset {partition}, which sets the keys of that partition, as in '
      f'--config=SETTING.py:{partition}'
    )
  # The other keys of the section are the module's own.
  classifier_keys = {
    k: model.pop(k) for k in reading.CLASSIFIER_KEYS if k in model
  }
  return make(
    config,
    aggregator=aggregators.make(config['aggregator']),
    attack=attacks.make(config['attack']),
    module=functools.partial(models.make, model),
    load=functools.partial(
      datasets.load,
      source['name'],
      **{k: source[k] for k in of_source & source.keys()},
    ),
    pretrained=classifier_keys.pop('pretrained', ''),
    # Presets of models without batch statistics lack this key.
    batch_stats=classifier_keys.pop('batch_stats', 'rule'),
    pixels=models.PIXELS.get(model['name']),
    **classifier_keys,
  )


def make(
  config: dict[str, Any],
  *,
  aggregator: Aggregator,
  attack: Attack,
  module: Module,
  load: Callable[[], datasets.Dataset],
  pretrained: str = '',
  batch_stats: str = 'rule',
  pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
  dataset: datasets.Dataset | None = None,
  **classifier_options: Any,
) -> Settings:
  """Makes settings from a rule, an attack and a model, and a complete config.

  `from_config` and `lca.experiment.simulate` both end here, so that they have
  the same checks and defaults.

  Args:
    config: complete nested dicts (see `reading.complete`).
    aggregator: aggregates the updates.
    attack: what the Byzantine clients do.
    module: a function from the number of classes to the model's module.
    load: reads the data set.
    pretrained: name or file of weights to start from; '' draws the weights.
    batch_stats: how batch statistics are aggregated: 'rule', 'mean' or
      'server'.
    pixels: mean and deviation that the model expects of its inputs; None takes
      the data's.
    dataset: the data, if they have been read already. Model and rule are then
      traced with the shapes of these data, too.
    **classifier_options: `resize` and `crop`.

  Returns:
    The settings.

  Raises:
    ValueError, TypeError, OSError, ImportError: see `from_config`.
  """
  checks.check_jit()
  run = sections.Run(**{k: config[k] for k in options_of(sections.Run)})
  train, evaluation, checkpoint, parallel = (
    reading.read(name, sections.SECTIONS[name], config[name])
    for name in ('train', 'eval', 'checkpoint', 'parallel')
  )
  data, federate = _data(config['data'], run.seed)
  checks.check_best(checkpoint.best, data.validation)
  client = reading.read(
    'client', reading.of_client(config['client']), config['client']
  )
  server_keys, optimizer = _server(config['server'])
  population = functools.partial(
    population_from,
    config['server'],
    config['attack'],
    drop_rate=client.drop_rate,
  )
  # Where the partition finds its clients in the data, their number is unknown
  # here: only numbers that fit no population at all are refused.
  expected = population(data.num_clients or sys.maxsize)

  checks.check_schedule(expected.schedule, run.num_rounds)

  # The server's part of a round.
  checks.check_layers(evaluation.layers, config['aggregator'])
  has_root = data.root_examples > 0
  server = Server(
    aggregator=aggregator,
    optimizer=optimizer,
    attack=attack,
    momentum=client.momentum,
    batch_stats=batch_stats,
    layers=evaluation.layers,
    forensics=evaluation.forensics,
    detection=evaluation.detection,
  )
  server.check_examples(has_root)
  if parallel.stream:
    streaming.check(server, has_root, parallel.stream_dir)

  # The clients' part, and dry runs of model and rule.
  mesh = placement.clients_mesh(parallel.mesh)
  chunk_size = parallel.chunk_size
  if chunk_size is None:
    chunk_size = placement.default_chunk_size(jax.default_backend())
  # A stand-in for what the data will say: one class, inputs as they are.
  mean, std = pixels or ((0.0,), (1.0,))
  classifier = models.Classifier(
    module(1), mean, std, dtype=client.dtype, **classifier_options
  )
  shapes, predict = None, None
  if dataset:
    shapes = checks.check_model(classifier, dataset)
    predict = server.for_model(classifier, dataset).predict
    predict = checks.traced_predictor(predict, shapes)
  if shapes and batch_stats != 'rule':  # then the rule sees parameters alone
    shapes = {'params': shapes['params']}
  checks.check_aggregator(
    aggregator,
    server_keys.clients_per_round,
    has_root,
    shapes,
    evaluation.detection,
    predict,
  )
  part = client_parts.honest(client, classifier, parallel.microbatch_size)
  placement.train_clients(part, mesh, chunk_size)  # called for its checks alone
  if expected.num_byzantine is not None:
    checks.check_dropouts(config, aggregator, expected)
  initial = None
  if run.init_from:
    if pretrained:
      raise ValueError(
        f'init_from={run.init_from!r} and model.pretrained={pretrained!r} both '
        'say what the model starts from: leave out one of them'
      )
    initial = functools.partial(kept_models.to_start_from, run.init_from)
  # Last, because it may download a file.
  weights = models.find_pretrained(pretrained) if pretrained else ''
  return Settings(
    config=config,
    run=run,
    train=train,
    eval=evaluation,
    checkpoint=checkpoint,
    placement=Placement(mesh, chunk_size, evaluation.batch_size),
    population=population,
    client=part,
    classifier=dataclasses.replace(classifier, pretrained=weights),
    module=module,
    pixels=pixels,
    server=server,
    load=load,
    federate=federate,
    attackers=client_parts.of_attackers(client, part, attack),
    initial=initial,
    stream={'folder': parallel.stream_dir} if parallel.stream else None,
  )


def _data(
  keys: Mapping[str, Any], seed: int
) -> tuple[sections.Data, Callable[..., datasets.FederatedDataset]]:
  """Returns the section, and a function that spreads data over clients."""
  partition = keys['partition']
  partition_keys = datasets.PARTITIONS.parameters(partition)
  of_source = reading.source_keys(keys['name'])
  more = {*partition_keys, *of_source}
  because = f'data.partition={partition!r}'
  section = reading.read('data', sections.Data, keys, more, because)
  spread = {k: v for k, v in keys.items() if k not in of_source}
  del spread['name']
  options = {k: v for k, v in spread.items() if k not in _SHARED_DATA_KEYS}
  datasets.partitions.check(partition, section.num_clients, **options)
  return section, functools.partial(datasets.federate, seed=seed, **spread)


_SHARED_DATA_KEYS = options_of(sections.Data)


def _server(
  keys: Mapping[str, Any],
) -> tuple[sections.Server, Optimizer]:
  """Returns the section and its optimiser."""
  name, shared = keys['optimizer'], options_of(sections.Server)
  more = optimizers.OPTIMIZERS.parameters(name)
  section = reading.read(
    'server', sections.Server, keys, more, f'server.optimizer={name!r}'
  )
  options = {k: v for k, v in keys.items() if k not in shared}
  optimizer = optimizers.make(
    name, section.learning_rate, whose='server', **options
  )
  return section, optimizer
