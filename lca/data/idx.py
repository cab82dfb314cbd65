"""Parsing of idx, the file format of MNIST and its successors."""

import math
import struct

import numpy as np

_UNSIGNED_BYTE = 8


def parse(content: bytes) -> np.ndarray:
  """Parses the content of an idx file of unsigned bytes.

  The header consists of two zero bytes, a byte with the element type, a byte
  with the number of dimensions, and every dimension as a big-endian 32-bit
  integer. The elements follow in row-major order.

  Args:
    content: the whole file, uncompressed.

  Returns:
    A read-only uint8 array of the shape in the header.

  Raises:
    ValueError: the elements are of another type, or the file's length does not
      agree with the shape in the header.

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
    raise ValueError(
      f'the idx header needs {start} bytes, but the file has {len(content)}'
    )
  shape = struct.unpack(f'>{num_dims[0]}I', content[4:start])
  if len(content) != start + math.prod(shape):
    raise ValueError(
      f'idx shape {shape} needs {start + math.prod(shape)} bytes, '
      f'got {len(content)}'
    )
  return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
