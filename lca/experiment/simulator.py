"""The simulator as a library: runs your own data, model, rule and attack."""

import dataclasses
import inspect
import os
import typing
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypedDict, Unpack

import jax
import numpy as np
from flax import linen as nn

from lca.aggregators import Aggregator, stateless
from lca.attacks import Attack
from lca.attacks.base import NO_ATTACK
from lca.data import Dataset
from lca.experiment import names, reading, sections, settings, train
from lca.experiment.trained import TrainedModel
from lca.registry import REQUIRED, check_options
from lca.typing import Update


class Options(TypedDict, total=False):
  """The options of `simulate`, each with the config key that it sets.

  An option that has the name of a section, such as `eval`, takes a dict of that
  section's keys. See `lca.experiment.sections` for the meaning of all keys.
  """

  seed: Annotated[int, 'seed']
  num_rounds: Annotated[int, 'num_rounds']
  init_from: Annotated[str, 'init_from']
  num_clients: Annotated[int | None, 'data.num_clients']
  partition: Annotated[str, 'data.partition']
  min_examples: Annotated[int, 'data.min_examples']
  root_examples: Annotated[int, 'data.root_examples']
  validation: Annotated[float, 'data.validation']
  clients_per_round: Annotated[int, 'server.clients_per_round']
  num_byzantine: Annotated[int, 'attack.num_byzantine']
  num_attackers: Annotated[int | None, 'attack.num_attackers']
  sampled: Annotated[bool, 'attack.sampled']
  attack_first_round: Annotated[int, 'attack.first_round']
  attack_last_round: Annotated[int | None, 'attack.last_round']
  attack_every: Annotated[int, 'attack.every']
  attack_rounds: Annotated[Sequence[int] | None, 'attack.rounds']
  optimizer: Annotated[str, 'client.optimizer']
  learning_rate: Annotated[float, 'client.learning_rate']
  batch_size: Annotated[int, 'client.batch_size']
  local_epochs: Annotated[int, 'client.local_epochs']
  drop_rate: Annotated[float, 'client.drop_rate']
  server_optimizer: Annotated[str, 'server.optimizer']
  server_learning_rate: Annotated[float, 'server.learning_rate']
  on_nonfinite: Annotated[str, 'train.on_nonfinite']
  resize: Annotated[int, 'model.resize']
  crop: Annotated[int, 'model.crop']
  pretrained: Annotated[str, 'model.pretrained']
  batch_stats: Annotated[str, 'model.batch_stats']
  data: Annotated[Mapping[str, Any], 'data']
  client: Annotated[Mapping[str, Any], 'client']
  server: Annotated[Mapping[str, Any], 'server']
  aggregator: Annotated[Mapping[str, Any], 'aggregator']
  train: Annotated[Mapping[str, Any], 'train']
  eval: Annotated[Mapping[str, Any], 'eval']
  checkpoint: Annotated[Mapping[str, Any], 'checkpoint']
  parallel: Annotated[Mapping[str, Any], 'parallel']


# The config key that each option sets, such as 'client.batch_size'.
_KEYS = {
  name: hint.__metadata__[0]
  for name, hint in typing.get_type_hints(Options, include_extras=True).items()
}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Result(TrainedModel):
  """The result of a simulation: its metrics and the trained model.

  Attributes:
    history: the metrics by name, each `[num_rounds]`. `test_loss` and
      `test_accuracy` are NaN in rounds without a test. See
      `lca.federated.metrics` for the other names.
    summary: `num_rounds` and the five metrics of the paper's tables.
    dataset: the data that the model was trained on.
  """

  history: dict[str, np.ndarray]
  summary: dict[str, Any]
  dataset: Dataset


