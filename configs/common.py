"""Every key that settings share, its default and what it means; the presets.

A config is a setting and presets, `configs/SETTING.py:PRESET,PRESET`: one of
`aggregators()`, one of `attacks()`, one of `partitions()`, one of `models()`,
one of `servers()`, any of `pre_aggregators()`, and one of a setting's own
shorthands for several of them.
The result is locked and holds exactly the keys that what was chosen knows.
Where there is a choice, None leaves it to the code, which says there what it
takes.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
  """The layerwise cosine paper's federated training, without its data."""
  config = ConfigDict()
  config.seed = 0  # of all that is random in a run
  config.num_rounds = 100  # may grow when a run is continued

  config.data = ConfigDict()
  config.data.name = placeholder(str)  # see lca.data.load
  # The population; None where the partition finds it in the data.
  config.data.num_clients = 200
  config.data.min_examples = 30  # clients with fewer are dropped
  # Training examples that no client but the server itself holds and trains on.
  config.data.root_examples = 0

  config.model = ConfigDict(models()['cnn'])

  config.client = ConfigDict()
  config.client.mode = 'training'  # or 'gradient', see `federated_sgd`
  config.client.optimizer = 'adam'  # fresh in every round
  config.client.learning_rate = 1e-3
  config.client.batch_size = 256
  config.client.local_epochs = 10
  _of_all_clients(config.client)

  config.server = ConfigDict(servers()['sgd'])
  config.server.clients_per_round = 100

  config.train = ConfigDict()
  # 'stop' or 'continue' after a round whose aggregate is not finite; may change
  # when a run is continued.
  config.train.on_nonfinite = 'stop'

  config.eval = ConfigDict()
  config.eval.every = 1  # rounds; the last one is always evaluated
  config.eval.batch_size = 100
  # Scope of the layers whose normalised norms (LEGATO's Eq. 2) and factors are
  # among the metrics, such as 'leaf'; None for none.
  config.eval.layers = placeholder(str)

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 10  # rounds; the last one is always saved
  config.checkpoint.keep = 2  # older ones are deleted

  config.parallel = ConfigDict()
  # How many devices share a round, as many of each process; None is all.
  config.parallel.mesh = placeholder(int)
  # Clients that one vmap holds; None is 1 on CPU and 32 elsewhere.
  config.parallel.chunk_size = placeholder(int)
  # Examples, at most, whose gradients are computed at once; None is 32 on CPU
  # and the whole batch elsewhere.
  config.parallel.microbatch_size = placeholder(int)
  return config


def federated_sgd(config: ConfigDict, batch_size: int) -> None:
  """Turns the clients' part of a round into one gradient of one batch."""
  config.client = ConfigDict()
  config.client.mode = 'gradient'
  config.client.batch_size = batch_size
  config.client.momentum = 0.0  # of the workers
  _of_all_clients(config.client)


def _of_all_clients(client: ConfigDict) -> None:
  """Adds the keys of both modes; a dtype is 'float32' or 'bfloat16'."""
  # The share of a round's honest clients, on average, that do not answer.
  client.drop_rate = 0.0
  # Of forward and backward passes. Parameters, optimisers and losses, and all
  # of the testing, are float32.
  client.dtype = 'float32'
  # Of the updates that the server stores and aggregates, and of what a rule
  # remembers of them. Sums, distances and the model are float32.
  client.update_dtype = 'float32'


def archives(data: ConfigDict) -> None:
  """Adds the keys of data that are downloaded, or prepared from archives."""
  data.archive_dir = placeholder(str)  # where the archives lie; None downloads
  data.data_dir = placeholder(str)  # of prepared data; None is TFDS's


