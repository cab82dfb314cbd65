"""Fashion-MNIST, IID over 200 clients (García-Márquez et al. 2025).

    python main.py --config=configs/fashion_mnist.py:layerwise_cosine_krum
    python main.py --config=configs/fashion_mnist.py:krum,model_replacement

Without internet: --config.data.archive_dir=DIR, with the four idx .gz files.

Expected (the paper's Table 1): layerwise cosine Krum ends at a test accuracy
of 0.879, the mean of the last 10 rounds. Table 4 is `model_replacement`.

A round trains on 300,000 images: at the 1,281 a second that two CPU cores were
measured at (benchmarks/results, batches of 64) four minutes, and 6.5 hours a
run.
"""

from configs import common


def get_config(presets: str = ''):
  config = common.base()
  config.data.name = 'fashion_mnist'
  common.archives(config.data)
  return common.compose(config, presets, default='layerwise_cosine_krum')
