"""Tests that a failing download is given up soon."""

import time

import pytest

from lca.data import prepared


def test_a_host_out_of_reach_is_given_up_soon(tmp_path, monkeypatch):
  for name in ('http_proxy', 'https_proxy', 'all_proxy'):
    monkeypatch.setenv(name, 'http://127.0.0.1:9')  # a closed port
  monkeypatch.setenv('no_proxy', '')
  begun = time.monotonic()
  with pytest.raises(ConnectionError, match=r'download kmnist.*data_dir'):
    prepared.load_tfds('kmnist', data_dir=tmp_path, archive_dir=None)
  assert time.monotonic() - begun < 60
