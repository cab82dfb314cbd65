"""MNIST: 70,000 grey 28x28 images of handwritten digits."""

import tensorflow_datasets as tfds

from lca.data.archives import Archives
from lca.data.builders import VERSIONS
from lca.data.builders.idx import TEST, TRAIN, IdxBuilder

_URL = 'https://storage.googleapis.com/cvdf-datasets/mnist/'

_ARCHIVES = Archives(
  url=_URL,
  sha256={
    'train-images-idx3-ubyte.gz': (
      '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609'
    ),
    'train-labels-idx1-ubyte.gz': (
      '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c'
    ),
    't10k-images-idx3-ubyte.gz': (
      '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6'
    ),
    't10k-labels-idx1-ubyte.gz': (
      'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6'
    ),
  },
  sizes={
    'train-images-idx3-ubyte.gz': 9_912_422,
    'train-labels-idx1-ubyte.gz': 28_881,
    't10k-images-idx3-ubyte.gz': 1_648_877,
    't10k-labels-idx1-ubyte.gz': 4_542,
  },
  instructions=(
    f'MNIST is read from a folder that holds {", ".join((*TRAIN, *TEST))} '
    '(Fashion-MNIST has other files of the same names): pass '
    '--config.data.archive_dir=FOLDER. Without archive_dir they are '
    f'downloaded from {_URL}.'
  ),
)


class Mnist(IdxBuilder):
  """MNIST in the order of the published files."""

  name = 'lca_mnist'
  VERSION = tfds.core.Version(VERSIONS[name])
  RELEASE_NOTES = {  # noqa: RUF012 (TFDS reads a plain dict)
    '1.0.0': 'All 70,000 examples, in the order of the published files.'
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = _ARCHIVES.instructions
  ARCHIVES = _ARCHIVES
  CLASSES = tuple('0123456789')
  DESCRIPTION = __doc__
  HOMEPAGE = 'http://yann.lecun.com/exdb/mnist/'
  CITATION = """\
@article{lecun1998gradient,
  title = {Gradient-Based Learning Applied to Document Recognition},
  author = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and
            Haffner, Patrick},
  journal = {Proceedings of the IEEE},
  volume = {86},
  number = {11},
  pages = {2278--2324},
  year = {1998},
}
"""
