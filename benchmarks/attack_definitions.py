"""Compares the attacks of this library with those of other systems.

    python -m benchmarks.attack_definitions [--output FILE]

As in `benchmarks.definitions`, both calls of a row are evaluated as printed, on
the same random rows, images or labels. Systems without a package are used if
their source is on PYTHONPATH: Blades (lishenghui/blades, with fedlib/fedlib),
FLPoison (vio1etus/FLPoison) and BackFed (thinh-dao/BackFed). The row of a
system that is not installed says so.

Rows here are updates, client minus server. byzfl and byzpy attack gradients,
which are minus such a row: their calls get `gradients`, and what they return is
negated.
"""

import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from benchmarks import definitions
from benchmarks.definitions import Names, Pair, System
from lca import aggregators, attacks
from lca.attacks import triggers

SIZES, SEEDS, D = ((11, 2), (12, 3), (20, 5), (25, 8)), range(5), 1000
NUM_CLASSES, SIDE = 10, 28


class Trial(NamedTuple):
  """The data of one comparison, which expressions use by the fields' names.

  Attributes:
    x: updates of a round, `[n, d]`, of which the last f are the attackers', as
      they would be without an attack.
    honest: the first h of them.
    own: the last f of them.
    gradients: minus the honest updates.
    n: number of clients.
    f: number of attackers.
    h: number of honest clients.
    s: honest clients that must follow the attackers of ALIE.
    images: `[64, 28, 28, 1]` pixels in [0, 1].
    labels: `[64]` in [0, 10).
    pattern: `[28, 28, 1]` pixels in [0, 1], to be blended in.
    seed: another number for each trial.
    key: random key.
  """

  x: np.ndarray
  honest: np.ndarray
  own: np.ndarray
  gradients: np.ndarray
  n: int
  f: int
  h: int
  s: int
  images: np.ndarray
  labels: np.ndarray
  pattern: np.ndarray
  seed: int
  key: jax.Array


def make_trial(n: int, f: int, seed: int) -> Trial:
  """Makes updates of different lengths around a common one, and images."""
  rng = np.random.default_rng([n, f, seed])
  spread = rng.uniform(0.5, 1.5, (n, 1))
  x = 0.1 * (rng.normal(size=D) + spread * rng.normal(size=(n, D)))
  x = x.astype(np.float32)
  return Trial(
    x=x,
    honest=x[: n - f],
    own=x[n - f :],
    gradients=-x[: n - f],
    n=n,
    f=f,
    h=n - f,
    s=n // 2 + 1 - f,
    images=rng.uniform(size=(64, SIDE, SIDE, 1)).astype(np.float32),
    labels=rng.integers(0, NUM_CLASSES, 64),
    pattern=rng.uniform(size=(SIDE, SIDE, 1)).astype(np.float32),
    seed=100 * n + seed,
    key=jax.random.key(100 * n + seed),
  )


def our_names(trial: Trial) -> Names:
  """Returns the names that the expressions of this library may use."""
  byzantine = jnp.arange(trial.n) >= trial.h

  def rows(attack, factor=1, **options):
    """Returns the rows of the attackers, `[f, d]`."""
    x = factor * jnp.asarray(trial.x)
    return attack(x, byzantine=byzantine, **options)[trial.h :]

  def row(attack, factor=1, **options):
    """Returns the row that all attackers send, `[d]`."""
    return rows(attack, factor, **options)[0]

  def trained(attack, attacker=0):
    """Returns the labels of an attacker's examples."""
    facts = {'num_classes': NUM_CLASSES, 'input_range': (0, 1)}
    examples = jnp.asarray(trial.images), jnp.asarray(trial.labels)
    return attack.on_examples(
      *examples, client_id=0, attacker=attacker, key=trial.key, **facts
    )[1]

  def tested(attack):
    """Returns the targets of the test examples, and which of them count."""
    facts = {'num_classes': NUM_CLASSES, 'input_range': (0, 1)}
    examples = jnp.asarray(trial.images), jnp.asarray(trial.labels)
    _, targets, counted = attack.on_test(*examples, **facts)
    return targets, counted

  return {
    **vars(attacks),
    **vars(triggers),
    **trial._asdict(),
    'ppf': special.ndtri,
    'put': lambda trigger: trigger(jnp.asarray(trial.images)),
    'row': row,
    'rows': rows,
    'place': functools.partial(place, trial),
    'trained': trained,
    'tested': tested,
    'trimmed_mean': functools.partial(aggregators.trimmed_mean, f=trial.f),
  }


