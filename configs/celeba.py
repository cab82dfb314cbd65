"""CelebA's attribute Smiling, IID or by person (García-Márquez et al. 2025).

    python main.py --config=configs/celeba.py:layerwise_cosine_krum
    python main.py --config=configs/celeba.py:krum,non_iid,model_replacement
    python main.py --config=configs/celeba.py:krum,cnn \
--config.data.image_size=64

By default (`iid`) the training set is spread over 200 clients. With `non_iid`
each person with more than 30 images is a client. 100 rounds draw 100 clients
each, which train for 10 local epochs. The network is EfficientNet-B0, which
starts from ImageNet's weights and sees the images at 224 x 224: a run for a GPU
or TPU. The preset `cnn` chooses the network of the smaller data sets instead.

huggingface_hub (pip install it) downloads ImageNet's weights. Without internet,
give the folder of img_align_celeba.zip and CelebA's text files with
--config.data.archive_dir=DIR, and the weights with
--config.model.pretrained=FILE.

Expected (the paper's Table 1): layerwise cosine Krum reaches a test accuracy of
0.917, the mean of the last 10 rounds, and plain Krum 0.913. With `non_iid` they
reach 0.885 and 0.724. The runs of Table 4 add `model_replacement`. We have not
run these 100 rounds.

Time, estimated: a round of `iid` trains on 810,000 images, which takes 2e15
operations. 100 rounds are two days at 1 TFLOP/s, an hour at 50.
"""

from ml_collections import ConfigDict

from configs import common

SHORTHANDS = {'non_iid': ('natural', {'data.min_examples': 31})}


def get_config(presets: str = ''):
  """Returns the config with the named presets (see `configs/common.py`)."""
  config = common.base()
  config.data.name = 'celeba'
  config.model = ConfigDict(common.models()['efficientnet_b0'])
  return common.compose(
    config, presets, default='layerwise_cosine_krum', shorthands=SHORTHANDS
  )