def simulate(
  dataset: Dataset,
  model: nn.Module,
  rule: Callable[..., Update] | Aggregator,
  *,
  attack: Attack | None = None,
  f: int | None = None,
  workdir: str | os.PathLike | None = None,
  **options: Unpack[Options],
) -> Result:
  """Simulates federated training with your own data, model, rule and attack.

  The run is the one that a config describes, with objects in the place of
  names. It has the same defaults, checks and rounds.

  Args:
    dataset: the data, for example from `lca.data.from_arrays`.
    model: any Flax module that maps inputs to logits.
    rule: a function of stacked updates, or an Aggregator.
    attack: what the Byzantine clients do; with None nobody attacks.
    f: how many Byzantine clients the rule tolerates, if it takes an `f`. None
      takes the rule's own default; if it has none, `num_byzantine`, or 1 if
      nobody attacks.
    workdir: directory of the run, with the same files as for `main.py`. The
      same call continues a run that was killed, with the same results bit by
      bit. The config in it names functions, so that a change inside a function
      is not noticed. None writes nothing.
    **options: keys of a config; `lca.experiment.sections` has their meaning.

      - `seed`, `num_rounds`, `init_from`, `num_clients`, `clients_per_round`,
        `partition`, `min_examples`, `root_examples`, `validation`, `drop_rate`
        and `on_nonfinite` have the same names in a config.
      - `num_byzantine`, `num_attackers` and `sampled` say who attacks. By
        default a fifth of the clients are attackers. One of them takes part in
        each round; or all, if every client takes part in each round.
        `attack_first_round`, `attack_last_round`, `attack_every` and
        `attack_rounds` say when.
      - `resize`, `crop`, `pretrained` and `batch_stats` belong to the model.
      - `optimizer`, `learning_rate`, `batch_size` and `local_epochs` belong to
        the clients, `server_optimizer` and `server_learning_rate` to the
        server.
      - All other keys are given in dicts named like their section: `data` (with
        the partition's options, such as `data={'alpha': 0.1}`), `client` (such
        as `client={'mode': 'gradient', 'momentum': 0.9}`), `server` (with its
        optimiser's options), `aggregator` (with the rule's other arguments, and
        `weights='examples'`), `train`, `eval`, `checkpoint`, `parallel`.

      A key that is not given has its value in `settings.DEFAULTS`.

  Returns:
    The metrics of all rounds and the trained model.

  Raises:
    TypeError: an unknown option, or one that is given twice; a data set, rule,
      model or attack of the wrong type; an argument that the rule does not take
      or that it lacks.
    ValueError, OSError, CheckpointError, FloatingPointError: see
      `lca.experiment.set_up` and `run`.

  Examples:
    >>> import lca, lca.data
    >>> from flax import linen as nn
    >>> class Linear(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x, keys=None):
    ...     return nn.Dense(10)(x.reshape(len(x), -1))
    >>> digits = lca.data.load('digits')
    >>> result = simulate(  # doctest: +ELLIPSIS
    ...   digits, Linear(), lca.krum, num_clients=10, clients_per_round=5,
    ...   num_rounds=1, local_epochs=1)
    krum (f=1); no attack; Linear on digits, iid; 5 of 10 ...
    >>> result.predict(digits.test.inputs[:3]).shape
    (3, 10)
  """
  config = _config(options)
  if not isinstance(dataset, Dataset):
    raise TypeError(
      'the first argument must be a data set, as from lca.data.from_arrays or '
      f'lca.data.load, got {type(dataset).__name__}'
    )
  if not isinstance(model, nn.Module):
    kind = 'the class ' if isinstance(model, type) else 'a '
    raise TypeError(
      'the model must be a flax.linen.Module, such as MLP(), got '
      f'{kind}{names.name_of(model)}'
    )
  if attack is not None and not isinstance(attack, Attack):
    raise TypeError(
      'the attack must be an lca.attacks.Attack, such as '
      f'attacks.from_function(my_attack), got {names.name_of(attack)}'
    )
  has_attack = attack is not None and attack != NO_ATTACK
  # The sections of attack, rule and model describe the objects by name.
  config['attack'] = _attack_section(config, attack if has_attack else None)
  aggregator, config['aggregator'] = _aggregator(rule, f, config)
  model_options = config['model']
  config['model'] = names.of_module(model) | model_options
  config['data'] |= {'name': dataset.name}
  run_settings = settings.make(
    reading.complete(config),
    aggregator=aggregator,
    attack=attack if has_attack else NO_ATTACK,
    module=lambda num_classes: model,
    load=lambda: dataset,
    pixels=(dataset.mean, dataset.std),
    dataset=dataset,
    **model_options,
  )
  if workdir is not None:
    # The config holds a checksum of all examples, so that a run cannot be
    # continued with another data set.
    total = zlib.crc32(repr((dataset.train, dataset.test)).encode())
    for split in (dataset.train, dataset.test):
      total = zlib.crc32(np.ascontiguousarray(split.labels), total)
      for start in range(0, len(split), 1000):
        rows = np.arange(start, min(start + 1000, len(split)))
        total = zlib.crc32(np.ascontiguousarray(split.read(rows)), total)
    data = run_settings.config['data'] | {'checksum': f'{total:08x}'}
    run_settings = dataclasses.replace(
      run_settings, config=run_settings.config | {'data': data}
    )
  return _run(run_settings, dataset, workdir)


_SECTIONS = (*sections.SECTIONS, *sections.NAMED)


