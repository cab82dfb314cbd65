"""Fashion-MNIST, IID over 200 clients (García-Márquez et al. 2025).

    python main.py --config=configs/fashion_mnist.py:layerwise_cosine_krum
    python main.py --config=configs/fashion_mnist.py:krum,model_replacement

100 rounds draw 100 clients each, which train for 10 local epochs. Without
internet, give the folder of the four idx .gz files with
--config.data.archive_dir=DIR.

Expected (the paper's Table 1): layerwise cosine Krum reaches a test accuracy of
0.879, the mean of the last 10 rounds. The runs of Table 4 add
`model_replacement`. We have not run these 100 rounds, only the reduced scale of
`configs/tables.py`.

Time, estimated: a round trains on 300,000 images. That is four minutes, and 6.5
hours for the run, on two CPU cores, which train on 1,281 images a second
(benchmarks/results/README.md, in batches of 64).
"""

from configs import common


def get_config(presets: str = ''):
  """Returns the config with the named presets (see `configs/common.py`)."""
  config = common.base()
  config.data.name = 'fashion_mnist'
  return common.compose(config, presets, default='layerwise_cosine_krum')