def aggregators(
  f: int | FieldReference | None = 1,
  tables_f: int | FieldReference | None = 1,
) -> dict[str, dict]:
  """Presets of `config.aggregator`.

  Those of the first paper's tables have its names and its f = 1: "GeoMed" is
  the medoid, as in its text and code, and "Bulyan" the mean of the 5 updates of
  lowest Krum score, as in its section 4.3. Beside it stand `bulyan_trimmed`,
  as in its section 2.4, and `bulyan2018`, of El Mhamdi et al.

  f is how many Byzantine clients the rule tolerates, power the Euclidean
  distance's, scope what the rule is applied to: 'model', 'leaf' (the paper's
  layer), 'module' or 'block'. clip, clip_by and median are `lca.cosine`'s.

  Args:
    f: of the rules that are not in the tables.
    tables_f: of those that are.
  """
  krum = {'f': tables_f, 'num_neighbors': placeholder(int)}  # None is n - f - 2
  bulyan_trimmed = krum | {'m': 5, 'trim': placeholder(int)}  # None is f
  distant = {
    'krum': (2, krum | {'name': 'krum'}),
    'geomed': (1, {'name': 'medoid'}),
    'bulyan': (2, krum | {'name': 'multi_krum', 'm': 5}),
    'bulyan_trimmed': (2, bulyan_trimmed | {'name': 'bulyan_trimmed'}),
    'bulyan2018': (
      2,
      {'name': 'bulyan', 'f': tables_f, 'selection': 'iterative'},
    ),
    'mda': (2, {'name': 'mda', 'f': f, 'max_subsets': 200_000, 'ties': 'mean'}),
    'monna': (2, {'name': 'monna', 'f': f, 'pivot': 0}),
  }
  geometric = {'num_iters': 1000, 'tol': 1e-6, 'nu': 1e-6, 'init': 'medoid'}
  draws = {'num_iters': 1, 'subsample_dim': placeholder(int)}  # None is all
  others = {
    'caf': {'f': f, 'farthest': 'remaining'},
    'centered_clip': {'threshold': 10.0, 'num_iters': 1, 'init': 'last'},
    'cge': {'f': f},
    'clipped_clustering': {'window': 1000, 'threshold': placeholder(float)},
    'dnc': {'f': f, 'filter_fraction': 1.0, **draws},
    'fltrust': {},  # with config.data.root_examples
    'foolsgold': {},
    'geometric_median': geometric,
    'lasa': {'sparsity': 0.3, 'norm_bound': 2.0, 'sign_bound': 1.0},
    'meamed': {'f': f, 'median': 'interpolated'},
    'median': {'median': 'interpolated'},
    'sign_guard': {'fraction': 0.1, 'lower': 0.1, 'upper': 3.0},
    'sign_majority': {'theta': placeholder(int)},  # a sum of signs, to be set
    'smea': {'f': f, 'max_subsets': 200_000},
    'trimmed_mean': {'f': f, 'f_above': placeholder(int)},  # None is f
  }
  # weights: 'uniform' (Eq. 2) or 'examples' (the clients' sizes).
  forms = {'fedavg': {'name': 'mean', 'weights': 'uniform'}}
  forms |= {name: {'name': name} | keys for name, keys in others.items()}
  for operator, (power, keys) in distant.items():
    forms |= _distances(operator, power, keys)
  layered = {f'layerwise_{k}': v for k, v in forms.items() if k != 'fedavg'}
  layered['legato'] = {
    'name': 'legato',
    'window': 10,  # rounds
    'norm': 'frobenius',
    'normalize': 'sum',
    'divisor': 'past',
  }
  return {k: v | {'scope': 'model', 'pre': ()} for k, v in forms.items()} | {
    k: v | {'scope': 'leaf', 'pre': ()} for k, v in layered.items()
  }


def _distances(operator: str, power: int, keys: dict) -> dict[str, dict]:
  """Euclidean, cosine, and the latter without the clip."""
  unclipped = keys | {'distance': 'cosine', 'clip': None}
  clip = {'clip': 'median', 'clip_by': 'scope', 'median': 'interpolated'}
  return {
    operator: keys | {'distance': 'euclidean', 'power': power},
    f'cosine_{operator}': unclipped | clip,
    f'cosine_{operator}_noclip': unclipped,
  }


def pre_aggregators(f: int | FieldReference | None = 1) -> dict[str, dict]:
  """Presets of what `config.aggregator.pre` names, with their keys."""
  return {
    'arc': {'f': f},
    'bucketing': {'bucket_size': 2},
    'clip_to_median_norm': {'median': 'interpolated'},
    'nnm': {'f': f},
    'static_clip': {'threshold': 1.0},
  }


def partitions(examples_per_client: int | None = None) -> dict[str, dict]:
  """Presets of how `config.data` spreads the training set over the clients.

  Args:
    examples_per_client: where that can be chosen; None shares all out.
  """
  each = {'examples_per_client': examples_per_client or placeholder(int)}
  forms = {
    'iid': each,
    'one_class': each,  # LEGATO's non-IID clients
    'labels_per_client': {'labels_per_client': 2} | each,
    'dirichlet': {'alpha': 0.5},  # the smaller, the more skewed
    'shards': {'shards_per_client': 2},
    'natural': {'num_clients': None},  # one of each writer, or person
  }
  return {name: {'partition': name} | keys for name, keys in forms.items()}