def place(trial: Trial, rows: Any) -> np.ndarray:
  """Returns where entries lie in the intervals of Fang et al., from 0 to 1.

  Each interval begins at the honest extreme that the change of the model points
  away from, and ends at twice or half this extreme.
  """
  low, high = trial.honest.min(0), trial.honest.max(0)
  against = trial.honest.mean(0) < 0
  start = np.where(against, high, low)
  stop = np.where(against == (start > 0), 2 * start, start / 2)
  return (np.asarray(rows) - start) / (stop - start)


def byzfl_names(trial: Trial) -> Names:
  import byzfl
  import torch
  from byzfl.fed_framework import client

  def flipped(labels):
    """Returns the labels with which a client trains first."""
    seen = []
    one = object.__new__(client.Client)
    one.__dict__ |= {
      'device': 'cpu',
      'labelflipping': True,
      'nb_labels': NUM_CLASSES,
      'store_per_client_metrics': False,
      'model': torch.nn.Identity(),
      '_sample_train_batch': lambda: (torch.zeros(1), torch.tensor(labels)),
      '_backward_pass': lambda inputs, labels, **_: seen.append(labels),
      'get_dict_gradients': dict,
    }
    one.compute_gradients()
    return seen[0]

  np.random.seed(trial.seed)  # noqa: NPY002 (its Gaussian draws from it)
  return {**vars(byzfl), **trial._asdict(), 'flipped': flipped}


def byzpy_names(trial: Trial) -> Names:
  import torch
  from byzpy import attacks as theirs

  def flipped(**options):
    """Returns the labels for which an attacker takes the gradient."""
    seen = []

    def loss(outputs, labels):
      seen.append(labels)
      return outputs.sum()

    theirs.LabelFlipAttack(loss_fn=loss, **options).apply(
      model=torch.nn.Linear(1, 1),
      x=torch.zeros(1, 1),
      y=torch.tensor(trial.labels),
    )
    return seen[0]

  return {
    **vars(theirs),
    **trial._asdict(),
    'grads': [torch.tensor(row) for row in trial.gradients],
    'own_grads': -torch.tensor(trial.own),
    'flipped': flipped,
  }


