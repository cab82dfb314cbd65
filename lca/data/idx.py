"""The idx format of MNIST and its relatives."""

import math
import struct

import numpy as np

_UNSIGNED_BYTE = 8


def parse(content: bytes) -> np.ndarray:
  """Reads an idx file of unsigned bytes.

  The header is two zero bytes, the element type, the number of dimensions, and
  each dimension as a big-endian 32-bit number.

  Args:
    content: The whole file, uncompressed.

  Returns:
    A read-only uint8 array of the header's shape.

  Raises:
    ValueError: Another element type, or a length that the header denies.

  Examples:
    >>> parse(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
    array([7, 9], dtype=uint8)
  """
  magic, num_dims = content[:3], content[3:4]
  if magic != bytes([0, 0, _UNSIGNED_BYTE]) or not num_dims:
    raise ValueError(
      f'not an idx file of unsigned bytes: it starts with {content[:4].hex()}'
    )
  start = 4 + 4 * num_dims[0]
  if len(content) < start:
    raise ValueError(f'an idx header of {start} bytes in {len(content)} bytes')
  shape = struct.unpack(f'>{num_dims[0]}I', content[4:start])
  if len(content) != start + math.prod(shape):
    raise ValueError(
      f'idx shape {shape} needs {start + math.prod(shape)} bytes, '
      f'got {len(content)}'
    )
  return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
