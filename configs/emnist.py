"""EMNIST's digits, over 200 clients or by writer (García-Márquez et al. 2025).

    python main.py --config=configs/emnist.py:layerwise_cosine_krum
    python main.py --config=configs/emnist.py:krum,non_iid,model_replacement

`iid`, the default, spreads the training set over 200 clients; `non_iid` makes a
client of each writer with at least 30 images. Without internet:
--config.data.archive_dir=DIR, with NIST's matlab.zip, which alone tells the
writers.

Expected (the paper's Table 1): layerwise cosine Krum's test accuracy is 0.989,
the mean of the last 10 rounds, and with `non_iid` 0.935; plain Krum's test loss
is 0.244 and 1.663, the layerwise cosine one's 0.053 and 0.380. Table 4 is
`model_replacement`.

A round of `iid` trains on 1,200,000 images, four times Fashion-MNIST's: 16
minutes on two CPU cores, at the 1,281 a second measured there
(benchmarks/results, batches of 64). A round of `non_iid` is a sixth of that,
where its 100 writers have 200 images each.
"""

from configs import common

SHORTHANDS = {'non_iid': ('natural', {})}


def get_config(presets: str = ''):
  config = common.base()
  config.data.name = 'emnist'
  common.archives(config.data)
  return common.compose(
    config, presets, default='layerwise_cosine_krum', shorthands=SHORTHANDS
  )