def blades_names(trial: Trial) -> Names:
  import torch
  from blades import adversaries
  from fedlib.constants import CLIENT_ID, CLIENT_UPDATE

  class Client:
    def __init__(self, position):
      self.is_malicious = position >= trial.h

    def to_malicious(self, callbacks_cls=None, local_training=True):
      self.callbacks = callbacks_cls and callbacks_cls()

  def trainer(factor):
    clients = [Client(position) for position in range(trial.n)]
    return types.SimpleNamespace(
      config=types.SimpleNamespace(num_clients=trial.n),
      local_results=[
        {CLIENT_ID: i, CLIENT_UPDATE: torch.tensor(factor * row)}
        for i, row in enumerate(trial.x)
      ],
      client_manager=types.SimpleNamespace(
        get_client_by_id=clients.__getitem__, clients=clients
      ),
      server=types.SimpleNamespace(aggregator=None),
    )

  def sent(adversary, factor=1):
    """Returns the rows of the attackers after the end of a local round."""
    round_ = trainer(factor)
    adversary.clients = round_.client_manager.clients[trial.h :]
    adversary.on_trainer_init(round_)
    adversary.on_local_round_end(round_)
    return [result[CLIENT_UPDATE] for result in round_.local_results[trial.h :]]

  def callbacks(adversary):
    client = Client(0)
    adversary.clients = [client]
    adversary._get_num_model_outputs = lambda trainer: NUM_CLASSES
    adversary.on_trainer_init(None)
    return client.callbacks

  def flipped(adversary):
    """Returns the labels of a batch."""
    batch = None, torch.tensor(trial.labels)
    return callbacks(adversary).on_train_batch_begin(*batch)[1]

  def stepped(adversary):
    """Returns minus the gradient of a step, where it was minus `own`."""
    layer = torch.nn.Linear(D, trial.f, bias=False)
    layer.weight.grad = -torch.tensor(trial.own)
    callbacks(adversary).on_backward_end(types.SimpleNamespace(model=layer))
    return -layer.weight.grad

  torch.manual_seed(trial.seed)
  return {
    **vars(adversaries),
    **trial._asdict(),
    'place': functools.partial(place, trial),
    'sent': sent,
    'flipped': flipped,
    'stepped': stepped,
  }


def flpoison_names(trial: Trial) -> Names:
  import torch
  from attackers import attacker_registry

  def attacker(name, **options):
    """Returns an attacker without a model or data."""
    self = object.__new__(attacker_registry[name])
    self.__dict__ |= {
      'args': types.SimpleNamespace(
        num_clients=trial.n,
        num_adv=trial.f,
        algorithm='FedOpt',
        num_channels=1,
        num_classes=NUM_CLASSES,
        mean=[0.0],
        std=[1.0],
      ),
      'update': trial.own[0],
      'attack_start_epoch': None,
      'single_epoch': 0,
      **options,
    }
    return self

  def sent(name, factor=1, **options):
    """Returns the rows of the attackers, who come first among the clients."""
    self = attacker(name, **options)
    kinds = [('attacker', row) for row in trial.own]
    kinds += [('benign', row) for row in trial.honest]
    clients = [
      types.SimpleNamespace(category=category, update=np.float64(factor) * row)
      for category, row in kinds
    ]
    if 'omniscient' in self._attributes:
      return self.omniscient(clients)
    return self.non_omniscient()

  def poisoned(name, worker_id=0, train=True, **options):
    """Returns images and labels of a batch."""
    defaults = {
      'attack_model': 'all2one',
      'poisoning_ratio': 1,
      'source_label': 2,
      'target_label': 7,
    }
    self = attacker(name, **(defaults | options))
    self.define_synthesizer()
    images = torch.tensor(trial.images).permute(0, 3, 1, 2)
    labels = torch.tensor(trial.labels)
    images, labels = self.synthesizer.backdoor_batch(
      images, labels, train=train, worker_id=worker_id
    )
    return images.permute(0, 2, 3, 1), labels

  np.random.seed(trial.seed)  # noqa: NPY002 (its Gaussian draws from it)
  return {
    **trial._asdict(),
    'sent': sent,
    'triggered': lambda *args, **kwargs: poisoned(*args, **kwargs)[0],
    'flipped': lambda *args, **kwargs: poisoned(*args, **kwargs)[1],
  }


