"""Tests of all published data sets: loading, downloads and damaged files."""

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
from published import (
  celeba_names,
  check_interrupted,
  check_refused,
  interrupted,
)

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


# Contents.


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
  owners = [set(data.train.owners[i]) for i in clients.client_indices]
  assert all(len(of_client) == 1 for of_client in owners)
  assert len(set().union(*owners)) == clients.num_clients
  assert clients.num_examples.sum() == len(data.train)
  kept = federate(
    data, partition='natural', num_clients=None, min_examples=3, seed=0
  )
  assert list(kept.num_examples) == {'emnist': [3] * 4, 'celeba': [3]}[name]


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
    cwd=Path(__file__).parents[3],
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
  # The small archives are not the published files. Every file is checked on its
  # own, because loading stops at the first wrong one.
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
  """Returns the address, size and SHA-256 that TFDS registers, by file name."""
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
  """Writes archives under the names at the end of their addresses."""
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
  # The last file is missing. `probe` requests the first one only, so that it
  # succeeds if there are several files.
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
  """Answers requests as Google Drive does; returns its first pages by ID."""
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
  monkeypatch.setattr(Archives, 'probe', lambda self: None)  # not by requests
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


# Interrupted preparations.


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
  """Starts a process that waits after preparing one of MNIST's two splits."""
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
  tests = Path(published.__file__).parent
  paths = os.pathsep.join([str(tests), str(tests.parent)])
  with subprocess.Popen(
    [sys.executable, '-c', program],
    env=os.environ | {'PYTHONPATH': paths},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  ) as process:
    assert 'test\n' in process.stdout  # TFDS prints other lines
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
