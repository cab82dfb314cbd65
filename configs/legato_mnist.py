"""MNIST under LEGATO's federated SGD (Varma et al. 2021, section V).

    python main.py --config=configs/legato_mnist.py:fig5,legato
    python main.py --config=configs/legato_mnist.py:fig6_sigma20,krum

25 workers of 1,000 images, one gradient of 50 a round, Adadelta at the server.
The rules are `fedavg`, `krum`, `median` and `legato` (the default). Where MNIST
cannot be had, --config.data.name=fashion_mnist runs the same.

The shorthands are the figures' settings. What a figure sweeps is a key:
--config.attack.sigma in Fig. 2, --config.aggregator.window in Fig. 9. Figs. 2
and 4 are of averaging: `fig2,fedavg`.

Expected (section V-B): Fall of Empires, `fig5`, is effective against Krum and
the median, but not against LEGATO and the mean.
"""

from ml_collections import ConfigDict

from configs import common


def _gaussian(sigma, attackers=4):
  return {
    'attack.sigma': float(sigma),
    'attack.num_attackers': attackers,
    'attack.num_byzantine': attackers,
  }


_NON_IID = {'server.learning_rate': 0.03}
_PILOT = {'data.num_clients': 10, 'server.clients_per_round': 10}
_DEEP = {'model.features': (32,) * 4 + (64,) * 4}  # the paper names no widths

FIGURES = {
  'fig2': ('gaussian', _gaussian(20)),
  'fig3_iid': ('gaussian', _gaussian(20)),
  'fig3_non_iid': ('one_class,gaussian', _gaussian(20)),
  'fig4_none': ('', _PILOT),
  'fig4_sigma200': ('gaussian', _PILOT | _gaussian(200, attackers=2)),
  'fig5': (
    'fall_of_empires',
    {'attack.num_attackers': 11, 'attack.num_byzantine': 11},
  ),
  'fig6_none': ('one_class', _NON_IID),
  'fig6_sigma20': ('one_class,gaussian', _NON_IID | _gaussian(20)),
  'fig6_sigma100': ('one_class,gaussian', _NON_IID | _gaussian(100)),
  'fig7': ('gaussian', _gaussian(20) | _DEEP),  # beside fig3_iid
  'fig8_none': ('', {}),
  'fig8_sigma20': ('gaussian', _gaussian(20)),
}
FIGURES |= {
  name.replace('fig6', 'fig9'): preset
  for name, preset in FIGURES.items()
  if name.startswith('fig6')
}


def get_config(presets: str = ''):
  config = federated_sgd('mnist', batch_size=50, learning_rate=0.05)
  config.model.padding = 'VALID'
  config.model.dropout = (0.25, 0.5)
  return compose(config, presets, FIGURES, examples_per_client=1000)


def federated_sgd(name: str, *, batch_size: int, learning_rate: float):
  """What the paper's two data sets have in common, before the presets."""
  config = common.base()
  config.num_rounds = 250
  config.data.name = name
  config.data.num_clients = 25
  config.data.min_examples = 1
  common.archives(config.data)
  common.federated_sgd(config, batch_size)
  config.server = ConfigDict(common.servers()['adadelta'])
  config.server.learning_rate = learning_rate
  config.server.clients_per_round = 25
  config.eval.every = 5
  config.eval.layers = 'leaf'
  config.checkpoint.every = 50
  return config


def compose(config, presets, figures, *, examples_per_client: int):
  """Composes as `common.compose` does, with LEGATO as the default rule."""
  return common.compose(
    config,
    presets,
    default='legato',
    examples_per_client=examples_per_client,
    shorthands=figures,
  )
