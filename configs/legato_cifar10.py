"""CIFAR-10 under LEGATO's federated SGD (Varma et al. 2021, Fig. 5 b).

    python main.py --config=configs/legato_cifar10.py:fig5,legato

Each of 25 workers holds 2,000 images and sends one gradient of 1,000 of them in
each of 250 rounds. The server steps by Adadelta. The network has the paper's
three convolutions and three dense layers; the paper names no widths, and those
here are ours. `fig5` is the paper's Fall of Empires attack by 11 workers.

No run of this setting has been measured.
"""

from configs import legato_mnist

PRESETS_BY_FIGURE = {'fig5': legato_mnist.PRESETS_BY_FIGURE['fig5']}


def get_config(presets: str = ''):
  """Returns the config with the named presets (see `configs/common.py`)."""
  config = legato_mnist.federated_sgd(
    'cifar10', batch_size=1000, learning_rate=0.01
  )
  config.model.features = (32, 64, 128)
  config.model.pool = 'each'
  config.model.hidden = (256, 128)
  return legato_mnist.compose(
    config, presets, PRESETS_BY_FIGURE, examples_per_client=2000
  )
