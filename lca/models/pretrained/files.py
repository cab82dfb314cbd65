"""Tensors out of files of weights, read without PyTorch.

A `.safetensors` file is a table and bytes. A `.pth` file is a zip file with a
pickle in it, which may name any function to be called: the one that reads it
here knows dictionaries and arrays alone, and stops at every other name.
"""

import collections
import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import BinaryIO

import jax.numpy as jnp
import numpy as np

Tensors = dict[str, np.ndarray]


def read(path: pathlib.Path) -> Tensors:
  """Returns a file's tensors by their names.

  Raises:
    ValueError: it is no such file.
  """
  try:
    return READERS[path.suffix](path)
  except Exception as error:  # what bytes can do to a parser has no end
    raise ValueError(f'{path} is no {path.suffix} file: {error}') from error


_SAFETENSORS = {
  'F64': '<f8',
  'F32': '<f4',
  'F16': '<f2',
  'BF16': jnp.bfloat16,
  'I64': '<i8',
}


def _read_safetensors(path):
  """Eight bytes of the header's size, the header as JSON, and the arrays."""
  data = path.read_bytes()
  start = 8 + int.from_bytes(data[:8], 'little')
  header = json.loads(data[8:start])
  header.pop('__metadata__', None)
  body = memoryview(data)[start:]

  def array(dtype, shape, data_offsets):
    bytes_of_it = body[slice(*data_offsets)]
    return np.frombuffer(bytes_of_it, _SAFETENSORS[dtype]).reshape(shape)

  return {name: array(**entry) for name, entry in header.items()}


def _read_pth(path):
  """PyTorch's state_dict, in today's format or in that before version 1.6."""
  if zipfile.is_zipfile(path):
    tensors = _read_zipped(path)
  else:
    tensors = _read_legacy(path)
  if not isinstance(tensors, dict):
    raise ValueError(f'it holds a {type(tensors).__name__}, not a state_dict')
  for name, tensor in tensors.items():
    if not isinstance(tensor, np.ndarray):
      raise ValueError(f'{name!r} is a {type(tensor).__name__}, not a tensor')
  return dict(tensors)


def _read_zipped(path):
  """A zip file with a pickle, and a file for each array."""
  with zipfile.ZipFile(path) as archive:
    [pickled] = [n for n in archive.namelist() if n.endswith('/data.pkl')]
    folder = pickled.removesuffix('data.pkl')

    def storage(dtype, key, _):
      return np.frombuffer(archive.read(f'{folder}data/{key}'), dtype)

    with archive.open(pickled) as file:
      return _Unpickler(file, storage).load()


def _read_legacy(path):
  """Pickles after each other, then arrays in an order that the last one tells.

  The pickles are a magic number, a version, facts about the machine, the
  tensors, and the keys of the arrays, each of which starts with its size.
  """
  storages = {}

  def storage(dtype, key, size):
    return storages.setdefault(key, np.empty(size, dtype))

  with path.open('rb') as file:
    *_, tensors, keys = (_Unpickler(file, storage).load() for _ in range(5))
    for key in keys:
      array = storages[key]
      file.seek(8, os.SEEK_CUR)
      array[:] = np.frombuffer(file.read(array.nbytes), array.dtype)
  return tensors


class _Unpickler(pickle.Unpickler):
  """Makes dictionaries and arrays, and nothing else.

  A pickle reaches code through `find_class` alone.
  """

  def __init__(self, file: BinaryIO, storage: Callable[..., np.ndarray]):
    super().__init__(file)
    self._storage = storage
    self._known = {
      ('collections', 'OrderedDict'): collections.OrderedDict,
      ('torch._utils', '_rebuild_tensor_v2'): _tensor,
      ('torch', 'DoubleStorage'): np.dtype('<f8'),
      ('torch', 'FloatStorage'): np.dtype('<f4'),
      ('torch', 'HalfStorage'): np.dtype('<f2'),
      ('torch', 'LongStorage'): np.dtype('<i8'),
    }

  def find_class(self, module, name):
    if (module, name) not in self._known:
      raise pickle.UnpicklingError(f'{module}.{name} is no part of a tensor')
    return self._known[module, name]

  def persistent_load(self, pid):
    _, dtype, key, _, size, *_ = pid
    return self._storage(dtype, key, size)


def _tensor(storage, offset, shape, strides, *_):
  """A view that stays inside its storage."""
  pairs = list(zip(shape, strides, strict=True))
  last = offset + sum((size - 1) * stride for size, stride in pairs)
  positive = all(size > 0 and stride >= 0 for size, stride in pairs)
  if not (positive and 0 <= offset <= last < storage.size):
    raise ValueError(
      f'a tensor of shape {shape}, strides {strides} from {offset} is not '
      f'inside its {storage.size} numbers'
    )
  return np.lib.stride_tricks.as_strided(
    storage[offset:], shape, [stride * storage.itemsize for stride in strides]
  )


READERS: dict[str, Callable[[pathlib.Path], Tensors]] = {
  '.safetensors': _read_safetensors,
  '.pth': _read_pth,
}
"""Functions that read a file, by its suffix."""
