"""Tests of EMNIST."""

import numpy as np
import published
import pytest


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
  # The image is a seven: one stroke at the top and one on the right.
  seven = np.zeros((28, 28), np.uint8)
  seven[4, 6:20] = 255
  seven[4:24, 19] = 255
  fields, _ = published.emnist_splits()
  # This is images(1, :) = seven(:)' in MATLAB: one column after the other.
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
