"""The presets, made of the defaults of the functions that they name.

A default stands once, in the signature of its function. Here stand the options
that have none, and those whose preset has another value. What a user registers
(see `lca.registry`) is a preset like what `lca` brings.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import optax
from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

import lca
from lca.aggregators import AGGREGATORS, PRE_AGGREGATORS, RULES
from lca.attacks import ATTACKS
from lca.data.partitions import PARTITIONS
from lca.experiment.optimizers import OPTIMIZERS
from lca.models import MODELS
from lca.registry import Registry, options_of, type_of

# Names of presets where they are not those of their functions: the paper's own.
PRESET_NAMES = {
  'bulyan': 'bulyan2018',
  'mean': 'fedavg',
  'medoid': 'geomed',
  'multi_krum': 'bulyan',
}
# Options that have no default, or another one than their function's.
RULE_OPTIONS = {
  'bulyan_trimmed': {'m': 5},
  'centered_clip': {'threshold': 10.0},
  'medoid': {'power': 1},
  'mean': {'weights': 'uniform'},  # or 'examples', the clients' sizes
  'multi_krum': {'m': 5},
  'sign_majority': {'theta': placeholder(int)},  # a sum of signs, to be set
  'static_clip': {'threshold': 1.0},
}


def aggregators(f: int | FieldReference | None = 1) -> dict[str, dict]:
  """Returns the presets of `config.aggregator`.

  There is one for each rule and each aggregator with a state, of `lca` or
  registered by a user, with the defaults of its function. A rule with a
  distance has a `cosine_` form, too, and one without the clip; all have a
  `layerwise_` form. The first paper's operators have its names: "GeoMed" is the
  medoid, as in its text and code, and "Bulyan" the mean of the 5 updates of
  lowest Krum score, as in its section 4.3. Beside it stand `bulyan_trimmed`, as
  in its section 2.4, and `bulyan2018`, of El Mhamdi et al.

  Args:
    f: how many Byzantine clients the rules tolerate that take such a number.
  """
  presets = {}
  for name in RULES:
    preset, keys = PRESET_NAMES.get(name, name), _options(RULES, name, f)
    forms = _distances(preset, keys) if 'distance' in keys else {preset: keys}
    presets |= _scopes(forms, layerwise=name != 'mean')
  for name in AGGREGATORS:
    keys = _options(AGGREGATORS, name, f)
    if 'by' in keys:  # it works by layer itself
      scope = keys.pop('by')
      presets[name] = keys | {'scope': scope, 'pre': ()}
    else:
      presets |= _scopes({name: keys})
  return presets


def _options(registry: Registry, name: str, f: Any) -> dict[str, Any]:
  """Returns a function's name and options, with what presets change."""
  changed = {'f': f} | RULE_OPTIONS.get(name, {})
  parameters = registry.parameters(name)
  keys = _defaults(registry, name, changed.keys() & parameters.keys())
  keys |= {k: v for k, v in changed.items() if k in keys or k != 'f'}
  return {'name': name} | keys


def _defaults(
  registry: Registry, name: str, required: Iterable[str] = ()
) -> dict[str, Any]:
  """Returns a function's options; None becomes a placeholder of its type."""
  types = {k: type_of(p) for k, p in registry.parameters(name).items()}
  return {
    key: placeholder(types[key] or object) if value is None else value
    for key, value in registry.options(name, required).items()
  }


def _distances(preset: str, keys: dict[str, Any]) -> dict[str, dict]:
  """Returns the Euclidean form, the cosine form, and the one without a clip.

  The power of the Euclidean distance is 2 unless the rule has another.
  """
  others = {k: v for k, v in keys.items() if k not in ('distance', 'power')}
  euclidean = others | {'distance': 'euclidean'}
  if 'power' in keys:
    power = keys['power']
    euclidean['power'] = power if isinstance(power, int) else 2
  clip = {k: p.default for k, p in options_of(lca.cosine, of_data=True).items()}
  unclipped = others | {'distance': 'cosine', 'clip': None}
  return {
    preset: euclidean,
    f'cosine_{preset}': unclipped | clip,
    f'cosine_{preset}_noclip': unclipped,
  }


def _scopes(
  forms: Mapping[str, dict], layerwise: bool = True
) -> dict[str, dict]:
  """Returns forms of the whole model and, if they are asked for, by layer.

  A scope is `'model'`, `'leaf'` (the paper's layer), `'module'` or `'block'`.
  """
  whole = {k: v | {'scope': 'model', 'pre': ()} for k, v in forms.items()}
  layers = {
    f'layerwise_{k}': v | {'scope': 'leaf', 'pre': ()} for k, v in forms.items()
  }
  return whole | layers if layerwise else whole


def pre_aggregators(f: int | FieldReference | None = 1) -> dict[str, dict]:
  """Returns the presets of what `config.aggregator.pre` names.

  Their keys stand under their own names, such as `config.aggregator.nnm.f`.
  Their distance is the rule's.
  """
  presets = {}
  for name in PRE_AGGREGATORS:
    keys = _options(PRE_AGGREGATORS, name, f)
    presets[name] = {
      k: v for k, v in keys.items() if k not in ('name', 'distance', 'power')
    }
  return presets


# Options of partitions that have no default.
PARTITION_OPTIONS = {
  'dirichlet': {'alpha': 0.5},  # the smaller, the more skewed
}


