"""Fixtures that load small archives in the published formats."""

import published
import pytest

from lca.data import load


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
  """Returns a function that writes the small archives and loads them.

  The function's keyword arguments change what is written.
  """

  def write_and_load(name, *, image_size=None, **changes):
    published.WRITERS[name](archive_dir, **changes)
    published.publish(monkeypatch, name, archive_dir)
    return load(
      name, data_dir=data_dir, archive_dir=archive_dir, image_size=image_size
    )

  return write_and_load
