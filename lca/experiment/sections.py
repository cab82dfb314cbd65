"""The reference of all config keys: meaning, unit, default, corner cases.

A config is a nested dict: `num_rounds` and `seed` stand at its top, all other
keys in sections, such as `client.batch_size`. A key that a config leaves out
has its default. `main.py --config.KEY=VALUE` sets a key on the command line.

Seven sections, `data` to `parallel`, have the same keys in every run. Each is a
dataclass below or, for `client`, in `lca/experiment/client_sections.py`: its
fields are the keys, and the fields' defaults are the defaults of every run. The
constructor refuses values that are wrong whatever the rest of the config says.
Beside these keys, `data` has the options of the chosen partition and data set,
and `server` those of the chosen optimiser.

Three sections have no defaults: the function that their `name` chooses decides
which keys they have. A preset (`configs/presets.py`) fills in such a section:
`--config=SETTING.py:PRESET,PRESET` is the usual way to choose one.

`model`
  - `name`: a name in `lca.models.MODELS`, such as `'cnn'`.
  - The fields of that Flax module, such as `features`.
  - `resize`, `crop`, in pixels: images are scaled until their shorter side is
    `resize`, and a square of side `crop` is cut out of the middle. 0, the
    default, does neither.
  - `pretrained`: a name in `lca.models.pretrained.HUB` or a file, whose weights
    the run starts from; `''`, the default, draws the weights at random.
  - `batch_stats`: how batch statistics are aggregated. `'rule'`, the default,
    treats them like the parameters. `'mean'` averages them over the clients
    whose statistics are finite. `'server'` takes those of the server's own
    training, which needs `data.root_examples`. With `'mean'` and `'server'`
    the rule sees the parameters alone.

`aggregator`
  - `name`: a name in `lca.aggregators.RULES` or `AGGREGATORS`, such as
    `'krum'`.
  - The options of that function, such as `m` or `window`.
  - `f`, of rules that take it: the number of Byzantine clients of a round that
    the rule tolerates. Presets make `f` follow `attack.num_byzantine`: changing
    the number of attackers changes `f`, but setting `f` leaves the attackers as
    they are, and from then on `f` keeps its value. Without an attack a preset's
    `f` is 1. With a `..._sampled` attack `f` is None and must be set.
    `configs/tables.py` sets 1, whoever attacks, as the paper's tables do. A
    config that is written without presets must give `f` a value.
  - `scope`: the layers that the rule is applied to, each on its own.
    `'model'`, the default: the model as a whole. `'leaf'`: every array of the
    model, so that a kernel and its bias are two layers, as in the paper.
    `'module'`: all arrays of one Flax module together, such as a kernel, its
    bias and, in a module that has them, its batch statistics. `'block'`: all
    arrays under the same top-level module of the model. If no module holds
    other modules, as in `lca.models.CNN`, `'block'` and `'module'` are the
    same. Scopes look at the arrays' paths alone and so work for any model.
  - `pre`: names in `lca.aggregators.PRE_AGGREGATORS`, applied before the rule
    in this order and within the same scope; `()` is the default. The options of
    each stand in a dict under its name, such as `aggregator.nnm.f`.
  - `distance`, of rules that have one: `'euclidean'` (with `power`) or
    `'cosine'` (with `clip`, `clip_by` and `median`; see `lca.cosine`). It is
    also the distance of the pre-aggregators.
  - `weights`, of rules that take weights, such as `mean`: `'uniform'`, the
    default, weighs all clients alike, `'examples'` by the number of their
    examples.
  - `sigma`: standard deviation of Gaussian noise that is added to the aggregate
    (`lca.noisy`), in the updates' unit; 0, the default, adds none. After
    `static_clip` and `mean`, sigma = z C / n is the differential privacy of
    DP-FedAvg.
  - `num_clients`, of `fl_detector` and `flanders`: clients in the population.
    Presets make it follow `data.num_clients`; it must be set where the data
    decide that number.

`attack`
  - `name`: a name in `lca.attacks.ATTACKS`, or `'none'`, which allows no other
    key.
  - The options of that attack, such as `sigma`.
  - `num_attackers`: Byzantine clients in the population. None, the default, is
    a fifth (rounded down) of the clients in the data, after
    `data.min_examples` has dropped some. Presets set a fifth of
    `data.num_clients`, from which none are dropped yet. But they leave None if
    the partition decides how many clients there are (`natural`, `dirichlet`).
  - `num_byzantine`: how many of the attackers take part in each round. Presets
    set 1, or all attackers if `server.clients_per_round` is the whole of
    `data.num_clients`.
  - `sampled`: True draws a round's clients without regard to who attacks, so
    that the number of attackers varies from round to round, and
    `num_byzantine` must be absent. False, the default, requires
    `num_byzantine`.
  - `first_round`, `last_round`, `every`: the attackers attack from the first of
    these rounds, to the last, in every k-th one, and are honest in all others.
    By default they always attack. Rounds count from 1.
  - `rounds`: the numbers of the rounds of the attack, such as `(12, 14)`, in
    the place of these three keys. None, the default, does not name them.
  - `knowledge`, of attacks that replace updates and read those of others:
    `'all'`, the default, all honest updates, or `'byzantine'`, those that the
    attackers of the round have trained themselves.
  - `training`, of attacks that train: a dict with the options of
    `lca.attacks.Training`, such as `attack.training.learning_rate`. None in an
    option trains as the honest clients do.
"""

