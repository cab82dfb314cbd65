"""Tests of archives with the right checksum but wrong content."""

import gzip

import numpy as np
import published
import pytest
from published import check_refused, images_with

from lca.data import load


def mnist_images(images):
  return {'train': (images, published.grey(len(images), 0)[1])}


def mnist_labels(labels):
  return {'test': (published.grey(7, 1)[0], labels)}


def cifar10_with(**changes):
  batches = published.cifar10_batches() | changes
  return {'batches': {k: v for k, v in batches.items() if v is not None}}


def emnist_with(split, **changes):
  fields, _ = published.emnist_splits()
  fields[split] |= changes
  fields[split] = {k: v for k, v in fields[split].items() if v is not None}
  return {'dataset': fields}


def emnist_without(split):
  fields, _ = published.emnist_splits()
  del fields[split]
  return {'dataset': fields}


def label_of(batch, label):
  records = published.cifar10_batches()[batch]
  records[1, 0] = label
  return {batch: records}


def lines_with(file, line, text):
  lines = published.celeba_texts()[file]
  lines[line : line + 1] = [] if text is None else [text]
  return {file: lines}


def jpeg_of(*shape):
  return published.encode_jpeg(np.zeros(shape, np.uint8))


ATTRIBUTES = 'list_attr_celeba.txt'
IDENTITIES = 'identity_CelebA.txt'
PARTITION = 'list_eval_partition.txt'
ZIP = 'img_align_celeba.zip'
MAT = 'matlab.zip and matlab/emnist-digits.mat: '

WRONG = {
  # MNIST
  'side': (
    'mnist',
    mnist_images(np.zeros((23, 28, 27), np.uint8)),
    r'train-images.*images must be \(28, 28, 1\), not \(28, 27, 1\)',
  ),
  'count': (
    'mnist',
    mnist_labels(np.zeros(6, np.uint8)),
    't10k-images.* and t10k-labels.*: 7 images but 6 labels',
  ),
  'class': (
    'mnist',
    mnist_labels(np.array([0, 1, 2, 3, 4, 5, 10], np.uint8)),
    r't10k-labels.*must lie in \[0, 10\), got labels from 0 to 10',
  ),
  'empty': (
    'mnist',
    {'train': (np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8))},
    'train-images.*must not be empty',
  ),
  'dimensions': (
    'mnist',
    mnist_images(np.zeros((23, 784), np.uint8)),
    r'train-images.*got uint8 \[23, 784, 1\]',
  ),
  # CIFAR-10
  'batch missing': (
    'cifar10',
    cifar10_with(**{'data_batch_3.bin': None}),
    'cifar-10-binary.tar.gz: no cifar-10-batches-bin/data_batch_3.bin in it',
  ),
  'batch cut': (
    'cifar10',
    cifar10_with(**{'test_batch.bin': bytes(3073 + 3000)}),
    'test_batch.bin has 6073 bytes, which is not a multiple of the 3073',
  ),
  'batch empty': (
    'cifar10',
    cifar10_with(**{'data_batch_1.bin': b''}),
    'data_batch_1.bin has 0 bytes',
  ),
  'batch class': (
    'cifar10',
    cifar10_with(**label_of('data_batch_5.bin', 10)),
    r'tar.gz: labels must lie in \[0, 10\), got labels from \d to 10',
  ),
  # EMNIST
  'no writers': (
    'emnist',
    emnist_with('train', writers=None),
    MAT + 'no field "writers"',
  ),
  'no test': ('emnist', emnist_without('test'), MAT + 'no field "test"'),
  'writers missing': (
    'emnist',
    emnist_with('train', writers=np.zeros((11, 1))),
    MAT + r'writers must be numbers \[12, 1\], got float64 \[11, 1\]',
  ),
  'labels missing': (
    'emnist',
    emnist_with('test', labels=np.zeros((4, 1))),
    MAT + r'labels must be numbers \[5, 1\], got float64 \[4, 1\]',
  ),
  'labels no column': (
    'emnist',
    emnist_with('test', labels=np.zeros((1, 5))),
    MAT + r'labels must be numbers \[5, 1\], got float64 \[1, 5\]',
  ),
  'writer not whole': (
    'emnist',
    emnist_with('train', writers=np.full((12, 1), 1.5)),
    MAT + 'writers must be whole',
  ),
  'writer not a number': (
    'emnist',
    emnist_with('train', writers=np.full((12, 1), np.nan)),
    MAT + 'writers must be whole',
  ),
  'label range': (
    'emnist',
    emnist_with('test', labels=np.array([[0], [9], [1], [2], [10]])),
    MAT + r'labels must lie in \[0, 10\), got labels from 0 to 10',
  ),
  'pixels missing': (
    'emnist',
    emnist_with('train', images=np.zeros((12, 783), np.uint8)),
    MAT + r'images must be uint8 \[N, 784\], got uint8 \[12, 783\]',
  ),
  'pixels of doubles': (
    'emnist',
    emnist_with('train', images=np.zeros((12, 784))),
    MAT + r'images must be uint8 \[N, 784\], got float64 \[12, 784\]',
  ),
  'no structure': (
    'emnist',
    {'content': published.mat({'dataset': np.zeros((3, 3))})},
    MAT + 'no field "train"',
  ),
  'other variable': (
    'emnist',
    {'content': published.mat({'data': np.zeros((3, 3))})},
    MAT + 'no variable "dataset"',
  ),
  'no mat': ('emnist', {'content': b'no MATLAB file at all' * 20}, MAT),
  'mat cut': (
    'emnist',
    {'content': published.mat({'dataset': np.zeros((300, 30))})[:200]},
    MAT,
  ),
  'mat empty': ('emnist', {'content': b''}, MAT),
  # CelebA
  'no image': (
    'celeba',
    images_with(_000004=None, _000007=None),
    f'{ZIP}: 1 missing, the first one is img_align_celeba/000004.jpg',
  ),
  'no images': (
    'celeba',
    {'images': {}},
    f'{ZIP}: 5 missing, the first one is img_align_celeba/000001.jpg',
  ),
  'image shape': (
    'celeba',
    images_with(_000002=jpeg_of(178, 218, 3)),
    rf'{ZIP} and 000002.jpg: the image must be \(218, 178, 3\), got \(178, ',
  ),
  'grey image': (
    'celeba',
    images_with(_000007=jpeg_of(218, 178)),
    f'{ZIP} and 000007.jpg: the JPEG has the mode L, not RGB',
  ),
  'no JPEG': (
    'celeba',
    images_with(_000005=b'GIF89a' * 100),
    f'{ZIP} and 000005.jpg: not a complete JPEG',
  ),
  'no identity': (
    'celeba',
    lines_with(IDENTITIES, 3, None),
    f'{IDENTITIES}: 1 missing, the first one is 000004.jpg',
  ),
  'identity of no file': (
    'celeba',
    lines_with(IDENTITIES, 8, '000009.jpg 7'),
    f'{IDENTITIES}: 000009.jpg is not in {PARTITION}',
  ),
  'identity no number': (
    'celeba',
    lines_with(IDENTITIES, 2, '000003.jpg x'),
    f"{IDENTITIES}: invalid literal for int.*'x'",
  ),
  'identity without a number': (
    'celeba',
    lines_with(IDENTITIES, 2, '000003.jpg'),
    f'{IDENTITIES}: a line has 1 words, not 2',
  ),
  'no attributes': (
    'celeba',
    lines_with(ATTRIBUTES, 4, None),
    f'{ATTRIBUTES}: 7 files, but its first line says 8',
  ),
  'no header': ('celeba', {ATTRIBUTES: []}, f'{ATTRIBUTES}: no header'),
  'no Smiling': (
    'celeba',
    lines_with(ATTRIBUTES, 1, 'Male Young Bald'),
    f'{ATTRIBUTES}: no Smiling among',
  ),
  'attribute missing': (
    'celeba',
    lines_with(ATTRIBUTES, 5, '000004.jpg -1 1'),
    f'{ATTRIBUTES}: a line has 3 words, not 4',
  ),
  'attribute range': (
    'celeba',
    lines_with(ATTRIBUTES, 5, '000004.jpg -1 1 0'),
    f'{ATTRIBUTES}: 000004.jpg has Smiling 0',
  ),
  'file twice': (
    'celeba',
    lines_with(PARTITION, 3, '000003.jpg 0'),
    f'{PARTITION}: 000003.jpg is listed twice',
  ),
  'split range': (
    'celeba',
    lines_with(PARTITION, 3, '000004.jpg 3'),
    f'{PARTITION}: 000004.jpg is in split 3',
  ),
  'split empty': (
    'celeba',
    lines_with(PARTITION, 2, '000003.jpg 0'),
    f'{PARTITION}: no examples in the split validation',
  ),
}


