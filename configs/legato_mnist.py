"""MNIST under LEGATO's federated SGD (Varma et al. 2021, section V).

    python main.py --config=configs/legato_mnist.py:fig5,legato
    python main.py --config=configs/legato_mnist.py:fig6_sigma20,krum

Each of 25 workers holds 1,000 images and sends one gradient of 50 of them in
each of 250 rounds. The server steps by Adadelta. The paper compares the rules
`fedavg`, `krum`, `median` and `legato`, which is the default. Without access to
MNIST, --config.data.name=fashion_mnist runs the same on Fashion-MNIST.

A preset such as `fig5` is the setting of the paper's figure of that number: its
partition, attack, attackers and learning rate. Where a figure compares values
of a key, set that key: --config.attack.sigma in Fig. 2,
--config.aggregator.window in Fig. 9. Figs. 2 and 4 are about averaging, so that
they need `fig2,fedavg`. `configs/legato_figures.py` runs all figures.

Expected (the paper's section V-B): Fall of Empires, `fig5`, is effective
against Krum and the median, but not against LEGATO and the mean. On
Fashion-MNIST we measured final test accuracies of 0.82 for the mean, 0.78 for
LEGATO, 0.65 for the median and 0.05 for Krum (benchmarks/results/README.md, two
seeds).

Time: a round took 0.9 to 1.9 s on two CPU cores and a test, every fifth round,
1.3 to 1.6 s (benchmarks/results/README.md): five to ten minutes in all.
"""

from ml_collections import ConfigDict

from configs import common


def _gaussian(sigma, attackers=4):
  """Returns the keys of an attack by Gaussian noise."""
  return {
    'attack.sigma': float(sigma),
    'attack.num_attackers': attackers,
    'attack.num_byzantine': attackers,
  }


_NON_IID = {'server.learning_rate': 0.03}
_PILOT = {'data.num_clients': 10, 'server.clients_per_round': 10}
_DEEP = {'model.features': (32,) * 4 + (64,) * 4}  # the paper names no widths

# By figure: the presets of its setting, and the values of keys.
PRESETS_BY_FIGURE = {
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
  'fig7': ('gaussian', _gaussian(20) | _DEEP),  # fig3_iid is its other half
  'fig8_none': ('', {}),
  'fig8_sigma20': ('gaussian', _gaussian(20)),
}
# Fig. 9 has the settings of Fig. 6.
PRESETS_BY_FIGURE |= {
  name.replace('fig6', 'fig9'): preset
  for name, preset in PRESETS_BY_FIGURE.items()
  if name.startswith('fig6')
}


def get_config(presets: str = ''):
  """Returns the config with the named presets (see `configs/common.py`)."""
  config = federated_sgd('mnist', batch_size=50, learning_rate=0.05)
  config.model.padding = 'VALID'
  config.model.dropout = (0.25, 0.5)
  return compose(config, presets, PRESETS_BY_FIGURE, examples_per_client=1000)


def federated_sgd(name: str, *, batch_size: int, learning_rate: float):
  """Returns the config that the paper's two data sets share, without presets.

  Args:
    name: of the data set.
    batch_size: examples of a worker's gradient.
    learning_rate: of Adadelta at the server.
  """
  config = common.base()
  config.num_rounds = 250
  config.data.name = name
  config.data.num_clients = 25
  config.data.min_examples = 1
  common.federated_sgd(config, batch_size)
  config.server = ConfigDict(common.servers()['adadelta'])
  config.server.learning_rate = learning_rate
  config.server.clients_per_round = 25
  config.eval.every = 5
  config.eval.layers = 'leaf'
  config.checkpoint.every = 50
  return config


def compose(config, presets, presets_by_figure, *, examples_per_client: int):
  """Adds presets to a config, with LEGATO as the default rule.

  Args:
    config: from `federated_sgd`.
    presets: names separated by commas.
    presets_by_figure: such as `PRESETS_BY_FIGURE`.
    examples_per_client: images of each worker.

  Returns:
    The config, locked.
  """
  return common.compose(
    config,
    presets,
    default='legato',
    examples_per_client=examples_per_client,
    shorthands=presets_by_figure,
  )
