"""Handwritten digits, 8 x 8: the default job, in a minute on a laptop's CPU.

    python main.py
    python main.py --config=configs/digits.py:fedavg,model_replacement

scikit-learn's 1,797 digits, shipped with that package. 1,437 train, spread
over 20 clients; each round 15 of them train, one of which flips its labels.
"""

from configs import common

DEFAULT = 'layerwise_cosine_krum,label_flipping'


def get_config(presets: str = DEFAULT):
  config = common.base()
  config.num_rounds = 20
  config.data.name = 'digits'
  config.data.num_clients = 20
  config.client.batch_size = 16
  config.client.local_epochs = 5
  config.server.clients_per_round = 15
  return common.compose(config, presets, default='layerwise_cosine_krum')