def backfed_names(trial: Trial) -> Names:
  import torch
  from backfed import poisons

  images = torch.tensor(trial.images).permute(0, 3, 1, 2)

  class Params(dict):
    """Options that are read as items and as attributes."""

    __getattr__ = dict.__getitem__

  def poison(kind, client_id=-1, attack_type='all2one', attackers=4, **options):
    params = Params(
      dataset='MNIST',
      attack_type=attack_type,
      num_classes=NUM_CLASSES,
      target_class=7,
      source_class=2,
      malicious_clients=range(attackers),
    )
    return getattr(poisons, kind)(params=params, client_id=client_id, **options)

  def triggered(kind, **options):
    """Returns the images with a trigger."""
    return poison(kind, **options).poison_inputs(images).permute(0, 2, 3, 1)

  def blended(weight):
    """Returns the images with the trial's pattern in place of the picture."""
    one = poison('Pattern')
    one.trigger_image = torch.tensor(trial.pattern).permute(2, 0, 1)
    one.trigger_image_weight = torch.full((1, SIDE, SIDE), weight)
    return one.poison_inputs(images).permute(0, 2, 3, 1)

  def tested(attack_type):
    """Returns the targets of the test examples, and which of them count."""
    one = poison('Pattern', attack_type=attack_type)
    labels = torch.tensor(trial.labels)
    return one.poison_labels(labels), one.get_filter_mask(labels, 'test')

  return {
    **trial._asdict(),
    'triggered': triggered,
    'blended': blended,
    'tested': tested,
  }


ONE_VECTOR = 'theirs sends one vector for all attackers'
OTHER_SEARCH = 'theirs searches other strengths; both lie on one line'
UP_TO_20 = (
  'as long as its largest strength, below 20, reaches the bound; its default '
  'threshold is 1e-5'
)

BYZFL = [
  Pair(
    '-SignFlipping()(gradients)',
    'row(fall_of_empires, epsilon=1.0)',
    'theirs negates the honest mean',
  ),
  Pair(
    '-SignFlipping()(gradients)',
    'row(sign_flip)',
    "ours negates a client's own row",
    equal=False,
  ),
  Pair(
    '-InnerProductManipulation(2.0)(gradients)',
    'row(fall_of_empires, epsilon=2.0)',
  ),
  Pair(
    '-ALittleIsEnough(1.5)(gradients)',
    'row(alie, z=1.5*(h/(h-1))**0.5)',
    'theirs divides the variance by h - 1',
  ),
  Pair(
    '-Optimal_InnerProductManipulation(TrMean(f), [], f)(gradients)',
    "row(optimized, aggregate=trimmed_mean, direction='fall_of_empires')",
    OTHER_SEARCH,
    equal=False,
  ),
  Pair(
    '-Optimal_ALittleIsEnough(TrMean(f), [], f)(gradients)',
    "row(optimized, aggregate=trimmed_mean, direction='alie')",
    OTHER_SEARCH,
    equal=False,
  ),
  Pair('-Mimic(1)(gradients)', 'row(mimic, target=1)'),
  Pair('-Inf()(gradients)', "row(non_finite, value='-inf')"),
  Pair(
    '-Gaussian(1.0, 2.0)(gradients)',
    'rows(gaussian, mu=-1.0, sigma=2.0, key=key)',
    ONE_VECTOR,
    random=True,
  ),
  Pair('flipped(labels)', 'trained(flip_complement())'),
]

BYZPY = [
  Pair(
    '-EmpireAttack(-2.0).apply(honest_grads=grads)',
    'row(fall_of_empires, epsilon=2.0)',
  ),
  Pair(
    '-SignFlipAttack(-3.0).apply(base_grad=own_grads)',
    'rows(sign_flip, scale=3.0)',
  ),
  Pair(
    '-LittleAttack(f).apply(honest_grads=grads)',
    'row(alie, z=ppf((n-s)/n))',
    "theirs takes the share of all n; the paper's is (n - f - s) / (n - f)",
  ),
  Pair(
    '-LittleAttack(f).apply(honest_grads=grads)',
    'row(alie)',
    'see the row above',
    equal=False,
  ),
  Pair('-MimicAttack(1).apply(honest_grads=grads)', 'row(mimic, target=1)'),
  Pair(
    '-InfAttack().apply(honest_grads=grads)',
    "row(non_finite, value='-inf')",
  ),
  Pair(
    '-GaussianAttack(1.0, 2.0, seed=seed).apply(honest_grads=grads)',
    'rows(gaussian, mu=-1.0, sigma=2.0, key=key)',
    random=True,
  ),
  Pair('flipped(num_classes=10)', 'trained(flip_complement())'),
  Pair('flipped(mapping={2: 7})', 'trained(flip_source(source=2, target=7))'),
]

