"""MNIST, IID over 200 clients, as the layerwise cosine paper's Fashion-MNIST.

    python main.py --config=configs/mnist.py:layerwise_cosine_krum
    python main.py --config=configs/mnist.py:krum,model_replacement

The paper has no table of MNIST; LEGATO's MNIST is `configs/legato_mnist.py`.
Without internet: --config.data.archive_dir=DIR, with the four idx .gz files.
A round trains on 300,000 images, as many as one of `configs/fashion_mnist.py`.
"""

from configs import common


def get_config(presets: str = ''):
  config = common.base()
  config.data.name = 'mnist'
  common.archives(config.data)
  return common.compose(config, presets, default='layerwise_cosine_krum')