import dataclasses
from typing import Any

from lca.experiment.client_sections import Training
from lca.federated.schedule import Schedule
from lca.options import one_of, whole
from lca.registry import options_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """The keys at the top of a config.

  Attributes:
    seed: an integer in [0, 2**32) that decides all that is random in a run: the
      partition, the validation and root examples, the model's first weights,
      who attacks, which clients each round draws, the order of their examples,
      dropout, who does not answer, and what attacks and rules draw. The split
      of the data into training and test set does not depend on it. A restart,
      or another number of devices, draws the same numbers.
    num_rounds: rounds of the whole run, at least 1. A run that is continued may
      be given more, but not fewer.
    init_from: directory of a finished run, with whose final model this run
      starts (a warm start), such as one without an attack. Both models must
      have the same layers and numbers of classes. `''`, the default, starts
      with the model's own first weights.
  """

  seed: int = 0
  num_rounds: int = 100
  init_from: str = ''

  def __post_init__(self):
    whole(1)('num_rounds', self.num_rounds)
    if not 0 <= self.seed < 2**32:  # JAX's keys take 32 bits of a seed
      raise ValueError(f'seed must lie in [0, 2**32), got {self.seed}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """The data set and how its training examples are spread over the clients.

  The section also takes the options of the partition, such as `alpha` of
  `'dirichlet'`, and the options of data sets that are downloaded or prepared:
  `archive_dir`, `data_dir` and `image_size` (see `lca.data.load`). The first
  two may change when a run is continued.

  Attributes:
    name: the data set: a name in `lca.data.SOURCES`, such as `'digits'`, or
      `'tfds:NAME'`. It has no usable default: every config that reads data must
      set it.
    num_clients: clients that the partition makes, counted before
      `min_examples` drops any. The clients that stay are the population, from
      which rounds are drawn. The number must be None for a partition that finds
      its clients in the data, such as `'natural'`, and only for such ones.
    min_examples: clients with fewer training examples are dropped; a client
      with exactly so many stays. At least 1.
    root_examples: training examples that the server holds for itself, drawn at
      random before the rest is spread over the clients. In every round the
      server trains on them as a client would, and the rule receives the
      server's update. 0 is none. Presets set 100 for rules that need this
      update (`fltrust`).
    validation: the share, in [0, 1), of the training examples on which nobody
      trains, but each test of the model also measures `validation_loss` and
      `validation_accuracy`. They are drawn at random before `root_examples`,
      and the draw depends on `seed` alone. 0, the default, holds out none.
    partition: which client holds which examples: a name in
      `lca.data.PARTITIONS`, such as `'iid'` or `'dirichlet'`.
  """

  name: str | None = None
  num_clients: int | None = 200
  min_examples: int = 30
  root_examples: int = 0
  validation: float = 0.0
  partition: str = 'iid'

  def __post_init__(self):
    if self.name is None:
      raise ValueError("data.name must be set, to 'digits' for instance")
    if not 0 <= self.validation < 1:
      raise ValueError(
        'data.validation, a share of the training examples, must lie in '
        f'[0, 1), got {self.validation}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
  """The server's step and the size of a round.

  The section also takes the options of the optimiser, such as `momentum` of
  `'sgd'` or `b1` and `eps` of `'fedadam'`. The gradient that the optimiser is
  given is minus the aggregate.

  Attributes:
    optimizer: a name in `lca.experiment.optimizers.OPTIMIZERS`.
    learning_rate: step size of the optimiser, above 0. With `'sgd'` and 1.0 the
      aggregate is added to the model as it is.
    clients_per_round: clients that take part in a round, attackers included:
      the n of the rules. They are drawn without replacement from the clients
      that `data.min_examples` has left, and may be all of them.
  """

  optimizer: str = 'sgd'
  learning_rate: float = 1.0
  clients_per_round: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  """The loop over rounds.

  Attributes:
    on_nonfinite: what happens after a round in which the aggregate, the model
      or the test loss holds a NaN or an infinity. `'stop'` ends the run with an
      error that names the attackers. `'continue'` goes on. The key may change
      when a run is continued.
  """

  on_nonfinite: str = 'stop'

  def __post_init__(self):
    one_of('stop', 'continue')('train.on_nonfinite', self.on_nonfinite)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
  """When and how the model is tested, and which layers are measured.

  Attributes:
    every: rounds from one test to the next, at least 1. The last round of a run
      is always tested.
    batch_size: test examples that a device takes at once, at least 1. It
      changes memory and speed, and results by rounding alone, so that it may
      change when a run is continued.
    layers: the scope whose layers are measured in every round: `'leaf'`,
      `'module'`, `'block'` or `'model'`, which mean the same as for
      `aggregator.scope` (see the top of this file). Metrics named `norm/LAYER`
      then hold the layers' normalised norms (LEGATO's Eq. 2). If `legato` is
      the rule, `factor/LAYER` hold its factors, and both scopes must be the
      same. None, the default, measures no layers.
    forensics: True keeps evidence of every round: whom the rule chose in which
      layer, and how far aggregate and updates were from the honest mean (see
      `lca.experiment.forensics`). It costs four passes over the updates in
      every round, and about 18 bytes a round, layer and client on disk, so that
      it is meant for up to some hundred clients in a round. It needs a workdir.
    detection: True measures in every round how well the rule tells attackers
      from honest clients (`detection_precision`, `detection_recall`,
      `detection_f1`, `false_positive_rate`). The rule must decide on whole
      updates.
    by_class: True measures the accuracy on each class of the test set
      (`test_accuracy/CLASS`), which takes one more pass over it.
  """

  every: int = 1
  batch_size: int = 100
  layers: str | None = None
  forensics: bool = False
  detection: bool = False
  by_class: bool = False

  def __post_init__(self):
    for key in ('every', 'batch_size'):
      whole(1)(f'eval.{key}', getattr(self, key))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """The state to go on from, and the trained models, that a run keeps.

  All keys but `best` may change when a run is continued.

  Attributes:
    every: rounds from one checkpoint to the next, at least 1. The last round is
      always saved, and so is the one after which the run was told to stop.
    keep: how many of the newest checkpoints are kept, at least 1.
    model: True, the default, writes the model of the last round to
      `model.safetensors` at the end of the run. False saves the space.
    best: a metric whose best round's model is kept in `best.safetensors`:
      `'test_accuracy'`, `'test_loss'`, `'validation_accuracy'` or
      `'validation_loss'`; of equal rounds the first. The latter two need
      `data.validation`. A model that was chosen by the test data looks better
      on them than it is. `''`, the default, keeps none.
  """

  every: int = 10
  keep: int = 2
  model: bool = True
  best: str = ''

  def __post_init__(self):
    for key in ('every', 'keep'):
      whole(1)(f'checkpoint.{key}', getattr(self, key))
    one_of('', *_BEST)('checkpoint.best', self.best)


_BEST = ('test_accuracy', 'test_loss', 'validation_accuracy', 'validation_loss')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
  """The devices that share a round, and how much each computes at once.

  These keys change memory and speed, and results by rounding alone. They may
  change when a run is continued.

  Attributes:
    mesh: number of devices that share a round, over all processes: a multiple
      of the number of processes. None takes all devices.
    chunk_size: clients that train at the same time on one device, in one vmap.
      None is 1 on CPU and 32 on other devices.
    microbatch_size: largest part of a batch, in examples, whose gradient is
      computed at once; the gradients of the parts are summed. None is 32 on CPU
      and the whole batch on other devices. A model with batch statistics takes
      every batch as a whole: it needs None, or at least `client.batch_size`.
    stream: True never holds the updates of all clients: clients train in
      groups, and their updates wait in a file (`lca.federated.streaming`), so
      that memory holds some of them, and the inner products that the rule
      needs. Rules and attacks that need all numbers at once are refused. False,
      the default, stacks the updates.
    stream_dir: folder of the file of a streamed round, with room for the
      updates of all clients of a round. None takes the system's folder for
      temporary files, which the variable TMPDIR sets.
  """

  mesh: int | None = None
  chunk_size: int | None = None
  microbatch_size: int | None = None
  stream: bool = False
  stream_dir: str | None = None

  def __post_init__(self):
    if self.stream_dir is not None and not self.stream:
      raise ValueError(
        f'parallel.stream_dir={self.stream_dir!r} applies only with '
        'parallel.stream=True: set it, or leave stream_dir out'
      )


SECTIONS = {
  'data': Data,
  'client': Training,
  'server': Server,
  'train': Train,
  'eval': Eval,
  'checkpoint': Checkpoint,
  'parallel': Parallel,
}
"""The sections whose keys are the same in every run, in a config's order."""

NAMED = ('model', 'aggregator', 'attack')
"""The sections whose keys depend on the function that their `name` chooses."""


def defaults(section: type) -> dict[str, Any]:
  """Returns a section's keys and their defaults."""
  return {k: p.default for k, p in options_of(section).items()}


DEFAULTS: dict[str, Any] = defaults(Run) | {
  name: defaults(section) for name, section in SECTIONS.items()
}
"""The defaults of all keys that every run has, as nested dicts.

None leaves the choice to the code. `lca.registry.type_of` returns the type of
such a key's other values.
"""


SCHEDULE = {field.name: field.default for field in dataclasses.fields(Schedule)}
"""The defaults of the keys that say when clients attack: always."""

ATTACKERS = {'num_attackers': None, 'sampled': False} | SCHEDULE
"""The defaults of a section `attack` whose name is not `'none'`: a fifth of the
clients attack in all rounds, and `num_byzantine`, which has no default, says
how many of them take part in each round."""
