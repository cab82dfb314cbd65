"""CelebA's Smiling, over 200 clients or by person (García-Márquez et al. 2025).

    python main.py --config=configs/celeba.py:layerwise_cosine_krum
    python main.py --config=configs/celeba.py:krum,non_iid,model_replacement
    python main.py --config=configs/celeba.py:krum,cnn \
--config.data.image_size=64

`iid`, the default, spreads the training set over 200 clients; `non_iid` makes a
client of each person with more than 30 images. The network is EfficientNet-B0,
which starts from ImageNet's weights and sees the images at 224 x 224: a run for
a GPU or TPU. The preset `cnn` takes the smaller data sets' network in its
place.

ImageNet's weights are downloaded by huggingface_hub (pip install it). Without
internet: --config.data.archive_dir=DIR, with img_align_celeba.zip and CelebA's
text files, and --config.model.pretrained=FILE.

Expected (the paper's Table 1): layerwise cosine Krum's test accuracy is 0.917,
the mean of the last 10 rounds, and plain Krum's 0.913; with `non_iid` they are
0.885 and 0.724. Table 4 is `model_replacement`.

Not timed at this scale. A round of `iid` trains on 810,000 images, 2e15
operations: 100 rounds are two days at 1 TFLOP/s, an hour at 50.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import common

SHORTHANDS = {'non_iid': ('natural', {'data.min_examples': 31})}


def get_config(presets: str = ''):
  config = common.base()
  config.data.name = 'celeba'
  common.archives(config.data)
  # The stored images' side, see lca.data.load; None is 218 x 178, 21.3 GB.
  config.data.image_size = placeholder(int)
  config.model = ConfigDict(common.models()['efficientnet_b0'])
  return common.compose(
    config, presets, default='layerwise_cosine_krum', shorthands=SHORTHANDS
  )
