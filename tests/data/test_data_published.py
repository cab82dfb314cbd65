"""`load` on small archives in each published format: whole and damaged."""

import gzip
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import published
import pytest
import requests
from PIL import Image

from configs import celeba as celeba_config
from lca.data import federate, jpeg, load, prepared
from lca.data.archives import Archives
from lca.data.builders import celeba
from lca.data.builders.base import ArchiveBuilder

NAMES = tuple(published.BUILDERS)
FILES = [
  (name, file)
  for name, builder in published.BUILDERS.items()
  for file in builder.ARCHIVES.sha256
]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@pytest.fixture
def archive_dir(tmp_path):
  directory = tmp_path / 'archives'
  directory.mkdir()
  return directory


@pytest.fixture
def data_dir(tmp_path):
  return tmp_path / 'data'


@pytest.fixture
def loads(monkeypatch, archive_dir, data_dir):
  """Writes the small archives, changed or not, and loads them."""

  def write_and_load(name, *, image_size=None, **changes):
    published.WRITERS[name](archive_dir, **changes)
    published.publish(monkeypatch, name, archive_dir)
    return load(
      name, data_dir=data_dir, archive_dir=archive_dir, image_size=image_size
    )

  return write_and_load


def check_refused(info, data_dir):
  """The error tells how to get the files, and nothing counts as prepared."""
  assert '--config.data.archive_dir=FOLDER' in str(info.value)
  assert not list(data_dir.glob('*/*/dataset_info.json'))
  assert not list(data_dir.glob('*/*/arrays*'))


# What is loaded.


def test_mnist(loads):
  mnist = loads('mnist')
  assert (mnist.name, mnist.num_classes) == ('mnist', 10)
  assert mnist.mean == mnist.std == (127.5,)
  for split, expected in (
    (mnist.train, published.grey(23, 0)),
    (mnist.test, published.grey(7, 1)),
  ):
    np.testing.assert_array_equal(split.inputs[..., 0], expected[0])
    np.testing.assert_array_equal(split.labels, expected[1])
    assert split.owners is None


def test_cifar10(loads):
  cifar10 = loads('cifar10')
  assert (cifar10.name, cifar10.num_classes) == ('cifar10', 10)
  np.testing.assert_allclose(cifar10.mean, 255 * np.array(IMAGENET_MEAN))
  np.testing.assert_allclose(cifar10.std, 255 * np.array(IMAGENET_STD))
  *train, test = published.cifar10_batches().values()
  for split, records in (
    (cifar10.train, np.concatenate(train)),
    (cifar10.test, test),
  ):
    assert split.inputs.shape == (len(records), 32, 32, 3)
    np.testing.assert_array_equal(split.labels, records[:, 0])
    for channel in range(3):
      for row in (0, 1, 31):
        start = 1 + 1024 * channel + 32 * row
        np.testing.assert_array_equal(
          split.inputs[:, row, :, channel], records[:, start : start + 32]
        )


def test_emnist(loads):
  emnist = loads('emnist')
  assert (emnist.name, emnist.num_classes) == ('emnist', 10)
  assert emnist.mean == emnist.std == (127.5,)
  fields, upright = published.emnist_splits()
  for name in ('train', 'test'):
    split = getattr(emnist, name)
    np.testing.assert_array_equal(split.inputs[..., 0], upright[name])
    for numbers, column in (
      (split.labels, 'labels'),
      (split.owners, 'writers'),
    ):
      np.testing.assert_array_equal(numbers, fields[name][column][:, 0])
    assert isinstance(split.owners, np.memmap)


def test_emnist_stands_upright(loads):
  # A seven: the stroke on top, and on the right side only.
  seven = np.zeros((28, 28), np.uint8)
  seven[4, 6:20] = 255
  seven[4:24, 19] = 255
  fields, _ = published.emnist_splits()
  # MATLAB's images(1, :) = seven(:)', one column after the other.
  fields['train']['images'][0] = np.concatenate(list(seven.T))
  image = loads('emnist', dataset=fields).train.inputs[0, ..., 0]
  np.testing.assert_array_equal(image, seven)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.float64])
def test_emnist_numbers_of_any_type(dtype, loads):
  fields, _ = published.emnist_splits()
  writers = np.arange(12)[:, None] // 5
  fields['train'] |= {
    'writers': writers.astype(dtype),
    'labels': fields['train']['labels'].astype(dtype),
  }
  train = loads('emnist', dataset=fields).train
  np.testing.assert_array_equal(train.owners, writers[:, 0])
  np.testing.assert_array_equal(train.labels, fields['train']['labels'][:, 0])


