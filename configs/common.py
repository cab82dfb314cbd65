"""Every key that settings share, its default and what it means; the presets.

A config is a setting and presets, `configs/SETTING.py:PRESET,PRESET`: one of
`aggregators()` and one of `attacks()`, in any order. The result is locked and
holds exactly the keys that the chosen rule and attack know. Where there is a
choice, None leaves it to the code, which says there what it takes.
"""

from ml_collections import ConfigDict
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


def aggregators() -> dict[str, dict]:
  """Presets of `config.aggregator`, named as in the paper's tables.

  "GeoMed" is the medoid, as in the paper's text and code, and "Bulyan" the
  mean of the 5 updates of lowest Krum score, as in its section 4.3.
  """
  neighbors = placeholder(int)  # None is n - f - 2
  return {
    # weights: 'uniform' (Eq. 2) or 'examples' (the clients' sizes).
    'fedavg': {'name': 'mean', 'weights': 'uniform', 'scope': 'model'},
    **_variants('krum', name='krum', f=1, num_neighbors=neighbors, power=2),
    **_variants('geomed', name='medoid', power=1),
    **_variants(
      'bulyan', name='multi_krum', f=1, m=5, num_neighbors=neighbors, power=2
    ),
  }


def _variants(operator: str, *, power: int, **rule) -> dict[str, dict]:
  """Plain, layerwise, cosine, both, and the latter without the clip.

  f is how many Byzantine clients the rule tolerates, power the Euclidean
  distance's, scope what the rule is applied to: 'model', 'leaf' (the paper's
  layer), 'module' or 'block'. clip, clip_by and median are lca.cosine's.
  """
  euclidean = rule | {'distance': 'euclidean', 'power': power}
  unclipped = rule | {'distance': 'cosine', 'clip': None}
  cosine = unclipped | {
    'clip': 'median',
    'clip_by': 'scope',
    'median': 'interpolated',
  }
  forms = {
    operator: euclidean,
    f'cosine_{operator}': cosine,
    f'cosine_{operator}_noclip': unclipped,
  }
  plain = {name: keys | {'scope': 'model'} for name, keys in forms.items()}
  layered = {
    f'layerwise_{name}': keys | {'scope': 'leaf'}
    for name, keys in forms.items()
  }
  return plain | layered


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
    presets: names separated by commas; may be empty.
    default: the aggregator's preset where `presets` names none.

  Returns:
    The config, locked.

  Raises:
    ValueError: an unknown preset, or two of one kind.
  """
  kinds = {'aggregator': aggregators(), 'attack': attacks(config)}
  config.attack = ConfigDict({'name': 'none'})
  config.aggregator = ConfigDict(kinds['aggregator'][default])
  chosen = set()
  for preset in filter(None, presets.split(',')):
    kind = next((k for k, known in kinds.items() if preset in known), None)
    if kind is None:
      known = sorted(name for kind in kinds.values() for name in kind)
      raise ValueError(f'unknown preset {preset!r}; there are {known}')
    if kind in chosen:
      raise ValueError(f'{presets!r} names two presets of the {kind}')
    chosen.add(kind)
    config[kind] = ConfigDict(kinds[kind][preset])
  return config.lock()
