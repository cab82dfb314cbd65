"""EMNIST's digits, IID or by writer (García-Márquez et al. 2025).

    python main.py --config=configs/emnist.py:layerwise_cosine_krum
    python main.py --config=configs/emnist.py:krum,non_iid,model_replacement

By default (`iid`) the training set is spread over 200 clients. With `non_iid`
each writer with at least 30 images is a client. 100 rounds draw 100 clients
each, which train for 10 local epochs. Without internet, give the folder of
NIST's matlab.zip, the only archive that names the writers, with
--config.data.archive_dir=DIR.

Expected (the paper's Table 1): layerwise cosine Krum reaches a test accuracy of
0.989, the mean of the last 10 rounds, and with `non_iid` 0.935. Its test loss
is 0.053 and 0.380, plain Krum's 0.244 and 1.663. The runs of Table 4 add
`model_replacement`. We have not run these 100 rounds.

Time, estimated: a round of `iid` trains on 1,200,000 images, four times as many
as one of Fashion-MNIST. That is 16 minutes on two CPU cores, which train on
1,281 images a second (benchmarks/results/README.md, in batches of 64). A round
of `non_iid` takes a sixth of that, if its 100 writers have 200 images each.
"""

from configs import common

SHORTHANDS = {'non_iid': ('natural', {})}


def get_config(presets: str = ''):
  """Returns the config with the named presets (see `configs/common.py`)."""
  config = common.base()
  config.data.name = 'emnist'
  return common.compose(
    config, presets, default='layerwise_cosine_krum', shorthands=SHORTHANDS
  )