def celeba_names(split):
  return [k for k, v in published.CELEBA.items() if v[0] == split]


def test_celeba(loads):
  data = loads('celeba')
  assert (data.name, data.num_classes) == ('celeba', 2)
  np.testing.assert_allclose(data.mean, 255 * np.array(IMAGENET_MEAN))
  np.testing.assert_allclose(data.std, 255 * np.array(IMAGENET_STD))
  np.testing.assert_array_equal(data.train.labels, [1, 0, 0, 1, 1])
  np.testing.assert_array_equal(
    data.train.owners, [2880, 2937, 2880, 2937, 2880]
  )
  np.testing.assert_array_equal(data.test.labels, [0, 1])
  np.testing.assert_array_equal(data.test.owners, [9152, 6369])
  for split, number in ((data.train, 0), (data.test, 2)):
    names = celeba_names(number)
    assert split.inputs.shape == (len(names), 218, 178, 3)
    assert isinstance(split.inputs, np.memmap)
    assert isinstance(split.owners, np.memmap)
    for image, name in zip(split.inputs, names, strict=True):
      drawn = published.photograph(name).astype(int)
      # The format is lossy, most so at edges.
      assert np.abs(image - drawn).mean() < 2
      middle = np.median(image[85:133, 65:113], axis=(0, 1))
      np.testing.assert_allclose(middle, drawn[109, 89], atol=3)