def models() -> dict[str, dict]:
  """Presets of `config.model`: those of the layerwise cosine paper."""
  return {
    'cnn': {
      'name': 'cnn',
      'features': (32, 64),  # of the convolutions
      'pool': 'last',  # 2 x 2, after the last convolution or 'each'
      'hidden': (128,),  # widths of the dense layers between
      'padding': 'SAME',  # or 'VALID'
      'dropout': (0.0, 0.0),  # rates before and after the hidden layers
    },
    'efficientnet_b0': {
      'name': 'efficientnet_b0',
      'dropout': 0.2,  # rate before the output layer
      'stochastic_depth': 0.2,  # rate of skipping a block, were it the last
      # A name of lca.models.pretrained.HUB or a file; '' is random weights.
      'pretrained': 'efficientnet_b0',
      # How the clients' batch statistics are aggregated: by the 'rule' like
      # the parameters, or by their 'mean'; with 'server' those of the server's
      # own training on data.root_examples take their place.
      'batch_stats': 'rule',
      # Pixels. The shorter side is resized, and the middle square kept; 0
      # leaves the images as they are.
      'resize': 256,
      'crop': 224,
    },
  }


def servers() -> dict[str, dict]:
  """Presets of the optimiser in `config.server`.

  `fedadagrad`, `fedadam` and `fedyogi` are Reddi et al.'s (2021).
  """
  adaptive = {'learning_rate': 0.01, 'b1': 0.9, 'b2': 0.99, 'eps': 1e-3}
  return {
    # With learning rate 1: model += aggregate.
    'sgd': {'optimizer': 'sgd', 'learning_rate': 1.0},
    'fedavgm': {'optimizer': 'sgd', 'learning_rate': 1.0, 'momentum': 0.9},
    'fedadagrad': {
      'optimizer': 'adagrad',
      'learning_rate': 0.01,
      'initial_accumulator_value': 0.0,
      'eps': 1e-3,
    },
    'fedadam': {'optimizer': 'adam'} | adaptive,
    'fedyogi': {'optimizer': 'yogi'} | adaptive,
    'adadelta': {
      'optimizer': 'adadelta',
      'learning_rate': 1.0,
      'rho': 0.9,
      'eps': 1e-6,
    },
  }


def attacks(config: ConfigDict) -> dict[str, dict]:
  """Presets of `config.attack`; without one, nobody attacks."""
  # In the population; by default 20 % of it, of those found if it is None.
  attackers = config.data.get_oneway_ref('num_clients') // 5
  sampled = {'num_attackers': attackers, 'sampled': True}
  # In every round; with `sampled` as many as the draw gives.
  num_byzantine = _in_a_round(config, attackers)
  fixed = sampled | {'num_byzantine': num_byzantine, 'sampled': False}
  flipping = {
    'name': 'label_flipping',
    'flip_fraction': 1.0,  # of an attacker's labels
    # Of the update: a number, 'replace' (honest / Byzantine of the round) or
    # 'n' (the clients of the round).
    'boost': 1.0,
  }
  own = {
    'label_flipping': flipping,
    'model_replacement': flipping | {'boost': 'replace'},
  } | {name: {'name': name} | keys for name, keys in _update_attacks().items()}
  return {name: keys | fixed for name, keys in own.items()} | {
    f'{name}_sampled': keys | sampled for name, keys in own.items()
  }


def _in_a_round(
  config: ConfigDict, attackers: FieldReference
) -> int | FieldReference:
  """One attacker; all of them where everybody takes part in each round."""
  if config.data.num_clients is None:
    return 1
  num_clients = config.data.get_oneway_ref('num_clients')
  absent = num_clients - config.server.get_oneway_ref('clients_per_round')
  everybody = FieldReference(0) ** absent**2  # 1 if none is absent, else 0
  return 1 + everybody * (attackers - 1)


def _update_attacks() -> dict[str, dict]:
  """What attackers send instead of their updates (see `lca.attacks`)."""
  return {
    'alie': {'z': placeholder(float)},  # None is the paper's z_max
    'constant': {'value': 100.0},
    'fall_of_empires': {'epsilon': 0.001},
    'fang_krum': {'f': 1, 'threshold': 1e-5},  # f: the server's, if it has one
    'fang_trimmed_mean': {'b': 2.0},
    # layers: a regular expression; None is all of them.
    'gaussian': {'mu': 0.0, 'sigma': 20.0, 'layers': placeholder(str)},
    'mimic': {'target': placeholder(int)},  # None is the most extreme client
    'min_max': {'direction': 'std'},
    'min_sum': {'direction': 'std'},
    'non_finite': {'value': 'nan'},
    'optimized': {
      'direction': 'alie',
      'num_strengths': 16,
      'max_strength': 10.0,
      'batch_size': 1,
    },
    'sign_flip': {'scale': 1.0},
    'zero': {},
  }


