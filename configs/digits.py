"""Handwritten digits of 8 x 8 pixels: the default run of `main.py`.

    python main.py
    python main.py --config=configs/digits.py:fedavg,model_replacement

The data are the 1,797 digits that come with scikit-learn, so that nothing is
downloaded. 1,437 of them are spread over 20 clients, the others test the model.
Each of 20 rounds draws 15 clients, which train for 5 local epochs. By default
one of the 15 flips its labels, and layerwise cosine Krum aggregates.

The run takes less than a minute on a laptop's CPU and ends with a table of five
metrics.
"""

from configs import common

DEFAULT = 'layerwise_cosine_krum,label_flipping'


def get_config(presets: str = DEFAULT):
  """Returns the config with the named presets (see `configs/common.py`)."""
  config = common.base()
  config.num_rounds = 20
  config.data.name = 'digits'
  config.data.num_clients = 20
  config.client.batch_size = 16
  config.client.local_epochs = 5
  config.server.clients_per_round = 15
  return common.compose(config, presets, default='layerwise_cosine_krum')
