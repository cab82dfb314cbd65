"""Tests of a registered data set's own options as keys of `config.data`."""

import numpy as np
import pytest

from configs import digits
from lca import data
from lca.experiment import describe, settings


def config(**changes):
  config = digits.get_config('krum,label_flipping').unlock()
  small = {'model.features': (2,), 'model.hidden': (), 'parallel.mesh': 1}
  config.update_from_flattened_dict(small | changes)
  return config


def points(*, size: int = 30, spread: float = 1.0):
  rng = np.random.default_rng(0)
  inputs = spread * rng.normal(size=(size, 4, 4, 1))
  split = inputs, np.arange(size) % 3
  return data.from_arrays(split, split)


def test_options_of_a_registered_data_set_are_keys(monkeypatch):
  monkeypatch.setitem(data.SOURCES, 'points', points)
  changes = {
    'data.name': 'points',
    'data.min_examples': 1,
    'server.clients_per_round': 20,
  }
  made = settings.from_config(config(**changes, **{'data.size': 80}))
  parts = made.parts()
  assert len(parts.data.dataset.train) == 80
  assert made.config['data']['size'] == 80
  (line,) = describe.lines(made.config, parts)
  assert ' on points (size=80), iid; ' in line
  with pytest.raises(TypeError, match=r'takes no sizes; .*size'):
    settings.from_config(config(**changes, **{'data.sizes': 80}))
  # Without the data set that has it, nobody knows the key.
  with pytest.raises(TypeError, match='takes no size;'):
    settings.from_config(config(**{'data.size': 80}))


def test_an_option_of_a_data_set_may_not_take_a_shared_name(monkeypatch):
  monkeypatch.setitem(data.SOURCES, 'points', lambda *, num_clients=3: points())
  message = "'points' has the options num_clients, .*rename"
  with pytest.raises(TypeError, match=message):
    settings.from_config(config(**{'data.name': 'points'}))