def _run(
  run_settings: settings.Settings,
  dataset: Dataset,
  workdir: str | os.PathLike | None,
) -> Result:
  """Runs the rounds that are missing, and returns the result of all rounds."""
  experiment = train.prepare(run_settings, workdir)
  simulation = experiment.simulation
  if simulation:
    state, rows = train.run_rounds(experiment)
  else:  # the run was finished before: read its model from the last checkpoint
    simulation = run_settings.parts().simulation()
    with train.checkpoints_of(experiment) as checkpoints:
      state, rows = checkpoints.restore(simulation.init())
    if len(rows) < run_settings.run.num_rounds:
      raise ValueError(
        f'{experiment.directory.path} holds a finished run whose last '
        'checkpoint, which has its model, is missing: choose another workdir'
      )
  columns = dict.fromkeys(name for row in rows for name in row)
  return Result(
    history={
      name: np.array([row.get(name, np.nan) for row in rows])
      for name in columns
    },
    variables=jax.device_get(simulation.everywhere(state)),
    summary=train.summary_of(rows),
    classifier=simulation.classifier,
    dataset=dataset,
    input_spec=dataset.train.input_spec,
    batch_size=run_settings.eval.batch_size,
  )


def _config(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options of `simulate` as the nested dicts of a config.

  Raises:
    TypeError: an unknown option, a key that is given twice, or a key that says
      which data to read.
  """
  known = reading.optional_parameters([*_KEYS, 'attack', 'f', 'workdir'])
  check_options('simulate', known, options)
  config = {name: dict(options.get(name, {})) for name in _SECTIONS}
  for name in set(options) - set(_SECTIONS):
    section, _, key = _KEYS[name].rpartition('.')
    keys = config[section] if section else config
    if key in keys:
      raise TypeError(
        f'{name} is given twice, as {name}={options[name]!r} and in {section}'
      )
    keys[key] = options[name]
  source_keys = {'name', *reading.SOURCE_KEYS}
  if given := sorted(source_keys & config['data'].keys()):
    raise TypeError(
      f'data={given} does not apply: the data set itself is the first '
      'argument; give these keys to lca.data.load'
    )
  return config


def _attack_section(
  config: Mapping[str, Any], attack: Attack | None
) -> dict[str, Any]:
  """Returns the section `attack`: the attack by name, and who attacks.

  Args:
    config: the options as nested dicts (see `_config`).
    attack: None if nobody attacks.

  Raises:
    ValueError: options say who attacks, but there is no attack.
  """
  given = config['attack']
  if attack is None:
    if any(given.values()):
      raise ValueError(
        f'{", ".join(f"{k}={v}" for k, v in given.items())}, but attack=None: '
        'give what these clients do as attack=..., or leave the numbers out'
      )
    return {'name': 'none'}
  section = names.of_attack(attack) | sections.ATTACKERS | given
  if not section['sampled'] and 'num_byzantine' not in section:
    # 1, or all attackers if every client takes part in every round.
    num_clients, in_a_round = (
      (sections.DEFAULTS[part] | config[part])[key]
      for part, key in (
        ('data', 'num_clients'),
        ('server', 'clients_per_round'),
      )
    )
    attackers = section['num_attackers']
    if attackers is None:
      attackers = (num_clients or 0) // 5
    section['num_byzantine'] = attackers if num_clients == in_a_round else 1
  return section


def _aggregator(
  rule: Any, f: int | None, config: Mapping[str, Any]
) -> tuple[Aggregator, dict[str, Any]]:
  """Returns the aggregator, and the section `aggregator` that describes it.

  Raises:
    TypeError: `f` is given twice, the rule is of the wrong type, or arguments
      are given to an Aggregator.
    ValueError: `f` is missing, or an impossible value of `weights`.
  """
  hyper = dict(config['aggregator'])
  if f is not None:
    if 'f' in hyper:
      raise TypeError(f'f is given twice, as f={f} and in aggregator')
    hyper['f'] = f
  if isinstance(rule, Aggregator):
    if hyper:
      raise TypeError(
        f'{", ".join(hyper)} must be bound when the Aggregator is made, as in '
        'lca.stateless(rule, f=1): an Aggregator takes no more arguments'
      )
    return rule, names.of_aggregator(rule)
  if not callable(rule):
    raise TypeError(
      'the rule must be a function of stacked updates or an lca.Aggregator, '
      f'got {rule!r}'
    )
  takes, attack = inspect.signature(rule).parameters, config['attack']
  if 'f' in takes and 'f' not in hyper and takes['f'].default is REQUIRED:
    if attack.get('sampled'):
      raise ValueError(
        f'{names.name_of(rule)} needs f: with sampled=True the number of '
        'attackers varies from round to round, so that f cannot follow it; '
        'give f=...'
      )
    hyper['f'] = attack.get('num_byzantine', 1)
  section = names.of_rule(rule) | names.plain(hyper)
  if 'weights' in takes:
    # 'uniform' binds None. 'examples' leaves the argument free, so that each
    # round brings the clients' numbers of examples.
    weights = section['weights'] = hyper.pop('weights', 'uniform')
    if weights == 'uniform':
      hyper['weights'] = None
    elif weights != 'examples':
      raise ValueError(
        f"aggregator's weights must be 'uniform' or 'examples', got {weights!r}"
      )
  return stateless(rule, **hyper), section