@pytest.mark.parametrize(
  ('name', 'changes', 'message'), WRONG.values(), ids=WRONG
)
def test_wrong_content(name, changes, message, loads, data_dir):
  with pytest.raises(ValueError, match=message) as info:
    loads(name, **changes)
  check_refused(info, data_dir)


@pytest.mark.parametrize('content', [b'', b'no archive', b'PK\3\4' + bytes(30)])
@pytest.mark.parametrize(
  ('name', 'file'),
  [
    ('mnist', 'train-images-idx3-ubyte.gz'),
    ('cifar10', 'cifar-10-binary.tar.gz'),
    ('emnist', 'matlab.zip'),
    ('celeba', ZIP),
  ],
)
def test_a_published_file_that_is_no_archive(
  name, file, content, archive_dir, data_dir, monkeypatch
):
  published.WRITERS[name](archive_dir)
  (archive_dir / file).write_bytes(content)
  published.publish(monkeypatch, name, archive_dir)
  with pytest.raises(ValueError, match=file) as info:
    load(name, data_dir=data_dir, archive_dir=archive_dir)
  check_refused(info, data_dir)


def test_a_cut_tar_in_a_whole_archive(archive_dir, data_dir, monkeypatch):
  published.write_cifar10(archive_dir)
  path = archive_dir / 'cifar-10-binary.tar.gz'
  tar = gzip.decompress(path.read_bytes())
  for size in (len(tar) // 3, 5000, 700):
    path.write_bytes(gzip.compress(tar[:size]))
    published.publish(monkeypatch, 'cifar10', archive_dir)
    with pytest.raises(ValueError, match=r'cifar-10-binary\.tar\.gz: '):
      load('cifar10', data_dir=data_dir, archive_dir=archive_dir)
