"""A sweep: fifteen attacks on the accuracy against eleven rules, on digits.

    python -m lca.sweep --config=configs/attacks.py --workdir=runs/attacks
    python -m lca.report --figure=attacks --workdir=runs/attacks

Each of 10 rounds draws 15 of 20 clients, 3 of them Byzantine, who train for 2
local epochs. A run is named `attacks/ATTACK x RULE`. There are 176 runs. They
take about five minutes on two CPU cores with --jobs=2.

Expected (benchmarks/results/attacks/figures/attacks.md): three rows of zeros
(`zero`) bring plain and layerwise Krum to chance level, while the cosine forms
keep a test accuracy of 0.94 to 0.95. Noise and a constant bring the mean and
LEGATO to chance level.
"""

from configs import digits

ATTACKS = (
  *('alie', 'constant', 'fall_of_empires', 'fang_krum', 'fang_trimmed_mean'),
  *('gaussian', 'label_flipping', 'mimic', 'min_max', 'min_sum'),
  *('model_replacement', 'non_finite', 'optimized', 'sign_flip', 'zero'),
)
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
  """Returns the configs of all runs by name."""
  return {
    f'attacks/{attack} x {rule}': _config(attack, rule)
    for attack in ('none', *ATTACKS)
    for rule in RULES
  }


def _config(attack, rule):
  """Returns the config of one run: 3 attackers a round, or none."""
  presets = rule if attack == 'none' else f'{rule},{attack}'
  config = digits.get_config(presets).unlock()
  config.num_rounds = 10
  config.train.on_nonfinite = 'continue'  # some rules break under some attacks
  config.client.local_epochs = 2
  if attack != 'none':
    config.attack.num_attackers = 4
    config.attack.num_byzantine = 3
  rule = config.aggregator
  # Without an attack, too, the rules tolerate 3 attackers.
  for keys in (rule, *(rule[name] for name in rule.pre)):
    if 'f' in keys:
      keys.f = 3
  if 'f' in config.attack:
    config.attack.f = 3
  return config