def partitions(examples_per_client: int | None = None) -> dict[str, dict]:
  """Returns the presets of how `config.data` spreads the examples.

  Args:
    examples_per_client: where that can be chosen; None shares all out.
  """
  presets = {}
  for name in PARTITIONS:
    changed = PARTITION_OPTIONS.get(name, {})
    keys = _defaults(PARTITIONS, name, changed) | changed
    if 'examples_per_client' in keys and examples_per_client is not None:
      keys['examples_per_client'] = examples_per_client
    presets[name] = {'partition': name} | keys
    if 'num_clients' not in inspect.signature(PARTITIONS[name]).parameters:
      presets[name]['num_clients'] = None  # it finds them in the data
  return presets


# Options of models that have no default, or are not their module's.
MODEL_OPTIONS = {
  'efficientnet_b0': {
    # A name of lca.models.pretrained.HUB or a file; '' is random weights.
    'pretrained': 'efficientnet_b0',
    # How the clients' batch statistics are aggregated: by the 'rule' like the
    # parameters, or by their 'mean'; with 'server' those of the server's own
    # training on data.root_examples take their place.
    'batch_stats': 'rule',
    # Pixels. The shorter side is resized, and the middle square kept; 0 leaves
    # the images as they are.
    'resize': 256,
    'crop': 224,
  },
}
# What makes a network that one is no option of it.
ARCHITECTURE = ('stages', 'squeeze', 'activation', 'padding', 'epsilon')


def models() -> dict[str, dict]:
  """Returns the presets of `config.model`: one for each registered model."""
  presets = {}
  for name in MODELS:
    keys = _defaults(MODELS, name)
    if name in MODEL_OPTIONS:
      keys = {k: v for k, v in keys.items() if k not in ARCHITECTURE}
    presets[name] = {'name': name} | keys | MODEL_OPTIONS.get(name, {})
  return presets


_OPTAX = {'learning_rate': 0.01, 'b1': 0.9, 'b2': 0.99, 'eps': 1e-3}
# Options of optimisers at the server. Of optax's own these are all; the others
# have those of their functions, too.
SERVER_OPTIONS = {
  'sgd': {'learning_rate': 1.0},  # the model moves by the aggregate
  'fedadagrad': {'learning_rate': 0.01},
  'fedadam': {'learning_rate': 0.01},
  'fedyogi': {'learning_rate': 0.01},
  'adadelta': {'learning_rate': 1.0, 'rho': 0.9, 'eps': 1e-6},
  'adagrad': {
    'learning_rate': 0.01,
    'initial_accumulator_value': 0.0,
    'eps': 1e-3,
  },
  'adam': _OPTAX,
  'yogi': _OPTAX,
}


def servers() -> dict[str, dict]:
  """Returns the presets of the optimiser in `config.server`.

  `fedadagrad`, `fedadam` and `fedyogi` are Algorithm 2 of Reddi et al. (2021),
  `fedavgm` is that of Hsu et al. (2019); `adagrad`, `adam` and `yogi` are
  optax's, which correct biases or place eps in another way.
  """
  presets = {}
  for name, function in OPTIMIZERS.items():
    keys = SERVER_OPTIONS.get(name, {'learning_rate': 1.0})
    if getattr(optax, name, None) is not function:
      keys = _defaults(OPTIMIZERS, name, ['learning_rate']) | keys
    presets[name] = {'optimizer': name} | keys
  return presets | {'fedavgm': presets['sgd'] | {'momentum': 0.9}}


# Options of attacks that have no default, or another one than their function's.
ATTACK_OPTIONS = {
  'constant': {'value': 100.0},
  'fall_of_empires': {'epsilon': 0.001},
  'fang_krum': {'f': 1},  # the server's, if it has one
  'gaussian': {'sigma': 20.0},
}


# Partitions that leave clients with too few examples (data.min_examples), which
# drop out: how many clients there are is found in the data.
UNEVEN = ('dirichlet',)


def attacks(config: ConfigDict) -> dict[str, dict]:
  """Returns the presets of `config.attack`; without one, nobody attacks.

  By default 20 % of the population attack. `num_attackers` is None, which means
  20 % of the clients that are found, where the data decide how many those are.
  In a round one attacker takes part; all do where every client does; and with
  a `_sampled` preset those that the draw gives.

  Args:
    config: a setting, with its partition and server.
  """
  share = config.data.get_oneway_ref('num_clients') // 5
  uneven = config.data.get('partition') in UNEVEN
  attackers = placeholder(int) if uneven else share
  sampled = {'num_attackers': attackers, 'sampled': True}
  num_byzantine = _in_a_round(config, share)
  fixed = sampled | {'num_byzantine': num_byzantine, 'sampled': False}
  own = {}
  for name in ATTACKS:
    changed = ATTACK_OPTIONS.get(name, {})
    own[name] = {'name': name} | _defaults(ATTACKS, name, changed) | changed
  own['model_replacement'] = own['label_flipping'] | {'boost': 'replace'}
  return {name: keys | fixed for name, keys in own.items()} | {
    f'{name}_sampled': keys | sampled for name, keys in own.items()
  }


def _in_a_round(
  config: ConfigDict, attackers: FieldReference
) -> int | FieldReference:
  """Returns 1, or all attackers where every client takes part in a round."""
  if config.data.num_clients is None:
    return 1
  num_clients = config.data.get_oneway_ref('num_clients')
  absent = num_clients - config.server.get_oneway_ref('clients_per_round')
  everybody = FieldReference(0) ** absent**2  # 1 if none is absent, else 0
  return 1 + everybody * (attackers - 1)
