"""CIFAR-10, IID over 200 clients, EfficientNet-B0 (García-Márquez et al. 2025).

    python main.py --config=configs/cifar10.py:layerwise_cosine_krum
    python main.py --config=configs/cifar10.py:krum,model_replacement
    python main.py --config=configs/cifar10.py:krum,cnn

100 rounds draw 100 clients each, which train for 10 local epochs. The network
starts from ImageNet's weights and sees the images at 224 x 224: a run for a GPU
or TPU. The preset `cnn` chooses the network of the smaller data sets instead.

huggingface_hub (pip install it) downloads ImageNet's weights. Without internet,
give the folder of cifar-10-binary.tar.gz with --config.data.archive_dir=DIR,
and the weights with --config.model.pretrained=FILE.

Expected (the paper's Table 1): layerwise cosine Krum reaches a test accuracy of
0.871, the mean of the last 10 rounds, and plain Krum 0.844. The runs of Table 4
add `model_replacement`. We have not run these 100 rounds.

Time, estimated: a round trains on 250,000 images, which takes 6e14 operations.
100 rounds are 16 hours at 1 TFLOP/s, 20 minutes at 50.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(presets: str = ''):
  """Returns the config with the named presets (see `configs/common.py`)."""
  config = common.base()
  config.data.name = 'cifar10'
  config.model = ConfigDict(common.models()['efficientnet_b0'])
  return common.compose(config, presets, default='layerwise_cosine_krum')
