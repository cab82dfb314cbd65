"""Loads pretrained weights of other libraries into an EfficientNet.

Tensors are matched by their names and not by their order in the file: a
`.safetensors` file keeps no order, and tensors of equal shapes could be swapped
without an error.
"""

import os
import pathlib

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lca.models.pretrained.files import READERS, read
from lca.models.pretrained.names import names_of
from lca.typing import PyTree

HUB = {
  'efficientnet_b0': 'timm/efficientnet_b0.ra_in1k',
  'efficientnet_lite0': 'timm/tf_efficientnet_lite0.in1k',
}
"""Repositories on the Hugging Face hub that hold a `model.safetensors`.

The keys are sources for `load_pretrained`. The weights of `efficientnet_b0` are
the same as torchvision's.
"""


def load_pretrained(variables: PyTree, source: str | os.PathLike) -> PyTree:
  """Replaces the variables of an EfficientNet by those in a file.

  If the file has another number of classes than the model, the output layer is
  not loaded and stays as it is in `variables`: a new head for new classes.

  Args:
    variables: the variables of a `lca.models.EfficientNet`; they define which
      tensors must be in the file, and their shapes.
    source: a `.safetensors` or `.pth` file with the state of an EfficientNet of
      torchvision, timm or efficientnet_pytorch; or a key of `HUB`, which is
      downloaded by huggingface_hub.

  Returns:
    New variables of the same structure, shapes and dtypes.

  Raises:
    ValueError: the file does not exist or cannot be read, or it does not fit
      the model. The message names the first tensor that is missing, has no
      place in the model, or has another shape.
    ImportError: `source` is a key of `HUB`, and huggingface_hub is missing.
    OSError: `source` is a key of `HUB`, and cannot be downloaded.
  """
  path = find_pretrained(source)
  tensors = {
    name: tensor
    for name, tensor in read(path).items()
    if not name.endswith('.num_batches_tracked')
  }
  leaves = traverse_util.flatten_dict(variables)
  try:
    names = names_of(leaves, tensors)
    for name in names.values():
      if name not in tensors:
        raise ValueError(f'{name} is missing')
    if extra := sorted(set(tensors) - set(names.values())):
      raise ValueError(f'the model has no place for {extra[0]}')
    loaded = {
      leaf_path: _to_leaf(names[leaf_path], tensors, leaf_path, leaf)
      for leaf_path, leaf in leaves.items()
    }
  except ValueError as error:
    raise ValueError(f'{path} does not fit the model: {error}') from error
  return traverse_util.unflatten_dict(loaded)


def find_pretrained(source: str | os.PathLike) -> pathlib.Path:
  """Returns the path of a file of weights, after downloading it if needed.

  Args:
    source: a path or a key of `HUB`, as in `load_pretrained`.

  Raises:
    ValueError: the file does not exist, or its suffix is unknown.
    ImportError, OSError: see `load_pretrained`.
  """
  if source in HUB:
    try:
      import huggingface_hub
    except ImportError as error:
      raise ImportError(
        f'the weights {source!r} are downloaded by huggingface_hub, which is '
        'not installed: install it, or give the path of a file'
      ) from error
    try:
      path = pathlib.Path(
        huggingface_hub.hf_hub_download(HUB[source], 'model.safetensors')
      )
    except Exception as error:  # several libraries' errors may arrive here
      raise OSError(
        f'cannot download model.safetensors of {HUB[source]} from the Hugging '
        f'Face hub ({error}): give the path of a file'
      ) from error
  else:
    path = pathlib.Path(source).expanduser()
  if path.suffix not in READERS:
    raise ValueError(
      f'pretrained weights must be a {" or ".join(sorted(READERS))} file, or '
      f'one of {sorted(HUB)}, got {str(path)!r}'
    )
  if not path.is_file():
    raise ValueError(f'there is no file {str(path)!r}')
  return path


def _to_leaf(name, tensors, leaf_path, leaf):
  """Converts a tensor to the layout and dtype of a leaf of the variables.

  PyTorch's convolution kernels are `[out, in, height, width]`, Flax's
  `[height, width, in, out]`. PyTorch's dense kernels are `[out, in]`, Flax's
  `[in, out]`.

  Args:
    name: the name of the tensor.
    tensors: all tensors of the file.
    leaf_path: the path of the leaf in the variables.
    leaf: the leaf, which is returned unchanged if it belongs to the output
      layer and the file has another number of classes.

  Raises:
    ValueError: the tensor has another shape.
  """
  tensor = tensors[name]
  axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(leaf.ndim, (0,))
  shape = tuple(leaf.shape[axis] for axis in np.argsort(axes))
  needed = shape
  if leaf_path[1] == 'classifier':
    # Any number of classes will do, if the kernel and the bias agree on it.
    bias = tensors[f'{name.rpartition(".")[0]}.bias']
    needed = (bias.size, *shape[1:])
  if tensor.shape != needed:
    raise ValueError(f'{name} is {tensor.shape}, but {needed} is needed')
  if needed != shape:
    return leaf  # a new output layer for another number of classes
  return jnp.asarray(tensor.transpose(axes), leaf.dtype)
