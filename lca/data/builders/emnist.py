"""EMNIST digits: 280,000 grey 28x28 handwritten digits and their writers."""

import io
import zipfile

import numpy as np
import tensorflow_datasets as tfds
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from lca.data.archives import Archives
from lca.data.builders import VERSIONS
from lca.data.builders.base import ArchiveBuilder

_URL = 'https://biometrics.nist.gov/cs_links/EMNIST/'
_NAME = 'matlab.zip'
_MEMBER = 'matlab/emnist-digits.mat'

_SIDE = 28

_ARCHIVES = Archives(
  url=_URL,
  sha256={
    _NAME: 'e1fa805cdeae699a52da0b77c2db17f6feb77eed125f9b45c022e7990444df95'
  },
  instructions=(
    f'EMNIST is read from a folder that holds {_NAME}, the data set in MATLAB '
    'format, the only one that names the writers: pass '
    '--config.data.archive_dir=FOLDER. Without archive_dir it is downloaded '
    f'from {_URL}.'
  ),
)


class EmnistDigits(ArchiveBuilder):
  """EMNIST digits with their writers, upright, in the order of the archive."""

  name = 'lca_emnist_digits'
  VERSION = tfds.core.Version(VERSIONS[name])
  RELEASE_NOTES = {  # noqa: RUF012 (TFDS reads a plain dict)
    '1.0.0': 'All 280,000 examples, in the order of the published archive.'
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = _ARCHIVES.instructions
  ARCHIVES = _ARCHIVES
  CLASSES = tuple('0123456789')
  DESCRIPTION = __doc__
  HOMEPAGE = 'https://www.nist.gov/itl/products-and-services/emnist-dataset'
  CITATION = """\
@inproceedings{cohen2017emnist,
  title = {{EMNIST}: Extending {MNIST} to Handwritten Letters},
  author = {Cohen, Gregory and Afshar, Saeed and Tapson, Jonathan and
            van Schaik, Andr{\\'e}},
  booktitle = {International Joint Conference on Neural Networks},
  year = {2017},
}
"""

  def _features(self):
    return {
      'image': tfds.features.Tensor(
        shape=(_SIDE, _SIDE, 1),
        dtype=np.uint8,
        encoding=tfds.features.Encoding.BYTES,
      ),
      'owner': tfds.features.Scalar(dtype=np.int64, doc='The writer.'),
    }

  def _splits(self, paths):
    with self.ARCHIVES.reading(_NAME, _MEMBER):
      with zipfile.ZipFile(paths[_NAME]) as archive:
        content = archive.read(_MEMBER)
      try:
        variables = loadmat(io.BytesIO(content), variable_names=['dataset'])
      except (MatReadError, TypeError) as error:
        raise ValueError(f'not a MATLAB file ({error})') from error
      if 'dataset' not in variables:
        raise ValueError('no variable "dataset" in it')
      return {
        split: self._parse(_field(variables['dataset'], split))
        for split in ('train', 'test')
      }

  def _parse(self, split):
    """Returns the split in a MATLAB structure of images, labels and writers."""
    rows = _field(split, 'images')
    if rows.dtype != np.uint8 or rows.shape[1:] != (_SIDE**2,):
      raise ValueError(
        f'images must be uint8 [N, {_SIDE**2}], got {rows.dtype} '
        f'{list(rows.shape)}'
      )
    # MATLAB stores an image column by column. NumPy reads it row by row, so it
    # has to be transposed.
    images = rows.reshape(-1, _SIDE, _SIDE).transpose(0, 2, 1)[..., None]
    labels_and_owners = []
    for name in ('labels', 'writers'):
      values = _field(split, name)
      if values.shape != (len(images), 1) or values.dtype.kind not in 'iuf':
        raise ValueError(
          f'{name} must be numbers [{len(images)}, 1], got {values.dtype} '
          f'{list(values.shape)}'
        )
      # MATLAB may store integers as doubles. A NaN or a fraction does not equal
      # the integer that it is converted to, and is refused below.
      with np.errstate(invalid='ignore'):
        numbers = values[:, 0].astype(np.int64)
      if not np.array_equal(numbers, values[:, 0]):
        raise ValueError(f'{name} must be whole numbers')
      labels_and_owners.append(numbers)
    return self._checked(images, *labels_and_owners)


def _field(struct: np.ndarray, name: str) -> np.ndarray:
  """Returns a field of a MATLAB structure.

  SciPy reads a structure as a structured array of one element, `[1, 1]`.
  """
  if name not in (struct.dtype.names or ()) or struct.size != 1:
    raise ValueError(f'no field "{name}" in {struct.dtype} {struct.shape}')
  return struct[name].item()