BLADES = [
  Pair('sent(IPMAdversary(2.0))', 'rows(fall_of_empires, epsilon=2.0)'),
  Pair(
    'sent(ALIEAdversary())',
    'rows(alie, z=-ppf((h-s)/h)*(h/(h-1))**0.5)',
    'theirs adds the deviation, with a variance divided by h - 1',
  ),
  Pair(
    'sent(MinMaxAdversary())',
    "rows(min_max, direction='std')",
    'theirs halves an interval up to 5 until 0.01 is left, and may exceed the '
    'bound',
    equal=False,
  ),
  Pair(
    'place(sent(AdaptiveAdversary()))',
    'place(rows(fang_trimmed_mean, key=key))',
    'the place of an entry in its interval; ' + ONE_VECTOR,
    random=True,
  ),
  Pair(
    'sent(NoiseAdversary(1.0, 2.0))',
    'rows(gaussian, mu=1.0, sigma=2.0, key=key)',
    random=True,
  ),
  Pair(
    'stepped(SignFlipAdversary())',
    'rows(sign_flip)',
    'theirs negates the gradient of every local step: equal for one step of '
    'plain SGD',
  ),
  Pair('flipped(LabelFlipAdversary())', 'trained(flip_complement())'),
]

FLPOISON = [
  Pair("sent('IPM', scaling_factor=2.0)", 'rows(fall_of_empires, epsilon=2.0)'),
  Pair("sent('SignFlipping')", 'rows(sign_flip)[0]'),
  Pair(
    "sent('ALIE', z_max=None)",
    'rows(alie, z=-ppf((h-s)/h))',
    'theirs adds the deviation',
  ),
  Pair("sent('ALIE', z_max=1.5)", 'rows(alie, z=-1.5)'),
  Pair(
    "sent('MinMax', gamma_init=10.0, stop_threshold=1e-8)",
    "rows(min_max, direction='unit')",
    UP_TO_20,
  ),
  Pair(
    "sent('MinSum', gamma_init=10.0, stop_threshold=1e-8)",
    "rows(min_sum, direction='unit')",
    UP_TO_20,
  ),
  Pair(
    "sent('MinMax', factor=10, gamma_init=10.0, stop_threshold=1e-8)",
    "rows(min_max, factor=10, direction='unit')",
    'the same with updates ten times as long, whose bound is beyond 20',
    equal=False,
  ),
  Pair(
    "sent('FangAttack', stop_threshold=1e-5)",
    'rows(fang_krum, f=f)',
    "theirs starts at 1, not at the paper's bound, tries its own Krum on the "
    "attackers' rows alone, and takes the signs of their mean",
    equal=False,
  ),
  Pair(
    "sent('Mimic', choice=f+1)",
    'rows(mimic, target=1)',
    'theirs counts all clients, of whom the attackers are the first',
  ),
  Pair(
    "sent('Gaussian', noise_mean=1.0, noise_std=2.0)",
    'rows(gaussian, mu=1.0, sigma=2.0, key=key)',
    random=True,
  ),
  Pair(
    "sent('ModelReplacement', scaling_factor=50)",
    'rows(model_replacement, boost=50.0)[0]',
    'the factor alone',
  ),
  Pair(
    "flipped('LabelFlipping', attack_model='targeted')",
    'trained(flip_source(source=2, target=7))',
  ),
  Pair(
    "flipped('LabelFlipping', attack_model='all2all')",
    'trained(flip_complement())',
  ),
  Pair(
    "triggered('BadNets', trigger_size=5)",
    'put(patch(height=5, width=5, margin=0))',
  ),
  Pair(
    "triggered('DBA', worker_id=3, trigger_factor=(8, 2, 0))",
    'put(patch(height=1, width=8, margin=0))',
    'theirs sets the place of a part where it is not read, so that all parts '
    'are one bar at the bottom right',
  ),
  Pair(
    "triggered('DBA', train=False, trigger_factor=(8, 2, 0))",
    'put(patch(height=1, width=8, margin=0))',
    'the test examples; see the row above',
  ),
  Pair(
    "triggered('DBA', worker_id=3, trigger_factor=(4, 2, 0))",
    'put(local_patterns(width=4)[3])',
    "the paper's fourth part; see the row above",
    equal=False,
  ),
]

