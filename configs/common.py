"""Every key that settings share, its default and what it means; the presets.

A config is a setting and presets, `configs/SETTING.py:PRESET,PRESET`: one of
`aggregators()`, one of `attacks()` and any of `pre_aggregators()`. The result
is locked and holds exactly the keys that what was chosen knows. Where there is
a choice, None leaves it to the code, which says there what it takes.
"""

import functools

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
  """The layerwise cosine paper's federated training, without its data."""
  config = ConfigDict()
  config.seed = 0  # of all that is random in a run
  config.num_rounds = 100  # may grow when a run is continued

  config.data = ConfigDict()
  config.data.name = placeholder(str)  # see lca.data.load
  config.data.partition = 'iid'  # of the training set over the clients
  config.data.num_clients = 200  # the population
  config.data.min_examples = 30  # clients with fewer are dropped
  # Training examples that no client but the server itself holds and trains on.
  config.data.root_examples = 0

  config.model = ConfigDict()
  config.model.name = 'cnn'
  config.model.features = (32, 64)  # of the two convolutions
  config.model.hidden = 128  # width of the dense layer between

  config.client = ConfigDict()
  config.client.optimizer = 'adam'  # fresh in every round
  config.client.learning_rate = 1e-3
  config.client.batch_size = 256
  config.client.local_epochs = 10

  config.server = ConfigDict()
  config.server.optimizer = 'sgd'  # with learning rate 1: model += aggregate
  config.server.learning_rate = 1.0
  config.server.clients_per_round = 100

  config.eval = ConfigDict()
  config.eval.every = 1  # rounds; the last one is always evaluated
  config.eval.batch_size = 500

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 10  # rounds; the last one is always saved
  config.checkpoint.keep = 2  # older ones are deleted

  config.parallel = ConfigDict()
  # Clients that one vmap holds; None is 1 on CPU and 32 elsewhere.
  config.parallel.chunk_size = placeholder(int)
  # Examples whose gradients are computed at once; None is 32 on CPU and the
  # whole batch elsewhere.
  config.parallel.microbatch_size = placeholder(int)
  return config


def archives(data: ConfigDict) -> None:
  """Adds the keys of data that are downloaded, or prepared from archives."""
  data.archive_dir = placeholder(str)  # where the archives lie; None downloads
  data.data_dir = placeholder(str)  # of prepared data; None is TFDS's


def aggregators(f: int | FieldReference | None = 1) -> dict[str, dict]:
  """Presets of `config.aggregator`.

  Those of the paper's tables have its names and its f = 1: "GeoMed" is the
  medoid, as in its text and code, and "Bulyan" the mean of the 5 updates of
  lowest Krum score, as in its section 4.3. Beside it stand `bulyan_trimmed`,
  as in its section 2.4, and `bulyan2018`, of El Mhamdi et al.

  f is how many Byzantine clients the rule tolerates, power the Euclidean
  distance's, scope what the rule is applied to: 'model', 'leaf' (the paper's
  layer), 'module' or 'block'. clip, clip_by and median are `lca.cosine`'s.

  Args:
    f: of the rules that are not the paper's.
  """
  krum = {'f': 1, 'num_neighbors': placeholder(int)}  # None is n - f - 2
  bulyan_trimmed = krum | {'m': 5, 'trim': placeholder(int)}  # None is f
  distant = {
    'krum': (2, krum | {'name': 'krum'}),
    'geomed': (1, {'name': 'medoid'}),
    'bulyan': (2, krum | {'name': 'multi_krum', 'm': 5}),
    'bulyan_trimmed': (2, bulyan_trimmed | {'name': 'bulyan_trimmed'}),
    'bulyan2018': (2, {'name': 'bulyan', 'f': 1, 'selection': 'iterative'}),
    'mda': (2, {'name': 'mda', 'f': f, 'max_subsets': 200_000}),
    'monna': (2, {'name': 'monna', 'f': f, 'pivot': 0}),
  }
  geometric = {'num_iters': 1000, 'tol': 1e-6, 'nu': 1e-6, 'init': 'medoid'}
  draws = {'num_iters': 1, 'subsample_dim': placeholder(int)}  # None is all
  others = {
    'caf': {'f': f},
    'centered_clip': {'threshold': 10.0, 'num_iters': 1},
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


def attacks(config: ConfigDict) -> dict[str, dict]:
  """Presets of `config.attack`; without one, nobody attacks."""
  flipping = {
    'name': 'label_flipping',
    # In the population; by default 20 % of it.
    'num_attackers': config.data.get_oneway_ref('num_clients') // 5,
    # In every round; or `sampled`, as many as the draw gives.
    'num_byzantine': 1,
    'sampled': False,
    'flip_fraction': 1.0,  # of an attacker's labels
    # Of the update: a number, 'replace' (honest / Byzantine of the round) or
    # 'n' (the clients of the round).
    'boost': 1.0,
  }
  sampled = {k: v for k, v in flipping.items() if k != 'num_byzantine'}
  presets = {
    'label_flipping': flipping,
    'label_flipping_sampled': sampled | {'sampled': True},
  }
  for name, keys in list(presets.items()):
    replacement = name.replace('label_flipping', 'model_replacement')
    presets[replacement] = keys | {'boost': 'replace'}
  return presets


def compose(config: ConfigDict, presets: str, default: str) -> ConfigDict:
  """Adds the named presets to a setting and locks it.

  Args:
    config: a setting.
    presets: names separated by commas; may be empty. One aggregator, one
      attack, and pre-aggregators in the order in which they are applied.
    default: the aggregator's preset where `presets` names none.

  Returns:
    The config, locked.

  Raises:
    ValueError: an unknown preset, or two of one kind.
  """
  chosen = {'aggregator': [], 'attack': [], 'pre-aggregator': []}
  known = {
    'aggregator': aggregators(),
    'attack': attacks(config),
    'pre-aggregator': pre_aggregators(),
  }
  for preset in filter(None, presets.split(',')):
    kind = next((kind for kind in known if preset in known[kind]), None)
    if kind is None:
      names = sorted(name for presets in known.values() for name in presets)
      raise ValueError(f'unknown preset {preset!r}; there are {names}')
    chosen[kind].append(preset)
    if kind != 'pre-aggregator' and len(chosen[kind]) > 1:
      raise ValueError(f'{presets!r} names two presets of the {kind}')
  config.attack = ConfigDict({'name': 'none'})
  for preset in chosen['attack']:
    config.attack = ConfigDict(known['attack'][preset])
  (rule,) = chosen['aggregator'] or [default]
  f = _tolerated(config.attack)
  before = [pre_aggregators(f)[name] for name in chosen['pre-aggregator']]
  # What the rule has set already, its pre-aggregators share.
  keys = functools.reduce(lambda all, more: more | all, before, {})
  config.aggregator = ConfigDict(keys | aggregators(f)[rule])
  config.aggregator.pre = tuple(chosen['pre-aggregator'])
  if config.aggregator.name == 'fltrust':
    config.data.root_examples = 100
  return config.lock()


def _tolerated(attack: ConfigDict) -> int | FieldReference | None:
  """f: as many as attack; 1 if nobody does; to be set if the draw decides."""
  if attack.name == 'none':
    return 1
  if attack.sampled:
    return placeholder(int)
  return attack.get_oneway_ref('num_byzantine')
