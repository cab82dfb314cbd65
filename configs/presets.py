"""The presets: sections of a config by name, such as `krum` or `alie`.

A preset consists of the name of a registered function and the defaults in that
function's signature. This file only adds values for options without a default,
and the few values in which a preset differs from the function. What a user
registers (see `lca.registry`) becomes a preset in the same way.
`configs/common.py` composes presets with a setting.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax
from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

import lca
from lca.aggregators import AGGREGATORS, PRE_AGGREGATORS, RULES
from lca.attacks import ATTACKS, Training
from lca.data.partitions import PARTITIONS
from lca.data.sources import find_source
from lca.experiment.optimizers import OPTIMIZERS
from lca.experiment.sections import SCHEDULE
from lca.models import MODELS
from lca.registry import REQUIRED, Registry, options_of, type_of

# Functions whose presets have another name, as in the layerwise cosine paper.
PRESET_NAMES = {
  'bulyan': 'bulyan2018',
  'mean': 'fedavg',
  'medoid': 'geomed',
  'multi_krum': 'bulyan',
}
# Values of options that have no default, or differ from the function's default.
RULE_OPTIONS = {
  'align_ins': {'weights': 'uniform'},
  'bulyan_trimmed': {'m': 5},
  'centered_clip': {'threshold': 10.0},
  # `compose` makes num_clients follow data.num_clients.
  'fl_detector': {'num_clients': None},
  'flanders': {'num_clients': None},
  'medoid': {'power': 1},
  'mean': {'weights': 'uniform'},  # or 'examples', the clients' sizes
  'multi_krum': {'m': 5},
  'multi_metrics': {'weights': 'uniform'},
  'sign_majority': {'theta': None},  # the user must set it
  'static_clip': {'threshold': 1.0},
}
# Aggregators with a state whose update needs the server's own (server_update).
OF_THE_SERVER = ('learned_distance',)
# The mean of clipped updates with noise: Sun et al. 2019, with the numbers of
# BackFed.
NORM_CLIPPING = {
  'pre': ('static_clip',),
  'static_clip': {'threshold': 5.0},
  'sigma': 0.025,
}
# DP-FedAvg: a clip that stays as it is, and a noise multiplier.
DP_FEDAVG = {'threshold': 1.0, 'rate': 0.0, 'noise_multiplier': 1.0}


def aggregators(f: int | FieldReference | None = 1) -> dict[str, dict]:
  """Returns the presets of the section `aggregator` by name.

  There is one for each rule and each aggregator with a state, whether it comes
  with `lca` or a user has registered it. A rule with a `distance` also has the
  forms `cosine_...` and `cosine_..._noclip`, and one named after every other
  distance, such as `separating_...`. All of these have a form `layerwise_...`,
  except the mean, which is the same by layer, rules that take the model's
  function, such as DeepSight, and LEGATO, which works by layer anyway.

  The operators of the layerwise cosine paper have the paper's names. `geomed`
  is the medoid, as in its text and code. `bulyan` is the mean of the 5 updates
  of lowest Krum score, as in its section 4.3. `bulyan_trimmed` is the Bulyan of
  its section 2.4, and `bulyan2018` that of El Mhamdi et al. `norm_clipping` is
  the mean after a clip, with noise (Sun et al. 2019), and `dp_fedavg` the same
  with noise of deviation z C / n (McMahan et al. 2018).

  Args:
    f: how many Byzantine clients the rules tolerate, for those that take an
      `f`. None leaves it to be set.
  """
  presets = {}
  for name in RULES:
    preset, keys = PRESET_NAMES.get(name, name), _options(RULES, name, f)
    forms = _distances(preset, keys) if 'distance' in keys else {preset: keys}
    # The mean is the same by layer, and a model's function needs all layers.
    whole = 'predict' in inspect.signature(RULES[name]).parameters
    presets |= _scopes(forms, layerwise=name != 'mean' and not whole)
  for name in AGGREGATORS:
    keys = _options(AGGREGATORS, name, f)
    if 'by' in keys:  # it works by layer itself, as LEGATO does
      scope = keys.pop('by')
      presets[name] = _form(keys, scope)
    else:
      presets |= _scopes({name: keys})
  presets['norm_clipping'] = presets['fedavg'] | NORM_CLIPPING
  presets['dp_fedavg'] = presets['adaptive_clip'] | DP_FEDAVG
  return presets


def _options(registry: Registry, name: str, f: Any) -> dict[str, Any]:
  """Returns a function's name and options, with the values of its preset.

  Args:
    registry: of rules, aggregators or pre-aggregators.
    name: of the function.
    f: the value of the option `f`, if the function has it.
  """
  changed = {'f': f} | RULE_OPTIONS.get(name, {})
  parameters = registry.parameters(name)
  keys = _defaults(registry, name, changed.keys() & parameters.keys())
  # A None becomes a placeholder in `_defaults`, a new one for each config.
  changed = {k: v for k, v in changed.items() if v is not None}
  keys |= {k: v for k, v in changed.items() if k in keys or k != 'f'}
  return {'name': name} | keys


def _defaults(
  registry: Registry, name: str, required: Iterable[str] = ()
) -> dict[str, Any]:
  """Returns a function's options and defaults.

  An option that is None becomes a placeholder, which takes values of the
  option's type. An option of several types, such as a number or a name, takes
  values of any type.

  Args:
    registry: of the function.
    name: of the function.
    required: options without a default that the caller will set.
  """
  parameters = registry.parameters(name)
  return {
    key: _value(parameters[key], value)
    for key, value in registry.options(name, required).items()
  }


def _value(option: inspect.Parameter, value: Any) -> Any:
  """Returns the value of an option in a config; see `_defaults`."""
  kind = type_of(option)
  if value is None or value is REQUIRED:
    return placeholder(kind or object)
  if kind is None and typing.get_origin(option.annotation) in _UNIONS:
    return FieldReference(value, field_type=object)
  return value


_UNIONS = (typing.Union, types.UnionType)


def _distances(preset: str, keys: dict[str, Any]) -> dict[str, dict]:
  """Returns a rule's form for every distance, cosine with and without clip.

  The Euclidean distance has the power 2 unless the rule's default is another.

  Args:
    preset: name of the Euclidean form.
    keys: name and options of the rule.
  """
  others = {k: v for k, v in keys.items() if k not in ('distance', 'power')}
  euclidean = others | {'distance': 'euclidean'}
  if 'power' in keys:
    power = keys['power']
    euclidean['power'] = power if isinstance(power, int) else 2
  clip = {k: p.default for k, p in options_of(lca.cosine, of_data=True).items()}
  unclipped = others | {'distance': 'cosine', 'clip': None}
  named = {
    f'{name}_{preset}': others | {'distance': name}
    for name in lca.geometry.DISTANCES
    if name not in ('euclidean', 'cosine')
  }
  return named | {
    preset: euclidean,
    f'cosine_{preset}': unclipped | clip,
    f'cosine_{preset}_noclip': unclipped,
  }


def _scopes(
  forms: Mapping[str, dict], layerwise: bool = True
) -> dict[str, dict]:
  """Returns each form for the whole model and, as `layerwise_...`, by layer.

  Args:
    forms: presets without a scope, by name.
    layerwise: False leaves out the forms by layer, whose scope is `'leaf'`.
  """
  whole = {k: _form(v, 'model') for k, v in forms.items()}
  layers = {f'layerwise_{k}': _form(v, 'leaf') for k, v in forms.items()}
  return whole | layers if layerwise else whole


def _form(keys: Mapping[str, Any], scope: str) -> dict[str, Any]:
  """Returns a rule's keys with those that every rule has: no noise, no `pre`.

  A rule may have an option `sigma` of its own.
  """
  return {'sigma': 0.0, **keys, 'scope': scope, 'pre': ()}


def pre_aggregators(f: int | FieldReference | None = 1) -> dict[str, dict]:
  """Returns the presets of the pre-aggregators, for `config.aggregator.pre`.

  The keys of each go under its name, such as `config.aggregator.nnm.f`. None
  has a distance of its own: the rule's distance applies to them, too.

  Args:
    f: see `aggregators`.
  """
  presets = {}
  for name in PRE_AGGREGATORS:
    keys = _options(PRE_AGGREGATORS, name, f)
    presets[name] = {
      k: v for k, v in keys.items() if k not in ('name', 'distance', 'power')
    }
  return presets


# Values of options of partitions that have no default.
PARTITION_OPTIONS = {
  'dirichlet': {'alpha': 0.5},  # a smaller alpha skews the classes more
}


def partitions(examples_per_client: int | None = None) -> dict[str, dict]:
  """Returns the presets of the partitions, which go into the section `data`.

  Args:
    examples_per_client: value of this option for the partitions that have it;
      None spreads all examples over the clients.
  """
  presets = {}
  for name in PARTITIONS:
    changed = PARTITION_OPTIONS.get(name, {})
    keys = _defaults(PARTITIONS, name, changed) | changed
    if 'examples_per_client' in keys and examples_per_client is not None:
      keys['examples_per_client'] = examples_per_client
    presets[name] = {'partition': name} | keys
    if 'num_clients' not in inspect.signature(PARTITIONS[name]).parameters:
      # The partition finds its clients in the data.
      presets[name]['num_clients'] = None
  return presets


def data_options(name: str) -> dict[str, Any]:
  """Returns the options of a data set and their defaults.

  An option without a default, or with the default None, becomes a placeholder.

  Args:
    name: see `lca.data.load`.

  Raises:
    ValueError: there is no data set of this name.
  """
  return _own_defaults(find_source(name))


def _own_defaults(function: Callable[..., Any]) -> dict[str, Any]:
  """Returns the options and defaults of a function of no registry."""
  return {k: _value(p, p.default) for k, p in options_of(function).items()}


# Keys of models beside the fields of their modules.
MODEL_OPTIONS = {
  'efficientnet_b0': {
    # A name in lca.models.pretrained.HUB or a file; '' draws random weights.
    'pretrained': 'efficientnet_b0',
    # How batch statistics are aggregated: by the 'rule' like the parameters, as
    # the clients' 'mean', or not at all: 'server' takes those of the server's
    # own training on data.root_examples.
    'batch_stats': 'rule',
    # In pixels: the shorter side is scaled to `resize`, and the middle square
    # of side `crop` is kept. 0 does neither.
    'resize': 256,
    'crop': 224,
  },
}
# Fields of an EfficientNet that its name decides, and that are no keys.
ARCHITECTURE = ('stages', 'squeeze', 'activation', 'padding', 'epsilon')


def models() -> dict[str, dict]:
  """Returns the presets of the section `model`: one for each model."""
  presets = {}
  for name in MODELS:
    keys = _defaults(MODELS, name)
    if name in MODEL_OPTIONS:
      keys = {k: v for k, v in keys.items() if k not in ARCHITECTURE}
    presets[name] = {'name': name} | keys | MODEL_OPTIONS.get(name, {})
  return presets


_OPTAX = {'learning_rate': 0.01, 'b1': 0.9, 'b2': 0.99, 'eps': 1e-3}
# Keys of optimisers at the server. An optimiser of optax has these keys only;
# the others have all options of their functions beside these.
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
  """Returns the presets of the server's optimiser, for the section `server`.

  `fedadagrad`, `fedadam` and `fedyogi` are Algorithm 2 of Reddi et al. (2021).
  `fedavgm` is the optimiser of Hsu et al. (2019): `sgd` with momentum.
  `adagrad`, `adam` and `yogi` are optax's own, which correct biases or place
  `eps` differently.
  """
  presets = {}
  for name, function in OPTIMIZERS.items():
    keys = SERVER_OPTIONS.get(name, {'learning_rate': 1.0})
    if getattr(optax, name, None) is not function:
      keys = _defaults(OPTIMIZERS, name, ['learning_rate']) | keys
    presets[name] = {'optimizer': name} | keys
  return presets | {'fedavgm': presets['sgd'] | {'momentum': 0.9}}


# Values of options that have no default, or differ from the function's default.
ATTACK_OPTIONS = {
  'constant': {'value': 100.0},
  'fall_of_empires': {'epsilon': 0.001},
  # `configs.common.compose` replaces this f by that of the rule, if it has one.
  'fang_krum': {'f': 1},
  'gaussian': {'sigma': 20.0},
}


# Partitions that may leave clients with fewer than data.min_examples examples.
# Such clients are dropped, so that only the data tell how many there are.
UNEVEN = ('dirichlet',)


def attacks(config: ConfigDict) -> dict[str, dict]:
  """Returns the presets of the section `attack` by name.

  20 % of the population, rounded down, are attackers. `num_attackers` is None,
  with the same meaning, if the data decide how many clients there are. One
  attacker takes part in each round; or all, if every client takes part in each
  round. With a `..._sampled` preset the draw decides how many take part.

  Args:
    config: a setting with its partition and server. The presets refer to its
      keys, so that the numbers follow when these are set later.
  """
  share = config.data.get_oneway_ref('num_clients') // 5
  uneven = config.data.get('partition') in UNEVEN
  attackers = placeholder(int) if uneven else share
  schedule = SCHEDULE | {
    'last_round': placeholder(int),
    'rounds': placeholder(tuple),
  }
  sampled = {'num_attackers': attackers, 'sampled': True} | schedule
  num_byzantine = _in_a_round(config, share)
  fixed = sampled | {'num_byzantine': num_byzantine, 'sampled': False}
  options = {}  # by attack, without the keys that say who attacks
  for name, function in ATTACKS.items():
    changed = ATTACK_OPTIONS.get(name, {})
    options[name] = {'name': name} | _defaults(ATTACKS, name, changed) | changed
    # An attack that takes no updates makes its clients train.
    if 'byzantine' not in inspect.signature(function).parameters:
      options[name]['training'] = _own_defaults(Training)
    elif getattr(function, 'reads', 'all') != 'row':
      options[name]['knowledge'] = 'all'
  options['model_replacement'] = options['label_flipping'] | {
    'boost': 'replace'
  }
  options['badnets_replacement'] = options['badnets'] | {'boost': 'replace'}
  for name, (attack, changed, training) in TRAINING.items():
    training = {'training': _own_defaults(Training) | training}
    options[name] = options[attack] | changed | training
  return {name: keys | fixed for name, keys in options.items()} | {
    f'{name}_sampled': keys | sampled for name, keys in options.items()
  }


# Attacks by how the attackers train: the attack on the examples, changes of its
# options, and of those of `lca.attacks.Training`.
TRAINING = {
  # n / eta of the paper; FLPoison's alpha.
  'constrain_and_scale': ('badnets', {'boost': 'n'}, {'alpha': 0.5}),
  'gradient_ascent': ('gradient_ascent', {}, {'ascent': True}),
  'neurotoxin': ('badnets', {}, {'keep': 0.95}),
  'pgd': ('edge_case', {'boost': 'replace'}, {'radius': 0.25}),
}


def _in_a_round(
  config: ConfigDict, attackers: FieldReference
) -> int | FieldReference:
  """Returns how many attackers take part in a round: 1 or all.

  All take part if every client takes part in each round. The result is a
  reference, which follows later changes of the config.
  """
  if config.data.num_clients is None:
    return 1
  num_clients = config.data.get_oneway_ref('num_clients')
  absent = num_clients - config.server.get_oneway_ref('clients_per_round')
  # References have arithmetic, but no comparison: 0 ** 0 is 1, and 0 to any
  # positive power is 0.
  everybody = FieldReference(0) ** absent**2  # 1 if absent == 0, else 0
  return 1 + everybody * (attackers - 1)
