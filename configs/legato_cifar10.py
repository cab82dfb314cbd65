"""CIFAR-10 under LEGATO's federated SGD (Varma et al. 2021, Fig. 5 b).

    python main.py --config=configs/legato_cifar10.py:fig5,legato

25 workers of 2,000 images, one gradient of 1,000 a round, Adadelta at the
server. The network has the paper's three convolutions and three dense layers;
their widths are ours, since it names none.
"""

from ml_collections import ConfigDict

from configs import common

FIGURES = {
  'fig5': (
    'fall_of_empires',
    {'attack.num_attackers': 11, 'attack.num_byzantine': 11},
  ),
}


def get_config(presets: str = ''):
  config = common.base()
  config.num_rounds = 250
  config.data.name = 'tfds:cifar10'
  config.data.num_clients = 25
  config.data.min_examples = 1
  common.archives(config.data)
  config.model.features = (32, 64, 128)
  config.model.pool = 'each'
  config.model.hidden = (256, 128)
  common.federated_sgd(config, batch_size=1000)
  config.server = ConfigDict(common.servers()['adadelta'])
  config.server.learning_rate = 0.01
  config.server.clients_per_round = 25
  config.eval.every = 5
  config.eval.layers = 'leaf'
  config.checkpoint.every = 50
  return common.compose(
    config,
    presets,
    default='legato',
    examples_per_client=2000,
    shorthands=FIGURES,
    tables_f=None,
  )
