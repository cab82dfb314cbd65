"""CelebA: 202,599 aligned 218x178 photographs of faces, smiling or not."""

import functools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from lca.data import jpeg
from lca.data.archives import Archives
from lca.data.builders import VERSIONS
from lca.data.builders.base import FromArchives

_IMAGES = 'img_align_celeba.zip'
_ATTRIBUTES = 'list_attr_celeba.txt'
_IDENTITIES = 'identity_CelebA.txt'
_PARTITION = 'list_eval_partition.txt'

_FOLDER = 'img_align_celeba'  # in the zip
_ATTRIBUTE = 'Smiling'
_SHAPE = (218, 178, 3)
_SPLITS = ('train', 'validation', 'test')  # 0, 1 and 2 in the partition's file

# The number of examples that are in memory at once while records are written.
_SHARD = 10_000

_URL = 'https://drive.google.com/uc?export=download&id='

_ARCHIVES = Archives(
  url=_URL,
  links={
    _IMAGES: '0B7EVK8r0v71pZjFTYXZWM3FlRnM',
    _ATTRIBUTES: '0B7EVK8r0v71pblRyaVFSWGxPY0U',
    _IDENTITIES: '1_ee_0u7vcNLOfNLegJRHmolfH5ICW-XS',
    _PARTITION: '0B7EVK8r0v71pY0NSMzRuSXJEVkk',
  },
  sha256={
    _IMAGES: '46fb89443c578308acf364d7d379fe1b9efb793042c0af734b6112e4fd3a8c74',
    _ATTRIBUTES: (
      'f0e5da289d5ccf75ffe8811132694922b60f2af59256ed362afa03fefba324d0'
    ),
    _IDENTITIES: (
      'c6143857c3e2630ac2da9f782e9c1232e5e59be993a9d44e8a7916c78a6158c0'
    ),
    _PARTITION: (
      'fc955bcb3ef8fbdf7d5640d9a8693a8431b5f2ee291a5c1449a1549e7e073fe7'
    ),
  },
  sizes={
    _IMAGES: 1_443_490_838,
    _ATTRIBUTES: 26_721_026,
    _IDENTITIES: 3_424_458,
    _PARTITION: 2_836_386,
  },
  instructions=(
    f'CelebA is read from a folder that holds {_IMAGES}, {_ATTRIBUTES}, '
    f'{_IDENTITIES} and {_PARTITION}: pass --config.data.archive_dir=FOLDER. '
    'The files are at http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html. '
    'Without archive_dir they are downloaded from its Google Drive, which '
    'often refuses.'
  ),
)


class Example(NamedTuple):
  """The file name of a photograph, its class and the person's number.

  Attributes:
    file_name: the name in the zip file, without its folder.
    label: 1 if the person smiles, else 0.
    owner: the number of the person, from CelebA's list of identities.
  """

  file_name: str
  label: int
  owner: int


