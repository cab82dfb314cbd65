"""Reads tensors from files of weights, without PyTorch.

A `.pth` file contains a pickle. A pickle from an untrusted source is dangerous,
because loading it may call any function. The unpickler here therefore knows
dictionaries and arrays only, and raises an error for every other name.
"""

import collections
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import safetensors

Tensors = dict[str, np.ndarray]


def read(path: pathlib.Path) -> Tensors:
  """Returns the tensors of a file by their names.

  Args:
    path: a file whose suffix is a key of `READERS`.

  Raises:
    ValueError: the content is not that of a file of this suffix.
  """
  try:
    return READERS[path.suffix](path)
  except Exception as error:  # damaged bytes may raise anything in a parser
    raise ValueError(
      f'{path} is not a valid {path.suffix} file: {error}'
    ) from error


def _read_safetensors(path):
  """Reads a `.safetensors` file."""
  with safetensors.safe_open(path, 'np') as opened:
    return {name: opened.get_tensor(name) for name in opened.keys()}


def _read_pth(path):
  """Reads PyTorch's state_dict, in the format before or since version 1.6."""
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
  """Reads the format since version 1.6: a zip file.

  It contains a pickle of the tensors, which refer to arrays by their keys, and
  one file with the bytes of each array.
  """
  with zipfile.ZipFile(path) as archive:
    [pickled] = [n for n in archive.namelist() if n.endswith('/data.pkl')]
    folder = pickled.removesuffix('data.pkl')

    def storage(dtype, key, _):
      return np.frombuffer(archive.read(f'{folder}data/{key}'), dtype)

    with archive.open(pickled) as file:
      return _Unpickler(file, storage).load()


def _read_legacy(path):
  """Reads the format before version 1.6: five pickles, and then the arrays.

  The pickles hold a magic number, a version, facts about the machine, the
  tensors, and the keys of the arrays. The arrays follow in the order of these
  keys, and each one is preceded by its size in eight bytes.
  """
  # The tensors come before the arrays' content: they are made as views of empty
  # arrays, which are filled at the end.
  storages = {}

  def storage(dtype, key, size):
    return storages.setdefault(key, np.empty(size, dtype))

  with path.open('rb') as file:
    *_, tensors, keys = (_Unpickler(file, storage).load() for _ in range(5))
    for key in keys:
      array = storages[key]
      file.seek(8, os.SEEK_CUR)  # the size, which is known already
      array[:] = np.frombuffer(file.read(array.nbytes), array.dtype)
  return tensors


class _Unpickler(pickle.Unpickler):
  """An unpickler that can make dictionaries and arrays, and nothing else.

  A pickle can call only functions that `find_class` returns, and `find_class`
  refuses all names but those needed for tensors.

  Args:
    file: the pickle.
    storage: returns an array's numbers from their dtype, key and size.
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
      raise pickle.UnpicklingError(
        f'{module}.{name} is refused: only dictionaries and tensors are read'
      )
    return self._known[module, name]

  def persistent_load(self, pid):
    """Returns the array that a tensor refers to."""
    _, dtype, key, _, size, *_ = pid
    return self._storage(dtype, key, size)


def _tensor(storage, offset, shape, strides, *_):
  """Returns a tensor as a strided view of its storage.

  Raises:
    ValueError: the view would reach beyond the storage, into other memory.
  """
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
"""Functions that read the tensors of a file, by the file's suffix."""
