"""A sweep: attacks on a trained model, most of them backdoors, against rules.

    python -m lca.sweep --config=configs/backdoors.py --scale=start \
--workdir=runs/backdoors-start
    python -m lca.sweep --config=configs/backdoors.py --workdir=runs/backdoors

Fashion-MNIST over 600 clients by Dirichlet shares of alpha 0.5 and 0.1. The
runs of --scale=start train a model for each alpha, 120 rounds without an
attack. All other runs start from that model. Each of their 30 rounds draws 20
of the clients, 4 of them Byzantine, and the rules tolerate 4. A client trains
for one epoch. The model is a CNN of 407,000 parameters. A run is named
`backdoors/ALPHA/ATTACK x RULE`.

Time: with --jobs=2 two runs take about 20 seconds on two CPU cores, those of
`a3fl` two minutes.

Expected (benchmarks/results/README.md): no backdoor gets past Krum, plain or
layerwise, Bulyan and FLAME; some get past the layerwise cosine forms, nearly
all past LEGATO, and all past the mean.
"""

from configs import fashion_mnist
from lca.experiment import identity, reading

ALPHAS = (0.5, 0.1)
# The first ones are measured by their success, the others by the accuracy.
ATTACKS = (
  *('badnets', 'dba', 'edge_case', 'flip_source', 'badnets_replacement'),
  *('neurotoxin', 'constrain_and_scale', 'pgd', 'a3fl'),
  *('alie', 'min_max', 'gradient_ascent'),
)
RULES = (
  *('fedavg', 'norm_clipping', 'median', 'trimmed_mean', 'nnm,trimmed_mean'),
  *('krum', 'layerwise_krum', 'cosine_krum', 'layerwise_cosine_krum'),
  *('bulyan', 'layerwise_cosine_bulyan', 'legato'),
  *('flame', 'align_ins', 'multi_metrics'),
)
START = 'runs/backdoors-start'


def get_runs(scale: str = 'attacked'):
  """Returns the configs of all runs by name.

  Args:
    scale: 'attacked', or 'start' for the models that those runs start from.

  Raises:
    ValueError: another scale.
  """
  if scale == 'start':
    return {f'start/{alpha}': _start(alpha) for alpha in ALPHAS}
  if scale == 'attacked':
    return attacked(RULES)
  raise ValueError(f"unknown scale {scale!r}; use 'start' or 'attacked'")


def attacked(rules):
  """Returns the configs of all attacks on some rules by name."""
  return {
    f'backdoors/{alpha}/{attack} x {rule}': _attacked(alpha, attack, rule)
    for alpha in ALPHAS
    for attack in ('none', *ATTACKS)
    for rule in rules
  }


def _config(alpha, presets):
  """Returns what all runs have in common."""
  config = fashion_mnist.get_config(f'{presets},dirichlet')
  config.update_from_flattened_dict(
    {
      'data.num_clients': 600,
      'data.alpha': alpha,
      'data.min_examples': 10,
      'model.features': (16, 32),
      'model.hidden': (64,),
      'server.clients_per_round': 20,
      'client.optimizer': 'sgd',
      'client.learning_rate': 0.1,
      'client.batch_size': 32,
      'client.local_epochs': 1,
      'eval.every': 10,
      'train.on_nonfinite': 'continue',
    }
  )
  if 'norm_clipping' in presets:
    # Honest updates of this small model have norms of 0.3 to 0.7.
    config.aggregator.static_clip.threshold = 0.5
    config.aggregator.sigma = 2e-4
  return config


def _start(alpha):
  """Returns the config of the run that trains the first model."""
  config = _config(alpha, 'fedavg')
  config.num_rounds = 120
  return config


def _attacked(alpha, attack, rule):
  """Returns the config of one run: 4 attackers a round, or none."""
  config = _config(alpha, rule if attack == 'none' else f'{rule},{attack}')
  config.num_rounds = 30
  config.init_from = (
    f'{START}/{identity.run_id(reading.complete(_start(alpha)))}'
  )
  if attack != 'none':
    config.attack.num_byzantine = 4
  rule = config.aggregator
  # Without an attack, too, the rules tolerate 4 attackers.
  for keys in (rule, *(rule[name] for name in rule.pre)):
    if 'f' in keys:
      keys.f = 4
  return config
