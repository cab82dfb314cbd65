"""Tests of models that are made by name."""

import pytest

from configs import digits
from lca import models


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('hidden', (0,)),
    ('features', (8, 0)),
    ('pool', 'first'),
    ('padding', 'same'),
    ('dropout', (0.5, 1.0)),
    ('dropout', (0.5,)),
  ],
)
def test_impossible_options(key, value):
  config = digits.get_config('krum').model.to_dict() | {key: value}
  with pytest.raises(ValueError, match=rf'model\.{key} must be'):
    models.make(config, 10)


def test_unknown_model():
  with pytest.raises(ValueError, match=r"unknown model 'mlp'.*cnn"):
    models.make({'name': 'mlp'}, 10)