BACKFED = [
  Pair(
    "triggered('Pattern', x_margin=1, y_margin=1)",
    'put(patch(height=4, width=4, margin=2))',
    'at the bottom right theirs leaves one pixel more than its margin',
  ),
  Pair(
    "triggered('Pattern', location='top_left', x_margin=1, y_margin=1)",
    "put(patch(height=4, width=4, corner='top_left', margin=1))",
  ),
  Pair(
    "triggered('BadNets', x_margin=1, y_margin=1)",
    'put(paint(((22, 25), (23, 24), (24, 23), (24, 24), (25, 22), (25, 25))))',
  ),
  Pair(
    'blended(0.2)',
    'put(lambda images: 0.8 * images + 0.2 * pattern)',
    'any pattern, as a trigger of your own; its own is a picture',
  ),
  Pair(
    "triggered('Distributed', client_id=3)",
    'put(local_patterns(width=4)[3])',
    'of four attackers',
  ),
  Pair("triggered('Distributed')", 'put(compose(local_patterns(width=4)))'),
  Pair(
    "triggered('Distributed', client_id=3, attackers=9)",
    'put(local_patterns(width=4)[3])',
    'theirs puts the parts into as many columns as the root of the number of '
    'attackers',
    equal=False,
  ),
  Pair("tested('all2one')", 'tested(badnets(target=7))'),
  Pair("tested('all2all')", "tested(badnets(labels='all_to_all'))"),
]

SYSTEMS = {
  'byzfl': System('byzfl', byzfl_names, BYZFL, 'byzfl'),
  'byzpy': System('byzpy', byzpy_names, BYZPY, 'byzpy'),
  'Blades': System('blades', blades_names, BLADES),
  'FLPoison': System('attackers', flpoison_names, FLPOISON),
  'BackFed': System('backfed', backfed_names, BACKFED),
}


def make_page() -> tuple[str, int]:
  """Returns the page on attacks; see `definitions.page`."""
  sizes = ', '.join(f'{n} and {f}' for n, f in SIZES)
  about = (
    'Both calls of a row ran as they stand here, on the same float32 updates, '
    f'client minus server, `[n, {D}]`. The numbers of clients and of attackers '
    f'were {sizes}, with {len(SEEDS)} seeds each. `own` are the rows of the '
    'attackers, as they would be without an attack; `gradients` and `grads` '
    'are minus the rows of the h others. `row` is what all attackers send, '
    '`rows` has a row for each of them. Images are 64 of 28 x 28 pixels in '
    '[0, 1]. A difference is the largest over all entries, relative to the '
    f'largest entry; up to {definitions.TOLERANCE:.0e} counts as equal. '
    '"In distribution" is the largest difference between the distribution '
    'functions of the entries of all trials (Kolmogorov-Smirnov); up to '
    f'{definitions.RANDOM_TOLERANCE} counts as equal.'
  )
  made = [make_trial(n, f, seed) for n, f in SIZES for seed in SEEDS]
  trials = [(trial, our_names(trial)) for trial in made]
  title = 'Which call gives whose attack'
  return definitions.page(
    title, 'benchmarks.attack_definitions', about, SYSTEMS, trials
  )


if __name__ == '__main__':
  raise SystemExit(definitions.write(__doc__.splitlines()[0], make_page))