class Celeba(FromArchives, tfds.core.ShardBasedBuilder):
  """CelebA's aligned photographs with the attribute Smiling and the identity.

  The records hold the published JPEG files. The builder writes them shard by
  shard. TFDS's other kind of builder would keep all photographs in memory, and
  would need TensorFlow for more than one gigabyte.
  """

  name = 'lca_celeba'
  VERSION = tfds.core.Version(VERSIONS[name])
  RELEASE_NOTES = {  # noqa: RUF012 (TFDS reads a plain dict)
    '1.0.0': 'All 202,599 examples, in the order of the published partition.'
  }
  MANUAL_DOWNLOAD_INSTRUCTIONS = _ARCHIVES.instructions
  ARCHIVES = _ARCHIVES
  CLASSES = ('not smiling', 'smiling')
  DESCRIPTION = __doc__
  HOMEPAGE = 'http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html'
  CITATION = """\
@inproceedings{liu2015faceattributes,
  title = {Deep Learning Face Attributes in the Wild},
  author = {Liu, Ziwei and Luo, Ping and Wang, Xiaogang and Tang, Xiaoou},
  booktitle = {International Conference on Computer Vision},
  year = {2015},
}
"""

  def _features(self):
    return {
      'image': tfds.features.Image(shape=_SHAPE, encoding_format='jpeg'),
      'file_name': tfds.features.Text(doc='The name in the zip file.'),
      'owner': tfds.features.Scalar(dtype=np.int64, doc='The identity.'),
    }

  def _shard_iterators_per_split(self, dl_manager):
    """Returns, for each split, functions that generate a shard's examples."""
    paths = self._paths(dl_manager)
    splits = self._read_lists(paths)
    with self.ARCHIVES.reading(_IMAGES):
      # The generators below keep the zip file open. It is closed when the last
      # of them is deleted.
      archive = zipfile.ZipFile(paths[_IMAGES])
      members = set(archive.namelist())
      for examples in splits.values():
        names = [_member_name(example.file_name) for example in examples]
        _check_none_missing([name for name in names if name not in members])
    return {
      split: [
        functools.partial(
          self._generate_examples, archive, examples[start : start + _SHARD]
        )
        for start in range(0, len(examples), _SHARD)
      ]
      for split, examples in splits.items()
    }

  def _read_lists(self, paths) -> dict[str, list[Example]]:
    """Returns the examples of each split, from the three text files."""
    with self.ARCHIVES.reading(_PARTITION):
      partition = _read_numbers(paths[_PARTITION])
    with self.ARCHIVES.reading(_ATTRIBUTES):
      labels = _read_attribute(paths[_ATTRIBUTES], _ATTRIBUTE)
      _check_names(labels, partition)
    with self.ARCHIVES.reading(_IDENTITIES):
      owners = _read_numbers(paths[_IDENTITIES])
      _check_names(owners, partition)
    splits = {split: [] for split in _SPLITS}
    with self.ARCHIVES.reading(_PARTITION):
      for name, number in partition.items():
        if not 0 <= number < len(_SPLITS):
          raise ValueError(f'{name} is in split {number}, not in 0, 1 or 2')
        example = Example(name, labels[name], owners[name])
        splits[_SPLITS[number]].append(example)
      if empty := [split for split, rows in splits.items() if not rows]:
        raise ValueError(f'no examples in the split {", ".join(empty)}')
    return splits

  def _generate_examples(self, archive, examples):
    for i, example in enumerate(examples):
      with self.ARCHIVES.reading(_IMAGES, example.file_name):
        content = archive.read(_member_name(example.file_name))
        shape = jpeg.shape(content)
        if shape != _SHAPE:
          raise ValueError(f'the image must be {_SHAPE}, got {shape}')
      yield i, {'image': content, **example._asdict()}


def _member_name(file_name: str) -> str:
  """Returns the name of a photograph in the zip file."""
  return f'{_FOLDER}/{file_name}'


def _check_names(
  listed: Mapping[str, int], partition: Mapping[str, int]
) -> None:
  """Raises a ValueError unless a file lists the names of the partition."""
  _check_none_missing([name for name in partition if name not in listed])
  if extra := [name for name in listed if name not in partition]:
    raise ValueError(f'{extra[0]} is not in {_PARTITION}')


def _check_none_missing(names: list[str]) -> None:
  if names:
    raise ValueError(f'{len(names)} missing, the first one is {names[0]}')


def _read_numbers(path: Path) -> dict[str, int]:
  """Reads lines such as "000001.jpg 7"; returns the number by file name."""
  return _read_column(path.read_text().splitlines(), column=0, num_columns=1)


def _read_attribute(path: Path, attribute: str) -> dict[str, int]:
  """Reads an attribute, -1 or 1 in the file; returns 0 or 1 by file name.

  The first line of the file is the number of photographs, the second line the
  names of the attributes.
  """
  lines = path.read_text().splitlines()
  if len(lines) < 2:
    raise ValueError(f'no header in its {len(lines)} lines')
  names = lines[1].split()
  if attribute not in names:
    raise ValueError(f'no {attribute} among its attributes {names}')
  values = _read_column(lines[2:], names.index(attribute), len(names))
  if len(values) != int(lines[0]):
    raise ValueError(f'{len(values)} files, but its first line says {lines[0]}')
  if wrong := [name for name, value in values.items() if value not in (-1, 1)]:
    raise ValueError(f'{wrong[0]} has {attribute} {values[wrong[0]]}')
  return {name: (value + 1) // 2 for name, value in values.items()}


def _read_column(
  lines: list[str], column: int, num_columns: int
) -> dict[str, int]:
  """Reads one column of a table whose lines begin with a file name.

  Args:
    lines: each holds a file name and then `num_columns` integers.
    column: the index of the column, counted from 0 after the file name.
    num_columns: the number of columns, without the file name.

  Returns:
    The integers of the column, by file name.
  """
  numbers = {}
  for line in lines:
    words = line.split()
    if len(words) != 1 + num_columns:
      raise ValueError(
        f'a line has {len(words)} words, not {1 + num_columns}: {line!r}'
      )
    name = words[0]
    if name in numbers:
      raise ValueError(f'{name} is listed twice')
    numbers[name] = int(words[1 + column])
  return numbers
