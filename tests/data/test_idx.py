"""Tests of the idx parser."""

import struct

import numpy as np
import pytest

from lca.data import idx


def encode(array):
  header = bytes([0, 0, 8, array.ndim])
  return header + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()


@pytest.mark.parametrize('shape', [(5,), (2, 3, 4), (300, 1, 2), (0, 28, 28)])
def test_round_trip(shape):
  size = int(np.prod(shape))
  array = (np.arange(size) % 256).astype(np.uint8).reshape(shape)
  parsed = idx.parse(encode(array))
  assert parsed.dtype == np.uint8 and parsed.shape == shape
  np.testing.assert_array_equal(parsed, array)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'not an idx file'),
    (bytes([0, 0, 8]), 'not an idx file'),
    (bytes([0, 0, 13, 1, 0, 0, 0, 1, 7]), 'starts with 00000d01'),
    (b'\x1f\x8b\x08\x08', 'starts with 1f8b0808'),
    (bytes([0, 0, 8, 2, 0, 0, 0, 1]), 'needs 12 bytes, but .* 8'),
    (bytes([0, 0, 8, 1, 0, 0, 0, 2, 7]), 'needs 10 bytes, got 9'),
    (bytes([0, 0, 8, 1, 0, 0, 0, 1, 7, 7]), 'needs 9 bytes, got 10'),
  ],
)
def test_refuses(content, message):
  with pytest.raises(ValueError, match=message):
    idx.parse(content)
