"""Weights that others have trained, into the variables of an EfficientNet.

Two formats are read, both without PyTorch: `.safetensors`, which is a table
and bytes, and PyTorch's `.pth`. The second one is a zip file with a pickle in
it, which may name any function to be called: the one that reads it here knows
dictionaries and arrays alone, and stops at every other name.

Tensors are matched by their names. Their order in a file would do for `.pth`,
but a `.safetensors` file keeps none, and equal shapes could be swapped unseen.
"""

import collections
import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lca.typing import PyTree

HUB = {
  'efficientnet_b0': 'timm/efficientnet_b0.ra_in1k',
  'efficientnet_lite0': 'timm/tf_efficientnet_lite0.in1k',
}
"""Repositories on the Hugging Face hub with a `model.safetensors`.

The weights of the first are those of torchvision's `efficientnet_b0`.
"""

Tensors = dict[str, np.ndarray]


def load_pretrained(variables: PyTree, source: str | os.PathLike) -> PyTree:
  """Replaces an EfficientNet's variables by those of a file.

  The output layer is loaded if it has as many classes as the model, and stays
  as it is in `variables` otherwise: a new head for other classes.

  Args:
    variables: of a `lca.models.EfficientNet`, which say what is to be there.
    source: a `.safetensors` or `.pth` file with the state of torchvision's,
      timm's or efficientnet_pytorch's model; or a name of `HUB`, to be
      downloaded by huggingface_hub.

  Returns:
    New variables of the same structure, shapes and dtypes.

  Raises:
    ValueError: the file is no such file, or does not fit: the first tensor
      that is missing, too many or of another shape is named.
    ImportError: a name of `HUB` without huggingface_hub.
    OSError: a name of `HUB` that cannot be downloaded.
  """
  path = find_pretrained(source)
  tensors = {
    name: tensor
    for name, tensor in _read(path).items()
    if not name.endswith('.num_batches_tracked')
  }
  leaves = traverse_util.flatten_dict(variables)
  try:
    names = _names(leaves, tensors)
    _check_names(names.values(), tensors)
    loaded = {
      path: _converted(names[path], tensors, path, leaf)
      for path, leaf in leaves.items()
    }
  except ValueError as error:
    raise ValueError(f'{path} does not fit the model: {error}') from error
  return traverse_util.unflatten_dict(loaded)


def find_pretrained(source: str | os.PathLike) -> pathlib.Path:
  """The file of `load_pretrained`'s source, downloaded if that is a name.

  Raises:
    ValueError: there is no such file, or none of this kind can be read.
    ImportError, OSError: see `load_pretrained`.
  """
  if source in HUB:
    path = _download(source)
  else:
    path = pathlib.Path(source).expanduser()
  if path.suffix not in _READERS:
    raise ValueError(
      f'weights are a file {" or ".join(sorted(_READERS))}, or one of '
      f'{sorted(HUB)}; got {str(path)!r}'
    )
  if not path.is_file():
    raise ValueError(f'there is no file {str(path)!r}')
  return path


def _download(name):
  try:
    import huggingface_hub
  except ImportError as error:
    raise ImportError(
      f'the weights {name!r} are downloaded by huggingface_hub, which is not '
      'installed: install it, or give the path of a file'
    ) from error
  try:
    path = huggingface_hub.hf_hub_download(HUB[name], 'model.safetensors')
  except Exception as error:  # of several libraries below it
    raise OSError(
      f'cannot download model.safetensors of {HUB[name]} from the Hugging Face '
      f'hub ({error}): give the path of a file'
    ) from error
  return pathlib.Path(path)


# Reading.


def _read(path: pathlib.Path) -> Tensors:
  try:
    return _READERS[path.suffix](path)
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


# Names.


class _Naming(NamedTuple):
  """What a library calls a network's modules.

  Attributes:
    stem: convolution and normalisation.
    head: the same.
    classifier: the output layer.
    block: from stage (from 1), index in it, index in the network, and the
      block's parts, to two names for each part.
  """

  stem: tuple[str, str]
  head: tuple[str, str]
  classifier: str
  block: Callable[[int, int, int, Sequence[str]], Iterator[str]]


def _torchvision_block(stage, index, _, parts):
  for i, part in enumerate(parts):
    for name in ('fc1', 'fc2') if part == 'squeeze' else ('0', '1'):
      yield f'features.{stage}.{index}.block.{i}.{name}'


