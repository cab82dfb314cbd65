"""The sections of a config: their keys, their defaults, and their checks.

Each section is a dataclass. Its fields are the section's keys, the fields'
defaults are the defaults of every run, and it checks its own values when it is
made. The sections `model`, `aggregator` and `attack` have the keys of what they
name; their families check them.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from lca.registry import check_options, options_of

S = TypeVar('S')


def _check_at_least_one(section: Any, prefix: str, *keys: str) -> None:
  for key in keys:
    value = getattr(section, key)
    if value < 1:
      raise ValueError(f'{prefix}{key} must be at least 1, got {value}')


def _check_one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
  if value not in known:
    raise ValueError(
      f'{name} must be {" or ".join(map(repr, known))}, got {value!r}'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """The keys of no section.

  Attributes:
    seed: of all that is random in a run.
    num_rounds: may grow when a run is continued.
  """

  seed: int = 0
  num_rounds: int = 100

  def __post_init__(self):
    _check_at_least_one(self, '', 'num_rounds')
    if not 0 <= self.seed < 2**32:  # what a PRNG key tells apart
      raise ValueError(f'seed must lie in [0, 2**32), got {self.seed}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """The data set and how it is spread over the clients.

  The section has the options of the partition beside these, and those of where
  the data lie (see `lca.data.load`).

  Attributes:
    name: see `lca.data.load`.
    num_clients: the population; None where the partition finds it in the data.
    min_examples: clients with fewer are dropped.
    root_examples: training examples that no client but the server itself holds
      and trains on.
    partition: a name in `lca.data.partitions.PARTITIONS`.
  """

  name: str | None = None
  num_clients: int | None = 200
  min_examples: int = 30
  root_examples: int = 0
  partition: str = 'iid'


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Client:
  """The keys of clients in both modes.

  Attributes:
    batch_size: in examples.
    drop_rate: the share of a round's honest clients, on average, that do not
      answer.
    dtype: of forward and backward passes, 'float32' or 'bfloat16'. Parameters,
      optimisers and losses, and all of the testing, are float32.
    update_dtype: of the updates that the server stores and aggregates, and of
      what a rule remembers of them. Sums, distances and the model are float32.
  """

  batch_size: int = 256
  drop_rate: float = 0.0
  dtype: str = 'float32'
  update_dtype: str = 'float32'

  def __post_init__(self):
    _check_at_least_one(self, 'client.', 'batch_size')
    for key in ('dtype', 'update_dtype'):
      _check_one_of(f'client.{key}', getattr(self, key), _DTYPES)


_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(_Client):
  """Clients that train on their own.

  Attributes:
    mode: 'training'.
    optimizer: a name in `lca.experiment.optimizers.OPTIMIZERS`; fresh in every
      round.
    learning_rate: of the clients' steps.
    local_epochs: passes over a client's examples in a round.
  """

  mode: str = 'training'
  optimizer: str = 'adam'
  learning_rate: float = 1e-3
  local_epochs: int = 10
  momentum = 0.0

  def __post_init__(self):
    super().__post_init__()
    _check_at_least_one(self, 'client.', 'local_epochs')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradient(_Client):
  """Clients that send minus the gradient of one batch: federated SGD.

  Attributes:
    mode: 'gradient'.
    momentum: of the workers, in [0, 1).
  """

  mode: str = 'gradient'
  momentum: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.momentum < 1:
      raise ValueError(
        f'client.momentum must lie in [0, 1), got {self.momentum}'
      )


MODES = {'training': Training, 'gradient': Gradient}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
  """The server; the section has the options of its optimiser beside these.

  Attributes:
    optimizer: a name in `lca.experiment.optimizers.OPTIMIZERS`.
    learning_rate: of the server's step; with 'sgd' and 1 the model moves by the
      aggregate.
    clients_per_round: drawn without replacement.
  """

  optimizer: str = 'sgd'
  learning_rate: float = 1.0
  clients_per_round: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  """The loop.

  Attributes:
    on_nonfinite: 'stop' or 'continue' after a round whose aggregate, model or
      test loss is not finite; may change when a run is continued.
  """

  on_nonfinite: str = 'stop'

  def __post_init__(self):
    _check_one_of('train.on_nonfinite', self.on_nonfinite, ('stop', 'continue'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
  """The tests of the model.

  Attributes:
    every: so many rounds; the last one is always evaluated.
    batch_size: test examples at once.
    layers: the scope of the layers whose normalised norms (LEGATO's Eq. 2) and
      factors are among the metrics, such as 'leaf'; None for none.
  """

  every: int = 1
  batch_size: int = 100
  layers: str | None = None

  def __post_init__(self):
    _check_at_least_one(self, 'eval.', 'every', 'batch_size')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """The checkpoints.

  Attributes:
    every: so many rounds; the last one is always saved.
    keep: how many; older ones are deleted.
  """

  every: int = 10
  keep: int = 2

  def __post_init__(self):
    _check_at_least_one(self, 'checkpoint.', 'every', 'keep')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
  """How a round is spread over devices and over time.

  Attributes:
    mesh: how many devices share a round, as many of each process; None is all.
    chunk_size: clients that one vmap holds; None is 1 on CPU and 32 elsewhere.
    microbatch_size: examples, at most, whose gradients are computed at once;
      None is 32 on CPU and the whole batch elsewhere.
  """

  mesh: int | None = None
  chunk_size: int | None = None
  microbatch_size: int | None = None


SECTIONS = {
  'data': Data,
  'client': Training,
  'server': Server,
  'train': Train,
  'eval': Eval,
  'checkpoint': Checkpoint,
  'parallel': Parallel,
}
"""The sections with keys of their own, in the order of a config."""

NAMED = ('model', 'aggregator', 'attack')
"""The sections whose keys are those of what they name."""


def defaults(section: type) -> dict[str, Any]:
  """Returns a section's keys and their defaults."""
  return {k: p.default for k, p in options_of(section).items()}


DEFAULTS: dict[str, Any] = defaults(Run) | {
  name: defaults(section) for name, section in SECTIONS.items()
}
"""Every key that runs share, and its default, as nested dicts.

A None stands for a choice that the code makes; `lca.registry.type_of` tells of
which type the key is otherwise.
"""


ATTACKERS = {'num_attackers': None, 'sampled': False}
"""The attackers where the section `attack` names none: a fifth of the clients,
of which as many take part in a round as its `num_byzantine`."""


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config as nested dicts, with the defaults of keys it leaves out.

  Args:
    config: nested dicts, or a ConfigDict. `model`, `aggregator` and `attack`
      must be there.

  Raises:
    TypeError: a key that no section is named by; the message says what is near
      it.
    ValueError: an unknown `client.mode`, or a key of the other mode; a section
      that is missing.
  """
  plain = getattr(config, 'to_dict', lambda: dict(config))()
  check_options('a config', optional([*DEFAULTS, *NAMED]), plain)
  if lacking := [name for name in NAMED if name not in plain]:
    raise ValueError(f'the config has no {" and no ".join(lacking)}')
  found = DEFAULTS | plain
  for name in SECTIONS:
    given = dict(plain.get(name, {}))
    section = of_client(given) if name == 'client' else SECTIONS[name]
    found[name] = defaults(section) | given
  if found['attack'].get('name') != 'none':
    found['attack'] = ATTACKERS | found['attack']
  return found


def of_client(given: Mapping[str, Any]) -> type[Training] | type[Gradient]:
  """Returns the client's section in the mode that its keys name.

  Raises:
    ValueError: an unknown mode, or a key of the other mode.
  """
  mode = given.get('mode', Training.mode)
  if mode not in MODES:
    raise ValueError(
      f'client.mode must be one of {sorted(MODES)}, got {mode!r}'
    )
  all_keys = {k for section in MODES.values() for k in options_of(section)}
  if other := sorted(all_keys - {*options_of(MODES[mode])} & {*given}):
    raise ValueError(
      f'client.mode={mode!r} does not go with the keys {", ".join(other)}'
    )
  return MODES[mode]


def read(
  name: str,
  section: type[S],
  given: Mapping[str, Any],
  more: Iterable[str] = (),
  because: str = '',
) -> S:
  """Makes a section of its keys.

  Args:
    name: of the section.
    section: its dataclass.
    given: its keys.
    more: names of keys beside the dataclass's.
    because: what they are there for, such as `"server.optimizer='adam'"`.

  Returns:
    The section, without the keys of `more`.

  Raises:
    TypeError: a key that there is not; the message says what is near it.
    ValueError: a value that cannot be.
  """
  own = options_of(section)
  who = f"the config's section {name!r}" + (f' ({because})' if because else '')
  check_options(who, optional([*own, *more]), given)
  return section(**{k: v for k, v in given.items() if k in own})


def optional(names: Iterable[str]) -> dict[str, inspect.Parameter]:
  """Returns parameters of these names that need not be given."""
  kind = inspect.Parameter.KEYWORD_ONLY
  return {k: inspect.Parameter(k, kind, default=None) for k in names}
