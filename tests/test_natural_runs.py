"""Runs whose clients are the writers or people named in the data."""

import csv

import numpy as np
import published
import pytest

from configs import celeba, emnist
from lca.experiment import train


@pytest.fixture
def config(monkeypatch, tmp_path):
  """Returns a config for EMNIST with 6 writers of 2 images each."""
  fields, _ = published.emnist_splits()
  fields['train']['writers'] = np.arange(12.0)[:, None] % 6
  published.write_emnist(tmp_path, dataset=fields)
  published.publish(monkeypatch, 'emnist', tmp_path)
  config = emnist.get_config('krum,non_iid,model_replacement')
  small = {
    'num_rounds': 1,
    'data.archive_dir': str(tmp_path),
    'data.data_dir': str(tmp_path / 'data'),
    'data.min_examples': 2,
    'model.features': (2,),
    'model.hidden': (4,),
    'client.batch_size': 2,
    'client.local_epochs': 1,
    'server.clients_per_round': 5,
  }
  config.update_from_flattened_dict(small)
  return config


def test_a_fifth_of_the_writers_found_attack(config, tmp_path):
  # One of the 6 writers attacks. A round draws it and 4 of the 5 others.
  train.train_and_evaluate(config, tmp_path / 'run')
  with open(tmp_path / 'run' / 'metrics.csv') as file:
    (row,) = csv.DictReader(file)
  assert row['byzantine'] == '1'
  config.attack.num_attackers = 3
  with pytest.raises(ValueError, match='4 honest clients, but there are 3: 6'):
    train.set_up(config, tmp_path / 'another run')


def test_what_needs_no_data_is_checked_before_they_are_prepared(
  config, tmp_path
):
  config.data.archive_dir = str(tmp_path / 'none')
  with pytest.raises(FileNotFoundError):
    train.set_up(config, tmp_path / 'run')
  config.attack.num_byzantine = 6
  with pytest.raises(ValueError, match='clients_per_round=5'):
    train.set_up(config, tmp_path / 'run')


@pytest.mark.thorough  # its compilations alone take two minutes
def test_a_round_of_efficientnet_on_celebas_people(monkeypatch, tmp_path):
  people = published.celeba_identities([3, 4, 2, 3, 4, 2])
  published.write_celeba(tmp_path, examples=people)
  published.publish(monkeypatch, 'celeba', tmp_path)
  config = celeba.get_config(
    'layerwise_cosine_geomed,non_iid,model_replacement'
  )
  small = {
    'num_rounds': 1,
    'data.archive_dir': str(tmp_path),
    'data.data_dir': str(tmp_path / 'data'),
    'data.image_size': 64,
    'data.min_examples': 3,
    'model.pretrained': '',
    'model.resize': 0,
    'model.crop': 0,
    'client.batch_size': 4,
    'client.local_epochs': 1,
    'server.clients_per_round': 4,
    'attack.num_attackers': 1,
  }
  config.update_from_flattened_dict(small)
  train.train_and_evaluate(config, tmp_path / 'run')
  with open(tmp_path / 'run' / 'metrics.csv') as file:
    (row,) = csv.DictReader(file)
  assert row['byzantine'] == '1'
  assert float(row['floored']).is_integer()
  assert np.isfinite(float(row['train_loss']))
  assert np.isfinite(float(row['test_loss']))