def _timm_block(stage, index, _, parts):
  convs = ('conv_dw', 'conv_pw')
  if 'expand' in parts:
    convs = ('conv_pw', 'conv_dw', 'conv_pwl')
  pairs = zip(convs, ('bn1', 'bn2', 'bn3'), strict=False)
  for part in parts:
    squeeze = ('se.conv_reduce', 'se.conv_expand')
    for name in squeeze if part == 'squeeze' else next(pairs):
      yield f'blocks.{stage - 1}.{index}.{name}'


_OF_PARTS = {
  'expand': ('_expand_conv', '_bn0'),
  'depthwise': ('_depthwise_conv', '_bn1'),
  'squeeze': ('_se_reduce', '_se_expand'),
  'project': ('_project_conv', '_bn2'),
}


def _efficientnet_pytorch_block(_, __, place, parts):
  for part in parts:
    for name in _OF_PARTS[part]:
      yield f'_blocks.{place}.{name}'


_NAMINGS = {
  'torchvision': _Naming(
    stem=('features.0.0', 'features.0.1'),
    head=('features.8.0', 'features.8.1'),
    classifier='classifier.1',
    block=_torchvision_block,
  ),
  'timm': _Naming(
    stem=('conv_stem', 'bn1'),
    head=('conv_head', 'bn2'),
    classifier='classifier',
    block=_timm_block,
  ),
  'efficientnet_pytorch': _Naming(
    stem=('_conv_stem', '_bn0'),
    head=('_conv_head', '_bn1'),
    classifier='_fc',
    block=_efficientnet_pytorch_block,
  ),
}

_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


def _names(leaves, tensors):
  """The name of every leaf's tensor, from the leaf's path."""
  for naming in _NAMINGS.values():
    if f'{naming.stem[0]}.weight' in tensors:
      break
  else:
    first = next(iter(sorted(tensors)), None)
    raise ValueError(
      f'its names, such as {first!r}, are not those of {sorted(_NAMINGS)}'
    )
  modules = _module_names({path[1:-1] for path in leaves}, naming)
  unknown = [path for path in leaves if path[1:-1] not in modules]
  if unknown:
    raise ValueError(f'no EfficientNet has {"/".join(unknown[0])}')
  return {path: f'{modules[path[1:-1]]}.{_LEAVES[path[-1]]}' for path in leaves}


def _module_names(paths, naming):
  """From the paths of modules, without their collection, to names."""
  pair = ('conv', 'norm')
  names = {('classifier',): naming.classifier}
  for end in ('stem', 'head'):
    names |= {
      (end, kind): name
      for kind, name in zip(pair, getattr(naming, end), strict=True)
    }
  blocks = sorted({path[0] for path in paths if path[0].startswith('block')})
  for place, block in enumerate(blocks):
    stage, index = map(int, block.removeprefix('block').split('_'))
    parts = [
      part
      for part in _OF_PARTS  # which stand in the network's order
      if any(path[:2] == (block, part) for path in paths)
    ]
    ours = [
      (block, part, kind)
      for part in parts
      for kind in (('reduce', 'expand') if part == 'squeeze' else pair)
    ]
    theirs = naming.block(stage, index, place, parts)
    names |= dict(zip(ours, theirs, strict=True))
  return names


def _check_names(needed, tensors):
  for name in needed:
    if name not in tensors:
      raise ValueError(f'{name} is missing')
  extra = sorted(set(tensors) - set(needed))
  if extra:
    raise ValueError(f'the model has no place for {extra[0]}')


def _converted(name, tensors, path, leaf):
  """A tensor as this leaf: PyTorch puts the output channels first."""
  tensor = tensors[name]
  axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(leaf.ndim, (0,))
  shape = tuple(leaf.shape[axis] for axis in np.argsort(axes))
  needed = shape
  if path[1] == 'classifier':  # of any number of classes, but one
    bias = tensors[f'{name.rpartition(".")[0]}.bias']
    needed = (bias.size, *shape[1:])
  if tensor.shape != needed:
    raise ValueError(f'{name} is {tensor.shape}, but {needed} is needed')
  if needed != shape:
    return leaf  # the new head
  return jnp.asarray(tensor.transpose(axes), leaf.dtype)


_READERS = {'.safetensors': _read_safetensors, '.pth': _read_pth}
