"""Weights that others have trained, into the variables of an EfficientNet.

Tensors are matched by their names. Their order in a file would do for `.pth`,
but a `.safetensors` file keeps none, and equal shapes could be swapped unseen.
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
"""Repositories on the Hugging Face hub with a `model.safetensors`.

The weights of the first are those of torchvision's `efficientnet_b0`.
"""


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
      path: _converted(names[path], tensors, path, leaf)
      for path, leaf in leaves.items()
    }
  except ValueError as error:
    raise ValueError(f'{path} does not fit the model: {error}') from error
  return traverse_util.unflatten_dict(loaded)


def find_pretrained(source: str | os.PathLike) -> pathlib.Path:
  """Returns the file of `load_pretrained`'s source, downloaded if it is a name.

  Raises:
    ValueError: there is no such file, or none of this kind can be read.
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
    except Exception as error:  # of several libraries below it
      raise OSError(
        f'cannot download model.safetensors of {HUB[source]} from the Hugging '
        f'Face hub ({error}): give the path of a file'
      ) from error
  else:
    path = pathlib.Path(source).expanduser()
  if path.suffix not in READERS:
    raise ValueError(
      f'weights are a file {" or ".join(sorted(READERS))}, or one of '
      f'{sorted(HUB)}; got {str(path)!r}'
    )
  if not path.is_file():
    raise ValueError(f'there is no file {str(path)!r}')
  return path


def _converted(name, tensors, path, leaf):
  """Returns a tensor as this leaf; PyTorch puts the output channels first."""
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