@pytest.mark.parametrize(
  ('size', 'resized', 'box'),
  [
    # 178 x 218 becomes s x floor(218 s / 178); the middle rows are kept.
    (64, (64, 78), (0, 7, 64, 71)),
    (256, (256, 313), (0, 28, 256, 284)),
  ],
)
def test_celeba_resized(size, resized, box, loads):
  data = loads('celeba', image_size=size)
  assert data.train.inputs.shape == (5, size, size, 3)
  for image, name in zip(data.train.inputs, celeba_names(0), strict=True):
    content = published.encode_jpeg(published.photograph(name))
    with Image.open(published.io.BytesIO(content)) as whole:
      expected = whole.resize(resized, Image.Resampling.BICUBIC).crop(box)
    np.testing.assert_array_equal(image, np.asarray(expected))
    np.testing.assert_allclose(
      image[size // 2, size // 2], published.celeba_color(name), atol=3
    )


def test_celeba_sizes_do_not_mix(loads, data_dir):
  small = loads('celeba', image_size=8).train
  # The records serve every size: the archives are not looked at again.
  absent = data_dir / 'absent'
  for size, shape in ((None, (218, 178)), (8, (8, 8)), (9, (9, 9))):
    data = load(
      'celeba', data_dir=data_dir, archive_dir=absent, image_size=size
    )
    assert data.train.inputs.shape == (5, *shape, 3)
    np.testing.assert_array_equal(data.train.owners, small.owners)


def test_celeba_file_names_and_validation_are_in_the_records(loads, data_dir):
  loads('celeba')
  builder = celeba.Celeba(data_dir=data_dir)
  for number, split in enumerate(('train', 'validation', 'test')):
    records = builder.as_data_source(split)
    names = [record['file_name'].decode() for record in records]
    assert names == celeba_names(number)


def test_batches_and_shards_of_any_size(loads, monkeypatch):
  monkeypatch.setattr(prepared, '_BATCH', 2)
  monkeypatch.setattr(celeba, '_SHARD', 3)
  data = loads('celeba', image_size=32)
  for split, number in ((data.train, 0), (data.test, 2)):
    names = celeba_names(number)
    np.testing.assert_array_equal(
      split.owners, [published.CELEBA[name][2] for name in names]
    )
    colors = [published.celeba_color(name) for name in names]
    np.testing.assert_allclose(split.inputs[:, 16, 16], colors, atol=3)


@pytest.mark.parametrize('name', ['emnist', 'celeba'])
def test_owners_are_clients_of_the_natural_partition(name, loads):
  data = loads(name)
  clients = federate(
    data, partition='natural', num_clients=None, min_examples=1, seed=0
  )
  held = [set(data.train.owners[i]) for i in clients.client_indices]
  assert all(len(owners) == 1 for owners in held)
  assert len(set().union(*held)) == clients.num_clients
  assert clients.num_examples.sum() == len(data.train)
  kept = federate(
    data, partition='natural', num_clients=None, min_examples=3, seed=0
  )
  assert list(kept.num_examples) == {'emnist': [3] * 4, 'celeba': [3]}[name]


def test_300_identities_of_celeba_are_clients_from_31_photographs_on(loads):
  sizes = [30, 31, 29, 35, 31, 33] + [1, 2] * 147
  examples = published.celeba_identities(sizes)
  data = loads('celeba', examples=examples)
  config = celeba_config.get_config('layerwise_cosine_krum,non_iid')
  keys = config.data.to_dict()
  for key in ('name', 'archive_dir', 'data_dir', 'image_size'):
    del keys[key]  # of the source
  clients = federate(data, seed=0, **keys)
  held = {}
  for name, (split, _, identity) in examples.items():
    if split == 0:
      held.setdefault(identity, []).append(name)
  assert len(held) == 300
  expected = [held[i] for i in sorted(held) if len(held[i]) >= 31]
  assert sorted(map(len, expected)) == [31, 31, 33, 35]
  got = clients.gather(range(clients.num_clients))
  assert list(got.num_examples) == [len(names) for names in expected]
  for images, labels, names in zip(
    got.inputs, got.labels, expected, strict=True
  ):
    smiling = [examples[name][1] == 1 for name in names]
    assert len(set(smiling)) == 2
    np.testing.assert_array_equal(labels[: len(names)], smiling)
    middles = np.median(images[: len(names), 85:133, 65:113], axis=(1, 2))
    colors = [published.celeba_color(name) for name in names]
    np.testing.assert_allclose(middles, colors, atol=3)


def test_prepared_data_need_neither_archives_nor_tfds(loads, data_dir):
  whole = {name: loads(name) for name in NAMES}
  program = f"""
import sys
from lca.data import load
for name in {NAMES}:
  data = load(name, data_dir={str(data_dir)!r}, archive_dir='absent')
  print(len(data.train), len(data.test))
roots = {{name.partition('.')[0] for name in sys.modules}}
print(sorted(roots & {{'PIL', 'scipy', 'tensorflow', 'tensorflow_datasets'}}))
"""
  result = subprocess.run(
    [sys.executable, '-c', program],
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  sizes = [f'{len(data.train)} {len(data.test)}' for data in whole.values()]
  assert result.stdout.splitlines() == [*sizes, '[]']


# Options.


@pytest.mark.parametrize('name', ['digits', 'tfds:mnist', *NAMES])
def test_only_celeba_takes_an_image_size(name, data_dir):
  error, message = ValueError, 'image_size must be at least 1, got 0'
  if name != 'celeba':
    error, message = TypeError, f"'{name}' takes no image_size"
  with pytest.raises(error, match=message):
    load(name, data_dir=None, image_size=0)


# Archives that are not the published ones.


@pytest.mark.parametrize(('name', 'file'), FILES)
def test_the_published_checksums_are_asked_for(
  name, file, archive_dir, data_dir
):
  # One at a time, the others are what is expected.
  published.WRITERS[name](archive_dir)
  archives = published.BUILDERS[name].ARCHIVES
  with pytest.raises(ValueError) as info:
    archives.verify(file, archive_dir / file)
  if file in archives.sizes:
    expected = f'bytes, not {archives.sizes[file]}\n'
  else:
    expected = f'not {archives.sha256[file]}\n'
  assert f'{archive_dir / file} is not the published {file}' in str(info.value)
  assert expected in str(info.value)
  with pytest.raises(ValueError, match='is not the published') as info:
    load(name, data_dir=data_dir, archive_dir=archive_dir)
  check_refused(info, data_dir)


def registered(name):
  """TFDS's sizes and SHA-256, by file name."""
  (package,) = importlib.util.find_spec(
    'tensorflow_datasets'
  ).submodule_search_locations
  paths = [
    Path(package) / 'url_checksums' / f'{name}.txt',
    Path(package) / 'datasets' / 'celeb_a' / 'checksums.tsv',
  ]
  path = paths[name == 'celeba']
  if not path.is_file():
    pytest.skip(f'this TFDS has no {path}')
  rows = [line.split('\t') for line in path.read_text().splitlines()]
  return {row[3]: (row[0], int(row[1]), row[2]) for row in rows}


@pytest.mark.parametrize('name', ['celeba', 'cifar10', 'mnist'])
def test_the_published_checksums_are_those_that_tfds_registers(name):
  archives = published.BUILDERS[name].ARCHIVES
  rows = registered(name)
  for file, sha256 in archives.sha256.items():
    assert (archives.urls[file], archives.sizes[file], sha256) == rows[file]


@pytest.mark.parametrize(('name', 'file'), FILES)
@pytest.mark.parametrize('damage', ['cut', 'emptied', 'altered', 'removed'])
def test_a_damaged_file(name, file, damage, archive_dir, data_dir, monkeypatch):
  published.WRITERS[name](archive_dir)
  content = (archive_dir / file).read_bytes()
  changed = {
    'cut': content[:-9],
    'emptied': b'',
    'altered': content[:30] + bytes([content[30] ^ 1]) + content[31:],
  }

  published.publish(monkeypatch, name, archive_dir)
  if damage == 'removed':
    (archive_dir / file).unlink()
  else:
    (archive_dir / file).write_bytes(changed[damage])
  error = FileNotFoundError if damage == 'removed' else ValueError
  with pytest.raises(error, match=str(archive_dir / file)) as info:
    load(name, data_dir=data_dir, archive_dir=archive_dir)
  check_refused(info, data_dir)
  assert not data_dir.exists()


@pytest.mark.parametrize('name', NAMES)
def test_no_internet_is_said_at_once(name, archive_dir, data_dir, monkeypatch):
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  published.WRITERS[name](archive_dir)
  published.publish(monkeypatch, name, archive_dir)
  with pytest.raises(ConnectionError, match='cannot download') as info:
    load(name, data_dir=data_dir)
  check_refused(info, data_dir)


def serve(monkeypatch, name, archive_dir, address):
  """Writes the archives under the names that their addresses end with."""
  published.WRITERS[name](archive_dir)
  published.publish(monkeypatch, name, archive_dir, url=address)
  archives = published.BUILDERS[name].ARCHIVES
  for file, url in archives.urls.items():
    (archive_dir / file).rename(archive_dir / url.removeprefix(address))
  return archives


@pytest.mark.parametrize('name', NAMES)
def test_downloads(name, server, archive_dir, data_dir, monkeypatch):
  serve(monkeypatch, name, archive_dir, server)
  downloaded = load(name, data_dir=data_dir)
  shutil.rmtree(data_dir)
  shutil.rmtree(archive_dir)
  archive_dir.mkdir()
  published.WRITERS[name](archive_dir)
  published.publish(monkeypatch, name, archive_dir)
  local = load(name, data_dir=data_dir, archive_dir=archive_dir)
  for a, b in ((downloaded.train, local.train), (downloaded.test, local.test)):
    np.testing.assert_array_equal(a.inputs, b.inputs)
    np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize('name', NAMES)
def test_a_download_of_something_else(
  name, server, archive_dir, data_dir, monkeypatch
):
  archives = serve(monkeypatch, name, archive_dir, server)
  file, url = list(archives.urls.items())[-1]
  (archive_dir / url.removeprefix(server)).write_bytes(b'<html>quota</html>')
  with pytest.raises(ValueError, match=f'not the published {file}') as info:
    load(name, data_dir=data_dir)
  check_refused(info, data_dir)


@pytest.mark.parametrize('name', NAMES)
def test_a_download_that_ends_early(
  name, server, archive_dir, data_dir, monkeypatch
):
  archives = serve(monkeypatch, name, archive_dir, server)
  # The last file is not there; the first one is, and is all that is probed.
  url = list(archives.urls.values())[-1]
  (archive_dir / url.removeprefix(server)).unlink()
  if len(archives.urls) > 1:
    archives.probe()
  with pytest.raises(ConnectionError, match='404') as info:
    load(name, data_dir=data_dir)
  assert url in str(info.value)
  check_refused(info, data_dir)


CONFIRM = 'https://drive.usercontent.google.com/download'
DRIVE_PAGE = f"""<html><title>Google Drive can't scan this file</title>
<form action="{CONFIRM}" method="get"><input type="hidden" name="id"
value="ID"><input type="hidden" name="confirm" value="t"></form></html>"""


@pytest.fixture
def drive(archive_dir, monkeypatch):
  """Google Drive in front of the archives; returns its pages' text by ID."""
  published.WRITERS['celeba'](archive_dir)
  url = celeba.Celeba.ARCHIVES.url
  published.publish(monkeypatch, 'celeba', archive_dir, url=url)
  names = {v: k for k, v in celeba.Celeba.ARCHIVES.links.items()}
  pages = {link: DRIVE_PAGE.replace('ID', link) for link in names}

  def send(_, request, **__):
    link = parse_qs(urlsplit(request.url).query)['id'][0]
    response = requests.Response()
    response.status_code, response.url = 200, request.url
    if request.url.startswith(CONFIRM):
      assert 'confirm=t' in request.url
      content = (archive_dir / names[link]).read_bytes()
      response.headers['Content-Disposition'] = f'filename="{names[link]}"'
    else:
      content = pages[link].encode()
    response.raw = io.BytesIO(content)
    return response

  monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', send)
  monkeypatch.setattr(Archives, 'probe', lambda self: None)  # by other means
  return pages


def test_google_drive_asks_to_confirm(drive, archive_dir, data_dir):
  downloaded = load('celeba', data_dir=data_dir)
  shutil.rmtree(data_dir)
  local = load('celeba', data_dir=data_dir, archive_dir=archive_dir)
  for a, b in ((downloaded.train, local.train), (downloaded.test, local.test)):
    np.testing.assert_array_equal(a.inputs, b.inputs)
    np.testing.assert_array_equal(a.owners, b.owners)


def test_google_drive_refuses(drive, data_dir):
  drive[list(drive)[-1]] = '<html>Quota exceeded</html>'
  with pytest.raises(ConnectionError, match='cannot download') as info:
    load('celeba', data_dir=data_dir)
  assert 'list_eval_partition.txt' in str(info.value)
  check_refused(info, data_dir)


# Archives of the right checksum and of wrong content.


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


def images_with(**changes):
  images = published.celeba_images()
  for number, content in changes.items():
    images[f'{number[1:]}.jpg'] = content
  return {'images': {k: v for k, v in images.items() if v is not None}}


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
    r'train-images.*images of \(28, 27, 1\), not \(28, 28, 1\)',
  ),
  'count': (
    'mnist',
    mnist_labels(np.zeros(6, np.uint8)),
    't10k-images.* and t10k-labels.*: 7 images but 6 labels',
  ),
  'class': (
    'mnist',
    mnist_labels(np.array([0, 1, 2, 3, 4, 5, 10], np.uint8)),
    r't10k-labels.*labels from 0 to 10, not in \[0, 10\)',
  ),
  'empty': (
    'mnist',
    {'train': (np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8))},
    'train-images.*without pixels',
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
    'test_batch.bin has 6073 bytes, which are no records of 3073',
  ),
  'batch empty': (
    'cifar10',
    cifar10_with(**{'data_batch_1.bin': b''}),
    'data_batch_1.bin has 0 bytes',
  ),
  'batch class': (
    'cifar10',
    cifar10_with(**label_of('data_batch_5.bin', 10)),
    r'tar.gz: labels from \d to 10, not in \[0, 10\)',
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
    MAT + r'labels from 0 to 10, not in \[0, 10\)',
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
    rf'{ZIP} and 000002.jpg: an image of \(178, 218, 3\), not \(218, 178, 3\)',
  ),
  'grey image': (
    'celeba',
    images_with(_000007=jpeg_of(218, 178)),
    f'{ZIP} and 000007.jpg: a JPEG of mode L, not RGB',
  ),
  'no JPEG': (
    'celeba',
    images_with(_000005=b'GIF89a' * 100),
    f'{ZIP} and 000005.jpg: not a whole JPEG',
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
    f'{IDENTITIES}: a line of 1 words, not 2',
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
    f'{ATTRIBUTES}: a line of 3 words, not 4',
  ),
  'attribute range': (
    'celeba',
    lines_with(ATTRIBUTES, 5, '000004.jpg -1 1 0'),
    f'{ATTRIBUTES}: 000004.jpg has Smiling 0',
  ),
  'file twice': (
    'celeba',
    lines_with(PARTITION, 3, '000003.jpg 0'),
    f'{PARTITION}: 000003.jpg is in it twice',
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


def test_a_celeba_image_that_is_cut(loads, data_dir):
  # Records hold it as it is; no array is made of it.
  whole = published.celeba_images()['000006.jpg']
  message = 'lca_celeba, examples 0 to 4 of its train split: not a whole JPEG'
  with pytest.raises(ValueError, match=message):
    loads('celeba', image_size=8, **images_with(_000006=whole[:-900]))
  assert not list(data_dir.glob('*/*/arrays*'))


# A preparation that breaks off.


def interrupted(function, calls):
  """The function, until it was called so often."""
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


@pytest.mark.parametrize('name', ['cifar10', 'emnist', 'mnist'])
def test_interrupted_records(name, loads, data_dir, monkeypatch):
  whole = ArchiveBuilder._generate_examples

  def broken(self, split):
    yield from list(whole(self, split))[:3]
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(ArchiveBuilder, '_generate_examples', broken)
    check_interrupted(name, loads, data_dir)
  assert not list(data_dir.glob('*/*/dataset_info.json'))
  assert (
    len(loads(name).train) == {'cifar10': 10, 'emnist': 12, 'mnist': 23}[name]
  )


@pytest.mark.parametrize('calls', [0, 2, 5, 7])
def test_interrupted_records_of_celeba(calls, loads, data_dir, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(jpeg, 'shape', interrupted(jpeg.shape, calls))
    check_interrupted('celeba', loads, data_dir, image_size=8)
  assert not list(data_dir.glob('*/*/dataset_info.json'))
  data = loads('celeba', image_size=8)
  assert (len(data.train), len(data.test)) == (5, 2)


@pytest.mark.parametrize('calls', [1, 4, 7])
def test_interrupted_arrays(calls, loads, data_dir, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(jpeg, 'decode', interrupted(jpeg.decode, calls))
    check_interrupted('celeba', loads, data_dir, image_size=8)
  data = loads('celeba', image_size=8)
  assert (len(data.train), len(data.test)) == (5, 2)
  np.testing.assert_array_equal(data.test.owners, [9152, 6369])


@pytest.fixture
def preparation(archive_dir, data_dir):
  """A process that has prepared one of MNIST's two splits."""
  published.write_mnist(archive_dir)
  program = f"""
import pathlib
import sys
import published
import pytest
from lca.data import load
from lca.data.builders.base import ArchiveBuilder
generate = ArchiveBuilder._generate_examples
def slowly(self, split):
  if len(split) == 7:
    print('test', flush=True)
    sys.stdin.readline()
  yield from generate(self, split)
ArchiveBuilder._generate_examples = slowly
folder = pathlib.Path({str(archive_dir)!r})
published.publish(pytest.MonkeyPatch(), 'mnist', folder)
load('mnist', data_dir={str(data_dir)!r}, archive_dir=folder)
"""
  tests = Path(__file__).parent
  paths = os.pathsep.join([str(tests), str(tests.parents[1])])
  with subprocess.Popen(
    [sys.executable, '-c', program],
    env=os.environ | {'PYTHONPATH': paths},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  ) as process:
    assert 'test\n' in process.stdout  # beside what TFDS prints
    yield process
    process.kill()


def test_a_killed_preparation_is_no_whole_one_and_is_deleted(
  preparation, loads, data_dir
):
  preparation.kill()
  preparation.wait()
  (left,) = (data_dir / 'lca_mnist').iterdir()
  assert any(left.iterdir())
  assert len(loads('mnist').train) == 23
  assert [path.name for path in (data_dir / 'lca_mnist').iterdir()] == ['1.0.0']


def test_a_preparation_at_work_is_left_alone(preparation, loads, data_dir):
  (draft,) = (data_dir / 'lca_mnist').iterdir()
  assert len(loads('mnist').train) == 23
  assert draft.is_dir()
  preparation.communicate('\n')
  assert preparation.returncode == 0
  assert [path.name for path in (data_dir / 'lca_mnist').iterdir()] == ['1.0.0']
  assert len(load('mnist', data_dir=data_dir).train) == 23


def test_arrays_that_a_killed_process_left_behind(loads, data_dir):
  data = loads('celeba', image_size=8)
  version = data_dir / 'lca_celeba' / '1.0.0'
  draft = version / 'arrays_9.incomplete.0123'
  draft.mkdir()
  np.save(draft / 'train_images.npy', np.zeros((5, 9, 9, 3), np.uint8))
  again = load('celeba', data_dir=data_dir, image_size=9)
  assert len(again.train) == len(data.train) == 5
  assert again.train.inputs.any()
  assert not draft.exists()
