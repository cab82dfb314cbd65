"""Every attack against a choice of rules, on handwritten digits.

    python -m lca.sweep --config=configs/attacks.py --workdir=runs/attacks
    python -m lca.report --figure=attacks --workdir=runs/attacks

15 of 20 clients a round, 3 of them Byzantine, 10 rounds of 2 local epochs.
"""

from configs import common, digits

RULES = (
  'fedavg',
  'krum',
  'layerwise_krum',
  'cosine_krum',
  'layerwise_cosine_krum',
  'median',
  'trimmed_mean',
  'geometric_median',
  'centered_clip',
  'nnm,trimmed_mean',
  'legato',
)


def get_runs():
  attacks = [
    name
    for name in common.attacks(common.base())
    if not name.endswith('_sampled')
  ]
  return {
    f'attacks/{attack} x {rule}': _config(attack, rule)
    for attack in ['none', *attacks]
    for rule in RULES
  }


def _config(attack, rule):
  presets = rule if attack == 'none' else f'{rule},{attack}'
  config = digits.get_config(presets).unlock()
  config.num_rounds = 10
  config.train.on_nonfinite = 'continue'  # some rules break under some attacks
  config.client.local_epochs = 2
  if attack != 'none':
    config.attack.num_attackers = 4
    config.attack.num_byzantine = 3
  rule = config.aggregator
  for keys in (rule, *(rule[name] for name in rule.pre)):
    if 'f' in keys:
      keys.f = 3
  if 'f' in config.attack:
    config.attack.f = 3
  return config
