"""Fashion-MNIST: 70,000 grey 28x28 photographs of clothing, ten classes."""

import tensorflow_datasets as tfds

from lca.data.archives import GzipContents
from lca.data.builders import VERSIONS
from lca.data.builders.idx import TEST, TRAIN, IdxBuilder

_URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/'

_ARCHIVES = GzipContents(
  url=_URL,
  sha256={
    'train-images-idx3-ubyte.gz': (
      'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888'
    ),
    'train-labels-idx1-ubyte.gz': (
      'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9'
    ),
    't10k-images-idx3-ubyte.gz': (
      '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b'
    ),
    't10k-labels-idx1-ubyte.gz': (
      '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34'
    ),
  },
  instructions=(
    'Fashion-MNIST is read from a folder that holds '
    f'{", ".join((*TRAIN, *TEST))}: pass --config.data.archive_dir=FOLDER. '
    "Debian's package dataset-fashion-mnist has the four files; so has "
    'https://github.com/zalandoresearch/fashion-mnist. Without archive_dir '
    f'they are downloaded from {_URL}.'
  ),
)


class FashionMnist(IdxBuilder):
  """Fashion-MNIST in the order of the published files."""

  name = 'lca_fashion_mnist'
  VERSION = tfds.core.Version(VERSIONS[name])
  RELEASE_NOTES = {  # noqa: RUF012 (TFDS reads a plain dict)
    '1.0.0': 'All 70,000 examples, in the order of the published files.'
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = _ARCHIVES.instructions
  ARCHIVES = _ARCHIVES
  CLASSES = (
    'T-shirt/top',
    'Trouser',
    'Pullover',
    'Dress',
    'Coat',
    'Sandal',
    'Shirt',
    'Sneaker',
    'Bag',
    'Ankle boot',
  )
  DESCRIPTION = __doc__
  HOMEPAGE = 'https://github.com/zalandoresearch/fashion-mnist'
  CITATION = """\
@misc{xiao2017fashionmnist,
  title = {Fashion-{MNIST}: a Novel Image Dataset for Benchmarking Machine
           Learning Algorithms},
  author = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  year = {2017},
  eprint = {1708.07747},
  archivePrefix = {arXiv},
  primaryClass = {cs.LG},
}
"""
