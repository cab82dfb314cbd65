"""Writes small archives in the published formats, with known examples."""

import dataclasses
import gzip
import hashlib
import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from lca.data.builders.celeba import Celeba
from lca.data.builders.cifar10 import Cifar10
from lca.data.builders.emnist import EmnistDigits
from lca.data.builders.mnist import Mnist

CLOSED_PORT = 'http://127.0.0.1:9/'
BUILDERS = {
  'celeba': Celeba,
  'cifar10': Cifar10,
  'emnist': EmnistDigits,
  'mnist': Mnist,
}


def publish(monkeypatch, name, directory, url=CLOSED_PORT):
  """Makes a data set's builder accept the files of a folder as published."""
  builder = BUILDERS[name]
  files = {k: (directory / k).read_bytes() for k in builder.ARCHIVES.sha256}
  archives = dataclasses.replace(
    builder.ARCHIVES,
    url=url,
    sha256={k: hashlib.sha256(v).hexdigest() for k, v in files.items()},
    sizes={k: len(files[k]) for k in builder.ARCHIVES.sizes},
  )
  monkeypatch.setattr(builder, 'ARCHIVES', archives)


# MNIST: four gzipped idx files.


def idx(array):
  header = bytes([0, 0, 8, array.ndim])
  return header + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()


def grey(size, seed):
  """Draws images `[size, 28, 28]` and labels of ten classes."""
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (size, 28, 28), np.uint8)
  return images, rng.integers(0, 10, size, np.uint8)


def write_mnist(directory, train=None, test=None):
  for prefix, (images, labels) in (
    ('train', train or grey(23, 0)),
    ('t10k', test or grey(7, 1)),
  ):
    for kind, array in (('images-idx3', images), ('labels-idx1', labels)):
      path = directory / f'{prefix}-{kind}-ubyte.gz'
      path.write_bytes(gzip.compress(idx(array)))


# CIFAR-10: one .tar.gz of six batches.


def cifar10_batches():
  """Draws two records for each batch, `[2, 3073]`, by the batch's name."""
  rng = np.random.default_rng(0)
  names = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']
  batches = {}
  for name in names:
    batches[name] = rng.integers(0, 256, (2, 3073), np.uint8)
    batches[name][:, 0] = rng.integers(0, 10, 2)
  return batches


def write_cifar10(directory, batches=None):
  members = {'batches.meta.txt': b'airplane\nautomobile\n'}
  batches = cifar10_batches() if batches is None else batches
  members |= {name: bytes(batch) for name, batch in batches.items()}
  with tarfile.open(directory / 'cifar-10-binary.tar.gz', 'w:gz') as tar:
    folder = tarfile.TarInfo('cifar-10-batches-bin')
    folder.type = tarfile.DIRTYPE
    tar.addfile(folder)
    for name, content in members.items():
      info = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


# EMNIST: a .mat in a .zip, images column by column.


def emnist_splits():
  """Returns the MATLAB fields of both splits, and their upright images."""
  splits, upright = {}, {}
  for split, (size, seed) in {'train': (12, 2), 'test': (5, 3)}.items():
    images, labels = grey(size, seed)
    pixels = np.empty((size, 784), np.uint8)
    for row in range(28):
      for column in range(28):
        pixels[:, 28 * column + row] = images[:, row, column]
    writers = np.arange(size) % 4 * 100 + 7.0
    splits[split] = {
      'images': pixels,
      'labels': labels[:, None],
      'writers': writers[:, None],
    }
    upright[split] = images
  return splits, upright


def mat(variables):
  file = io.BytesIO()
  savemat(file, variables, do_compression=True)
  return file.getvalue()


def write_emnist(directory, dataset=None, content=None):
  if content is None:
    fields = emnist_splits()[0] if dataset is None else dataset
    mapping = np.stack([np.arange(10), np.arange(48, 58)], axis=1)
    content = mat({'dataset': fields | {'mapping': mapping}})
  with zipfile.ZipFile(directory / 'matlab.zip', 'w') as archive:
    archive.writestr('matlab/emnist-letters.mat', b'another one')
    archive.writestr('matlab/emnist-digits.mat', content)


# CelebA: a zip of JPEGs and three text files.


