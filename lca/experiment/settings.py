"""One pass from a config to the parts of a run.

    settings = from_config(config)   # all that can be known without the data
    parts = settings.parts()         # reads the data, and has the rest

`lca.experiment.simulator` makes the same `Settings` of Python objects.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn

from lca import aggregators, attacks, models
from lca import data as datasets
from lca.aggregators import Aggregator
from lca.attacks import Attack
from lca.experiment import checks, optimizers, sections
from lca.experiment.sections import DEFAULTS
from lca.federated import clients, placement
from lca.federated.clients import LocalGradient
from lca.federated.placement import Placement
from lca.federated.population import Population, population_from
from lca.federated.round import Server
from lca.federated.simulation import Simulation
from lca.registry import options_of

__all__ = ['DEFAULTS', 'Parts', 'Settings', 'from_config', 'make']


class Parts(NamedTuple):
  """The parts of a run: all of it but its directory and its loop.

  Attributes:
    data: the data set, spread over the clients.
    population: whom a round draws, and how many attack.
    classifier: the model and its loss.
    train: a client's part of a round.
    server: the server's part, and the attack before it.
    seed: of the run.
    placement: over which devices a round is spread.
  """

  data: datasets.FederatedDataset
  population: Population
  classifier: models.Classifier
  train: LocalGradient
  server: Server
  seed: int
  placement: Placement

  def simulation(self) -> Simulation:
    """Returns the simulation of these parts."""
    return Simulation(**self._asdict())


Module = Callable[[int], nn.Module]
"""A function from the number of classes to a module."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A run, described, checked and built as far as that needs no data.

  Attributes:
    config: as nested dicts that JSON can write.
    run: seed and number of rounds.
    train: of the loop.
    eval: when and how the model is tested.
    checkpoint: when and how many are kept.
    placement: over which devices a round is spread.
    population: a function from the number of clients to the population.
    client: a client's part of a round, for a classifier that lacks what only
      the data tell: classes, mean and deviation; its microbatch size may be
      None, which the model decides.
    classifier: that classifier.
    module: makes its module for any number of classes.
    pixels: mean and deviation that the model expects; None takes the data's.
    server: the server's part of a round, and the attack before it.
    load: reads the data set.
    federate: spreads it over the clients.
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

  def parts(self) -> Parts:
    """Reads the data and returns the parts.

    Raises:
      ValueError, OSError, ImportError: data that cannot be had, or spread; or
        fewer clients in them than a round needs.
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
    return Parts(
      data=data,
      population=self._population(data.num_clients),
      classifier=classifier,
      train=dataclasses.replace(
        self.client,
        losses=classifier.losses,
        microbatch_size=microbatch_size,
      ),
      server=self.server,
      seed=self.run.seed,
      placement=self.placement,
    )

  def _population(self, found: int) -> Population:
    """Returns the population of the clients in the data."""
    made, least = (self.config['data'][k] for k in _DROPPING)
    try:
      population = self.population(found)
    except ValueError as error:
      if made in (None, found):
        raise
      raise ValueError(
        f'{error}: data.min_examples={least} dropped {made - found} of the '
        f'data.num_clients={made}, which hold fewer examples; lower '
        'data.min_examples, or change how the partition spreads the data'
      ) from None
    # Where the draw decides who attacks, it is among the clients in the data.
    if population.num_byzantine is None:
      checks.check_dropouts(self.config, self.server.aggregator, population)
    return population


_DROPPING = 'num_clients', 'min_examples'


def from_config(config: Mapping[str, Any]) -> Settings:
  """Reads a config.

  Args:
    config: nested dicts, or a ConfigDict; see `configs/common.py` and
      `lca.experiment.sections` for the keys. Those that it leaves out have the
      values of `DEFAULTS`.

  Returns:
    The settings.

  Raises:
    ValueError, TypeError: an option that cannot be, or does not apply, or that
      there is not; the message says what is near it.
    OSError, ImportError: pretrained weights that cannot be had.
  """
  config = sections.complete(config)
  source, model = dict(config['data']), dict(config['model'])
  # A partition that is set without its preset finds the keys of another one.
  partition, known = source['partition'], datasets.PARTITIONS
  of_any = {key for name in known for key in known.parameters(name)}
  of_source = source_keys(source['name'])
  own = {*known.parameters(partition), *_OF_ALL_PARTITIONS, *of_source}
  if others := sorted(source.keys() & of_any - own):
    raise TypeError(
      f'data.partition={partition!r} takes no {", ".join(others)}: compose the '
      f'preset {partition}, which sets the keys of that partition'
    )
  its = {k: model.pop(k) for k in _CLASSIFIER_KEYS if k in model}
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
    pretrained=its.pop('pretrained', ''),
    # Of a model without batch statistics there is nothing to choose.
    batch_stats=its.pop('batch_stats', 'rule'),
    pixels=models.PIXELS.get(model['name']),
    **its,
  )


_CLASSIFIER_KEYS = ('resize', 'crop', 'pretrained', 'batch_stats')
SOURCE_KEYS = {'archive_dir', 'data_dir', 'image_size'}


def source_keys(name: str | None) -> set[str]:
  """Returns the keys of `config.data` that are options of a data set.

  Those of `SOURCE_KEYS` may stand in every config. A data set that a user
  registers has the options of its function beside them.

  Args:
    name: of the data set; one that is not registered has no options of its own.

  Raises:
    TypeError: an option has the name of a key that all data sets share.
  """
  known = datasets.SOURCES
  own = {*known.parameters(name)} if name in known else set()
  if taken := sorted(own & {*_OF_ALL_PARTITIONS}):
    raise TypeError(
      f'data set {name!r} has the options {", ".join(taken)}, but config.data '
      'has keys of these names, which mean something else: rename the options'
    )
  return SOURCE_KEYS | own


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
  """Makes the settings of objects and of the sections that all runs share.

  Args:
    config: complete nested dicts (see `sections.complete`).
    aggregator: of the updates.
    attack: of the Byzantine clients.
    module: makes the model for a number of classes.
    load: reads the data set.
    pretrained: name or file of weights to start from; '' draws them.
    batch_stats: who aggregates them.
    pixels: mean and deviation that the model expects; None takes the data's.
    dataset: the data, where they are at hand: model and rule are tried on what
      they have to take.
    **classifier_options: `resize` and `crop`.

  Returns, Raises: as `from_config`.
  """
  checks.check_jit()
  run = sections.Run(**{k: config[k] for k in options_of(sections.Run)})
  train, evaluation, checkpoint, parallel = (
    sections.read(name, sections.SECTIONS[name], config[name])
    for name in ('train', 'eval', 'checkpoint', 'parallel')
  )
  data, federate = _data(config['data'], run.seed)
  client = sections.read(
    'client', sections.of_client(config['client']), config['client']
  )
  server_keys, optimizer = _server(config['server'])
  population = functools.partial(
    population_from,
    config['server'],
    config['attack'],
    drop_rate=client.drop_rate,
  )
  # None is to be found in the data, of any size as yet.
  expected = population(data.num_clients or sys.maxsize)
  checks.check_layers(evaluation.layers, config['aggregator'])
  has_root = data.root_examples > 0
  server = Server(
    aggregator=aggregator,
    optimizer=optimizer,
    attack=attack,
    momentum=client.momentum,
    batch_stats=batch_stats,
    layers=evaluation.layers,
  )
  server.check_examples(has_root)
  mesh = placement.clients_mesh(parallel.mesh)
  chunk_size = parallel.chunk_size
  if chunk_size is None:
    chunk_size = placement.default_chunk_size(jax.default_backend())
  mean, std = pixels or ((0.0,), (1.0,))
  classifier = models.Classifier(
    module(1), mean, std, dtype=client.dtype, **classifier_options
  )
  shapes = dataset and checks.check_model(classifier, dataset)
  if shapes and batch_stats != 'rule':
    shapes = {'params': shapes['params']}
  checks.check_aggregator(
    aggregator, server_keys.clients_per_round, has_root, shapes
  )
  part = _clients_part(client, classifier, parallel)
  placement.train_clients(part, mesh, chunk_size)  # raises what it would raise
  if expected.num_byzantine is not None:
    checks.check_dropouts(config, aggregator, expected)
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
  )


def _data(
  keys: Mapping[str, Any], seed: int
) -> tuple[sections.Data, Callable[..., datasets.FederatedDataset]]:
  """Returns the section, and a function that spreads data over clients."""
  partition = keys['partition']
  own = datasets.PARTITIONS.parameters(partition)
  of_source = source_keys(keys['name'])
  more, because = {*own, *of_source}, f'data.partition={partition!r}'
  section = sections.read('data', sections.Data, keys, more, because)
  spread = {k: v for k, v in keys.items() if k not in of_source}
  del spread['name']
  options = {k: v for k, v in spread.items() if k not in _OF_ALL_PARTITIONS}
  datasets.partitions.check(partition, section.num_clients, **options)
  return section, functools.partial(datasets.federate, seed=seed, **spread)


_OF_ALL_PARTITIONS = options_of(sections.Data)


def _server(
  keys: Mapping[str, Any],
) -> tuple[sections.Server, optax.GradientTransformation]:
  name, own = keys['optimizer'], options_of(sections.Server)
  more = optimizers.OPTIMIZERS.parameters(name)
  section = sections.read(
    'server', sections.Server, keys, more, f'server.optimizer={name!r}'
  )
  options = {k: v for k, v in keys.items() if k not in own}
  optimizer = optimizers.make(
    name, section.learning_rate, whose='server', **options
  )
  return section, optimizer


def _clients_part(
  client: sections.Training | sections.Gradient,
  classifier: models.Classifier,
  parallel: sections.Parallel,
) -> LocalGradient:
  shared = {
    'losses': classifier.losses,
    'batch_size': client.batch_size,
    'microbatch_size': parallel.microbatch_size,
    'update_dtype': client.update_dtype,
  }
  if isinstance(client, sections.Gradient):
    return LocalGradient(**shared)
  return clients.LocalTraining(
    **shared,
    optimizer=optimizers.make(
      client.optimizer, client.learning_rate, whose='client'
    ),
    local_epochs=client.local_epochs,
  )