def compose(
  config: ConfigDict,
  presets: str,
  default: str,
  *,
  examples_per_client: int | None = None,
  shorthands: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
  tables_f: int | None = 1,
) -> ConfigDict:
  """Adds the named presets to a setting and locks it.

  Args:
    config: a setting.
    presets: names separated by commas; may be empty. At most one of every
      kind, and pre-aggregators in the order in which they are applied.
    default: the aggregator's preset where `presets` names none.
    examples_per_client: see `partitions`.
    shorthands: names of the setting's own, one of which may be among the
      presets: the presets that it stands for, and values of keys.
    tables_f: see `aggregators`; None is as many as attack.

  Returns:
    The config, locked.

  Raises:
    ValueError: an unknown preset, two of one kind or two shorthands; a
      pre-aggregator with a key that means something else to the rule.
  """
  shorthands = shorthands or {}
  known = {
    'aggregator': aggregators(),
    'attack': attacks(config),
    'partition': partitions(examples_per_client),
    'model': models(),
    'server': servers(),
    'pre-aggregator': pre_aggregators(),
  }
  names, short, values = [], None, {}
  for name in filter(None, presets.split(',')):
    if name not in shorthands:
      names.append(name)
      continue
    if short:
      raise ValueError(
        f'{presets!r} names two shorthands, {short!r} and {name!r}'
      )
    short, (stands_for, values) = name, shorthands[name]
    names += stands_for.split(',') if stands_for else []
  chosen = _by_kind(presets, names, known, shorthands)
  partition = (chosen['partition'] or ['iid'])[0]
  config.data.update(known['partition'][partition])
  for name in chosen['model']:
    config.model = ConfigDict(known['model'][name])
  for name in chosen['server']:
    clients_per_round = config.server.clients_per_round
    config.server = ConfigDict(known['server'][name])
    config.server.clients_per_round = clients_per_round
  config.attack = ConfigDict({'name': 'none'})
  for name in chosen['attack']:
    # Anew: how many attack depends on the partition and the server.
    config.attack = ConfigDict(attacks(config)[name])
  (rule,) = chosen['aggregator'] or [default]
  f = _tolerated(config.attack)
  rules = aggregators(f, f if tables_f is None else tables_f)
  keys = rules[rule]
  for name in chosen['pre-aggregator']:
    its_keys = pre_aggregators(f)[name]
    _check_shared(rule, rules[rule], name, its_keys)
    keys = its_keys | keys
  config.aggregator = ConfigDict(keys)
  config.aggregator.pre = tuple(chosen['pre-aggregator'])
  if 'f' in config.attack and 'f' in config.aggregator:
    config.attack.f = config.aggregator.get_oneway_ref('f')
  if config.aggregator.name == 'fltrust':
    config.data.root_examples = 100
  config.update_from_flattened_dict(values)
  return config.lock()


def _check_shared(rule, keys, name, its_keys):
  """A key that both take has one value: f, or it must be of one meaning."""
  for key in keys.keys() & its_keys.keys() - {'f'}:
    if keys[key] != its_keys[key]:
      raise ValueError(
        f'the key {key} of {rule!r} is another than that of {name!r}: they do '
        'not go together'
      )


def _by_kind(presets, names, known, shorthands):
  """The names of the presets chosen, by kind."""
  chosen = {kind: [] for kind in known}
  for name in names:
    kind = next((kind for kind in known if name in known[kind]), None)
    if kind is None:
      names = {name for kind in known.values() for name in kind}
      raise ValueError(
        f'unknown preset {name!r}; there are {sorted(names | {*shorthands})}'
      )
    chosen[kind].append(name)
    if kind != 'pre-aggregator' and len(chosen[kind]) > 1:
      raise ValueError(f'{presets!r} names two presets of the {kind}')
  return chosen


def _tolerated(attack: ConfigDict) -> int | FieldReference | None:
  """f: as many as attack; 1 if nobody does; to be set if the draw decides."""
  if attack.name == 'none':
    return 1
  if attack.sampled:
    return placeholder(int)
  return attack.get_oneway_ref('num_byzantine')