CELEBA = {
  # file name: split, Smiling, identity
  '000001.jpg': (0, 1, 2880),
  '000002.jpg': (0, -1, 2937),
  '000003.jpg': (1, 1, 8692),
  '000004.jpg': (0, -1, 2880),
  '000005.jpg': (2, -1, 9152),
  '000006.jpg': (0, 1, 2937),
  '000007.jpg': (2, 1, 6369),
  '000008.jpg': (0, 1, 2880),
}


def photograph(name):
  """Returns `[218, 178, 3]`: a gradient around the file's colour."""
  rows, columns = np.mgrid[:218, :178]
  image = np.stack([rows, columns, np.full_like(rows, 90)], axis=-1)
  image[80:138, 60:118] = celeba_color(name)
  return image.astype(np.uint8)


def celeba_color(name):
  return np.random.default_rng(int(name[:6])).integers(0, 256, 3)


def encode_jpeg(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'JPEG', quality=95, subsampling=0)
  return file.getvalue()


def celeba_identities(sizes):
  """Makes examples like CELEBA, with given numbers of training photographs.

  Identities whose number is a multiple of 3 also have a validation and a test
  photograph. The files and the numbers of the identities are in random orders.

  Args:
    sizes: the number of training photographs of each identity.
  """
  rng = np.random.default_rng(0)
  identities = rng.permutation(10_000)[: len(sizes)].tolist()
  split_of = [
    (split, identity)
    for identity, size in zip(identities, sizes, strict=True)
    for split in [0] * size + [1, 2] * (identity % 3 == 0)
  ]
  return {
    f'{number:06d}.jpg': (split, rng.choice([-1, 1]), identity)
    for number, (split, identity) in enumerate(rng.permutation(split_of), 1)
  }


def celeba_texts(examples=CELEBA):
  """Returns the lines of the text files, by file name."""
  attributes = [
    f'{name} -1  1 {smiling:2d}' for name, (_, smiling, _) in examples.items()
  ]
  header = [str(len(examples)), 'Male Young Smiling ']
  return {
    'list_attr_celeba.txt': header + attributes,
    'identity_CelebA.txt': [f'{k} {v[2]}' for k, v in examples.items()],
    'list_eval_partition.txt': [f'{k} {v[0]}' for k, v in examples.items()],
  }


def celeba_images(examples=CELEBA):
  return {name: encode_jpeg(photograph(name)) for name in examples}


def write_celeba(directory, images=None, examples=CELEBA, **texts):
  for name, lines in (celeba_texts(examples) | texts).items():
    (directory / name).write_text(''.join(f'{line}\n' for line in lines))
  images = celeba_images(examples) if images is None else images
  with zipfile.ZipFile(directory / 'img_align_celeba.zip', 'w') as archive:
    archive.writestr('img_align_celeba/', b'')
    for name, content in images.items():
      archive.writestr(f'img_align_celeba/{name}', content)


WRITERS = {
  'celeba': write_celeba,
  'cifar10': write_cifar10,
  'emnist': write_emnist,
  'mnist': write_mnist,
}


def check_refused(info, data_dir):
  """Checks that the error tells how to get files, and nothing is prepared."""
  assert '--config.data.archive_dir=FOLDER' in str(info.value)
  assert not list(data_dir.glob('*/*/dataset_info.json'))
  assert not list(data_dir.glob('*/*/arrays*'))


def celeba_names(split):
  return [k for k, v in CELEBA.items() if v[0] == split]


def images_with(**changes):
  images = celeba_images()
  for number, content in changes.items():
    images[f'{number[1:]}.jpg'] = content
  return {'images': {k: v for k, v in images.items() if v is not None}}


def interrupted(function, calls):
  """Returns a function that raises KeyboardInterrupt after so many calls."""
  left = iter(range(calls))

  def wrapper(*args, **kwargs):
    if next(left, None) is None:
      raise KeyboardInterrupt
    return function(*args, **kwargs)

  return wrapper


def check_interrupted(name, loads, data_dir, image_size=None):
  with pytest.raises(KeyboardInterrupt):
    loads(name, image_size=image_size)
  assert not list(data_dir.glob('*/*/arrays*'))
