"""CIFAR-10 under LEGATO's federated SGD (Varma et al. 2021, Fig. 5 b).

    python main.py --config=configs/legato_cifar10.py:fig5,legato

25 workers of 2,000 images, one gradient of 1,000 a round, Adadelta at the
server. The network has the paper's three convolutions and three dense layers;
their widths are ours, since it names none.
"""

from configs import legato_mnist

FIGURES = {'fig5': legato_mnist.FIGURES['fig5']}


def get_config(presets: str = ''):
  config = legato_mnist.federated_sgd(
    'cifar10', batch_size=1000, learning_rate=0.01
  )
  config.model.features = (32, 64, 128)
  config.model.pool = 'each'
  config.model.hidden = (256, 128)
  return legato_mnist.compose(
    config, presets, FIGURES, examples_per_client=2000
  )
