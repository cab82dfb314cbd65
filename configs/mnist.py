"""MNIST, IID over 200 clients, trained like the layerwise cosine paper's data.

    python main.py --config=configs/mnist.py:layerwise_cosine_krum
    python main.py --config=configs/mnist.py:krum,model_replacement

Everything but the data is as in `configs/fashion_mnist.py`, and so is the time:
a round trains on 300,000 images. The paper has no table of MNIST, and we have
no measured run of it. `configs/legato_mnist.py` trains on MNIST as LEGATO's
paper does. Without internet, give the folder of the four idx .gz files with
--config.data.archive_dir=DIR.
"""

from configs import common


def get_config(presets: str = ''):
  """Returns the config with the named presets (see `configs/common.py`)."""
  config = common.base()
  config.data.name = 'mnist'
  return common.compose(config, presets, default='layerwise_cosine_krum')
