"""Describes a run in a line for a person to read before the first round."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lca import privacy
from lca.attacks import Attack, Training
from lca.experiment.reading import source_keys
from lca.experiment.sections import ATTACKERS, SCHEDULE, Data
from lca.experiment.settings import Parts
from lca.federated.population import Population
from lca.registry import options_of


def lines(config: Mapping[str, Any], parts: Parts) -> Iterator[str]:
  """Yields a line that describes the run, and a note on each likely mistake.

  Likely mistakes are more attackers in a round than the rule tolerates, and an
  attack so weak that it sends about the mean of the honest updates.

  Args:
    config: complete nested dicts.
    parts: of the run.
  """
  rule, attack, data = (config[k] for k in ('aggregator', 'attack', 'data'))
  population = parts.population
  gradient = config['client']['mode'] == 'gradient'
  if population.num_byzantine is not None:
    attackers = in_a_round = population.num_byzantine
  else:  # with attack.sampled: the expected number in a round
    share = population.num_attackers / population.num_clients
    attackers = round(share * population.clients_per_round, 1)
    in_a_round = 'as drawn'
  attacks = 'no attack'
  if attack['name'] != 'none':
    keys = _options(attack, [*ATTACKERS, 'num_byzantine', 'training'], 'attack')
    changed = {k: attack[k] for k in SCHEDULE if attack[k] != SCHEDULE[k]}
    own = attack.get('training', {})
    own = {k: v for k, v in own.items() if v != getattr(Training, k, None)}
    attacks = (
      f'{attack["name"]}{keys} by {population.num_attackers} clients, '
      f'{in_a_round} in a round{_options(changed, ())}'
    )
    if own:
      attacks += f', trained in their own way{_options(own, ())}'
  # Such as 'nnm (f=1), then krum of each leaf (f=1)'.
  steps, scope = rule.get('pre', ()), rule.get('scope')
  before = [f'{name}{_options(rule.get(name, {}), ())}' for name in steps]
  then = f'{", ".join(before)}, then ' if before else ''
  # A rule that was given as a function, not by a config, has no scope.
  of = {None: '', 'model': ' of the model'}.get(scope, f' of each {scope}')
  keys = _options(rule, ['scope', 'pre', *steps], 'aggregator')
  of_data = {k: data[k] for k in data if k in source_keys(data['name'])}
  of_partition = {k: data[k] for k in data if k not in of_data}
  yield (
    f'{then}{rule["name"]}{of}{keys}; {attacks}; {config["model"]["name"]} '
    f'on {data["name"]}{_options(of_data, _FOLDERS)}, '
    f'{data["partition"]}{_options(of_partition, _NOT_PARTITION, "data")}; '
    f'{population.clients_per_round} of {population.num_clients} clients a '
    f'round{", one gradient each" if gradient else ""}'
  )
  if z := noise_multiplier(config, population.clients_per_round):
    yield f'differential privacy: {_privacy(z, config, population)}'
  f = rule.get('f')
  if f is not None and attackers > f:
    yield (
      f'note: aggregator.f={f} is less than the {attackers:g} attackers of a '
      'round'
    )
  own_alone = attack.get('knowledge') == 'byzantine'
  if own_alone and not _moves(parts.server.attack, population):
    yield (
      f'note: {attack["name"]} of one attacker that knows its own update alone '
      'sends just that update, which is no attack; let more attackers take '
      "part, or set attack.knowledge='all'"
    )
  if attack.get('z', 0) is None and population.num_byzantine and not own_alone:
    z = _deviations(parts.server.attack, population)
    if z < 0.05:
      yield (
        f'note: {population.num_byzantine} of {population.clients_per_round} '
        f'clients are too few for {attack["name"]}: it computes z={z:.2f} from '
        'these numbers, and z=0 sends the mean of the honest updates, which is '
        'no attack; set attack.z, or more attackers'
      )


def noise_multiplier(config: Mapping[str, Any], n: int) -> float | None:
  """Returns the noise multiplier z of a run with differential privacy.

  Such a run averages whole updates after a clip to the norm C, with noise of
  deviation z C / n, and its batch statistics, if there are any, go the same
  way. The result is None for all other runs.

  Args:
    config: complete nested dicts.
    n: clients in a round.
  """
  rule = config['aggregator']
  statistics = config['model'].get('batch_stats', 'rule')
  if (rule.get('scope'), statistics) != ('model', 'rule'):
    return None
  sigma, steps = rule.get('sigma'), tuple(rule.get('pre', ()))
  if rule['name'] == 'adaptive_clip' and not steps:
    return rule['noise_multiplier'] or None
  uniform = (rule['name'], rule.get('weights')) == ('mean', 'uniform')
  if not (uniform and steps == ('static_clip',) and sigma):
    return None
  # The options of a pre-aggregator may stand among those of the rule.
  return sigma * n / (rule.get('static_clip') or rule)['threshold']


def _privacy(z, config, population):
  """Returns the epsilon of an honest client in words, or why there is none.

  Attackers are assumed not to see the updates of honest clients.
  """
  # Attackers whose number in a round is fixed are drawn apart from the others.
  m, attackers = population.num_byzantine or 0, population.num_attackers
  n = population.clients_per_round - m
  clients = population.num_clients - (attackers if m else 0)
  rounds, delta = config['num_rounds'], 1e-5
  of = (
    f'noise multiplier {z:.4g}, {n} of {clients:,} clients a round, '
    f'{rounds} rounds'
  )
  try:
    epsilon = privacy.epsilon(
      noise_multiplier=z,
      clients_per_round=n,
      num_clients=clients,
      num_rounds=rounds,
      delta=delta,
    )
  except ImportError as error:
    return f'{of}; epsilon is not known: {error}'
  return (
    f'epsilon {epsilon:.4g} at delta {delta:g} if one client is replaced '
    f'({of}; see lca.privacy)'
  )


# Keys of the section `data` that the line leaves out, or names elsewhere.
_FOLDERS = ('archive_dir', 'data_dir')
_NOT_PARTITION = (*options_of(Data), 'checksum')


# Options that are named only if they have another value.
_AS_EVER = (
  ('aggregator.sigma', 0),
  ('attack.knowledge', 'all'),
  ('data.redraw_below', 0),
)


def _options(
  keys: Mapping[str, Any], without: Iterable[str], section: str = ''
) -> str:
  """Returns the keys that are set, in brackets, such as ' (f=1)'.

  Returns '' if none is set. Leaves out the names of functions and modules, the
  keys of `without`, and those of a section that have their usual value.
  """
  texts = [
    f'{k}={v}'
    for k, v in keys.items()
    if v is not None
    and k not in ('name', 'module', *without)
    and (f'{section}.{k}', v) not in _AS_EVER
  ]
  return f' ({", ".join(texts)})' if texts else ''


def _deviations(attack: Attack, population: Population) -> float:
  """Returns how many deviations an attacker's row lies below the honest mean.

  The attack is tried on random updates.
  """
  rows, sent, m = _tried(attack, population)
  honest = rows[m:]
  below = jnp.mean(honest, axis=0) - sent[0]
  return float(jnp.mean(below / jnp.std(honest, axis=0)))


def _moves(attack: Attack, population: Population) -> bool:
  """Returns False if a single attacker sends its own update unchanged."""
  if population.num_byzantine != 1:
    return True
  rows, sent, _ = _tried(attack, population)
  return not bool(jnp.allclose(rows[0], sent[0], atol=1e-3))


def _tried(attack: Attack, population: Population):
  """Tries an attack on random updates.

  Returns:
    The updates before and after it, `[n, 2]`, and the number of attackers, who
    have the first rows.
  """
  n, m = population.clients_per_round, population.num_byzantine
  rows = jax.random.normal(jax.random.key(0), (n, 2))
  sent = attack.on_updates(
    rows,
    byzantine=jnp.arange(n) < m,
    key=jax.random.key(1),
    aggregate=lambda rows: jnp.mean(rows, axis=0),
  )
  return rows, sent, m
