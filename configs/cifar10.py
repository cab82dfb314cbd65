"""CIFAR-10, IID over 200 clients, EfficientNet-B0 (García-Márquez et al. 2025).

    python main.py --config=configs/cifar10.py:layerwise_cosine_krum
    python main.py --config=configs/cifar10.py:krum,model_replacement
    python main.py --config=configs/cifar10.py:krum,cnn

The network starts from ImageNet's weights and sees the images at 224 x 224, of
which a round trains on 250,000: a run for a GPU or TPU. The preset `cnn` takes
the smaller data sets' network in its place. ImageNet's weights are downloaded
by huggingface_hub (pip install it). Without internet:
--config.data.archive_dir=DIR, with cifar-10-binary.tar.gz, and
--config.model.pretrained=FILE.

Expected (the paper's Table 1): layerwise cosine Krum's test accuracy is 0.871,
the mean of the last 10 rounds, and plain Krum's 0.844. Table 4 is
`model_replacement`.

Not timed at this scale. A round is 6e14 operations: 100 of them are 16 hours at
1 TFLOP/s, 20 minutes at 50.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(presets: str = ''):
  config = common.base()
  config.data.name = 'cifar10'
  common.archives(config.data)
  config.model = ConfigDict(common.models()['efficientnet_b0'])
  return common.compose(config, presets, default='layerwise_cosine_krum')
